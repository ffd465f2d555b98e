"""Leases in Redis, where runs of one node or one dispatcher overlap, and what is told of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.adapters.redis.life_line import RedisLifeLine
from comfy_fleet.adapters.redis.runs import MODELS
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Placement
from comfy_fleet.domain.nodes.speed import SHARE
from comfy_fleet.ports.runs import Claim
from tests.fleet import until
from tests.integration.redis_kit import BROKEN, add_nodes, claim, output, refused, stored, submit


@asynccontextmanager
async def heard(stores: Stores) -> AsyncIterator[asyncio.Queue[bytes]]:
    """What is told to whoever waits for news."""
    async with stores.events.channel("fleet:wake") as queue:
        yield queue


async def told(queue: "asyncio.Queue[bytes]", what: bytes) -> None:
    async with asyncio.timeout(60):
        while await queue.get() != what:
            pass


async def test_a_run_that_has_left_its_node_frees_nothing_of_the_next_one(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    await submit(stores)
    first = await claim(stores)
    await stores.runs.left(first, [])
    second = await claim(stores)
    await stores.runs.left(first, [])  # as who adopts it may say again
    assert await stores.runs.lease_of("g1") == second.run
    await stores.runs.finish(first, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert await stores.runs.lease_of("g1") == second.run
    await stores.runs.requeue(second, counts=False, reason=BROKEN)
    assert await stores.runs.lease_of("g1") is None


async def test_a_beat_keeps_a_lease_from_others(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    held = await claim(stores, ttl=-1)
    assert (await stores.runs.beat("d1", [held], ttl_s=5)).lost == frozenset()
    assert await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=10) == []


async def test_no_more_runs_are_taken_over_than_asked_for(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    for node in ("g1", "g2", "g3"):
        await submit(stores)
        await claim(stores, node, ttl=-1)
    taken = await stores.runs.take_over(dispatcher="d2", ttl_s=-1, limit=2)
    assert len(taken) == 2
    assert len({held.claim.run for held in taken}) == 2


async def test_a_run_is_taken_over_early_only_if_its_dispatcher_is_gone_and_silent(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    made = {}
    for node, line in (("g1", "alive"), ("g2", "gone"), ("g3", "")):  # the last one is of an older version
        await submit(stores)
        made[line] = await claim(stores, node, ttl=60, line=line)

    async def taken(gone_s: float | None) -> list[str]:
        found = await stores.runs.take_over(
            dispatcher="d2", line="other", ttl_s=60, gone_s=gone_s, expired=False, limit=10
        )
        return [held.claim.run for held in found]

    async with stores.events.channel("fleet:alive:alive"):
        assert await taken(30) == []  # it has been renewed since
        assert await taken(None) == []
        assert await taken(0) == [made["gone"].run]
        assert await taken(0) == []  # nobody takes over from themselves
        assert (await stores.runs.beat("d1", [made["gone"]], ttl_s=60)).lost == {made["gone"].run}
        again = await stores.runs.take_over(dispatcher="d3", line="third", ttl_s=60, gone_s=0, limit=10)
        assert [held.claim.run for held in again] == [made["gone"].run]  # d2 has no line either


async def test_a_life_line_is_unbroken_while_its_connection_lasts(stores: Stores) -> None:
    line = RedisLifeLine(stores.events, stores.redis.keyspace, "d1")
    assert line.unbroken_since() is None
    async with line.held():
        began = line.unbroken_since()
        assert began is not None
        for client in await stores.redis.client_list(_type="pubsub"):
            await stores.redis.client_kill_filter(_id=client["id"])

        def again() -> bool:
            since = line.unbroken_since()
            return since is not None and since > began

        await until(again, what="it is held again")
    assert line.unbroken_since() is None


async def test_a_record_that_nobody_can_read_holds_up_no_other_run(
    stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    await add_nodes(stores, "g1", "g2")
    broken, whole = await submit(stores), await submit(stores)
    for node in ("g1", "g2"):
        await claim(stores, node, ttl=-1)
    await stores.redis.hset(f"fleet:job:{broken.id}", "status", "??")
    taken = await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=10)
    assert [held.claim.job.id for held in taken] == [whole.id]
    assert [record.__dict__["job_id"] for record in caplog.records] == [broken.id]


async def test_a_run_whose_job_is_gone_holds_no_node(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    await stores.runs.left(await claim(stores, ttl=-1), [])
    await stores.redis.delete(f"fleet:job:{job.id}")
    assert await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=10) == []
    assert await stores.redis.exists("fleet:runs", "fleet:node:g1:runs") == 0


async def test_a_run_whose_job_is_gone_gives_its_node_back(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await stores.redis.hset("fleet:node:g1", "cleans", 1)
    before = set(await stores.redis.keys("*"))
    job = await submit(stores)
    await claim(stores, ttl=-1)
    await stores.redis.delete(f"fleet:job:{job.id}")
    assert await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=10) == []
    runs = {
        key for key in await stores.redis.keys("*") if b":run" in key or b":lease" in key or b"exec" in key
    }
    assert runs <= before
    assert not await stores.redis.exists(f"fleet:job:{job.id}:traces", "rq:wip:fleet")
    await submit(stores)
    await claim(stores)


async def test_a_run_that_nobody_knows_holds_no_node(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await stores.redis.set("fleet:lease:g1", "nobody")
    await stores.nodes.remove("g1")
    await add_nodes(stores, "g1")
    await stores.redis.set("fleet:lease:g1", "nobody")
    await submit(stores)
    assert (await claim(stores)).run == await stores.runs.lease_of("g1")


async def test_the_oldest_job_goes_first_whatever_its_placement(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    first = await submit(stores, placement=Placement(pool="p"))
    second = await submit(stores, placement=Placement(pool="q"))

    async def next_on(node: str) -> Claim:
        got = await stores.runs.claim(
            node=node,
            placements=[Placement(pool="q"), Placement(pool="p")],
            run=str(uuid4()),
            token="t",
            dispatcher="d1",
            ttl_s=5,
        )
        assert isinstance(got, Claim)
        return got

    one, two = await next_on("g1"), await next_on("g2")
    assert [(one.job.id, one.jobs_behind), (two.job.id, two.jobs_behind)] == [(first.id, 1), (second.id, 0)]


async def test_a_leftover_in_the_queue_stops_nobody(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    job = await submit(stores)
    lost = await submit(stores, priority=9)
    await stores.redis.delete(f"fleet:job:{lost.id}")
    assert (await claim(stores)).job.id == job.id
    await stores.runs.tend()
    assert await stores.jobs.depth() == 0
    assert (await refused(stores, "g2")).why == "empty"
    assert await stores.runs.waiting() == []


async def test_a_second_run_shows_nothing_of_the_first_but_its_start(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    first = await claim(stores)
    await stores.runs.commit(first, stored(first, output()))
    await stores.runs.requeue(first, counts=False, reason=BROKEN)
    waits = await stores.jobs.get(job.id)
    assert waits is not None
    assert (waits.status, waits.node, waits.run, waits.progress) == (JobStatus.QUEUED, None, None, None)
    assert waits.outputs == ()
    again = (await claim(stores)).job
    assert again.started_at == first.job.started_at is not None


async def test_a_job_keeps_its_deadline_wherever_it_goes(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores, deadline_s=1e9, profile="big")

    async def deadlines() -> list[Any]:
        return [*await stores.redis.zrange("fleet:deadlines", 0, -1)]

    first = await claim(stores)
    assert await deadlines() == []  # it runs: nobody ends it
    await stores.runs.requeue(first, counts=False, reason=BROKEN)
    assert await deadlines() == [job.id.encode()]
    await stores.redis.hset("fleet:node:g1", "vram", 5)
    await stores.inventories.note_oom("big", 5, ttl_s=60)
    moved = await stores.runs.claim(
        node="g1", placements=[Placement()], run="r", token="t", dispatcher="d", ttl_s=5
    )
    assert not isinstance(moved, Claim)
    assert [one.placement for one in await stores.runs.waiting()] == [Placement(above=5)]
    assert await deadlines() == [job.id.encode()]


async def test_who_waits_is_told(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    async with heard(stores) as news:
        await submit(stores)
        await told(news, b"job default")
        run = await claim(stores)
        await stores.nodes.release("g1")
        await told(news, b"release " + run.run.encode())
        await stores.runs.requeue(run, counts=False, reason=BROKEN)
        await told(news, b"job default")
        again = await claim(stores)
        await stores.jobs.request_cancel(again.job.id)
        await told(news, b"cancel " + again.run.encode())
        await stores.nodes.report("g1", verdict="up", why="")
        await told(news, b"free")


async def test_what_an_operator_wishes_is_no_error_of_the_node(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    wish = JobError(code="released", message="drained")
    await stores.runs.requeue(await claim(stores), counts=False, reason=wish)
    assert await stores.nodes.errors("g1") == []
    await stores.runs.requeue(await claim(stores), counts=False, reason=BROKEN)
    assert [error["code"] for error in await stores.nodes.errors("g1")] == ["node_lost"]


async def test_a_canceled_job_has_neither_an_error_nor_a_result(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    for status, error in ((JobStatus.FAILED, BROKEN), (JobStatus.SUCCEEDED, None)):
        job = await submit(stores)
        run = await claim(stores)
        await stores.jobs.request_cancel(job.id)
        assert await stores.runs.finish(run, status, error=error, duration_s=1) is JobStatus.CANCELED
        ended = await stores.jobs.get(job.id)
        assert ended is not None and ended.error is None
        results: Any = await stores.redis.xrange(f"rq:results:{job.id}")
        assert [set(result) for _, result in results] == [{b"type"}]


async def test_a_preview_is_kept_for_a_minute(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    await stores.runs.preview(await claim(stores), {"data_base64": "AA=="})
    assert 0 < await stores.redis.ttl(f"fleet:job:{job.id}:preview") <= 60


async def test_previews_never_get_into_the_append_only_file(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    run = await claim(stores)
    picture = {"data_base64": "A" * 300_000}
    await stores.redis.config_set("appendonly", "yes")
    try:

        async def written() -> int:
            found = await stores.redis.info("persistence")
            assert found["aof_last_write_status"] == "ok"
            return int(found["aof_current_size"])

        async def begun() -> bool:
            return not (await stores.redis.info("persistence"))["aof_rewrite_in_progress"]

        await until(begun, what="the file is there")
        before = await written()
        for _ in range(10):
            await stores.runs.preview(run, picture)
        now = await stores.jobs.snapshot(job.id)
        assert now is not None and now.preview == picture, "who comes late gets it"
        assert now.job == await stores.jobs.get(job.id) and now.position is None
        await stores.runs.requeue(run, counts=False, reason=BROKEN)
        assert await written() - before < 20_000
        now = await stores.jobs.snapshot(job.id)
        assert now is not None and (now.preview, now.position) == (None, 1)
    finally:
        await stores.redis.config_set("appendonly", "no")


async def test_somebody_follows_a_job_as_long_as_a_stream_is_open(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job, other = await submit(stores), await submit(stores)
    run = await claim(stores)
    assert run.job.id == job.id
    assert not await stores.runs.followed(run)
    async with stores.events.subscribe(other.id):
        assert not await stores.runs.followed(run)
        async with stores.events.subscribe(job.id), stores.events.subscribe(job.id):
            assert await stores.runs.followed(run)

    async def left() -> bool:
        return not await stores.runs.followed(run)

    await until(left, what="nobody listens")


async def test_the_mean_speed_of_a_node_follows_its_warm_runs(stores: Stores) -> None:
    await add_nodes(stores, "g1")

    async def ran(speed: float, *models: str) -> tuple[float, int]:
        await submit(stores)
        await stores.runs.finish(
            await claim(stores), JobStatus.SUCCEEDED, error=None, duration_s=1, speed=speed, models=models
        )
        mean, count = await stores.redis.hmget("fleet:node:g1", "speed", "speeds")
        return float(mean or 0), int(count or 0)

    assert await ran(9.0, "a") == (0.0, 0)  # it had to load the model
    assert await ran(1.0, "a") == (1.0, 1)
    assert await ran(0.0, "a") == (0.5, 2)  # of a few runs the mean
    assert await ran(9.0, "a", "b") == (0.5, 2)
    mean = 1.0
    for _ in range(40):
        mean, _ = await ran(0.0)
    assert mean < 0.01
    after, _ = await ran(1.0)
    assert after - mean > 0.9 * SHARE  # of many runs the late ones count more
    assert after - mean < 1.1 * SHARE


async def test_no_more_models_are_remembered_than_fit(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    for names in (["old"], [f"m{number}" for number in range(MODELS)]):
        await submit(stores)
        await stores.runs.finish(
            await claim(stores), JobStatus.SUCCEEDED, error=None, duration_s=1, models=names
        )
    assert await stores.nodes.models("g1") == [f"m{number}" for number in range(MODELS)]
