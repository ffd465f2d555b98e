"""What one user does to others: they see nothing, keep their place, and lose nothing by it."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.runs import Claim
from tests.factories import GRAPH, picture
from tests.integration.api_kit import Api, code, running
from tests.integration.test_between_users import KEYS, bearer
from tests.integration.test_two_origins import table
from tests.key_files import write_keys

pytestmark = pytest.mark.timeout(180)
IDS = re.compile(r"{(job_id|task_id|asset_id|id|hash|message_id)(?::\w+)?}")
DEPTH, TENTH = 20, 2


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = write_keys(
        tmp_path / "keys",
        "".join(f"{name} {key}{' operator' if name == 'ops' else ''}\n" for name, key in KEYS.items()),
    )
    async with running(redis_port, tmp_path / "data", keys_file=keys, max_streams=4, queue_depth=DEPTH) as it:
        await it.add_node()
        yield it


async def submit(api: Api, name: str, **more: Any) -> httpx.Response:
    body = {"workflow": more.pop("workflow", GRAPH), **more}
    return await api.client.post("/api/v2/jobs", json=body, headers=bearer(name))


@dataclass(frozen=True)
class Anns:
    """Ids of what ann has: a job that has ended, one that waits, an output, and an upload with its hash."""

    ended: str
    waiting: str
    output: str
    upload: str
    hash: str


async def anns(api: Api) -> Anns:
    ended = (await submit(api, "ann")).json()["id"]
    claim = await api.claim(ended)
    output = await api.output(claim, b"ann's")
    await api.finish(claim)
    waiting = (await submit(api, "ann", metadata={"of": "ann"})).json()["id"]
    files = {"file": ("a.png", b"ann's upload", "image/png")}
    sent = await api.client.post(
        "/api/v2/assets", files=files, data={"file_path": "ann.png"}, headers=bearer("ann")
    )
    upload = sent.json()
    return Anns(ended, waiting, output.asset_id, upload["id"], upload["hash"])


async def answered(api: Api, method: str, path: str, name: str, *ids: str) -> tuple[object, ...]:
    """Return what an answer tells, without the ids and whatever differs by the moment."""
    async with api.client.stream(method, path, headers=bearer(name)) as answer:
        stream = answer.headers.get("content-type", "").startswith("text/event-stream")
        text = "(a stream)" if stream else (await answer.aread()).decode(errors="replace")
    for id_ in ids:
        text = text.replace(id_, "ID")
    headers = {
        head: value for head, value in answer.headers.items() if head not in ("date", "content-length")
    }
    return answer.status_code, text, headers


async def test_on_every_route_anothers_id_is_answered_as_one_that_there_is_not(api: Api) -> None:
    """It walks over the table of routes, so that a new route is asked as well."""
    things = await anns(api)
    there = (things.ended, things.waiting, things.output, things.upload, things.hash)
    asked = 0
    for route in (one for one in table(api) if IDS.search(one.path)):
        for id_ in there:
            nobodys = f"blake3:{uuid4().hex * 2}" if id_ == things.hash else str(uuid4())
            for method in sorted(route.methods or {"GET"}):
                theirs = await answered(api, method, place(route, id_), "bob", id_)
                none = await answered(api, method, place(route, nobodys), "bob", nobodys)
                assert theirs == none, (method, route.path)
                asked += 1
    assert asked > 200
    # The walk means something only if these are the ids under which ann finds her things.
    for path in (f"jobs/{things.ended}", f"jobs/{things.waiting}", f"assets/{things.upload}/content"):
        assert (await api.client.get(f"/api/v2/{path}", headers=bearer("ann"))).status_code == 200
    seen = await api.client.get(f"/api/v2/jobs/{things.waiting}", headers=bearer("ann"))
    assert seen.json()["status"] == "queued"


def place(route: ServedRoute, id_: str) -> str:
    return re.sub(r"{(\w+)(?::\w+)?}", "x", IDS.sub(id_, route.path))


async def test_hashes_labels_names_keys_and_cursors_of_others_lead_nowhere(api: Api) -> None:
    things = await anns(api)
    key = {"Idempotency-Key": "the-same"}
    mine = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer("ann") | key)
    bobs = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer("bob") | key)
    assert mine.status_code == bobs.status_code == 201 and mine.json()["id"] != bobs.json()["id"]

    head = bearer("bob")
    assert (await api.client.head(f"/api/v2/assets/by-hash/{things.hash}", headers=head)).status_code == 404
    by_hash = await api.client.post("/api/v2/assets/from-hash", json={"hash": things.hash}, headers=head)
    assert code(by_hash) == (404, "blob_not_found")  # as for a hash of nobody
    named = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "ann.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    assert (await submit(api, "ann", workflow=named)).status_code == 201
    assert code(await submit(api, "bob", workflow=named)) == (422, "invalid_workflow")
    for query in ("metadata[of]=ann", "status=queued&metadata[of]=ann"):
        listed = await api.client.get(f"/api/v2/jobs?{query}", headers=head)
        assert listed.json()["jobs"] == []
    # A cursor says where in a list of one's own to go on, and nothing else.
    page = (await api.client.get("/api/v2/jobs?limit=1", headers=bearer("ann"))).json()
    assert page["next_cursor"]
    for face in ("v1", "v2"):
        path = f"/api/{face}/jobs?limit=100&cursor={page['next_cursor']}"
        theirs = (await api.client.get(path, headers=head)).json()["jobs"]
        assert {job["id"] for job in theirs} <= {bobs.json()["id"]}


async def test_a_job_that_waits_is_told_nothing_of_those_before_it(api: Api) -> None:
    """Estimates, places in the queue, readiness and the nodes themselves name nobody's job but one's own."""
    mark = "a-zebra-nobody-knows"
    secret = picture(7, filename_prefix=mark)
    running_ = (await submit(api, "ann", workflow=secret, metadata={"of": mark})).json()["id"]
    claim = await api.claim(running_)
    failed = (await submit(api, "ann", workflow=secret)).json()["id"]
    await api.stores.nodes.record_failure("g1", kind="execution", limit=99, reason=f"{mark} {failed}")
    waiting = (await submit(api, "ann", workflow=secret)).json()["id"]
    own = (await submit(api, "bob")).json()
    drained = await api.client.post("/api/v1/nodes/g1/drain", json={"reason": "x"}, headers=bearer("ops"))
    assert drained.status_code == 200

    seen = 0
    for path in (
        *(f"/api/v{face}/jobs/{own['id']}" for face in (1, 2)),
        *("/api/v1/ready", "/api/v1/queue", "/api/v1/jobs?all=true", "/api/v1/health", "/api/v1/workflows"),
        "/api/v1/overview",
        *("/api/v1/nodes", "/api/v1/nodes/g1", "/api/v1/nodes-diff", "/api/v1/hosts", "/api/v1/pools"),
        *("/api/v1/models", "/api/v1/model-fetches"),
        *("/queue", "/prompt", "/history", "/api/jobs", "/system_stats", "/metrics", "/api/v1/metrics"),
        *("/api/v1/audit", "/api/v1/missing", "/api/v1/webhooks", f"/api/v1/status/{own['id']}"),
    ):
        answer = await api.client.get(path, headers=bearer("bob"))
        assert answer.status_code < 500 or path == "/api/v1/ready", (path, answer.text)
        for word in (mark, running_, failed, waiting, claim.run, '"ann"'):
            assert word not in answer.text, (path, word, answer.text[:600])
        seen += answer.status_code == 200
    assert seen > 8
    shown = (await api.client.get(f"/api/v1/jobs/{own['id']}", headers=bearer("bob"))).json()
    assert shown["queue_position"] == 3


async def test_who_fills_the_queue_keeps_nobody_out_whatever_the_priority(api: Api) -> None:
    far = {"name": "far", "url": "http://10.0.0.9:1", "pool": "far"}
    assert (await api.client.post("/api/v1/nodes", json=far, headers=bearer("ops"))).status_code == 201
    await api.stores.nodes.report("far", verdict="up", why="")
    await api.stores.nodes.cordon("far", reason="drained")
    assert code(await submit(api, "bob", priority=10**6)) == (403, "forbidden")
    pools = ("far", "default")
    filled = 0
    while (answer := await submit(api, "bob", priority=1000, pool=pools[filled % 2])).status_code == 201:
        filled += 1
    assert code(answer) == (429, "queue_full") and filled == DEPTH
    assert int(answer.headers["Retry-After"]) >= 1

    ids = [(await submit(api, "ann")).json()["id"] for _ in range(TENTH)]
    assert code(await submit(api, "ann")) == (429, "queue_full")
    assert (await submit(api, "eve")).status_code == 201
    # Of the first two jobs that start, one is ann's: a priority counts among one's own jobs.
    first = await api.stores.jobs.get(ids[0])
    assert first is not None
    owners = set()
    for _ in range(2):
        claim = await api.stores.runs.claim(
            node="g1", placements=[first.placement], run=str(uuid4()), token="t", dispatcher="d1", ttl_s=30
        )
        assert isinstance(claim, Claim)
        owners.add(claim.job.owner)
        await api.finish(claim, JobStatus.FAILED)
    assert "ann" in owners


async def test_users_together_fill_the_queue_no_more_than_twice(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    people = "".join(f"u{number} u{number}-key-0123456789\n" for number in range(30))
    async with running(
        redis_port, tmp_path / "data", keys_file=write_keys(tmp_path / "k", people), queue_depth=DEPTH
    ) as it:
        await it.add_node()
        taken = 0
        for number in range(30):
            head = {"Authorization": f"Bearer u{number}-key-0123456789"}
            while True:
                answer = await it.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=head)
                if answer.status_code != 201:
                    assert code(answer) == (429, "queue_full")
                    break
                taken += 1
        assert taken == await it.stores.jobs.depth() == 2 * DEPTH


async def test_who_holds_all_of_their_streams_keeps_none_from_others(api: Api) -> None:
    jobs = {name: (await submit(api, name)).json()["id"] for name in ("ann", "bob")}

    async def opened(streams: AsyncExitStack, name: str) -> httpx.Response:
        path = f"/api/v2/jobs/{jobs[name]}/events"
        return await streams.enter_async_context(api.client.stream("GET", path, headers=bearer(name)))

    async with AsyncExitStack() as streams:
        statuses = [(await opened(streams, "bob")).status_code for _ in range(6)]
        assert statuses == [200] * 4 + [429] * 2
        refused = await opened(streams, "bob")
        await refused.aread()
        assert code(refused) == (429, "too_many_streams") and refused.headers["Retry-After"]
        assert [(await opened(streams, "ann")).status_code for _ in range(4)] == [200] * 4
        assert (await api.client.get("/api/v2/jobs", headers=bearer("bob"))).status_code == 200


async def test_a_key_that_comes_a_hundred_times_at_once_makes_one_job(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    path, body = "/api/v1/workflows/image_card/jobs", {"params": {"prompt": "a fox"}}
    async with running(redis_port, tmp_path) as it:
        await it.add_node()

        async def send(key: str) -> httpx.Response:
            while True:
                answer = await it.client.post(path, json=body, headers={"Idempotency-Key": key})
                if answer.status_code != 503:  # told to come again
                    return answer

        answers = await asyncio.gather(*(send("k") for _ in range(100)))
        assert {answer.status_code for answer in answers} == {201}, [a.text for a in answers]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert await it.stores.jobs.depth() == 1


async def test_what_a_key_costs_ends_with_it(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    """However many keys come, each leaves two short records that expire within a day."""
    async with running(redis_port, tmp_path, queue_depth=10_000) as it:
        await it.add_node()
        path, body = "/api/v1/workflows/image_card/jobs", {"params": {"prompt": "a fox"}}
        for number in range(20):
            head = {"Idempotency-Key": f"{number}".zfill(255)}
            assert (await it.client.post(path, json=body, headers=head)).status_code == 201
        client: Any = redis
        kept = [key async for key in client.scan_iter("*") if b"idem" in key or b"replay" in key]
        assert len(kept) >= 20
        for key in kept:
            assert 0 < await client.ttl(key) <= 86_400, key
            assert await client.memory_usage(key) < 4096, key
