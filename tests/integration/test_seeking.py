"""Dispatchers that seek nodes for jobs with models: where they run, and what idle nodes cost meanwhile."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.jobs.workload import workload_of
from comfy_fleet.sim import SimTiming
from tests.factories import GB, picture, sampled
from tests.fleet import Fleet, fleet_of, until
from tests.integration.haproxy_kit import counted

SIZE = 18 * GB
SETS = tuple(f"set-{number}.safetensors" for number in range(4))
FILES: dict[str, Any] = {"checkpoints": dict.fromkeys(SETS, SIZE)}


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def send(fleet: Fleet, file: str, seed: int, **fields: Any) -> Job:
    """Submit a job that loads a checkpoint."""
    models = ((f"checkpoints/{file}", SIZE),)
    graph = sampled(64, file=file, seed=seed)
    fields = {"models": models, "workload": workload_of(models, 0), "profile": file, **fields}
    return await fleet.submit(graph, able=tuple(fleet.sims)[:8], **fields)


async def asked(fleet: Fleet) -> int:
    """Return how many leases were asked for so far."""
    return await counted(fleet.controller.broker.runtime, "fe_lease", "stot", kind=1)


async def heat(fleet: Fleet, name: str, file: str, runs: int = 3) -> None:
    """Have a node load a checkpoint, and the fleet learn how long its jobs take."""
    others = [other for other in fleet.sims if other != name]
    for other in others:
        await fleet.stores.nodes.cordon(other, reason="later")
    for seed in range(runs):
        done = await fleet.ended((await send(fleet, file, 1000 + seed)).id)
        assert done.node == name
    for other in others:
        await fleet.stores.nodes.uncordon(other)
        await fleet.verdict(other)


async def test_a_new_job_goes_to_the_idle_node_that_has_its_models(redis_port: int) -> None:
    sim = {"models": FILES, "timing": SimTiming(job_s=0.05)}
    async with fleet_of(redis_port, "g1", "g2", "g3", sim=sim) as fleet:
        await heat(fleet, "g2", SETS[0])
        for seed in range(8):
            done = await fleet.ended((await send(fleet, SETS[0], seed)).id)
            assert (done.status, done.node) == (JobStatus.SUCCEEDED, "g2")
        for other in (await send(fleet, SETS[1], 0), await fleet.submit(picture(1))):
            assert (await fleet.ended(other.id)).node != "g2", "its models would have to go"


async def test_sets_stay_where_they_are_while_jobs_of_all_come_mixed(redis_port: int) -> None:
    names = [f"g{number}" for number in range(4)]
    sim = {"models": FILES, "timing": SimTiming(job_s=0.05)}
    async with fleet_of(redis_port, *names, sim=sim) as fleet:
        jobs = [await send(fleet, SETS[seed % 4], seed) for seed in range(40)]
        ended = [await fleet.ended(job.id, timeout_s=60) for job in jobs]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        where = Counter((job.node, SETS[at % 4]) for at, job in enumerate(ended))
        assert len(where) <= 8, (
            where
        )  # each of 4 sets on one node, or two; in order of rank it would be all 16


async def test_idle_nodes_cost_little_while_jobs_wait_for_the_one_that_has_their_models(
    redis_port: int,
) -> None:
    timing = SimTiming(job_s=1.0)
    async with fleet_of(redis_port, "warm", sim={"models": FILES, "timing": timing}) as fleet:
        await heat(fleet, "warm", SETS[0])
        for number in range(4):
            await fleet.add_sim(f"cold-{number}", models=FILES, timing=timing)
        for name in fleet.sims:
            await fleet.verdict(name)
        jobs = [await send(fleet, SETS[0], seed) for seed in range(5)]
        await until(lambda: fleet.sims["warm"].engine.running, what="the first one runs")
        loop = asyncio.get_running_loop()
        began, before = loop.time(), await asked(fleet)
        await fleet.ended(jobs[-2].id)
        took_s, requests = loop.time() - began, await asked(fleet) - before
        assert {(await fleet.ended(job.id)).node for job in jobs} == {"warm"}
        assert took_s > 2 and requests <= 10 * took_s


async def test_a_job_that_waits_for_a_node_that_dies_runs_elsewhere(redis_port: int) -> None:
    async with fleet_of(redis_port, "warm", sim={"models": FILES, "timing": SimTiming(job_s=1.0)}) as fleet:
        await heat(fleet, "warm", SETS[0], runs=2)
        await fleet.add_sim("cold", models=FILES)
        await fleet.verdict("cold")
        jobs = [await send(fleet, SETS[0], seed) for seed in range(3)]
        await until(lambda: fleet.sims["warm"].engine.running, what="the first one runs")
        await fleet.sims["warm"].stop()
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.node) for job in ended} == {(JobStatus.SUCCEEDED, "cold")}


async def test_losing_a_zone_loses_no_job(redis_port: int) -> None:
    zones = {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}
    async with fleet_of(redis_port) as fleet:
        for name, zone in zones.items():
            timing = SimTiming(job_s=30.0 if zone == "a" else 0.1)
            await fleet.add_sim(name, node={"zone": zone}, models=FILES, timing=timing)
        for name in zones:
            await fleet.verdict(name)
        jobs = [await send(fleet, SETS[seed % 4], seed) for seed in range(12)]
        jobs += [await fleet.submit(picture(seed)) for seed in range(8)]
        lost = [fleet.sims[name] for name, zone in zones.items() if zone == "a"]
        await until(lambda: all(sim.engine.running for sim in lost), what="the zone works")
        for sim in lost:
            await sim.stop()
        ended = [await fleet.ended(job.id, timeout_s=60) for job in jobs]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        assert {zones[job.node or ""] for job in ended} == {"b"}
        assert sum(job.attempt for job in ended) == len(lost), "what ran there has used up one attempt"
        assert all(job.attempts[0].node in ("a1", "a2") for job in ended if job.attempt)


async def test_two_dispatchers_don_t_send_each_other_round_in_circles(redis_port: int) -> None:
    sim = {"models": FILES, "timing": SimTiming(job_s=0.05)}
    async with fleet_of(redis_port, "g1", "g2", "g3", sim=sim) as fleet:
        await fleet.dispatcher("d2")
        before = await asked(fleet)
        jobs = [await send(fleet, SETS[seed % 3], seed) for seed in range(45)]
        ended = [await fleet.ended(job.id, timeout_s=60) for job in jobs]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        assert sum(sim.stats.done for sim in fleet.sims.values()) == len(jobs), "each ran once"
        assert await asked(fleet) - before <= 6 * len(jobs)
