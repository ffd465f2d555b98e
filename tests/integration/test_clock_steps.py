"""The clock of Redis is set by an hour while a fleet works; and delays, which move no time."""

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis as sync_redis

from benchmarks.stepped_clock import SteppedClock
from comfy_fleet.adapters.redis import clock as redis_clock
from comfy_fleet.adapters.redis.clock import ServerClock
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.settings import Settings
from comfy_fleet.sim import SimTiming
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import fleet_of, until
from tests.integration.redis_kit import add_nodes, claim, submit
from tests.integration.replica_kit import eventually

HOUR_S = 3600


@dataclass
class SteppedRedis:
    """A Redis whose clock tests set."""

    port: int
    clock: SteppedClock
    pid: int

    def step(self, seconds: int) -> None:
        """Set its clock so far ahead of the real time."""
        self.clock.step(seconds)
        with sync_redis.Redis(port=self.port) as client:
            found: Any = client.time()
            assert abs(found[0] - time.time() - seconds) < 60


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteppedRedis]:
    folder = tmp_path_factory.mktemp("stepped")
    port, clock = free_port(), SteppedClock.make(folder)
    argv = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    env = {**os.environ, **clock.env}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(mortal(argv), env=env, stdout=log, stderr=log)
    try:
        with sync_redis.Redis(port=port) as client:
            eventually(client.ping)
        yield SteppedRedis(port, clock, process.pid)
    finally:
        process.kill()
        process.wait(20)


@pytest.fixture
async def stores(stepped: SteppedRedis) -> AsyncIterator[Stores]:
    stepped.step(0)
    async with open_stores(Settings(redis_url=f"redis://127.0.0.1:{stepped.port}/0")) as made:
        client: Any = made.redis
        await client.flushall()
        yield made


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_nothing_ends_before_its_time(stores: Stores, stepped: SteppedRedis, step_s: int) -> None:
    await stores.clock.begin()
    await add_nodes(stores, "g1")
    over = await submit(stores, expires_in_s=1800)
    ended = await claim(stores)
    await stores.runs.finish(ended, JobStatus.SUCCEEDED, error=None, duration_s=None)
    await submit(stores)
    run = await claim(stores, ttl=30)
    waits = await submit(stores, deadline_s=1800)
    before = await stores.clock()
    stepped.step(step_s)

    async def untouched() -> None:
        """Whatever looks for things whose time has come finds nothing."""
        assert await stores.runs.overdue(10) == 0
        assert await stores.runs.forgettable(10) == []
        assert await stores.runs.take_over(dispatcher="d2", ttl_s=30, limit=9) == []

    await untouched()  # nobody has measured the step yet
    keeping = asyncio.create_task(stores.clock.keep())
    try:
        client: Any = stores.redis

        async def measured() -> bool:
            return abs(float(await client.hget("fleet:clock", "shift") or 0) + step_s) < 5

        await until(measured, what="the step is measured")
        await untouched()
        later = await submit(stores)
        assert 0 <= later.created_at - before < 60  # jobs keep their order, and their times
        found = await stores.jobs.get(waits.id)
        assert found is not None and found.status is JobStatus.QUEUED
        assert await stores.jobs.get(over.id) is not None
        assert not (await stores.runs.beat("d1", [run], ttl_s=0.3)).lost

        async def taken() -> bool:
            return bool(await stores.runs.take_over(dispatcher="d2", ttl_s=30, limit=9))

        await until(taken, what="a dead dispatcher's run moves")
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


class OwnClock:
    """A process's clock, which may stand still while its machine is suspended."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


async def shift_s(stores: Stores) -> float:
    client: Any = stores.redis
    return float(await client.hget("fleet:clock", "shift"))


async def test_a_machine_that_was_suspended_moves_nobodys_time(stores: Stores) -> None:
    own = OwnClock()
    suspended = ServerClock(stores.redis, monotonic=own)
    await asyncio.gather(stores.clock.begin(), suspended.begin())
    keeping = asyncio.create_task(stores.clock.keep())
    try:
        client: Any = stores.redis
        begun = float(await client.hget("fleet:clock", "seen"))

        async def told() -> bool:
            return float(await client.hget("fleet:clock", "seen")) > begun

        await until(told, what="the other process tells")
        own.ahead_s = -HOUR_S
        await suspended.begin()
        assert await shift_s(stores) == 0
        assert abs(await suspended() - await stores.clock()) < 2
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_processes_that_disagree_come_to_agree(stores: Stores) -> None:
    """The one that was suspended is the first to tell after all others were away."""
    own = OwnClock()
    both = [ServerClock(stores.redis, monotonic=own), ServerClock(stores.redis)]
    await asyncio.gather(*(clock.begin() for clock in both))
    own.ahead_s = -HOUR_S
    client: Any = stores.redis
    seen = float(await client.hget("fleet:clock", "seen"))
    await client.hset("fleet:clock", "seen", seen - 2 * HOUR_S)
    for _ in range(3):
        for clock in both:
            await clock.begin()
    found = await shift_s(stores)
    for clock in both:
        await clock.begin()
    assert abs(await shift_s(stores) - found) < 1
    assert abs(await both[0]() - await both[1]()) < 2


@pytest.mark.parametrize("before", [True, False], ids=["request", "answer"])
async def test_what_comes_late_is_no_step(
    stores: Stores, stepped: SteppedRedis, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """A process is frozen, or waits for a connection, while it tells."""
    own = OwnClock()
    frozen = ServerClock(stores.redis, monotonic=own)
    await frozen.begin()
    call = Scripts.call

    def time_passes() -> None:
        own.ahead_s += 5
        stepped.step(round(own.ahead_s))

    async def late(self: Scripts, name: str, *texts: Any, **args: Any) -> Any:
        if before:
            time_passes()
        answer = await call(self, name, *texts, **args)
        if not before:
            time_passes()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Scripts, "call", late)
        telling = asyncio.create_task(frozen.begin())
        await until(lambda: telling.done() or own.ahead_s >= 15, what="it tells")
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    await frozen.begin()
    assert await shift_s(stores) == 0


async def fleet_time(stores: Stores) -> float:
    return float(await Scripts(stores.redis).call("time"))


async def test_time_does_not_go_back_because_nobody_tells(stores: Stores, stepped: SteppedRedis) -> None:
    """All processes of a machine that is too busy are late, one after the other."""
    own = OwnClock()
    late = ServerClock(stores.redis, monotonic=own)
    await late.begin()
    await add_nodes(stores, "g1")
    job = await submit(stores, expires_in_s=6)
    await stores.runs.finish(await claim(stores), JobStatus.SUCCEEDED, error=None, duration_s=None)
    await late.begin()
    times, going = [await fleet_time(stores)], list[str]()
    for passed in (1, 4, 9, 11):
        own.ahead_s = passed
        stepped.step(passed)
        times.append(await fleet_time(stores))
        going += await stores.runs.forgettable(9)
    try:
        await stores.jobs.keep("local", job.id, keep=True, most=9)
        kept = True
    except NotFound:
        kept = False
    for job_id in going:
        await stores.runs.forget(job_id)
    assert kept == (await stores.jobs.get(job.id) is not None)
    assert times == sorted(times)
    await late.begin()
    assert await shift_s(stores) == 0
    assert 11 <= await fleet_time(stores) - times[0] < 60


async def test_no_order_of_delays_is_taken_for_a_step(
    stores: Stores, stepped: SteppedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes tell; each waits before it asks, before it is heard, and before it hears."""
    own, chance = OwnClock(), random.Random(7)
    clocks = [ServerClock(stores.redis, monotonic=own) for _ in range(2)]
    await asyncio.gather(*(clock.begin() for clock in clocks))
    call, times = Scripts.call, [await fleet_time(stores)]

    def time_passes() -> None:
        own.ahead_s += chance.choice((0, 0, 0, 1, 3, 3, 3, 5, 12))
        stepped.step(round(own.ahead_s))

    async def late(self: Scripts, name: str, *texts: Any, **args: Any) -> Any:
        time_passes()
        times.append(float(await call(self, "time")))
        answer = await call(self, name, *texts, **args)
        times.append(float(await call(self, "time")))
        time_passes()
        return answer

    monkeypatch.setattr(Scripts, "call", late)
    monkeypatch.setattr(redis_clock, "_LOOK_S", 0.0)
    for _ in range(60):
        time_passes()
        await chance.choice(clocks).begin()
        assert await shift_s(stores) == 0
    assert times == sorted(times)
    assert times[-1] - times[0] > own.ahead_s - 60


async def test_a_server_that_stands_still_for_a_while_moves_no_time(
    stores: Stores, stepped: SteppedRedis
) -> None:
    clocks = [ServerClock(stores.redis) for _ in range(2)]
    await asyncio.gather(*(clock.begin() for clock in clocks))
    keeping = [asyncio.create_task(clock.keep()) for clock in clocks]
    times = [await fleet_time(stores)]
    client: Any = stores.redis

    async def told() -> bool:
        """Whether both had the time to tell twice since the last look."""
        times.append(await fleet_time(stores))
        return float(await client.hget("fleet:clock", "seen")) > times[0] + 8

    try:
        os.kill(stepped.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(5)  # longer than what is taken for a step
        finally:
            os.kill(stepped.pid, signal.SIGCONT)
        await until(told, what="they go on telling")
        assert await shift_s(stores) == 0
        assert times == sorted(times)
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)


async def test_who_asks_for_the_time_after_an_outage_makes_no_step_of_it(stores: Stores) -> None:
    own = OwnClock()
    alone = ServerClock(stores.redis, monotonic=own)
    await alone.begin()
    before = await alone()
    client: Any = stores.redis
    await client.hset("fleet:clock", "seen", float(await client.hget("fleet:clock", "seen")) - 60)
    await client.hset("fleet:clock", "shift", 60)  # it was told of a minute ago, as it were
    own.ahead_s = 60
    await alone()  # the fleet's time stands still until somebody tells
    await alone.begin()
    assert abs(await shift_s(stores) - 60) < 1
    assert 59 < await alone() - before < 120


async def test_a_process_that_starts_after_a_step_waits_for_those_that_measured_it(
    stores: Stores, stepped: SteppedRedis
) -> None:
    await stores.clock.begin()
    before = await stores.clock()
    stepped.step(HOUR_S)
    late = ServerClock(stores.redis)
    starting = asyncio.create_task(late.begin())
    keeping = asyncio.create_task(stores.clock.keep())
    await starting
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert 0 <= await late() - before < 60


async def test_a_fleet_that_was_off_goes_on_at_the_servers_time(
    stores: Stores, stepped: SteppedRedis
) -> None:
    await stores.clock.begin()
    before = await stores.clock()
    stepped.step(HOUR_S)  # as if it had been off for an hour: nobody measures
    anew = ServerClock(stores.redis)
    await anew.begin()
    assert HOUR_S <= await anew() - before < HOUR_S + 60


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_a_fleet_works_on_and_a_dead_dispatchers_runs_move(
    stores: Stores, stepped: SteppedRedis, step_s: int
) -> None:
    timing = SimTiming(job_s=4)
    async with fleet_of(stepped.port, "g1", sim={"timing": timing}) as fleet:
        second = await fleet.dispatcher("d2")
        jobs = [await fleet.submit(picture(seed), deadline_s=600) for seed in range(2)]
        client: Any = fleet.stores.redis

        async def running() -> str | None:
            found = [await fleet.job(job.id) for job in jobs]
            return next((job.run for job in found if job.status is JobStatus.RUNNING), None)

        await until(running, what="a job runs")
        run = await running()
        stepped.step(step_s)
        holder = (await client.hget(f"fleet:run:{run}", "dispatcher")).decode()
        dead, other = (second, "d1") if holder == "d2" else (fleet.dispatchers[0], "d2")
        await dead.kill()

        async def moved() -> bool:
            return bool(await client.hget(f"fleet:run:{run}", "dispatcher") == other.encode())

        await until(moved, what="its run moves", timeout_s=30)
        for job in jobs:
            assert (await fleet.ended(job.id, timeout_s=60)).status is JobStatus.SUCCEEDED
