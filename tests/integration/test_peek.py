"""What a busy node would be given next: the job that it then gets, and nothing is written to find out."""

from collections.abc import Mapping
from random import Random
from typing import Any
from uuid import uuid4

import orjson
import pytest

from comfy_fleet.adapters.redis.ahead import RedisAhead
from comfy_fleet.adapters.redis.scripts import source
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import JobStatus, Placement
from comfy_fleet.ports.ahead import Peek
from comfy_fleet.ports.runs import Claim, Refused
from tests.integration.redis_kit import BROKEN, add_nodes, claim, submit
from tests.integration.schedule_port_kit import everything

NODES = ("g1", "g2", "g3")
GIB = 1024**3
SETS: list[tuple[tuple[str, int], ...]] = [
    (),
    (("checkpoints/a", 6 * GIB),),
    (("checkpoints/b", 5 * GIB), ("loras/c", GIB)),
]
PLACEMENTS = (Placement(), Placement(needs="n1"))
LOOK: Mapping[str, Any] = {"pool": "default", "peers": 3, "speed": 1.0, "ram": 32 * GIB}


async def peek(stores: Stores, node: str = "g1", *placements: Placement) -> Peek:
    return await RedisAhead(stores.redis).peek(
        node=node, placements=placements or (Placement(),), patience_s=60, able={}, unable={}, **LOOK
    )


async def choose(stores: Stores, node: str, *placements: Placement) -> Claim | Refused:
    return await stores.runs.claim(
        node=node,
        placements=placements,
        run=str(uuid4()),
        token=uuid4().hex,
        dispatcher="d1",
        ttl_s=60,
        patience_s=60,
        **LOOK,
    )


async def due(stores: Stores, node: str, run: Claim | None) -> None:
    """Have a node's run be expected to end now, and be charged so much that no time which passes counts."""
    redis: Any = stores.redis
    keys = stores.redis.keyspace
    await redis.hset(keys.sched_node(node), "free_at", "0")
    if run is not None:
        charge = orjson.loads(await redis.hget(keys.run(run.run), "sched"))
        charge[1] = "1000"
        await redis.hset(keys.run(run.run), "sched", orjson.dumps(charge))


@pytest.mark.parametrize("seed", range(4))
async def test_the_job_that_was_seen_is_the_job_that_is_claimed(stores: Stores, seed: int) -> None:
    chance, running, waiting = Random(seed), dict[str, Claim](), list[str]()
    await add_nodes(stores, *NODES)
    claimed = 0
    for step in range(100):
        node = chance.choice(NODES)
        match chance.choice(["submit", "submit", "next", "next", "cancel"]):
            case "submit":
                job = await submit(
                    stores,
                    owner=f"o{chance.randrange(3)}",
                    models=chance.choice(SETS),
                    priority=chance.choice([0, 0, 5]),
                    placement=chance.choice(PLACEMENTS),
                )
                waiting.append(job.id)
            case "cancel" if waiting:
                await stores.jobs.request_cancel(waiting.pop(chance.randrange(len(waiting))))
            case "next":
                run = running.pop(node, None)
                await due(stores, node, run)
                if run is not None and chance.random() < 0.3:
                    await stores.runs.left(run, [])
                before = await everything(stores.redis)
                seen = await peek(stores, node, *PLACEMENTS)
                assert await everything(stores.redis) == before
                if run is not None:  # nothing is learned from such an end
                    await stores.runs.finish(run, JobStatus.FAILED, error=BROKEN, duration_s=None)
                got = await choose(stores, node, *PLACEMENTS)
                if isinstance(got, Refused):
                    assert seen.next is None, step
                    continue
                assert seen.next is not None and seen.next.id == got.job.id, step
                running[node] = got
                claimed += 1
    assert claimed > 10


async def test_the_server_takes_a_peek_for_a_script_that_only_reads(stores: Stores) -> None:
    redis: Any = stores.redis
    await add_nodes(stores, "g1")
    first = await submit(stores, models=SETS[1])
    await claim(stores)
    second = await submit(stores, models=SETS[2])
    args = orjson.dumps({"node": "g1", "placements": [Placement().key], "patience_s": 60, **LOOK})
    ahead, id_, *_ = await redis.eval_ro(source("peek", "fleet"), 0, args)
    assert (ahead, id_) == (b"", second.id.encode()) != (b"", first.id.encode())


async def test_a_running_guess_is_charged_before_its_owner_is_given_more(stores: Stores) -> None:
    """Of a job of unknown length next to nothing is charged when it starts, and the rest at its end."""
    await add_nodes(stores, "g1")
    await submit(stores, owner="ann")
    await claim(stores)
    for owner in ("ann", "bob"):
        await submit(stores, owner=owner)
    seen = await peek(stores)
    assert seen.next is not None
    job = await stores.jobs.get(seen.next.id)
    assert job is not None and job.owner == "bob"


async def test_a_node_that_takes_no_jobs_is_given_none(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    assert (await peek(stores)).next is not None
    await stores.nodes.cordon("g1", reason="")
    assert await peek(stores) == Peek(next=None)
    assert await peek(stores, "nobody") == Peek(next=None)


async def test_a_key_of_another_type_is_left_for_a_claim_to_drop(stores: Stores) -> None:
    redis: Any = stores.redis
    await add_nodes(stores, "g1")
    job = await submit(stores, models=SETS[1])
    key = stores.redis.keyspace.sched_pressure(Placement().key)
    await redis.set(key, "of another type")
    seen = await peek(stores)
    assert seen.next is not None and seen.next.id == job.id
    assert await redis.get(key) == b"of another type"
