"""Several jobs as one prompt, through the real broker onto simulated nodes."""

import asyncio
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.bootstrap import open_assets
from comfy_fleet.domain.graphs.merging import MergeMode, MergeRule
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.jobs.merge_key import MergeKey, merge_key
from comfy_fleet.sim import SimNode, SimTiming
from tests.factories import picture, sampled
from tests.fleet import Fleet, fleet_of, until

BATCH_MODEL = "v1-5-pruned-emaonly-fp16.safetensors"
SLOW = {"timing": SimTiming(job_s=1.5)}
SLOWER = {"timing": SimTiming(job_s=6)}  # it is still computing when its dispatcher is dead


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


def key_of(graph: dict[str, Any], mode: MergeMode = MergeMode.EXACT, **rule: Any) -> MergeKey:
    found = merge_key(
        MergeRule(mode=mode, **{"window_s": 0.0, **rule}),
        graph,
        version="sha256:1",
        owner="local",
        drawn={("4", "seed")},
        about={},
    )
    assert found is not None
    return found


async def pictures(fleet: Fleet, count: int, **rule: Any) -> list[Job]:
    """Submit jobs of one workflow, each with a colour of its own."""
    return [await fleet.submit(picture(n), merge=key_of(picture(n), **rule)) for n in range(1, count + 1)]


async def batches(fleet: Fleet, count: int) -> list[Job]:
    graphs = [sampled(64, file=BATCH_MODEL, seed=100 + n) for n in range(count)]
    return [await fleet.submit(graph, merge=key_of(graph, MergeMode.BATCH)) for graph in graphs]


async def ended(fleet: Fleet, jobs: Sequence[Job]) -> list[Job]:
    return list(await asyncio.gather(*(fleet.ended(job.id) for job in jobs)))


async def content(fleet: Fleet, job: Job) -> bytes:
    (output,) = job.outputs
    asset = await open_assets(fleet.settings, fleet.stores).get(output.asset_id)
    assert asset is not None
    return (fleet.settings.files_dir / asset.path).read_bytes()


async def colour(fleet: Fleet, job: Job) -> int:
    with Image.open(io.BytesIO(await content(fleet, job))) as image:
        red, green, blue = image.convert("RGB").getpixel((1, 1))  # type: ignore[misc]
    return int(red << 16 | green << 8 | blue)


async def running(fleet: Fleet, jobs: Sequence[Job]) -> list[Job]:
    """Wait until all of them run."""

    async def all_run() -> bool:
        return all([(await fleet.job(job.id)).status is JobStatus.RUNNING for job in jobs])

    await until(all_run, what="all run")
    return [await fleet.job(job.id) for job in jobs]


def prompts(sim: SimNode) -> int:
    return sim.stats.done


async def test_branches_of_one_prompt_are_each_jobs_own(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        jobs = await pictures(fleet, 6)
        await fleet.dispatcher()
        done = await ended(fleet, jobs)
        assert {job.status for job in done} == {JobStatus.SUCCEEDED}
        assert [await colour(fleet, job) for job in done] == [1, 2, 3, 4, 5, 6]
        assert prompts(fleet.sims["g1"]) == 2, "four, and then the other two"
        assert len({job.run for job in done}) == 6
        assert [job.attempt for job in done] == [0] * 6
        for job, number in zip(done, range(1, 7), strict=True):
            assert [output.node_id for output in job.outputs] == ["2"]
            with Image.open(io.BytesIO(await content(fleet, job))) as image:
                assert orjson.loads(image.info["prompt"]) == picture(number), "what was submitted, not merged"
        assert await fleet.stores.runs.lease_of("g1") is None


async def test_a_batch_is_told_apart_by_places(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        jobs = await batches(fleet, 3)
        await fleet.dispatcher()
        done = await ended(fleet, jobs)
        assert {job.status for job in done} == {JobStatus.SUCCEEDED}
        assert prompts(fleet.sims["g1"]) == 1
        assert [len(job.outputs) for job in done] == [1, 1, 1]
        parts = [job.batch for job in done]
        assert all(part is not None for part in parts)
        assert [(one.seed, one.first, one.count, one.size) for one in parts if one] == [
            (100, 0, 1, 3),
            (100, 1, 1, 3),
            (100, 2, 1, 3),
        ]
        assert len({await content(fleet, job) for job in done}) == 3
        with Image.open(io.BytesIO(await content(fleet, done[2]))) as image:
            assert orjson.loads(image.info["prompt"])["4"]["inputs"]["seed"] == 100, "what made it"


async def test_jobs_with_other_keys_are_not_merged(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        one, other = key_of(picture(1)), replace(key_of(picture(1)), text="exact:other")
        jobs = [await fleet.submit(picture(n), merge=(one, other, None)[n % 3]) for n in range(1, 4)]
        await fleet.dispatcher()
        assert {job.status for job in await ended(fleet, jobs)} == {JobStatus.SUCCEEDED}
        assert prompts(fleet.sims["g1"]) == 3


async def test_a_job_waits_for_others_only_while_they_come(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        (first,) = await pictures(fleet, 1, window_s=1.0)
        await fleet.ended(first.id)
        alone = picture(50)
        late = await fleet.submit(alone, merge=key_of(alone, window_s=1.0))
        other = await fleet.submit(picture(60))  # the node takes another job meanwhile
        ends = await ended(fleet, [other, late])
        assert ends[0].completed_at is not None and ends[1].started_at is not None
        assert ends[1].started_at >= ends[1].created_at + 0.9
        assert ends[0].completed_at < ends[1].started_at


async def test_a_job_says_that_it_waits_for_others(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        known = await fleet.refresher()

        async def said(job: Job) -> str | None:
            now = await fleet.job(job.id)
            return await known.waiting_for(now, await fleet.stores.jobs.waits(now))

        (first,) = await pictures(fleet, 1, window_s=600.0)
        assert await said(first) is None, "no other one has come before it"
        late = await fleet.submit(picture(50), merge=key_of(picture(50), window_s=600.0))
        words = await said(late)
        assert words is not None
        assert words.startswith("others of its workflow may share its prompt: at most ")
        assert words.endswith(" s more")
        for color in (51, 52):
            await fleet.submit(picture(color), merge=key_of(picture(color), window_s=600.0))
        assert "share its prompt" not in str(await said(late)), "enough are there"


async def test_a_job_waits_no_longer_once_enough_are_there(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        (first,) = await pictures(fleet, 1, window_s=10.0)
        await fleet.ended(first.id)
        jobs = await pictures(fleet, 4, window_s=10.0)
        done = await ended(fleet, jobs)
        assert {job.status for job in done} == {JobStatus.SUCCEEDED}
        assert prompts(fleet.sims["g1"]) == 2
        assert all(job.started_at and job.started_at < jobs[0].created_at + 8 for job in done)


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_canceling_one_drops_only_its_results(redis_port: int, which: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False, sim=SLOW) as fleet:
        jobs = await pictures(fleet, 3)
        await fleet.dispatcher()
        await running(fleet, jobs)
        await asyncio.sleep(0.2)
        await fleet.stores.jobs.request_cancel(jobs[which].id)
        if which:  # those that do not hold the node end at once
            await until(lambda: _is(fleet, jobs[which], JobStatus.CANCELED), what="it is canceled")
            assert (await fleet.job(jobs[0].id)).status is JobStatus.RUNNING
        done = await ended(fleet, jobs)
        wanted = [JobStatus.SUCCEEDED] * 3
        wanted[which] = JobStatus.CANCELED
        assert [job.status for job in done] == wanted
        assert all(len(job.outputs) == 1 for at, job in enumerate(done) if at != which)
        assert prompts(fleet.sims["g1"]) == 1
        assert await fleet.stores.runs.lease_of("g1") is None


async def _is(fleet: Fleet, job: Job, status: JobStatus) -> bool:
    return (await fleet.job(job.id)).status is status


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_canceling_the_last_one_stops_the_prompt(redis_port: int, order: tuple[int, ...]) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False, sim={"timing": SimTiming(job_s=60)}) as fleet:
        jobs = await pictures(fleet, 3)
        await fleet.dispatcher()
        await running(fleet, jobs)
        for at in order:
            await fleet.stores.jobs.request_cancel(jobs[at].id)
            await asyncio.sleep(0.1)
        done = await ended(fleet, jobs)
        assert {job.status for job in done} == {JobStatus.CANCELED}
        after = await fleet.submit(picture(9))
        await until(lambda: _is(fleet, after, JobStatus.RUNNING), what="the node is free again")


@pytest.mark.parametrize("fault", ["oom", "execution_error", "reject", "partial"])
async def test_after_a_failure_each_runs_alone_and_nothing_counts(redis_port: int, fault: str) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        jobs = await pictures(fleet, 3)
        await fleet.sims["g1"].set_faults({fault: 1})
        await fleet.dispatcher()
        done = await ended(fleet, jobs)
        assert {job.status for job in done} == {JobStatus.SUCCEEDED}
        assert [await colour(fleet, job) for job in done] == [1, 2, 3]
        assert [job.attempt for job in done] == [0, 0, 0]
        assert [len(job.attempts) for job in done] == [2, 2, 2]
        assert not any(one.counted for job in done for one in job.attempts)
        assert prompts(fleet.sims["g1"]) >= 3


@pytest.mark.parametrize("fault", ["drop_last", "history_lost", "close_sockets", "history_lag_s"])
async def test_frames_that_are_missing_cost_no_results(redis_port: int, fault: str) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        jobs = await pictures(fleet, 3)
        await fleet.sims["g1"].set_faults({fault: 1})
        await fleet.dispatcher()
        done = await ended(fleet, jobs)
        assert {job.status for job in done} == {JobStatus.SUCCEEDED}
        assert [await colour(fleet, job) for job in done] == [1, 2, 3]
        assert [len(job.outputs) for job in done] == [1, 1, 1]


async def test_a_job_that_nobody_could_run_fails_alone(redis_port: int) -> None:
    """The node refuses the merged graph for one of them."""
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        jobs = await pictures(fleet, 2)
        broken = picture(7, filename_prefix=5)
        broken["1"]["inputs"]["width"] = -3
        bad = await fleet.submit(broken, merge=key_of(broken))
        await fleet.dispatcher()
        done = await ended(fleet, [*jobs, bad])
        assert [job.status for job in done] == [JobStatus.SUCCEEDED, JobStatus.SUCCEEDED, JobStatus.FAILED]
        assert done[2].error is not None and "merged" not in done[2].error.message


async def test_whoever_takes_over_goes_on_with_the_first_and_runs_the_others_again(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False, sim=SLOWER) as fleet:
        jobs = await pictures(fleet, 3)
        first = await fleet.dispatcher()
        before = await running(fleet, jobs)
        await asyncio.sleep(0.3)
        await first.kill()
        await fleet.dispatcher("d2")
        done = [await fleet.ended(job.id, timeout_s=60) for job in jobs]
        assert {job.status for job in done} == {JobStatus.SUCCEEDED}
        assert [await colour(fleet, job) for job in done] == [1, 2, 3]
        assert [len(job.outputs) for job in done] == [1, 1, 1]
        assert done[0].run == before[0].run, "the node knows the first one's prompt"
        assert {job.run for job in done[1:]}.isdisjoint(job.run for job in before)
        assert [job.attempt for job in done] == [0, 0, 0]


async def test_a_batch_that_is_taken_over_gives_the_first_its_own_picture(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False, sim=SLOWER) as fleet:
        jobs = await batches(fleet, 3)
        first = await fleet.dispatcher()
        before = await running(fleet, jobs)
        await asyncio.sleep(0.3)
        await first.kill()
        await fleet.dispatcher("d2")
        done = [await fleet.ended(job.id, timeout_s=60) for job in jobs]
        assert [len(job.outputs) for job in done] == [1, 1, 1]
        assert done[0].run == before[0].run
        assert [job.batch is None for job in done] == [False, True, True]


async def test_the_node_is_lost(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False, sim={"timing": SimTiming(job_s=3)}) as fleet:
        jobs = await pictures(fleet, 3)
        await fleet.dispatcher()
        await running(fleet, jobs)
        await fleet.add_sim("g2")
        await fleet.verdict("g2")
        await fleet.sims["g1"].crash()
        done = [await fleet.ended(job.id, timeout_s=60) for job in jobs]
        assert [(job.status, job.node, job.attempt) for job in done] == [(JobStatus.SUCCEEDED, "g2", 0)] * 3
        assert [await colour(fleet, job) for job in done] == [1, 2, 3]


async def test_owners_pay_for_the_prompt_once(redis_port: int, redis: Redis) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False, sim=SLOW) as fleet:
        jobs = await pictures(fleet, 3)
        last = await fleet.submit(picture(77), priority=-1_000_000)  # keeps the owner's account open
        await fleet.dispatcher()
        await ended(fleet, jobs)
        used = 0.0

        async def charged() -> bool:
            nonlocal used
            used = float(await redis.hget(fleet.stores.redis.keyspace.sched_used("local"), "used") or 0)
            return used >= 1.4

        await until(charged, what="the prompt is charged")
        assert used < 2.9, "once, not for each of the jobs"
        await fleet.stores.jobs.request_cancel(last.id)


def test_what_the_record_says_is_read_back() -> None:
    assert re.fullmatch(r"exact:[0-9a-f]{32}", key_of(picture(1)).text)
