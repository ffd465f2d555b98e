"""What a job's record keeps of its runs: how far they came, where they were, and why they ended."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus, Progress
from comfy_fleet.domain.jobs.run import Run
from comfy_fleet.domain.jobs.run_messages import PostAnswered, QueueAnswered
from comfy_fleet.services.estimator import Outlook
from comfy_fleet.services.job_watch import Seen, Status, watch
from comfy_fleet.services.run_metrics import Measure
from comfy_fleet.sim import SimTiming
from tests.factories import GRAPH, picture
from tests.fleet import fleet_of, until
from tests.integration.redis_kit import BROKEN, add_nodes, claim, submit

HALF = Progress(value=0.5, nodes_done=1, nodes_total=2, current_node="2", step=1, steps=2)


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def stored(stores: Stores, job_id: str) -> Job:
    job = await stores.jobs.get(job_id)
    assert job is not None
    return job


def working(color: int, seconds: float = 1.0) -> dict[str, Any]:
    """A picture that takes a while and reports its steps."""
    graph = picture(color)
    inputs = {"value": ["1", 0], "seconds": seconds, "steps": 20, "vram_gb": 0.0}
    graph["3"] = {"class_type": "SimWork", "inputs": inputs}
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


# -- progress ------------------------------------------------------------------------------------------------


async def test_whatever_succeeded_is_through(redis_port: int) -> None:
    """Short runs, whose progress is never told; runs that are answered from the cache; and long ones."""
    async with fleet_of(redis_port, "g1") as fleet:
        for _ in range(2):
            done = await fleet.ended((await fleet.submit(GRAPH)).id)
            assert done.status is JobStatus.SUCCEEDED
            assert done.progress == Progress.complete(2)
    timing = SimTiming()
    async with fleet_of(redis_port, "g2", sim={"timing": timing}) as fleet:
        done = await fleet.ended((await fleet.submit(working(1))).id)
        assert done.progress == Progress.complete(3)


@pytest.mark.parametrize("left", [False, True])
async def test_a_run_that_was_taken_over_is_through_once_it_has_succeeded(
    redis_port: int, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken over while its prompt runs, or when only its outputs were missing."""
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=0.5)}) as fleet:
        held = asyncio.Event()
        if left:

            async def slow(*_: Any, **__: Any) -> Any:
                held.set()
                await asyncio.sleep(60)

            monkeypatch.setattr(RedisAssets, "put_output", slow)
        job = await fleet.submit(GRAPH)
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")
        if left:
            await held.wait()

            async def noted() -> bool:
                work = (await fleet.state("g1")).work
                return bool(work) and work[0].phase == "left"

            await until(noted, what="only the outputs are missing")
        await fleet.dispatchers[0].kill()
        monkeypatch.undo()
        await fleet.dispatcher("d2")
        done = await fleet.ended(job.id)
        assert (done.status, done.progress) == (JobStatus.SUCCEEDED, Progress.complete(2))
        (attempt,) = done.attempts
        assert (attempt.node, attempt.counted, attempt.error) == ("g1", False, None)
        (picture,) = (await fleet.stores.jobs.with_ui(job.id))[1]["2"]["images"]
        assert picture["filename"] == done.outputs[0].name


@pytest.mark.parametrize("where", ["while its prompt runs", "once it has succeeded"])
async def test_a_run_that_nobody_can_go_on_with_uses_its_attempts_up(
    redis_port: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = where == "while its prompt runs"
    handle = Run.handle

    def broken(*given: Any, **_: Any) -> Any:
        if running and not isinstance(given[1], PostAnswered | QueueAnswered):
            return handle(*given)
        raise ValueError("odd")

    if running:
        monkeypatch.setattr(Run, "handle", broken)
    else:
        monkeypatch.setattr(Measure, "succeeded", broken)
    timing = SimTiming(job_s=600 if running else 0)
    async with fleet_of(redis_port, "g1", sim={"timing": timing}, lease_ttl_s=1.0, beat_s=0.1) as fleet:
        job = await fleet.submit(GRAPH, max_attempts=2)
        done = await fleet.ended(job.id, timeout_s=50)
        assert (done.status, done.attempt) == (JobStatus.FAILED, 2)
        assert [attempt.counted for attempt in done.attempts] == [True, True]
        assert done.error is not None
        assert (done.error.code, "ValueError" in done.error.message) == ("internal_error", True)
        engine = fleet.sims["g1"].engine
        await until(lambda: not engine.running, what="its prompt is off the node")
        assert engine.stats.interrupted == (2 if running else 0)
        monkeypatch.undo()
        if not running:
            assert (await fleet.ended((await fleet.submit(picture(5))).id)).status is JobStatus.SUCCEEDED


async def unknown(_: Job) -> Outlook:
    return Outlook()


async def test_a_stream_ends_on_the_whole(stores: Stores) -> None:
    job = await submit(stores)
    await add_nodes(stores, "g1")
    run = await claim(stores)
    told: list[Seen] = []
    async with stores.events.subscribe(job.id) as stream:
        now = await stores.jobs.snapshot(job.id)
        assert now is not None
        async for some in watch(now, stream, jobs=stores.jobs, outlook=unknown, closing=asyncio.Event()):
            if not told:
                await stores.runs.finish(
                    run, JobStatus.SUCCEEDED, error=None, duration_s=1, progress=Progress.complete(2)
                )
            told += some
    assert told == [
        Status(status=JobStatus.RUNNING),
        Progress.complete(2),
        Status(status=JobStatus.SUCCEEDED),
    ]


async def test_a_job_that_did_not_succeed_keeps_what_it_had_reached(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming()}) as fleet:
        job = await fleet.submit(working(2, seconds=60))
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")

        async def told() -> bool:
            progress = (await fleet.job(job.id)).progress
            return progress is not None and progress.value > 0

        await until(told, what="it has come some way")
        await fleet.stores.jobs.request_cancel(job.id)
        done = await fleet.ended(job.id)
        assert done.status is JobStatus.CANCELED
        assert done.progress is not None and 0 < done.progress.value < 1


@pytest.mark.parametrize("way", ["finish", "requeue"])
async def test_the_last_progress_of_a_failure_is_kept(stores: Stores, way: str) -> None:
    job = await submit(stores, max_attempts=1)
    await add_nodes(stores, "g1")
    run = await claim(stores)
    if way == "finish":
        await stores.runs.finish(run, JobStatus.FAILED, error=BROKEN, duration_s=None, progress=HALF)
    else:
        await stores.runs.requeue(run, counts=True, reason=BROKEN, progress=HALF)
    done = await stored(stores, job.id)
    assert (done.status, done.progress) == (JobStatus.FAILED, HALF)


async def test_a_cancel_that_comes_first_is_not_through(stores: Stores) -> None:
    job = await submit(stores)
    await add_nodes(stores, "g1")
    run = await claim(stores)
    await stores.runs.progress(run, HALF)
    await stores.jobs.request_cancel(job.id)
    await stores.runs.finish(
        run, JobStatus.SUCCEEDED, error=None, duration_s=1, progress=Progress.complete(2)
    )
    done = await stored(stores, job.id)
    assert (done.status, done.progress) == (JobStatus.CANCELED, HALF)


async def test_a_record_of_an_earlier_version_is_read(stores: Stores, redis: Redis) -> None:
    job = await submit(stores)
    await add_nodes(stores, "g1")
    run = await claim(stores)
    await stores.runs.progress(run, HALF)
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1)
    await redis.hdel(f"fleet:job:{job.id}", "attempts")
    done = await stored(stores, job.id)
    assert (done.progress, done.attempts) == (Progress.complete(2), ())


# -- attempts ------------------------------------------------------------------------------------------------


async def test_a_job_tells_where_it_was_lost(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2", "g3", sim={"timing": SimTiming(job_s=0.1)}) as fleet:
        for sim in fleet.sims.values():
            sim.faults.update({"crash_mid_run": "always"})
        done = await fleet.ended((await fleet.submit(GRAPH)).id)
        assert (done.status, done.attempt) == (JobStatus.FAILED, 3)
        assert {one.node for one in done.attempts} == {"g1", "g2", "g3"}
        assert all(one.counted and one.error and one.error.code == "node_lost" for one in done.attempts)
        assert done.error is not None
        story = done.error.details["story"]
        assert story[0] == "0.000 Opened -> posting: PostPrompt"
        assert any("PostAnswered 200" in line for line in story)
        assert story[-1].endswith("-> done: Finish")
        times = [at for one in done.attempts for at in (one.started_at, one.ended_at)]
        assert times == sorted(times)
        assert done.created_at <= times[0] and times[-1] == pytest.approx(done.completed_at or 0, abs=0.001)


async def test_a_run_that_was_given_back_is_listed_and_not_counted(stores: Stores) -> None:
    job = await submit(stores)
    await add_nodes(stores, "g1", "g2")
    drained = JobError(code="released", message="given back from node g1")
    first = await claim(stores)
    await stores.runs.requeue(first, counts=False, reason=drained)
    waits = await stored(stores, job.id)
    assert [(one.run, one.node, one.counted, one.error) for one in waits.attempts] == [
        (first.run, "g1", False, drained)
    ]
    second = await claim(stores, "g2")
    assert second.job.attempts == waits.attempts, "whoever claims it reads it, too"
    await stores.runs.finish(second, JobStatus.SUCCEEDED, error=None, duration_s=1)
    done = await stored(stores, job.id)
    assert [(one.node, one.counted, one.error is None) for one in done.attempts] == [
        ("g1", False, False),
        ("g2", False, True),
    ]
    assert done.attempt == 0


async def test_an_error_of_the_graph_counts(stores: Stores) -> None:
    job = await submit(stores)
    await add_nodes(stores, "g1")
    error = JobError(code="node_execution_error", message="no", traceback="t" * 9000, details={"a": 1})
    await stores.runs.finish(await claim(stores), JobStatus.FAILED, error=error, duration_s=None)
    done = await stored(stores, job.id)
    assert (done.error, done.attempt) == (error, 1)
    (attempt,) = done.attempts
    assert attempt.counted
    assert attempt.error == JobError(code="node_execution_error", message="no"), "in short"


async def test_attempts_take_little_room(stores: Stores, redis: Redis) -> None:
    job = await submit(stores)
    await add_nodes(stores, "g1")
    runs = []
    for number in range(30):
        run = await claim(stores)
        runs.append(run.run)
        reason = JobError(code="released", message=f"{number} " + 'äöü\U0001f98a"\\\n' * 1000)
        await stores.runs.requeue(run, counts=False, reason=reason)
    found = (await stored(stores, job.id)).attempts
    assert [one.run for one in found] == runs[-20:]
    for number, one in enumerate(found, 10):
        assert one.error is not None and one.error.message.startswith(f'{number} äöü\U0001f98a"\\\n')
        assert len(one.error.message) == 300 and one.error.message.endswith("…")
    assert await redis.hstrlen(f"fleet:job:{job.id}", "attempts") < 32_768


@pytest.mark.parametrize("broken", ["[{", "7", ""])
async def test_damaged_attempts_keep_no_job_from_its_end(stores: Stores, redis: Redis, broken: str) -> None:
    job = await submit(stores)
    await add_nodes(stores, "g1")
    run = await claim(stores)
    await redis.hset(f"fleet:job:{job.id}", "attempts", broken)
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1)
    done = await stored(stores, job.id)
    assert (done.status, [one.run for one in done.attempts]) == (JobStatus.SUCCEEDED, [run.run])


async def test_whoever_lost_the_run_notes_no_attempt(stores: Stores) -> None:
    job = await submit(stores)
    await add_nodes(stores, "g1")
    run = await claim(stores, ttl=0)
    (held,) = await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=1)
    for write in (
        stores.runs.requeue(run, counts=True, reason=BROKEN),
        stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1),
    ):
        with pytest.raises(Exception, match="another dispatcher"):
            await write
    assert (await stored(stores, job.id)).attempts == ()
    await stores.runs.requeue(held.claim, counts=True, reason=BROKEN)
    assert len((await stored(stores, job.id)).attempts) == 1
