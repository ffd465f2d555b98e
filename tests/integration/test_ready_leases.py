"""Leases of idle nodes that dispatchers hold ready: jobs begin there at once, and only where they may."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui.lease import LeaseClient
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.ports.comfyui import Lease, NoLease
from comfy_fleet.ports.runs import Claim, Refused
from comfy_fleet.processes.dispatcher import open_dispatcher
from comfy_fleet.services import ready_leases, seekers
from comfy_fleet.services.dispatcher import Dispatcher
from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.factories import picture
from tests.fleet import Running, fleet_of, until
from tests.integration.agent_kit import host_of
from tests.integration.redis_kit import add_nodes, claim, submit
from tests.integration.serve_kit import served


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def records(stores: Stores) -> dict[str, tuple[str, str]]:
    """Return run and holder of each node that is held ready."""
    found: Any = await stores.redis.hgetall(stores.redis.keyspace.ready_leases)
    words = {node.decode(): value.decode().split(" ", 2) for node, value in found.items()}
    return {node: (run, holder) for node, (run, _, holder) in words.items()}


async def holds(dispatcher: Dispatcher, *nodes: str) -> None:
    await until(
        lambda: dispatcher.snapshot().ready == {*nodes}, what=f"{dispatcher.name} holds {nodes}", timeout_s=30
    )


# ---- the record --------------------------------------------------------------------------------------------


async def a_ready_node(stores: Stores, node: str = "g1", run: str = "r1", holder: str = "d1") -> None:
    await add_nodes(stores, node)
    await stores.nodes.report(node, verdict="up", why="")
    await stores.ready_leases.expired()  # somebody watches
    beat = await stores.ready_leases.beat(holder, {}, {node: run}, {})
    assert (beat.holders, beat.lost) == (1, frozenset())


async def begin(stores: Stores, node: str = "g1", run: str = "r1") -> Claim | Refused:
    return await stores.runs.claim(
        node=node, placements=[Placement()], run=run, token="t", dispatcher="d1", ttl_s=5, ready=True
    )


async def test_a_run_begins_once_with_the_id_that_was_drawn(stores: Stores) -> None:
    await a_ready_node(stores)
    assert await begin(stores) == Refused(why="empty")
    job = await submit(stores)
    assert await begin(stores, run="another") == Refused(why="unready")
    got = await begin(stores)
    assert isinstance(got, Claim)
    assert (got.job.id, got.run) == (job.id, "r1")
    assert await records(stores) == {}
    await stores.runs.left(got, [])
    await submit(stores)
    assert await begin(stores) == Refused(why="unready")


@pytest.mark.parametrize("how", ["verdict", "cordon", "removed", "silent", "unwatched"])
async def test_nothing_begins_on_a_node_that_haproxy_would_not_give(stores: Stores, how: str) -> None:
    await a_ready_node(stores)
    job = await submit(stores)
    match how:
        case "verdict":
            await stores.nodes.report("g1", verdict="drain", why="other programs hold 15 GiB")
        case "cordon":
            await stores.nodes.cordon("g1", reason="a test")
        case "removed":
            await stores.nodes.remove("g1")
        case "silent":
            await stores.redis.hset(stores.redis.keyspace.ready_leases, "g1", "r1 1.0 d1")
        case _:
            await stores.redis.delete(stores.redis.keyspace.ready_watched)
    got = await begin(stores)
    assert isinstance(got, Refused)
    assert got.why in ("unready", "cordoned", "removed")
    found = await stores.jobs.get(job.id)
    assert found is not None
    assert found.status is JobStatus.QUEUED
    beat = await stores.ready_leases.beat("d1", {"g1": "r1"}, {}, {})
    assert beat.lost == (frozenset() if how == "silent" else {"g1"})  # whoever lives again goes on


async def test_a_node_has_one_holder(stores: Stores) -> None:
    await a_ready_node(stores)
    second = await stores.ready_leases.beat("d2", {}, {"g1": "r2"}, {})
    assert (second.holders, set(second.lost)) == (2, {"g1"})
    await stores.redis.hset(stores.redis.keyspace.ready_leases, "g1", "r1 1.0 d1")  # it has fallen silent
    assert not (await stores.ready_leases.beat("d2", {}, {"g1": "r2"}, {})).lost
    assert (await stores.ready_leases.beat("d1", {"g1": "r1"}, {}, {})).lost == {"g1"}
    await stores.ready_leases.beat("d2", {}, {}, {"g1": "r2"})
    assert await records(stores) == {}


async def test_whoever_haproxy_gives_the_node_goes_first(stores: Stores) -> None:
    await a_ready_node(stores)
    await submit(stores)
    got = await claim(stores)  # HAProxy had forgotten the tunnel
    assert await begin(stores) == Refused(why="leased", run=got.run)
    assert await stores.ready_leases.expired() == {}  # that run's tunnel is not cut
    assert await records(stores) == {}


async def test_no_record_of_a_dead_holder_outlives_the_next_run(stores: Stores) -> None:
    await a_ready_node(stores)
    await submit(stores)
    await stores.runs.left(await claim(stores), [])  # who comes next has a tunnel of its own
    assert await records(stores) == {}


async def test_what_expires_is_given_up_once_and_only_as_it_was(stores: Stores) -> None:
    await a_ready_node(stores)
    assert await stores.ready_leases.expired() == {}
    await stores.nodes.report("g1", verdict="drain", why="")
    assert await stores.ready_leases.expired() == {"g1": "r1"}
    assert await stores.ready_leases.give_up({"g1": "another"}) == frozenset()
    assert await stores.ready_leases.give_up({"g1": "r1"}) == {"g1"}
    assert await stores.ready_leases.give_up({"g1": "r1"}) == frozenset()


@pytest.mark.parametrize("damaged", ["a b c", "garbage", ""])
async def test_a_damaged_record_is_given_up_and_stops_nothing(stores: Stores, damaged: str) -> None:
    await a_ready_node(stores)
    await stores.redis.hset(stores.redis.keyspace.ready_leases, "g1", damaged)
    assert (await stores.ready_leases.beat("d1", {"g1": "r1"}, {}, {})).lost == {"g1"}
    assert not (await stores.ready_leases.beat("d1", {}, {"g1": "r2"}, {})).lost
    await stores.redis.hset(stores.redis.keyspace.ready_leases, "g1", damaged)
    expired = await stores.ready_leases.expired()
    assert set(expired) == {"g1"}
    assert await stores.ready_leases.give_up(expired) == {"g1"}
    assert await records(stores) == {}


# ---- a fleet -----------------------------------------------------------------------------------------------


async def test_a_job_begins_on_the_lease_that_was_held(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        dispatcher = fleet.dispatchers[0].dispatcher
        for color in range(3):
            await holds(dispatcher, "g1")
            await until(lambda: records(fleet.stores), what="it is told")
            run, holder = (await records(fleet.stores))["g1"]
            state = await fleet.state("g1")
            assert (holder, state.run, state.verdict) == ("d1", None, "up")  # it is idle for everybody
            ended = await fleet.ended((await fleet.submit(picture(color))).id)
            assert (ended.status, ended.run, ended.attempt) == ("succeeded", run, 0)


async def test_a_job_that_comes_while_its_node_is_taken_begins_on_that_lease(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = LeaseClient.lease
    granted: list[str] = []
    jobs: list[Job] = []

    async def slowly(self: LeaseClient, *, run: str, **asked: Any) -> Lease | NoLease:
        got = await lease(self, run=run, **asked)
        if not isinstance(got, NoLease):
            granted.append(run)
            if not jobs:
                jobs.append(await fleet.submit(picture(1)))
                await until(lambda: looked, what="it is asked for and busy")
        elif jobs:
            looked.append(got.why)
        return got

    looked: list[str] = []
    monkeypatch.setattr(ready_leases, "ASK_S", 30.0)
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        monkeypatch.setattr(LeaseClient, "lease", slowly)
        await fleet.dispatcher("d1")
        await until(lambda: jobs, what="a lease is granted")
        ended = await fleet.ended(jobs[0].id)
        assert (ended.status, ended.run) == ("succeeded", granted[0])
        assert looked[0] == "busy"


async def test_a_slot_that_was_just_given_back_is_asked_for_again_at_once(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = LeaseClient.lease
    busy: list[str] = []

    async def late(self: LeaseClient, *, run: str, **asked: Any) -> Lease | NoLease:
        if fleet.sims["g1"].stats.done == 1 and not busy:  # HAProxy has not noticed yet
            busy.append(run)
            return NoLease(why="busy")
        return await lease(self, run=run, **asked)

    monkeypatch.setattr(ready_leases, "GIVEN_S", 60.0)
    monkeypatch.setattr(seekers, "IDLE_LOOK_S", 1000.0)
    async with fleet_of(redis_port, "g1", ready_leases=0) as fleet:
        assert (await fleet.ended((await fleet.submit(picture(1))).id)).status == "succeeded"
        monkeypatch.setattr(LeaseClient, "lease", late)
        monkeypatch.setattr(seekers, "LOOK_AGAIN_S", (1000.0, 1000.0))
        monkeypatch.setattr(seekers.Seekers, "look_again", lambda _: None)  # no change of nodes helps
        assert (await fleet.ended((await fleet.submit(picture(2))).id)).status == "succeeded"
        assert busy


async def test_idle_nodes_are_shared_and_given_back_at_the_end(redis_port: int) -> None:
    names = ("g1", "g2", "g3", "g4", "g5")
    async with fleet_of(redis_port, *names) as fleet:
        first = fleet.dispatchers[0]
        await holds(first.dispatcher, *names)
        second = await fleet.dispatcher("d2")

        async def take(running: Running, least: int, most: int) -> None:
            await until(
                lambda: least <= len(running.dispatcher.snapshot().ready) <= most,
                what=f"{running.dispatcher.name} holds {least} to {most}",
            )

        await take(first, 2, 3)
        await take(second, 2, 3)
        await first.end()
        await take(second, 5, 5)
        await second.end()
        await until(lambda: not any(sim.websockets for sim in fleet.sims.values()), what="all are free")


async def test_a_drained_node_loses_its_lease(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2") as fleet:
        dispatcher = fleet.dispatchers[0].dispatcher
        await holds(dispatcher, "g1", "g2")
        await fleet.stores.nodes.cordon("g1", reason="a test")
        await holds(dispatcher, "g2")
        await until(lambda: not fleet.sims["g1"].websockets, what="its websocket is closed")
        jobs = [await fleet.submit(picture(color)) for color in range(4)]
        assert {(await fleet.ended(job.id)).node for job in jobs} == {"g2"}
        await fleet.stores.nodes.remove("g1")
        await fleet.sims["g2"].crash(restart_after_s=0.2)
        await until(lambda: not dispatcher.snapshot().ready, what="no lease outlives its node")
        await holds(dispatcher, "g2")
        assert (await fleet.ended((await fleet.submit(picture(9))).id)).node == "g2"


async def test_a_frozen_node_gets_no_job_although_its_lease_is_held(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2", ready_leases=16) as fleet:
        await holds(fleet.dispatchers[0].dispatcher, "g1", "g2")
        fleet.sims["g1"].freeze()
        jobs = [await fleet.submit(picture(color)) for color in range(4)]
        assert {(await fleet.ended(job.id)).node for job in jobs} == {"g2"}


async def test_nothing_starts_where_foreign_memory_appears(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with (
        SimNode(NodeOptions(name="g1")) as sim,
        host_of(redis_port, tmp_path, haproxy=True, options=_beside(sim)) as host,
    ):
        await host.is_up("g1")
        stores = host.api.stores
        async with open_dispatcher(host.settings, stores, name="d1") as dispatcher:
            stop = asyncio.Event()
            working = asyncio.create_task(dispatcher.run(stop))
            await holds(dispatcher, "g1")
            await sim.set_faults({"foreign_gib": 20})
            await host.is_up("g1", "drain")
            job = await submit(stores)
            await holds(dispatcher)
            await until(lambda: not sim.websockets, what="its tunnel is closed")
            found = await stores.jobs.get(job.id)
            assert found is not None
            assert (found.status, sim.stats.done, sim.engine.running) == (JobStatus.QUEUED, 0, [])
            await sim.set_faults({"foreign_gib": 0})
            await until(lambda: sim.stats.done == 1, what="it runs once there is room", timeout_s=30)
            stop.set()
            await working


def _beside(sim: SimNode) -> dict[str, object]:
    from comfy_fleet.agent.main import Beside

    return {"beside": (Beside(name="g1", url=sim.url),)}


async def test_another_pool_s_node_is_no_reason_to_pass_the_better_one(redis_port: int) -> None:
    async with fleet_of(redis_port, sim={"timing": SimTiming(job_s=1)}) as fleet:
        await fleet.add_sim("fast", timing=SimTiming(job_s=1), node={"pool": "fast"})
        await fleet.add_sim("slow", timing=SimTiming(job_s=1), node={"pool": "slow"})
        for name in ("fast", "slow"):
            await fleet.verdict(name)
        dispatcher = fleet.dispatchers[0].dispatcher
        await holds(dispatcher, "fast", "slow")
        wish = Placement(pool="fast", spill=("slow",))
        jobs = [await fleet.submit(picture(color), placement=wish) for color in range(2)]
        assert [(await fleet.ended(job.id)).node for job in jobs] == ["fast", "slow"]


async def test_a_frozen_holder_s_nodes_go_to_the_other_one(redis_port: int, tmp_path: Path) -> None:
    names = [f"g{number}" for number in range(6)]
    async with (
        fleet_of(redis_port, *names, dispatch=False, sim={"timing": SimTiming(job_s=0.1)}) as fleet,
        served(fleet, tmp_path, "s1") as first,
        served(fleet, tmp_path, "s2") as second,
    ):

        async def held_by() -> dict[str, int]:
            found = [holder for _, holder in (await records(fleet.stores)).values()]
            return {name: found.count(name) for name in ("s1", "s2")}

        async def shared() -> bool:
            return await held_by() == {"s1": 3, "s2": 3}

        await until(shared, what="both hold their part", timeout_s=60)
        first.process.send_signal(signal.SIGSTOP)
        frozen_at = await fleet.stores.clock()
        jobs = [await second.submit(color) for color in range(30)]
        for job in jobs:
            ended = await fleet.ended(job, timeout_s=60)
            assert (ended.status, ended.attempt) == ("succeeded", 0)
            assert ended.started_at is not None
            assert ended.started_at - ended.created_at < 3

        async def all_theirs() -> bool:
            return await held_by() == {"s1": 0, "s2": 6}

        # HAProxy itself would wait for the frozen one's pings for 20 s.
        await until(all_theirs, what="the other one has them all", timeout_s=12)
        first.process.send_signal(signal.SIGCONT)
        await until(shared, what="both hold their part again", timeout_s=60)
        assert await fleet.stores.clock() > frozen_at
        job = await first.submit(99)
        assert (await fleet.ended(job)).status == "succeeded"
        assert sum(sim.stats.done for sim in fleet.sims.values()) == 31


async def test_several_jobs_at_once_begin_at_once(redis_port: int) -> None:
    names = ("g1", "g2", "g3", "g4")
    async with fleet_of(redis_port, *names, sim={"timing": SimTiming(job_s=2)}) as fleet:
        await holds(fleet.dispatchers[0].dispatcher, *names)
        jobs = await asyncio.gather(*(fleet.submit(picture(color)) for color in range(4)))
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {job.node for job in ended} == {*names}
