"""What Redis knows about why a job waits, and the words that its owner reads."""

import math
from typing import Any

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.services.inventories import NodeInventories
from tests.fakes.comfyui import FakeNodeApi
from tests.integration.redis_kit import add_nodes, claim, submit

MODEL = "checkpoints/sdxl.safetensors"


@pytest.fixture
async def known(stores: Stores) -> NodeInventories:
    await add_nodes(stores, "g1", "g2")
    for name in ("g1", "g2"):
        await stores.nodes.report(name, verdict="up", why="")
    inventories = NodeInventories(stores.nodes, stores.inventories, FakeNodeApi())
    await inventories.look()
    return inventories


async def words(stores: Stores, known: NodeInventories, job: Job) -> str | None:
    """Return what the job's owner reads."""
    seen = await stores.jobs.get(job.id)
    assert seen is not None
    await known.look()
    return await known.waiting_for(seen, await stores.jobs.waits(seen))


async def test_a_job_behind_others_of_its_owner_says_how_many(stores: Stores, known: NodeInventories) -> None:
    first, second, third = [await submit(stores) for _ in range(3)]
    assert await words(stores, known, first) is None  # a node is free
    assert await words(stores, known, third) == "behind 2 of your own"
    assert (await stores.jobs.waits(second)).place is not None
    await submit(stores, owner="bob", priority=1000)
    assert await words(stores, known, third) == "behind 2 of your own"  # others' jobs are not counted


async def test_busy_and_drained_nodes_are_told_as_well(stores: Stores, known: NodeInventories) -> None:
    for node in ("g1", "g2"):
        await submit(stores)
        await claim(stores, node)
    first, second = await submit(stores), await submit(stores)
    assert await words(stores, known, first) == "all 2 able nodes are busy"
    assert await words(stores, known, second) == "behind 1 of your own; all 2 able nodes are busy"
    await stores.nodes.cordon("g2", reason="new fans")
    assert await words(stores, known, second) == (
        "behind 1 of your own; node g1 is busy; node g2 is drained: new fans"
    )
    await stores.nodes.cordon("g1", reason="new fans")
    assert await words(stores, known, second) == "node g1 is drained: new fans; node g2 is drained: new fans"


async def test_a_job_that_was_passed_over_says_for_how_long(stores: Stores, known: NodeInventories) -> None:
    job = await submit(stores, models=((MODEL, 18 * 2**30),))
    redis: Any = stores.redis
    at = await stores.clock()
    await redis.zadd(f"fleet:sched:holders:default\t{MODEL}", {"g2": at + 7})
    told = await words(stores, known, job)
    assert told in [f"g2 has the model, and is free in about {left} s" for left in (6, 7)]
    await redis.hset(f"fleet:job:{job.id}", "overdue_at", at + 20)
    told = await words(stores, known, job)
    assert told in [f"g2 has the model: at most {left} s more" for left in (19, 20)]
    await stores.nodes.cordon("g2", reason="")
    assert await words(stores, known, job) == "the next free node takes it"
    await stores.nodes.uncordon("g2")
    await redis.hset(f"fleet:job:{job.id}", "overdue_at", at - 1)
    assert await words(stores, known, job) == "the next free node takes it"


async def test_an_owner_that_has_had_more_than_others_is_told_so(
    stores: Stores, known: NodeInventories
) -> None:
    mine = await submit(stores, owner="ann")
    theirs = await submit(stores, owner="bob")
    redis: Any = stores.redis
    for key in ("owners", "unpassed"):
        await redis.zadd(f"fleet:sched:{key}:default", {"ann": 30.0})
    await redis.hset("fleet:sched:used:ann", "used", 30)
    assert await words(stores, known, mine) == "your share is used"
    assert await words(stores, known, theirs) is None


@pytest.mark.parametrize(
    "key", ["job:ID", "sched:jobs:default\tlocal", "sched:owners:default", "sched:pools"]
)
async def test_a_key_of_another_type_hides_no_job(stores: Stores, known: NodeInventories, key: str) -> None:
    job = await submit(stores)
    redis: Any = stores.redis
    name = f"fleet:{key.replace('ID', job.id)}"
    await redis.delete(name)
    await redis.set(name, "x")
    waits = await stores.jobs.waits(job)
    assert waits.place is None or math.isfinite(waits.place.ahead)
    assert await known.waiting_for(job, waits) is None


async def test_a_job_that_does_not_wait_waits_for_nothing(stores: Stores, known: NodeInventories) -> None:
    job = await submit(stores)
    running = (await claim(stores)).job
    assert running.id == job.id
    waits = await stores.jobs.waits(job)  # as a list had it, a moment before
    assert (waits.results_on, waits.place) == ("", None)
