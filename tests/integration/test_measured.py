"""What the fleet learns from runs that succeed: how fast a node is, and which models it has used."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.eligibility import PlacementRequest
from comfy_fleet.domain.nodes.host import Heartbeat, NodeReport
from comfy_fleet.domain.nodes.speed import ENOUGH, OTHERS
from comfy_fleet.sim import SimTiming
from tests.factories import GB, picture, sampled, with_model
from tests.fleet import Fleet, fleet_of, until

FAST, SLOW = SimTiming(job_s=0.05), SimTiming(job_s=0.2)


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def two_by_two(fleet: Fleet, numbers: range) -> Counter[str | None]:
    """Run jobs in pairs, so that each of two idle nodes gets one; returns how many each ran."""
    ran: Counter[str | None] = Counter()
    for number in numbers:
        pair = [await fleet.submit(picture(2 * number + other)) for other in (0, 1)]
        ended = [await fleet.ended(job.id) for job in pair]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        ran.update(job.node for job in ended)
    return ran


async def one_by_one(fleet: Fleet, numbers: range) -> Counter[str | None]:
    """Run jobs one after another: each finds all nodes idle; returns how many each node ran."""
    ended = [await fleet.ended((await fleet.submit(picture(number))).id) for number in numbers]
    assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
    return Counter(job.node for job in ended)


def weight(fleet: Fleet, name: str) -> int:
    """Return the weight that HAProxy is told."""
    said = fleet.host.answer(name)
    return 0 if said is None else said.weight


async def test_work_goes_to_nodes_by_their_measured_speed(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("fast", timing=FAST, node={"weight_by_gpu": True})
        await fleet.add_sim("slow", timing=SLOW, node={"weight_by_gpu": True})
        for name in ("fast", "slow"):
            await fleet.verdict(name)
        await fleet.refresher()
        before = await two_by_two(fleet, range(14))
        assert min(before.values()) >= OTHERS + ENOUGH, before
        fast, slow = await fleet.state("fast"), await fleet.state("slow")
        assert fast.node.speed and slow.node.speed, (fast, slow)
        assert 2.5 <= fast.node.speed / slow.node.speed <= 4.5  # 4, and what each job costs besides
        assert fast.node.weight == slow.node.weight  # by the card's model they are alike
        await until(lambda: weight(fleet, "fast") >= 2 * weight(fleet, "slow") > 0, what="the agent knows")
        await until(lambda: _weighs(fleet, "slow", weight(fleet, "slow")), what="HAProxy knows")
        assert await one_by_one(fleet, range(100, 120)) == {"fast": 20}
        together = [await fleet.submit(picture(number)) for number in range(200, 210)]
        assert {(await fleet.ended(job.id)).node for job in together} == {"fast", "slow"}


async def _weighs(fleet: Fleet, name: str, wanted: int) -> bool:
    servers = await fleet.controller.broker.runtime.servers()
    return any(server.name == name and server.weight == wanted for server in servers)


async def test_a_weight_that_was_set_by_hand_stays(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("fast", timing=FAST, node={"weight": 50})
        await fleet.add_sim("slow", timing=SLOW, node={"weight": 50})
        for name in ("fast", "slow"):
            await fleet.verdict(name)
        await fleet.refresher()
        await two_by_two(fleet, range(14))
        assert (await fleet.state("slow")).node.speed is not None
        assert (weight(fleet, "fast"), weight(fleet, "slow")) == (50, 50)


async def test_models_are_remembered_until_they_can_t_be_in_memory_any_more(
    redis: Redis, redis_port: int
) -> None:
    models = {"checkpoints": {"m.safetensors": GB, "n.safetensors": GB}}
    async with fleet_of(redis_port) as fleet:
        sim = await fleet.add_sim("g1", models=models)
        await fleet.verdict("g1")
        known = await fleet.refresher()
        nodes = fleet.stores.nodes

        async def run(file: str, seed: int) -> None:
            job = await fleet.send(known, sampled(file=file, seed=seed), PlacementRequest())
            assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED

        assert await nodes.models("g1") == []
        await run("m.safetensors", 1)
        await run("n.safetensors", 2)
        assert await nodes.models("g1") == ["checkpoints/n.safetensors", "checkpoints/m.safetensors"]
        await run("m.safetensors", 3)
        assert await nodes.models("g1") == ["checkpoints/m.safetensors", "checkpoints/n.safetensors"]
        await nodes.started("g1")
        assert await nodes.models("g1") == []
        await run("m.safetensors", 4)
        await nodes.record_failure("g1", kind="oom", limit=9, reason="")
        assert await nodes.models("g1") == []
        await run("m.safetensors", 5)
        report = NodeReport(name="g1", readiness=Readiness.READY)
        said = Heartbeat(host="c", instance="1", central=True, nodes=[report])
        await fleet.stores.hosts.beat(said, now=1)
        assert await nodes.models("g1") != []
        freed = replace(said, nodes=[replace(report, freed_id="1.1")])
        await fleet.stores.hosts.beat(freed, now=2)
        assert await nodes.models("g1") == []
        await run("m.safetensors", 6)
        await fleet.stores.hosts.beat(freed, now=3)  # the same as before: nothing new was unloaded
        assert await nodes.models("g1") == ["checkpoints/m.safetensors"]
        await nodes.remove("g1")
        assert not await redis.exists("fleet:node:g1:models")
        assert sim.stats.done == 6


async def test_runs_that_load_a_model_say_nothing_about_the_gpu(redis_port: int) -> None:
    timing = SimTiming(load_gb_per_s=2, step_s=1.5, vae_s=0.0)  # 0.1 s, and 0.5 s for the model
    async with fleet_of(redis_port) as fleet:
        for name in ("a", "b"):
            await fleet.add_sim(name, timing=timing, models=with_model(1), node={"weight_by_gpu": True})
            await fleet.verdict(name)
        known = await fleet.refresher()
        for number in range(14):
            if number == 10:
                await fleet.sims["b"].restart()
                await fleet.stores.nodes.started("b")
            pair = [
                await fleet.send(known, sampled(seed=2 * number + other), PlacementRequest())
                for other in (0, 1)
            ]
            for job in pair:
                await fleet.ended(job.id)
        for name in ("a", "b"):
            speed = (await fleet.state(name)).node.speed
            assert speed is not None and 0.7 <= speed <= 1.4, (name, speed)


async def test_a_speed_counts_after_a_few_runs_and_ends_with_the_card(redis: Redis, redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        for runs, speed in ((ENOUGH - 1, None), (ENOUGH, 0.5)):
            await redis.hset("fleet:node:g1", mapping={"speed": -0.6931, "speeds": runs})
            assert (await fleet.state("g1")).node.speed == speed
        await fleet.refresher()
        await redis.hset("fleet:node:g1", "gpu", "another card")
        await fleet.stores.nodes.want_reading("g1")
        await until(partial(_no_speed, fleet), what="the speed is forgotten")


async def _no_speed(fleet: Fleet) -> bool:
    return (await fleet.state("g1")).node.speed is None


def slept(seconds: float, prefix: str = "t") -> dict[str, object]:
    """A graph whose middle takes a while, and can be answered from the cache."""
    graph = picture(1, filename_prefix=prefix)
    graph["3"] = {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": seconds}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


async def test_what_a_node_s_cache_saves_an_editor_is_measured(redis: Redis, redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        await fleet.add_sim("g1", timing=FAST)
        await fleet.verdict("g1")
        await fleet.refresher()

        async def saving(graph: dict[str, object], *, stop: bool = False) -> tuple[str, float]:
            job = await fleet.submit(graph, editor="ann")
            if stop:
                await until(lambda: fleet.sims["g1"].engine.running, what="it runs")
                await fleet.stores.jobs.request_cancel(job.id)
            await fleet.ended(job.id)
            found: Any = await redis.hgetall("fleet:editor:ann")
            return found[b"node"].decode(), float(found[b"saving"])

        node, cold = await saving(slept(1.0))
        assert node == "g1"
        assert 1.0 <= cold < 3.0, "nothing was cached: all of it"
        _, warm = await saving(slept(1.0, "u"))
        assert cold - 1.0 < warm <= cold, "only the rest ran again"
        _, other = await saving(slept(1.2))
        assert other < warm - 0.5, "the change was early"
        _, stopped = await saving(slept(30.0), stop=True)
        assert stopped <= cold
        assert await redis.hget("fleet:node:g1", "results") == b"ann"
        await fleet.ended((await fleet.submit(picture(2))).id)
        assert await redis.hget("fleet:node:g1", "results") is None
