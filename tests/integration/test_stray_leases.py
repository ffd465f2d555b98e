"""Leases that nobody has on record are told and cut; those of runs never are, whatever stands still."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed

from comfy_fleet.adapters.haproxy import stray_cuts
from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.adapters.haproxy.stray_cuts import GAP_S, GRACE_S, StrayCuts
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.ready_leases import RedisReadyLeases
from comfy_fleet.api.main import build
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.services import failure_policy, run_end
from comfy_fleet.sim import SimTiming
from tests.children import mortal
from tests.fakes.comfyui import FakeNodeApi
from tests.fleet import Fleet, fleet_of, until

SLOW = {"timing": SimTiming(job_s=4 * GRACE_S)}


async def steal(fleet: Fleet, node: str) -> ClientConnection:
    """Take a lease as no dispatcher would: nothing is written down, and every ping is answered."""
    return await unix_connect(
        str(fleet.settings.lease_socket),
        "ws://localhost/ws?clientId=thief",
        additional_headers={"X-Fleet-Pool": "default", "X-Fleet-Nodes": node},
        ping_interval=1,
    )


def test_a_node_may_rest_for_longer_than_any_run_asks_for() -> None:
    assert max(run_end.BUSY_REST_S, failure_policy.REST_S) + 2 * stray_cuts.LOOK_S < GRACE_S


async def test_a_stolen_lease_is_told_and_cut_and_its_node_works(redis: FleetRedis, redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", ready_leases=0) as fleet:
        thief = await steal(fleet, "g1")
        job = await fleet.submit()
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(_to_the_end(thief), 30)
        assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
        await until(lambda: _told(fleet, "g1"), what="the node says so")
        state = await fleet.state("g1")
        assert state.why == "a lease of nobody known cut here"
        notes = await build(fleet.settings, fleet.stores, FakeNodeApi()).notes()
        assert notes == ["broker: g1: a lease of nobody known cut here"]


async def _to_the_end(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


async def _told(fleet: Fleet, node: str) -> bool:
    return bool((await fleet.state(node)).why)


async def test_no_lease_of_a_run_or_held_ready_is_cut(
    redis: FleetRedis, redis_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with fleet_of(redis_port, "g1", "g2", sim=SLOW) as fleet:
        job = await fleet.submit()
        await until(lambda: _runs(fleet, job.id), what="it runs")
        dispatcher = fleet.dispatchers[0].dispatcher
        await until(lambda: len(dispatcher.snapshot().ready) == 1, what="the other is held ready")
        await asyncio.sleep(2 * GRACE_S)
        assert "stray lease cut" not in caplog.text
        assert len(dispatcher.snapshot().ready) == 1
        done = await fleet.ended(job.id, timeout_s=60)
        assert (done.status, len(done.attempts)) == (JobStatus.SUCCEEDED, 1)
        assert "stray lease cut" not in caplog.text


async def _runs(fleet: Fleet, job_id: str) -> bool:
    return (await fleet.job(job_id)).status is JobStatus.RUNNING


async def test_a_frozen_dispatcher_s_run_keeps_its_lease(
    redis: FleetRedis, redis_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """HAProxy takes it away after 20 s without a ping, and nobody else does earlier."""
    async with fleet_of(redis_port, "g1", dispatch=False, sim=SLOW, ready_leases=0) as fleet:
        names = ("redis_url", "data", "lease_ttl_s", "beat_s", "ready_leases")
        env = {
            **os.environ,
            **{f"FLEET_{name.upper()}": str(getattr(fleet.settings, name)) for name in names},
        }
        env["FLEET_DISPATCH_METRICS_PORT"] = "none"
        argv = mortal([sys.executable, "-m", "comfy_fleet", "dispatch", "--name", "frozen"])
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(argv, env=env, stderr=log)
        try:
            job = await fleet.submit()
            await until(lambda: fleet.sims["g1"].engine.running, what="its node computes", timeout_s=60)
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            while time.monotonic() - began < GRACE_S + 4:
                assert await _tunnels(fleet.controller.broker.runtime) == {"g1"}
                await asyncio.sleep(0.5)
            process.send_signal(signal.SIGCONT)
            done = await fleet.ended(job.id, timeout_s=60)
            assert (done.status, len(done.attempts)) == (JobStatus.SUCCEEDED, 1)
            assert "stray lease cut" not in caplog.text
        finally:
            process.kill()
            process.wait()


async def _tunnels(runtime: Runtime) -> set[str]:
    return set(await runtime.tunnels())


async def test_an_outage_of_redis_cuts_nothing(
    redis: FleetRedis, redis_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet_of(redis_port, "g1", sim=SLOW, ready_leases=0) as fleet:
        job = await fleet.submit()
        await until(lambda: _runs(fleet, job.id), what="it runs")
        await redis.execute_command("CLIENT", "PAUSE", round(1000 * (GRACE_S + 2)), "ALL")
        began = time.monotonic()
        while time.monotonic() - began < 2 * GRACE_S + 2:
            assert await _tunnels(fleet.controller.broker.runtime) == {"g1"}
            await asyncio.sleep(0.5)
        done = await fleet.ended(job.id, timeout_s=60)
        assert (done.status, len(done.attempts)) == (JobStatus.SUCCEEDED, 1)
        assert "stray lease cut" not in caplog.text


async def test_a_broker_that_starts_again_cuts_nothing(
    redis: FleetRedis, redis_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A run goes on without its lease then, and another dispatcher's second one is held until it is over."""
    async with fleet_of(redis_port, "g1", sim=SLOW, ready_leases=0) as fleet:
        job = await fleet.submit()
        await until(lambda: _runs(fleet, job.id), what="it runs")
        waits = await fleet.submit()
        assert fleet.controller.broker.pid is not None
        os.kill(fleet.controller.broker.pid, signal.SIGKILL)
        for one in (job, waits):
            done = await fleet.ended(one.id, timeout_s=120)
            assert (done.status, len(done.attempts)) == (JobStatus.SUCCEEDED, 1)
        assert "stray lease cut" not in caplog.text


class Store:
    """Says which nodes nobody has on record, or that Redis is away."""

    def __init__(self) -> None:
        self.strays: set[str] = set()
        self.away = False

    async def unexplained(self, nodes: Collection[str]) -> frozenset[str]:
        if self.away:
            raise StoreDown("away")
        return frozenset(self.strays & set(nodes))


class Broker:
    """HAProxy's sessions: node to id and age."""

    def __init__(self, sessions: Mapping[str, tuple[str, float]]) -> None:
        self.sessions = dict(sessions)
        self.cuts: list[str] = []

    async def tunnels(self, *, older_than_s: float = 0.0) -> dict[str, list[str]]:
        return {node: [one] for node, (one, age) in self.sessions.items() if age >= older_than_s}

    async def cut(self, session: str) -> None:
        self.cuts.append(session)


class Looks:
    """A look each second of a clock of its own."""

    def __init__(self, *, age_s: float = 1000.0) -> None:
        self.store, self.broker, self.at = Store(), Broker({"g1": ("0x1", age_s)}), 0.0
        made: Any = StrayCuts
        self.cuts = made(self.broker, self.store, now=lambda: self.at)

    async def look(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.at += 1.0
            try:
                await self.cuts.look(["g1"])
            except StoreDown:
                assert self.store.away


async def test_a_lease_is_cut_once_it_was_on_no_record_for_the_whole_time() -> None:
    looks = Looks()
    looks.store.strays = {"g1"}
    await looks.look(GRACE_S)
    assert looks.broker.cuts == []
    await looks.look(1)
    assert looks.broker.cuts == ["0x1"]
    assert looks.cuts.told("g1")
    looks.at += stray_cuts.TOLD_S + 1
    assert not looks.cuts.told("g1")


async def test_a_moment_on_record_begins_the_time_anew() -> None:
    looks = Looks()
    for _ in range(5):
        looks.store.strays = {"g1"}
        await looks.look(GRACE_S - 1)
        looks.store.strays = set()
        await looks.look(1)
    assert looks.broker.cuts == []


async def test_a_session_that_is_newer_than_that_is_another_one() -> None:
    looks = Looks(age_s=2.0)
    looks.store.strays = {"g1"}
    await looks.look(3 * GRACE_S)
    assert looks.broker.cuts == []


async def test_while_redis_is_away_nothing_is_known() -> None:
    looks = Looks()
    looks.store.strays = {"g1"}
    await looks.look(GRACE_S - 1)
    looks.store.away = True
    await looks.look(GAP_S + 1)
    looks.store.away = False
    await looks.look(GRACE_S)
    assert looks.broker.cuts == []
    await looks.look(1)
    assert looks.broker.cuts == ["0x1"]


async def test_what_is_on_record(redis: FleetRedis, redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2", "g3", dispatch=False) as fleet:
        store: RedisReadyLeases = fleet.stores.ready_leases
        names = ["g1", "g2", "g3"]
        assert await store.unexplained(names) == set(names)
        assert await store.unexplained([]) == set()
        await fleet.stores.redis.set(fleet.stores.redis.keyspace.lease("g1"), "a run")
        await store.beat("d1", {}, {"g2": "another"}, {})
        assert await store.unexplained(names) == {"g3"}
