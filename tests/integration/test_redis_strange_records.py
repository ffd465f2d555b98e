"""Records that another version wrote, or that are broken, cost only themselves."""

import zlib
from typing import Any
from uuid import uuid4

import orjson
import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.graphs import inventory
from comfy_fleet.domain.jobs.job import Job, JobFilter, JobStatus, Placement, Progress
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.host import GpuAllocation, Heartbeat, Joining, NodeReport
from comfy_fleet.domain.nodes.node import Reading
from comfy_fleet.ports.runs import Refused
from comfy_fleet.services.node_directory import NodeDirectory
from tests.integration.redis_kit import BROKEN, add_nodes, claim, output, refused, stored, submit

BREAKAGES: list[tuple[str, str]] = [
    ("progress", '{"value": 0.5'),
    ("progress", '{"value": "much", "nodes_done": 1, "nodes_total": 2}'),
    ("progress", "[]"),
    ("created", "soon"),
    ("created", "1e300"),
    ("priority", "high"),
    ("metadata", "{"),
    ("metadata", "[1]"),
    ("params", "7"),
    ("uploads", "x"),
    ("placement", "a:b:c:d:e"),
    ("attempt", "one"),
    ("attempts", "{}}"),
    ("error", "null"),
    ("seq", "x"),
    ("status", "dreaming"),
    ("expires_in", "x"),
    ("graph", "gone"),
]


async def set_field(stores: Stores, job_id: str, field: str, value: str) -> None:
    client: Any = stores.redis
    await client.hset(f"fleet:job:{job_id}", field, value)


async def listed(stores: Stores) -> dict[str, Job]:
    page = await stores.jobs.find(JobFilter(owner=None, limit=100))
    return {job.id: job for job in page.jobs}


async def test_fields_of_a_newer_version_stop_nothing(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1", "g2")
    raw = orjson.loads(await client.hget("fleet:nodes", "g1"))
    await client.hset("fleet:nodes", "g1", orjson.dumps({**raw, "tenant": "t"}))
    assert [node.name for node in await stores.nodes.nodes()] == ["g1", "g2"]
    job = await submit(stores)
    run = await claim(stores, ttl=-1)
    await stores.runs.progress(run, Progress(value=0.5, nodes_done=1, nodes_total=2))
    await stores.runs.commit(run, stored(run, output()))
    for key, field in ((f"fleet:job:{job.id}", "progress"), (f"fleet:job:{job.id}:outputs", None)):
        name = field or (await client.hkeys(key))[0]
        had = orjson.loads(await client.hget(key, name))
        await client.hset(key, name, orjson.dumps({**had, "tenant": "t"}))
    await set_field(stores, job.id, "tenant", "t")
    await set_field(stores, job.id, "error", '{"code":"x","message":"y","tenant":"t"}')
    seen = await stores.jobs.get(job.id)
    assert seen and seen.progress and seen.progress.value == 0.5 and len(seen.outputs) == 1
    (held,) = await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=9)
    assert held.claim.job.id == job.id


async def test_a_node_that_cannot_be_read_costs_only_itself(
    stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1", "g2", "g3")
    raw = orjson.loads(await client.hget("fleet:nodes", "g1"))
    for broken in (
        b"{",
        b"[]",
        b'{"name":"g1"}',
        orjson.dumps({**raw, "weight": "heavy"}),
        b'{"name":"\xff"}',
    ):
        await client.hset("fleet:nodes", "g1", broken)
        assert [node.name for node in await stores.nodes.nodes()] == ["g2", "g3"]
        assert await stores.nodes.state("g1") is None
    await client.hset("fleet:node:g2", "succeeded", "many")
    assert [node.name for node in await stores.nodes.nodes()] == ["g3"]
    said = [record for record in caplog.records if "can't be read" in record.message]
    assert len(said) == 2  # each once
    await stores.nodes.remove("g1", force=True)
    await add_nodes(stores, "g1")


async def test_a_seat_that_cannot_be_read_costs_only_itself(stores: Stores) -> None:
    client: Any = stores.redis

    def beat(host: str, node: str) -> Heartbeat:
        report = NodeReport(name=node, readiness=Readiness.READY, gpu_allocation=GpuAllocation(gpu="GPU-1"))
        return Heartbeat(host=host, instance=host, nodes=[report])

    for number, host in enumerate(("h1", "h2", "h3")):
        joining = Joining(name=f"n{number}", url=f"http://127.0.0.1:{9000 + number}", agent="127.0.0.1:9")
        await stores.hosts.join(host, joining, now=1.0)
        await stores.hosts.beat(beat(host, f"n{number}"), now=1.0)
    (at, _, _) = (await client.hget("fleet:gpu:GPU-1", "n1")).partition(b" ")
    await client.hset("fleet:gpu:GPU-1", "n1", at + b" {")
    told = await stores.hosts.beat(beat("h1", "n0"), now=1.0)
    assert set(told.neighbours) == {"n2"}


@pytest.mark.parametrize(("field", "value"), BREAKAGES)
async def test_a_job_that_cannot_be_read_costs_only_itself(stores: Stores, field: str, value: str) -> None:
    await add_nodes(stores, "g1", "g2")
    bad, good = await submit(stores), await submit(stores)
    await set_field(stores, bad.id, field, value)
    assert (await listed(stores))[good.id].status is JobStatus.QUEUED
    assert bad.id in await listed(stores)
    await stores.jobs.get(bad.id)
    assert good.id in [await claimed(stores, node) for node in ("g1", "g2")]


async def claimed(stores: Stores, node: str) -> str | None:
    got = await stores.runs.claim(
        node=node, placements=[Placement()], run=str(uuid4()), token="t", dispatcher="d1", ttl_s=5
    )
    return None if isinstance(got, Refused) else got.job.id


@pytest.mark.parametrize(("field", "value"), BREAKAGES)
async def test_a_run_whose_job_cannot_be_read_ends_and_frees_its_node(
    stores: Stores, field: str, value: str
) -> None:
    await add_nodes(stores, "g1", "g2")
    bad = await submit(stores)
    await claim(stores, "g1", ttl=-1)
    good = await submit(stores)
    await claim(stores, "g2", ttl=-1)
    await set_field(stores, bad.id, field, value)
    held = await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=9)
    assert good.id in {one.claim.job.id for one in held}
    for one in held:
        if one.claim.job.id == bad.id:  # nothing that this part of the fleet reads was broken
            await stores.runs.finish(one.claim, JobStatus.FAILED, error=BROKEN, duration_s=None)
    assert (await refused(stores, "g1")).why == "empty"
    assert await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=9) == []
    seen = await stores.jobs.get(bad.id)
    assert seen and seen.status is JobStatus.FAILED


async def replaced(stores: Stores, key: str) -> None:
    """Let somebody put something else where something of the fleet's stood."""
    client: Any = stores.redis
    if "graph" in key:
        await client.delete(key)
        await client.rpush(key, "mine")
    else:
        await client.set(key, "mine")


async def test_a_text_in_the_place_of_a_job_that_waits_is_no_job(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    bad, late, good = await submit(stores), await submit(stores, deadline_s=0), await submit(stores)
    client: Any = stores.redis
    await client.zadd("fleet:deadlines", {bad.id: 0})
    await client.zadd("fleet:expiring", {bad.id: 0})
    await replaced(stores, f"fleet:job:{bad.id}")
    assert await stores.jobs.get(bad.id) is None
    assert await stores.jobs.request_cancel(bad.id) is None
    assert set(await listed(stores)) == {late.id, good.id}
    assert await stores.runs.overdue(9) == 1
    assert (await stores.jobs.get(late.id) or bad).status is JobStatus.EXPIRED
    assert await claimed(stores, "g1") == good.id
    assert await claimed(stores, "g2") is None
    assert [head.placement for head in await stores.runs.waiting()] == []
    for job_id in await stores.runs.forgettable(9):
        await stores.runs.forget(job_id)
    assert await stores.runs.forgettable(9) == []
    assert await client.get(f"fleet:job:{bad.id}") == b"mine"


@pytest.mark.parametrize(
    "key", ["fleet:job:{job}", "fleet:run:{run}", "fleet:job:{job}:traces", "fleet:graph:{graph}"]
)
@pytest.mark.parametrize("cleans", [0, 1])
async def test_a_text_in_the_place_of_a_running_job_costs_no_other_run(
    stores: Stores, key: str, cleans: int
) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1", "g2")
    await client.hset("fleet:node:g1", "cleans", cleans)
    bad = await submit(stores)
    mine = await claim(stores, "g1", ttl=-1)
    good = await submit(stores, graph_hash="another")
    other = await claim(stores, "g2", ttl=-1)
    await replaced(stores, key.format(job=bad.id, run=mine.run, graph=bad.graph_hash))
    beat = await stores.runs.beat("d1", [mine, other], ttl_s=-1)
    assert other.run not in beat.lost
    assert {state.node.name for state in await stores.nodes.states()} == {"g1", "g2"}
    assert await stores.nodes.release("g2") == [other.run]
    held = await stores.runs.take_over(dispatcher="d2", ttl_s=-1, limit=9)
    assert good.id in {one.claim.job.id for one in held}
    for one in held:
        await stores.runs.finish(one.claim, JobStatus.FAILED, error=BROKEN, duration_s=None)
    for node in ("g1", "g2"):
        assert (await refused(stores, node)).why == "empty"
    assert await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=9) == []
    assert (await stores.jobs.get(good.id) or bad).status is JobStatus.FAILED


@pytest.mark.parametrize("key", ["rq:job:{}", "rq:results:{}", "fleet:job:{}:outputs", "fleet:job:{}:traces"])
async def test_a_text_in_the_place_of_what_belongs_to_a_job_is_dropped(stores: Stores, key: str) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    await client.hset("fleet:node:g1", "cleans", 1)
    job = await submit(stores)
    run = await claim(stores)
    await replaced(stores, key.format(job.id))
    assert (await stores.jobs.get(job.id) or job).status is JobStatus.RUNNING
    assert job.id in await listed(stores)
    assert (await stores.runs.beat("d1", [run], ttl_s=5)).lost == frozenset()
    await stores.runs.commit(run, stored(run, output()))
    await replaced(stores, key.format(job.id))
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert (await stores.jobs.get(job.id) or job).status is JobStatus.SUCCEEDED
    assert (await refused(stores, "g1")).why == "empty"


async def test_a_text_in_the_place_of_rqs_record_changes_nothing(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    await replaced(stores, f"rq:job:{job.id}")
    assert await claimed(stores, "g1") == job.id


@pytest.mark.parametrize(
    "packed",
    [
        b"no zlib",
        zlib.compress(b"[]"),
        zlib.compress(b"[]\n"),
        zlib.compress(b'["A",{}]\n')[:-6],
        zlib.compress(b'["A",{"files":{"x":"new"}}]\n'),
    ],
    ids=["not packed", "no line", "no class", "cut", "an unknown use"],
)
async def test_an_inventory_that_cannot_be_read_stops_no_look(stores: Stores, packed: bytes) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1", "g2")
    await stores.inventories.save("g1", inventory.parse({"A": {}}), Reading())
    await stores.inventories.save("g2", inventory.parse({"B": {}}), Reading())
    digest = (await stores.nodes.states())[0].reading.inventory
    await client.set(f"fleet:inventory:{digest}", packed)
    directory = NodeDirectory(stores.nodes, stores.inventories)
    await directory.look()
    assert directory.inventory("g1") is None and directory.inventory("g2") is not None


async def test_an_inventory_of_an_earlier_version_is_not_used_and_read_again(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    await stores.inventories.save("g1", inventory.parse({"A": {}}), Reading())
    await client.hset("fleet:node:g1", "inventory", "0123")
    await client.set("fleet:inventory:0123", zlib.compress(b'{"classes":{"A":{}},"lists":[]}'))
    await client.sadd("fleet:inventory:0123:nodes", "g1")
    assert not (await stores.nodes.states())[0].reading.wanted
    directory = NodeDirectory(stores.nodes, stores.inventories)
    await directory.look()
    assert directory.inventory("g1") is None
    assert (await stores.nodes.states())[0].reading.wanted


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"choices":[[1]]}', b'{"vram_bytes":"much"}'])
async def test_needs_that_cannot_be_read_are_unknown(stores: Stores, raw: bytes) -> None:
    client: Any = stores.redis
    await client.set("fleet:needs:k", raw)
    assert await stores.inventories.needs("k") is None


async def test_a_node_that_was_removed_and_added_anew_is_free(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    run = await claim(stores)
    await stores.nodes.remove("g1", force=True)
    await add_nodes(stores, "g1")
    assert (await refused(stores)).why == "empty"
    assert (await stores.nodes.states())[0].run is None
    await stores.runs.requeue(run, counts=False, reason=BROKEN)
    assert (await claim(stores)).job.id == run.job.id
