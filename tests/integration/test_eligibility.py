"""Jobs go to nodes that can run them: classes, files, pools, memory. Simulated nodes, a real broker."""

import asyncio
from itertools import count, pairwise

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.errors import InvalidWorkflow
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.nodes.eligibility import GIB, PlacementRequest
from comfy_fleet.services.failure_policy import REST_S
from comfy_fleet.sim import SimTiming
from tests.factories import picture, sampled, with_model
from tests.fleet import fleet_of, until


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def test_a_job_reaches_only_nodes_that_have_its_files(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("a", models=with_model(1, "other.safetensors"))
        await fleet.add_sim("b", models=with_model(1))
        for name in "ab":
            await fleet.verdict(name)
        known = await fleet.refresher()
        jobs = [await fleet.send(known, sampled(seed=i), PlacementRequest()) for i in range(6)]
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.node, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, "b", 0)}
        assert not any(job.placement.without for job in ended)  # the other one was never even asked
        with pytest.raises(InvalidWorkflow, match=r"no node has `checkpoints/none.ckpt`"):
            await known.placement(check(sampled(file="none.ckpt")), PlacementRequest())


async def test_a_node_that_joins_takes_jobs_that_wait(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("a", models=with_model(1, "other.safetensors"))
        await fleet.add_sim("b", models=with_model(1))
        for name in "ab":
            await fleet.verdict(name)
        known = await fleet.refresher()
        await fleet.stores.nodes.cordon("b", reason="maintenance")
        job = await fleet.send(known, sampled(), PlacementRequest())
        assert await known.waiting_for(job) == "node b is drained: maintenance"
        await fleet.add_sim("c", models=with_model(1))
        done = await fleet.ended(job.id)
        assert (done.status, done.node) == (JobStatus.SUCCEEDED, "c")


async def test_a_node_that_lost_a_file_never_sees_the_job(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("a", models=with_model(1))
        await fleet.verdict("a")
        known = await fleet.refresher()
        await fleet.stores.nodes.cordon("a", reason="models")
        job = await fleet.send(known, sampled(), PlacementRequest())
        assert job.placement == Placement()  # every node had it
        await fleet.add_sim("b", models=with_model(1, "other.safetensors"))
        await until(lambda: known.known == {"a", "b"}, what="b is read")
        await fleet.verdict("b")

        async def moved() -> bool:
            return bool((await fleet.job(job.id)).placement.needs)

        await until(moved, what="the job wants its file")
        waits = await fleet.job(job.id)
        assert await known.waiting_for(waits) == "node a is drained: models"
        assert not waits.placement.without  # b was never asked
        await fleet.stores.nodes.uncordon("a")
        done = await fleet.ended(job.id)
        assert (done.node, done.attempt) == ("a", 0)


async def test_a_refusal_has_the_node_read_again(redis_port: int) -> None:
    async with fleet_of(redis_port, "a", "b") as fleet:
        known = await fleet.refresher()
        fleet.sims["a"].faults.update({"reject": "always"})
        before = (await fleet.state("a")).reading.read_at
        ended: list[Job] = []
        async with asyncio.timeout(40):
            while (await fleet.state("a")).reading.read_at == before:  # one of them is offered to it first
                ended.append(
                    await fleet.ended((await fleet.send(known, picture(len(ended)), PlacementRequest())).id)
                )
        assert {(job.status, job.node, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, "b", 0)}


async def test_jobs_spill_into_the_next_pool_when_the_first_is_full(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        timing = SimTiming(job_s=0.3)
        await fleet.add_sim("big", node={"pool": "big"}, timing=timing)
        await fleet.add_sim("small", timing=timing)
        for name in ("big", "small"):
            await fleet.verdict(name)
        known = await fleet.refresher()
        lone = await fleet.send(known, picture(1), PlacementRequest(pool="big", spill_to=("default",)))
        assert (await fleet.ended(lone.id)).node == "big"
        nodes: set[str | None] = set()
        seeds = count(10)
        async with asyncio.timeout(40):
            while "small" not in nodes:
                spilling = [
                    await fleet.send(known, picture(next(seeds)), PlacementRequest(prefer="big"))
                    for _ in range(4)
                ]
                nodes |= {(await fleet.ended(job.id)).node for job in spilling}
        assert nodes == {"big", "small"}
        required = [
            await fleet.send(known, picture(next(seeds)), PlacementRequest(pool="big")) for _ in range(3)
        ]
        assert {(await fleet.ended(job.id)).node for job in required} == {"big"}


async def test_no_job_spills_while_the_first_pool_has_a_free_node(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("big", node={"pool": "big"})
        await fleet.add_sim("small")
        for name in ("big", "small"):
            await fleet.verdict(name)
        known = await fleet.refresher()
        for seed in range(20):
            job = await fleet.send(known, picture(seed), PlacementRequest(pool="big", spill_to=("default",)))
            for _ in range(3):  # several reasons to look for a node for the same job
                fleet.dispatchers[0].dispatcher.look_again()
                await asyncio.sleep(0)
            assert (await fleet.ended(job.id)).node == "big"


async def test_out_of_memory_goes_to_a_larger_card_and_is_remembered(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        for name, size in (("small", 12), ("mid", 16), ("large", 24)):
            await fleet.add_sim(name, models=with_model(18), vram_bytes=size * GIB)
        for name in fleet.sims:
            await fleet.verdict(name)
        known = await fleet.refresher()
        jobs = [
            await fleet.send(known, sampled(seed=i), PlacementRequest(), profile="big") for i in range(12)
        ]
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.node) for job in ended} == {(JobStatus.SUCCEEDED, "large")}
        tries = sum(sim.stats.failed for sim in fleet.sims.values())
        assert tries <= 4, "each small card is tried once, or twice side by side"
        later = await fleet.ended(
            (await fleet.send(known, sampled(seed=99), PlacementRequest(), profile="big")).id
        )
        assert later.node == "large"
        assert sum(sim.stats.failed for sim in fleet.sims.values()) == tries


async def test_out_of_memory_on_the_largest_card_fails_in_clear_words(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("small", models=with_model(40), vram_bytes=12 * GIB)
        await fleet.add_sim("large", models=with_model(40), vram_bytes=24 * GIB)
        for name in fleet.sims:
            await fleet.verdict(name)
        known = await fleet.refresher()
        failed = await fleet.ended((await fleet.send(known, sampled(), PlacementRequest())).id)
        assert failed.status is JobStatus.FAILED and failed.error
        assert failed.error.code == "out_of_memory"
        assert "out of memory on large (24 GiB), the largest node that can run it" in failed.error.message
        errors = await fleet.stores.nodes.errors("large")
        assert [error["code"] for error in errors] == ["out_of_memory"]


async def test_a_card_that_others_have_filled_is_no_sink_for_waiting_jobs(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("shared", models=with_model(20), vram_bytes=24 * GIB, foreign_bytes=7 * GIB)
        await fleet.add_sim("free", models=with_model(20), vram_bytes=24 * GIB, timing=SimTiming(job_s=0.3))
        for name in fleet.sims:
            await fleet.verdict(name)
        known = await fleet.refresher()
        # Too little for its agent to drain the card, too much for this model: a job that fails at once makes
        # room for the next.
        jobs = [
            await fleet.send(known, sampled(seed=i), PlacementRequest(), profile=f"p{i}") for i in range(8)
        ]
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.node) for job in ended} == {(JobStatus.SUCCEEDED, "free")}
        tries = [start for start, _, _ in fleet.sims["shared"].stats.intervals]
        assert tries, "nothing was tried there"
        assert all(later - first >= REST_S for first, later in pairwise(tries))


async def test_a_node_on_which_everything_fails_is_quarantined_until_it_restarts(redis_port: int) -> None:
    async with fleet_of(redis_port, quarantine_ooms=3) as fleet:
        await fleet.add_sim("bad", vram_bytes=24 * GIB)
        await fleet.add_sim("good", vram_bytes=24 * GIB)
        for name in fleet.sims:
            await fleet.verdict(name)
        known = await fleet.refresher()
        fleet.sims["bad"].faults.update({"oom": "always"})
        jobs: list[Job] = []
        async with asyncio.timeout(40):
            while not (bad := await fleet.state("bad")).quarantined:
                seed = len(jobs)
                jobs.append(
                    await fleet.send(
                        known, picture(seed), PlacementRequest(), profile=f"p{seed}", max_attempts=5
                    )
                )
        for job in jobs:
            assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
        assert bad.node.cordoned
        assert bad.node.cordon_reason == "quarantined: 3 jobs in a row ran out of memory"
        await fleet.sims["bad"].crash()
        await fleet.verdict("bad", "down")
        fleet.sims["bad"].faults.clear()
        await fleet.sims["bad"].restart()
        await fleet.verdict("bad", "up")
        assert not (await fleet.state("bad")).quarantined


async def test_a_node_that_was_not_known_at_submit_is_told_no_foreign_file(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("a")
        await fleet.verdict("a")
        known = await fleet.refresher()
        await fleet.stores.nodes.cordon("a", reason="not yet")
        graph = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "x.png [temp]"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        }
        job = await fleet.submit(graph)  # as if the class had been unknown to every node
        sim = await fleet.add_sim("b")
        await until(lambda: known.known == {"a", "b"}, what="b is read")
        ended = await fleet.ended(job.id)
        assert ended.status is JobStatus.FAILED
        assert ended.error is not None
        assert ended.error.code == "invalid_workflow"
        assert ended.error.details["node_errors"]["1"][0]["reason"] == "custom_validation_failed"
        assert (sim.stats.done, sim.stats.failed) == (0, 0)
