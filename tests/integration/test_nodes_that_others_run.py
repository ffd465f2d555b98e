"""Two agents take over eight units that something else runs, restart none, and then care for them."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.agent.commanded_process import RestartTemplate
from comfy_fleet.agent.main import AgentOptions, Beside, run
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.process_supervision import RestartLimits
from comfy_fleet.processes.dispatcher import open_dispatcher
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import new_job, picture
from tests.fleet import Running, until
from tests.integration.agent_kit import SOURCE, Host, host_of

BOXES = {"box1": ("a0", "a1", "a2", "a3"), "box2": ("b0", "b1", "b2", "b3")}
NAMES = tuple(itertools.chain(*BOXES.values()))
COLORS = itertools.count(1)
AGAIN_S = 150.0  # for a unit's new process until jobs can go there; a busy machine takes its time


@dataclass
class Units:
    """The units of both boxes, under the stand-in for systemd."""

    folder: Path
    ports: dict[str, int]

    @property
    def pids(self) -> dict[str, int]:
        return {name: int((self.folder / f"{name}.pid").read_text()) for name in self.ports}

    @property
    def commands(self) -> list[str]:
        path = self.folder / "commands"
        return path.read_text().splitlines() if path.exists() else []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    async def break_thread(self, name: str) -> None:
        async with httpx.AsyncClient() as http:
            (await http.post(f"{self.url(name)}/sim/faults", json={"worker_dies": 1})).raise_for_status()


@dataclass
class Agent:
    """A box's agent in this event loop; it can be started again with more nodes."""

    host: Host
    name: str
    units: Units
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def start(self, nodes: Sequence[str], limits: RestartLimits | None = None) -> None:
        await self.end()
        template = RestartTemplate.parse(f"{self.units.folder / 'systemctl'} restart comfyui@{{name}}")
        beside = [Beside(name=n, url=self.units.url(n), gpu="cpu", restart=template.argv(n)) for n in nodes]
        options = AgentOptions(
            join=self.host.api.url, host=self.name, port=0, beside=beside, limits=limits or RestartLimits()
        )
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(run(self.host.settings, options, self.stop))

    async def end(self) -> None:
        if self.task is not None:
            self.stop.set()
            await self.task
            self.task = None


@asynccontextmanager
async def units_of(folder: Path) -> AsyncIterator[Units]:
    """Run eight units, in a folder that is there."""
    units = Units(folder, {name: free_port() for name in NAMES})
    places = [f"{name}:{port}" for name, port in units.ports.items()]
    argv = mortal([sys.executable, "-m", "tests.units_stand_in", str(folder), *places])
    stand_in = subprocess.Popen(argv, cwd=SOURCE, stderr=subprocess.DEVNULL)
    try:
        async with httpx.AsyncClient() as http:

            async def answers() -> bool:
                try:
                    return all([(await http.get(f"{units.url(n)}/queue")).is_success for n in NAMES])
                except httpx.TransportError:
                    return False

            await until(answers, what="all units answer", timeout_s=AGAIN_S)
        yield units
    finally:
        stand_in.terminate()
        await asyncio.to_thread(stand_in.wait)


@asynccontextmanager
async def load(host: Host) -> AsyncIterator[list[str]]:
    """Keep two jobs in the fleet; in the end each of them must have succeeded."""
    jobs: list[str] = []
    over = asyncio.Event()

    async def submit() -> str:
        new = new_job(picture(next(COLORS)))
        return (await host.api.stores.jobs.submit(new, idempotency=None, depth_limit=100)).job.id

    async def ended(job_id: str) -> bool:
        found = await host.api.stores.jobs.get(job_id)
        assert found is not None
        assert found.status is not JobStatus.FAILED, found.error
        return found.status is JobStatus.SUCCEEDED

    async def one_after_the_other() -> None:
        while not over.is_set():
            jobs.append(job_id := await submit())

            async def done(job_id: str = job_id) -> bool:
                return await ended(job_id)

            await until(done, what="a job succeeds", timeout_s=AGAIN_S)

    workers = [asyncio.create_task(one_after_the_other()) for _ in range(2)]
    try:
        yield jobs
    finally:
        over.set()
        await asyncio.gather(*workers)


@pytest.mark.timeout(900)
async def test_eight_units_are_taken_over_and_cared_for(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    for name in ("units", "fleet"):
        (tmp_path / name).mkdir()
    async with (
        units_of(tmp_path / "units") as units,
        host_of(redis_port, tmp_path / "fleet", haproxy=True, ask_nodes=True) as host,
        open_dispatcher(host.settings, host.api.stores, name="d1") as dispatcher,
    ):
        stop = asyncio.Event()
        running = Running(dispatcher, stop, asyncio.create_task(dispatcher.run(stop)))
        agents = {name: Agent(host, name, units) for name in BOXES}
        try:
            before = units.pids
            await agents["box1"].start(["a0"])
            await host.is_up("a0")
            async with load(host) as jobs:
                for box, names in BOXES.items():
                    for count in range(1, len(names) + 1):
                        await agents[box].start(names[:count])
                        await host.is_up(names[count - 1])
            assert len(jobs) >= 2
            assert units.pids == before
            assert units.commands == []
            for name in NAMES:
                assert (await host.report(name))["pid"] == before[name]
            await _a_dead_thread(host, units)
            await _a_command_that_fails(host, units)
            await _what_systemd_restarts_itself(host, units)
            await _an_order_to_restart(host, units)
            await _after_some_jobs(host, units, agents["box2"])
        finally:
            for agent in agents.values():
                await agent.end()
            await running.end()


async def _again(host: Host, units: Units, name: str, pid: int) -> None:
    """Wait until a unit has another process, and its node is up."""
    await until(lambda: units.pids[name] != pid, what=f"{name} is restarted", timeout_s=AGAIN_S)

    async def up() -> bool:
        report = await host.report(name)
        return report.get("pid") == units.pids[name] and report.get("phase") == "up"

    try:
        await until(up, what=f"{name} is back", timeout_s=AGAIN_S)
    except AssertionError as error:
        error.add_note(f"its agent says {await host.report(name)}; it is {units.pids[name]}")
        raise
    await host.is_up(name, within_s=AGAIN_S)


async def _a_dead_thread(host: Host, units: Units) -> None:
    pid = units.pids["a1"]
    await units.break_thread("a1")
    async with load(host):
        await _again(host, units, "a1", pid)
    assert units.commands == ["restart comfyui@a1"]


async def _a_command_that_fails(host: Host, units: Units) -> None:
    pid = units.pids["a2"]
    (units.folder / "a2.refused").touch()
    await units.break_thread("a2")
    reason = "failed with 4: Failed to restart comfyui@a2.service: Access denied"

    async def told() -> bool:
        return reason in str((await host.api.stores.hosts.words("a2"))[1])

    async with load(host):
        await until(told, what="the node's note says why", timeout_s=AGAIN_S)
        assert units.pids["a2"] == pid
        (units.folder / "a2.refused").unlink()
        await _again(host, units, "a2", pid)


async def _what_systemd_restarts_itself(host: Host, units: Units) -> None:
    pid, commands = units.pids["b0"], units.commands
    async with load(host):
        os.kill(pid, signal.SIGKILL)
        await _again(host, units, "b0", pid)
    assert units.commands == commands


async def _an_order_to_restart(host: Host, units: Units) -> None:
    pids = units.pids
    await host.api.stores.nodes.want_restart("b1")
    async with load(host):
        await _again(host, units, "b1", pids["b1"])
    assert {name for name, pid in units.pids.items() if pid != pids[name]} == {"b1"}


async def _after_some_jobs(host: Host, units: Units, agent: Agent) -> None:
    pids = units.pids
    await agent.start(BOXES["box2"], RestartLimits(jobs=1))
    async with load(host):
        names = BOXES["box2"]
        await until(
            lambda: any(units.pids[name] != pids[name] for name in names),
            what="one is recycled",
            timeout_s=AGAIN_S,
        )
