"""Submits that wait, through a real edge: odd requests, hang-ups in each phase, readers that don't read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from tests.factories import picture
from tests.fakes.nodes import FakeNodeRegistry
from tests.fleet import until
from tests.integration import haproxy_kit
from tests.integration.api_kit import Api, running

V2 = "/api/v2/jobs"
PATIENCE_S = 30.0


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    """An API that works on four requests at a time, with 300 places for those that wait."""
    async with running(redis_port, tmp_path / "data", max_requests=4, max_streams=300) as started:
        await started.add_node(info=False)
        yield started


@pytest.fixture
async def edge(api: Api, tmp_path: Path) -> AsyncIterator[int]:
    """The port of a real edge in front of it."""
    folder = tmp_path / "e"
    folder.mkdir()
    settings = haproxy_kit.make_settings(folder, api_port=httpx.URL(api.url).port, max_requests=4)
    async with haproxy_kit.running(folder, FakeNodeRegistry([]), settings=settings):
        yield settings.port


def _request(number: int, *headers: str, query: str = "wait=60", version: str = "1.1") -> bytes:
    body = orjson.dumps({"workflow": picture(number)})
    lines = [f"POST {V2}?{query} HTTP/{version}", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


async def _send(port: int, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """Read one answer: status, headers by their name in lower case, JSON."""
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in head[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, orjson.loads(body) if body else None


async def _jobs(api: Api) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.client.get("/api/v1/jobs?limit=100")).json()["jobs"]
    return found


async def _waits(api: Api, number: int) -> None:
    async def waiting() -> bool:
        return api.deps.waits.total() == number

    await until(waiting, what=f"{number} submits wait", timeout_s=PATIENCE_S)


@pytest.mark.parametrize("query", ["wait=60", "%77ait=60", "w%61it=1&wai%74=60", "x=%zz&%57&%77%61%69%74=60"])
async def test_however_its_wait_is_written_a_submit_holds_no_others_place(
    api: Api, edge: int, query: str
) -> None:
    many = [await _send(edge, _request(number, query=query)) for number in range(30)]
    await _waits(api, 30)
    reader, writer = await _send(edge, b"GET /api/v1/queue HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await _answer(reader))[0] == 200
    for _, other in [*many, (reader, writer)]:
        await _hang_up(other)
    await _waits(api, 0)
    assert {job["status"] for job in await _jobs(api)} == {"queued"}


FORMS: tuple[tuple[list[str], str | None], ...] = (
    (["Prefer: wait=1"], "wait=1"),
    (["prefer: WAIT=1; foo=bar"], "wait=1"),
    (["Prefer: return=minimal, wait=1, handling=lenient"], "wait=1"),
    (['Prefer: a="x, wait=9", wait="1"'], "wait=1"),
    (["Prefer: respond-async", "Prefer: wait=1"], "wait=1, respond-async"),
    (["Prefer: wait=1", "Prefer: wait=90"], "wait=1"),
    (["Prefer: wait=0"], None),
    (["Prefer: no-wait"], None),
    (["Prefer:"], None),
)


async def test_each_form_of_the_header(api: Api, edge: int) -> None:
    for version in ("1.0", "1.1"):
        sent = [
            await _send(edge, _request(number, *prefers, query="", version=version))
            for number, (prefers, _) in enumerate(FORMS)
        ]
        for (reader, writer), (prefers, applied) in zip(sent, FORMS, strict=True):
            status, headers, job = await _answer(reader)
            assert (status, job["status"]) == (201, "queued"), prefers
            assert headers.get("preference-applied") == applied, prefers
            if version == "1.0":
                assert await reader.read() == b""  # the connection ends with the answer
            await _hang_up(writer)
    for value in ("-1", "1e9", "9999999999", "soon"):
        reader, writer = await _send(edge, _request(90, f"Prefer: wait={value}", query=""))
        status, _, error = await _answer(reader)
        assert (status, error["error"]["details"]) == (400, {"field": "Prefer"}), value
        await _hang_up(writer)
    assert len(await _jobs(api)) == 2 * len(FORMS)


async def test_a_client_of_http_1_0_waits_as_others_do(api: Api, edge: int) -> None:
    reader, writer = await _send(edge, _request(0, version="1.0"))
    await _waits(api, 1)
    [job] = await _jobs(api)
    await api.finish(await api.claim(job["id"]))
    status, _, ended = await _answer(reader)
    assert (status, ended["id"], ended["status"]) == (200, job["id"], "succeeded")
    await _hang_up(writer)


async def test_what_does_not_submit_does_not_wait(api: Api, edge: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{edge}", timeout=PATIENCE_S) as client:
        for method in ("PUT", "OPTIONS", "PATCH", "DELETE"):
            answer = await client.request(method, V2, params={"wait": 60}, headers={"Prefer": "wait=60"})
            assert answer.status_code in (404, 405), (method, answer.text)
        for method in ("GET", "HEAD"):
            answer = await client.request(method, V2, params={"wait": 60}, headers={"Prefer": "wait=60"})
            assert answer.status_code == 200
    assert await _jobs(api) == []


async def test_whoever_hangs_up_in_whatever_phase_leaves_one_job_or_none(api: Api, edge: int) -> None:
    whole = _request(0)
    head = whole.index(b"\r\n\r\n") + 4
    for cut in (20, head, head + 10, len(whole) - 1):  # no request has come
        _, writer = await _send(edge, whole[:cut])
        await _hang_up(writer)
    # Whether the edge has handed them on by then is open.
    for number in range(1, 21):
        query = "wait=60" if number % 2 else "wait=60&cancel_on_disconnect=true"
        _, writer = await _send(edge, _request(number, query=query))
        await _hang_up(writer)
    _, late = await _send(edge, _request(21, query="wait=60&cancel_on_disconnect=true"))
    await _waits(api, 1)
    await _hang_up(late)
    await _waits(api, 0)

    found = await _jobs(api)
    assert 1 <= len(found) <= 21
    assert found[0]["status"] == "canceled"
    assert sum(job["status"] == "queued" for job in found) <= 10
    reader, writer = await _send(edge, _request(30, query="wait=1"))
    assert (await _answer(reader))[0] == 201  # all goes on
    await _hang_up(writer)


async def test_a_reader_that_does_not_read_keeps_nobody_waiting(api: Api, edge: int) -> None:
    picture_bytes = bytes(8 * 1024 * 1024)
    slow = []
    for number in range(6):
        slow.append(await _send(edge, _request(number, "Accept: image/*")))
        await _waits(api, 1)
        slow[-1][1].transport.pause_reading()  # type: ignore[attr-defined]
        claim = await api.claim((await _jobs(api))[0]["id"])
        await api.output(claim, picture_bytes)
        await api.finish(claim, JobStatus.SUCCEEDED)
        await _waits(api, 0)
    reader, writer = await _send(edge, _request(50, query="wait=1"))
    assert (await _answer(reader))[0] == 201
    for _, one in [*slow, (reader, writer)]:
        await _hang_up(one)
