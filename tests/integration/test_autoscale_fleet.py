"""`fleet autoscale` with processes of this machine, on a real fleet, killed where it hurts most."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.providers.local import marked
from comfy_fleet.adapters.redis.audit import RedisAudit
from comfy_fleet.adapters.redis.dispatchers import LivingDispatcher
from comfy_fleet.adapters.redis.scaling import RedisScaling
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.scaling.orders import OrderPhase, PoolBook
from comfy_fleet.sim import SimTiming
from tests.children import mortal
from tests.factories import GRAPH
from tests.fleet import Fleet, fleet_of, until

RULES = """
every_s = 0.2
[pools.default]
minimum = 1
maximum = 3
cool_down_s = 0.5
boot_s = 120
more = [{ when = "wait", above = 0.5, for_s = 0.5, add = 1 }]
fewer = { busy_below = 0.6, for_s = 2 }
provider = { kind = "local", simulated = true, sim_args = ["--job-seconds", "0.3"] }
"""
JOBS = 25


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


class Scaler:
    """The process, which is killed and started again."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self._file = folder / "autoscale.toml"
        self._file.write_text(RULES)
        self._log = folder / "log"
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLEET_")},
            "FLEET_REDIS_URL": fleet.settings.redis_url,
            "FLEET_AUTOSCALE_METRICS_PORT": "none",
        }
        self._data = folder / "data"
        self._nodes = self._data.resolve() / "autoscale" / "fleet"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        argv = [sys.executable, "-m", "comfy_fleet", "autoscale", "--file", str(self._file)]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *mortal([*argv, "--data", str(self._data)]), env=self._env, stdout=log, stderr=log
            )

    async def end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.wait()

    def processes(self, name: str) -> list[int]:
        return marked(str(self._nodes / name))

    @property
    def log(self) -> str:
        return self._log.read_text()


@contextlib.asynccontextmanager
async def scaled(fleet: Fleet, folder: Path) -> AsyncIterator[Scaler]:
    """Yield a process; at the end nothing of it is left."""
    living = LivingDispatcher(fleet.stores.redis, "d1")

    async def beat() -> None:
        while True:
            await living.beat()
            await asyncio.sleep(1)

    beats = asyncio.create_task(beat())
    scaler = Scaler(fleet, folder)
    try:
        yield scaler
    finally:
        await scaler.end(signal.SIGKILL)
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)
        for number in range(1, 4):
            for pid in scaler.processes(f"auto-default-{number}"):
                os.kill(pid, signal.SIGKILL)


async def test_it_grows_under_load_and_shrinks_after_it_although_it_is_killed(
    redis_port: int, tmp_path: Path
) -> None:
    async with (
        fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=0.3)}) as fleet,
        scaled(fleet, tmp_path) as scaler,
    ):
        store = RedisScaling(fleet.stores.redis)

        async def book() -> PoolBook:
            return (await store.state()).books.get("default", PoolBook())

        async def has(phase: OrderPhase) -> bool:
            return any(order.phase is phase for order in (await book()).orders)

        jobs = [await fleet.submit(GRAPH) for _ in range(JOBS)]
        await scaler.start()
        await until(lambda: has(OrderPhase.ASKED), what="a node is ordered")
        await scaler.end(signal.SIGKILL)
        first = (await book()).orders[0]
        await scaler.start()
        await until(lambda: has(OrderPhase.READY), what="the ordered node is ready")
        assert first.name in {order.name for order in (await book()).orders}, "it is remembered"
        assert len(scaler.processes(first.name)) == 1, "and was started once"
        jobs += [await fleet.submit(GRAPH) for _ in range(JOBS)]

        ended = [await fleet.ended(job.id) for job in jobs]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        assert {len(job.attempts) for job in ended} == {1}, "no node was ended under a job"
        assert len({job.attempts[0].node for job in ended}) > 1

        async def leaves() -> bool:
            phases = {order.phase for order in (await book()).orders}
            return not phases.isdisjoint({OrderPhase.DRAINING, OrderPhase.ENDING, OrderPhase.GONE})

        await until(leaves, what="a node is given up")
        await scaler.end(signal.SIGKILL)
        await scaler.start()

        async def alone() -> bool:
            names = [node.name for node in await fleet.stores.nodes.nodes()]
            return names == ["g1"] and not (await book()).orders

        await until(alone, what="all ordered nodes are gone")
        for number in range(1, 4):
            assert scaler.processes(f"auto-default-{number}") == [], "no process is left"
        await scaler.end(signal.SIGTERM)
        assert (await store.state()).holder == "", "another one need not wait"

        done = await book()
        assert done.failed == 0 and done.added == done.removed >= 1
        entries, _ = await RedisAudit(fleet.stores.redis).read(since=0, user="fleet autoscale", limit=100)
        told = [entry.event for entry in reversed(entries)]
        assert told.count("node.ordered") >= done.added  # told again after a kill
        assert told.count("node.removed") == done.removed <= told.count("node.drained")
        assert told.index("node.drained") < told.index("node.removed")
        assert "Traceback" not in scaler.log
