"""Many at once: whoever can't be served is told to come again, and what was accepted ends."""

import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import Answer, parsed, peak_bytes, pid_of, port_of, refused, still_well
from tests.factories import picture

pytestmark = pytest.mark.timeout(180)
DEPTH = 100
PAUSE_MS = 500  # as a slow disk makes Redis wait


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two nodes that need no time, behind a short queue."""
    folder = tmp_path_factory.mktemp("crowded") / "data"
    up = start_fleet(folder, "--nodes", "2", "--job-seconds", "0", env={"FLEET_QUEUE_DEPTH": str(DEPTH)})
    yield up
    stop_fleet(up)


async def all_at_once(up: Up, requests: list[bytes]) -> list[Answer]:
    """Open a connection for each request, and have all of them reach Redis while it is slow for a moment."""
    streams = [await asyncio.open_connection("127.0.0.1", port_of(up)) for _ in requests]
    for (_, writer), request in zip(streams, requests, strict=True):
        writer.write(request[:-1])
        await writer.drain()
    async with Redis(unix_socket_path=str(up.data / "redis" / "redis.sock")) as redis:
        await redis.client_pause(PAUSE_MS)
    for (_, writer), request in zip(streams, requests, strict=True):
        writer.write(request[-1:])

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        answer = parsed(await reader.read())
        writer.close()
        return answer

    return await asyncio.gather(*(one(*stream) for stream in streams))


def request(up: Up, method: str, path: str, body: object = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port_of(up)}", "Connection: close"]
    if data:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def submits(up: Up, count: int) -> list[bytes]:
    return [request(up, "POST", "/api/v2/jobs", {"workflow": picture(color)}) for color in range(count)]


def in_order(answers: list[Answer]) -> list[dict[str, Any]]:
    """Hold answers against what a crowd may be told; return those that succeeded."""
    served = []
    for answer in answers:
        if answer.status in (200, 201):
            served.append(json.loads(answer.body))
        else:
            refused(answer, 429, 503)
            assert int(answer.headers["retry-after"]) >= 1
    return served


def all_end(up: Up, jobs: list[dict[str, Any]]) -> None:
    deadline = time.monotonic() + 120
    with httpx.Client(base_url=up.url) as client:
        for job in jobs:
            while not (seen := client.get(f"/api/v2/jobs/{job['id']}").json())["completed_at"]:
                assert time.monotonic() < deadline, seen
                time.sleep(0.05)
            assert seen["status"] == "succeeded"


@pytest.mark.parametrize("count", [100, 800])
def test_submits_at_once_are_accepted_or_told_to_come_again(crowded: Up, count: int) -> None:
    answers = asyncio.run(all_at_once(crowded, submits(crowded, count)))
    accepted = in_order(answers)
    assert accepted, Counter(answer.status for answer in answers)
    all_end(crowded, accepted)
    still_well(crowded)


def test_lists_and_looks_at_once_are_answered_or_told_to_come_again(crowded: Up) -> None:
    lists = [request(crowded, "GET", "/api/v2/jobs?limit=100")] * 200
    looks = [request(crowded, "GET", "/api/v1/jobs")] * 100
    assert in_order(asyncio.run(all_at_once(crowded, lists + looks)))
    still_well(crowded)


def test_cancels_and_health_checks_are_not_turned_away_by_a_crowd(crowded: Up) -> None:
    job = httpx.post(f"{crowded.url}/api/v2/jobs", json={"workflow": picture(1)}).json()
    health = [request(crowded, "GET", "/health")] * 20
    cancels = [request(crowded, "POST", f"/api/v1/jobs/{job['id']}/cancel")] * 20
    crowd = submits(crowded, 400)
    answers = asyncio.run(all_at_once(crowded, [*crowd, *health, *cancels]))
    assert [answer.raw for answer in answers[len(crowd) :] if answer.status != 200] == []
    all_end(crowded, in_order(answers[: len(crowd)]))


def test_ten_times_what_the_nodes_can_do_is_refused_in_order_and_all_that_was_taken_ends(crowded: Up) -> None:
    """Everybody sends on without a pause until most are told to come again."""
    taken: list[dict[str, Any]] = []
    told: Counter[int] = Counter()

    async def sends(client: httpx.AsyncClient, number: int) -> None:
        while told[429] < 5 * DEPTH and sum(told.values()) < 200 * DEPTH:
            number += 100
            answer = await client.post("/api/v2/jobs", json={"workflow": picture(number)})
            told[answer.status_code] += 1
            if answer.status_code == 201:
                taken.append(answer.json())
                continue
            assert answer.status_code in (429, 503), answer.text
            assert int(answer.headers["Retry-After"]) >= 1

    async def all_send() -> None:
        async with httpx.AsyncClient(base_url=crowded.url, timeout=60) as client:
            await asyncio.gather(*(sends(client, number) for number in range(50)))

    asyncio.run(all_send())
    assert told[429] >= 5 * DEPTH and taken, told
    all_end(crowded, taken)
    still_well(crowded)


@pytest.mark.parametrize("process", ["api", "dispatch"])
def test_who_has_no_file_descriptors_left_loses_nothing_and_recovers(crowded: Up, process: str) -> None:
    pid = pid_of(crowded, process)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    open_now = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now, before[1]))
    try:
        answers = asyncio.run(all_at_once(crowded, submits(crowded, 60)))
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    accepted = []
    for answer in answers:
        if answer.status == 201:
            accepted.append(json.loads(answer.body))
        else:
            assert answer.status in (429, 502, 503), answer.raw[:300]
            assert int(answer.headers["retry-after"]) >= 1
    all_end(crowded, accepted)
    still_well(crowded)


def test_lists_of_jobs_with_very_many_outputs_need_little_memory(crowded: Up) -> None:
    async def many_outputs() -> list[Answer]:
        async with Redis(unix_socket_path=str(crowded.data / "redis" / "redis.sock")) as client:
            redis: Any = client
            for job_id in await redis.zrevrange("fleet:jobs", 0, 4):
                key = f"fleet:job:{job_id.decode()}:outputs"
                (one,) = await redis.hvals(key)
                await redis.hset(key, mapping={str(n): one for n in range(24_576)})
        lists = [request(crowded, "GET", f"/api/{face}/jobs?limit=5") for face in ("v1", "v2")]
        return await all_at_once(crowded, 20 * lists)

    answers = asyncio.run(many_outputs())
    assert {answer.status for answer in answers} == {200}
    (first, *_) = json.loads(answers[0].body)["jobs"]
    assert first["outputs"] == [] and first["output_count"] > 24_000
    assert peak_bytes(crowded, "api") < 200_000_000
    still_well(crowded)
