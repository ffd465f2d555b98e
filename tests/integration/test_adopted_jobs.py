"""Jobs that wait where versions before layout 3 have queued them, and what such versions do to others."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis import upkeep
from comfy_fleet.bootstrap import Stores, check_schema
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.ports.runs import Claim
from tests.factories import picture
from tests.fleet import fleet_of, until
from tests.integration.redis_kit import BROKEN, add_nodes, claim, refused, submit
from tests.older_version import OlderRuns, older

LAYOUTS = pytest.mark.parametrize("layout", [1, 2])
BIG = Placement(pool="big", spill=("default",))


async def counts(stores: Stores) -> dict[Placement, int]:
    """Look at what waits, as a dispatcher does."""
    return {one.placement: one.count for one in await stores.runs.waiting()}


async def ran(stores: Stores, count: int, placement: Placement | None = None) -> list[str]:
    """Run the next jobs to their ends."""
    found = []
    for _ in range(count):
        run = await claim(stores, placement=placement)
        await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None)
        found.append(run.job.id)
    return found


async def left_of_older(stores: Stores) -> list[bytes]:
    client: Any = stores.redis
    return [*await client.keys("fleet:queue:*"), *await client.keys("fleet:placements")]


@LAYOUTS
async def test_what_waits_goes_on_waiting_in_its_order(stores: Stores, layout: int) -> None:
    old = older(stores, layout)
    await add_nodes(stores, "g1")
    late, first, high = [await submit(old, priority=priority) for priority in (-1, 0, 5)]
    big = await submit(old, placement=BIG, deadline_s=1e6)
    await check_schema(stores)
    assert await counts(stores) == {Placement(): 3, BIG: 1}
    assert await stores.jobs.depth() == 4
    assert [await stores.jobs.position(job) for job in (high, first, big, late)] == [1, 2, 3, 4]
    assert await ran(stores, 3) == [high.id, first.id, late.id]
    assert await ran(stores, 1, BIG) == [big.id]
    assert await counts(stores) == {} and await left_of_older(stores) == []


@LAYOUTS
async def test_thousands_are_adopted_in_small_steps(stores: Stores, layout: int) -> None:
    old = older(stores, layout)
    jobs = [await submit(old, owner=f"o{number % 3}") for number in range(250)]
    await check_schema(stores)
    seen = [sum((await counts(stores)).values()) for _ in range(3)]
    assert seen == [100, 200, 250]
    assert await left_of_older(stores) == []
    assert (await stores.jobs.positions([job.id for job in jobs])).keys() == {job.id for job in jobs}


@LAYOUTS
async def test_a_job_that_an_older_dispatcher_gives_back_is_adopted(stores: Stores, layout: int) -> None:
    old = older(stores, layout)
    await add_nodes(stores, "g1")
    job = await submit(old)
    run = await claim(old)
    await check_schema(stores)
    behind = await submit(stores)
    assert await old.runs.requeue(run, counts=False, reason=BROKEN) == "queued"
    assert await counts(stores) == {Placement(): 2}
    assert await ran(stores, 2) == [job.id, behind.id]


@LAYOUTS
async def test_what_an_older_version_ends_waits_no_more(stores: Stores, layout: int) -> None:
    old = older(stores, layout)
    await add_nodes(stores, "g1")
    await check_schema(stores)
    canceled, overdue, elsewhere = (
        await submit(stores),
        await submit(stores, deadline_s=0.01),
        await submit(stores, placement=BIG),
    )
    good = await submit(stores)
    await old.jobs.request_cancel(canceled.id)
    await old.jobs.request_cancel(elsewhere.id)
    await until(lambda: old.runs.overdue(9), what="the deadline is over")
    assert await stores.jobs.depth() == 4
    await stores.runs.tend()
    assert await stores.jobs.depth() == 1 and await counts(stores) == {Placement(): 1}
    assert await ran(stores, 1) == [good.id]
    assert (await refused(stores)).why == "empty"
    for job in (canceled, overdue, elsewhere):
        ended = await stores.jobs.get(job.id)
        assert ended and ended.status.terminal


async def test_a_claim_passes_what_an_older_version_has_ended(stores: Stores) -> None:
    old = older(stores, 2)
    await add_nodes(stores, "g1")
    await check_schema(stores)
    canceled, good = await submit(stores), await submit(stores)
    await old.jobs.request_cancel(canceled.id)
    assert await ran(stores, 1) == [good.id]
    assert await stores.jobs.depth() == 0 and await counts(stores) == {}


async def test_looking_for_leftovers_comes_to_every_job_in_turns(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOKED_AT_ONCE", 35)  # seven of them may be leftovers
    monkeypatch.setattr(upkeep, "CALM_S", 0.0)
    jobs = [await submit(stores) for _ in range(40)]
    for job in jobs[::2]:
        await older(stores, 2).jobs.request_cancel(job.id)
    seen = []
    for _ in range(12):
        await stores.redis.delete("fleet:queued:tended")
        await stores.runs.tend()
        seen.append(await stores.jobs.depth())
    assert seen[-1] == 20 and seen[0] > 30 and seen == sorted(seen, reverse=True)
    assert await counts(stores) == {Placement(): 20}


@LAYOUTS
async def test_a_job_can_end_before_anybody_adopts_it(stores: Stores, layout: int) -> None:
    old = older(stores, layout)
    canceled, withdrawn, overdue = [await submit(old, deadline_s=limit) for limit in (None, None, 0.01)]
    await check_schema(stores)
    ended = await stores.jobs.request_cancel(canceled.id)
    assert ended and ended.status is JobStatus.CANCELED
    assert await stores.jobs.withdraw("local", [withdrawn.id]) == 1
    await until(lambda: stores.runs.overdue(9), what="the deadline is over")
    gone = await stores.jobs.get(overdue.id)
    assert gone and gone.status is JobStatus.EXPIRED
    assert await left_of_older(stores) == [] and await counts(stores) == {}


async def test_a_full_redis_loses_no_job_that_is_not_adopted_yet(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    jobs = [await submit(older(stores, 2)) for _ in range(3)]
    await check_schema(stores)
    known = await submit(stores, placement=BIG)
    client: Any = stores.redis
    await client.config_set("maxmemory", 1)
    try:
        assert await counts(stores) == {BIG: 1}
        await stores.runs.tend()
        assert await stores.jobs.request_cancel(jobs[2].id)
    finally:
        await client.config_set("maxmemory", 0)
    assert await counts(stores) == {BIG: 1, Placement(): 2}
    assert await ran(stores, 2) == [job.id for job in jobs[:2]]
    assert await ran(stores, 1, BIG) == [known.id]


@pytest.mark.parametrize("key", ["fleet:placements", "fleet:queue:default"])
async def test_something_else_in_the_place_of_an_older_queue_stops_nobody(stores: Stores, key: str) -> None:
    await add_nodes(stores, "g1")
    await submit(older(stores, 2))
    await submit(older(stores, 2), placement=BIG)
    await check_schema(stores)
    client: Any = stores.redis
    await client.delete(key)
    await client.set(key, "mine")
    job = await submit(stores)
    found = await counts(stores)
    assert found[Placement()] == 1
    assert await ran(stores, 1) == [job.id]
    if key != "fleet:placements":
        assert found[BIG] == 1 and await client.get(key) == b"mine"


async def test_an_id_without_a_job_is_adopted_by_nobody(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    job = await submit(older(stores, 2))
    await client.zadd("fleet:queue:default", {str(uuid4()): 1.0})
    await check_schema(stores)
    assert await counts(stores) == {Placement(): 1}
    assert await ran(stores, 1) == [job.id]


async def test_an_older_process_leaves_what_waits_in_a_newer_layout_alone(stores: Stores) -> None:
    await submit(older(stores, 2))
    job = await submit(stores)
    listed = await stores.redis.lrange("rq:queue:fleet.jobs", 0, -1)
    await stores.redis.set("fleet:schema", 99)
    await older(stores, 2).jobs.request_cancel(job.id)
    await stores.runs.tend()
    assert await counts(stores) == {Placement(): 1}
    assert await stores.jobs.depth() == 1
    assert await stores.redis.lrange("rq:queue:fleet.jobs", 0, -1) == listed
    assert len(await left_of_older(stores)) == 2


class Held(OlderRuns):
    """Gives every run back when the gate opens, as if its node had died."""

    gate: asyncio.Event

    async def finish(self, claim: Claim, status: JobStatus, **rest: Any) -> JobStatus:
        await self.gate.wait()
        if int(claim.run[:1], 16) % 2:
            return await self.requeue(claim, counts=False, reason=BROKEN)
        return await super().finish(claim, status, **rest)


@LAYOUTS
async def test_nothing_is_lost_while_both_work_side_by_side(
    redis_port: int, redis: Redis, layout: int
) -> None:
    """An older dispatcher ends or gives back what it runs; all else waits for a newer one, and runs once."""
    names = [f"g{number}" for number in range(6)]
    async with fleet_of(redis_port, *names, dispatch=False) as fleet:
        new, old = fleet.stores, older(fleet.stores, layout)
        held = Held(new.redis, layout)
        held.gate = asyncio.Event()
        fleet.stores = type(new)(**{**vars(old), "runs": held})
        before = [await fleet.submit(picture(number)) for number in range(6)]
        dispatcher = await fleet.dispatcher("old")
        await until(lambda: len(dispatcher.dispatcher.flying) == 6, what="they run")
        for name in names:
            await new.nodes.cordon(name, reason="so that more jobs wait")
        before += [await fleet.submit(picture(number)) for number in range(6, 30)]
        assert await old.jobs.depth() == 24

        fleet.stores = new
        await check_schema(new)
        for name in names:
            await new.nodes.uncordon(name)
        after = [await fleet.submit(picture(100 + number)) for number in range(10)]
        await old.jobs.request_cancel(before[-1].id)
        await old.jobs.request_cancel(after[-1].id)
        await fleet.dispatcher("new")
        held.gate.set()
        ended = [await fleet.ended(job.id) for job in (*before, *after)]
        with pytest.raises(ConfigError, match="newer version"):
            await asyncio.wait_for(asyncio.shield(dispatcher.task), 30)

        succeeded, canceled = statuses(ended, JobStatus.SUCCEEDED), statuses(ended, JobStatus.CANCELED)
        assert len(succeeded) == 38 and {job.id for job in canceled} == {before[-1].id, after[-1].id}
        runs = [attempt.run for job in succeeded for attempt in job.attempts if attempt.error is None]
        assert len(runs) == len(set(runs)) == 38
        await until(lambda: _none_left(new), what="nothing waits")


def statuses(jobs: Sequence[Job], status: JobStatus) -> list[Job]:
    return [job for job in jobs if job.status is status]


async def _none_left(stores: Stores) -> bool:
    client: Any = stores.redis
    return not await stores.jobs.depth() and not await client.exists("fleet:sched:count", "fleet:placements")
