"""Two real ComfyUIs on the CPU under ``fleet agent``: jobs, files, kill -9, drain, roll, the end."""

import asyncio
import itertools
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.processes.dispatcher import open_dispatcher
from tests.assets_kit import content_of
from tests.children import mortal
from tests.comfyui_server import interpreter
from tests.factories import new_job
from tests.fleet import Running, until
from tests.integration.agent_kit import SOURCE, Host, host_of
from tests.integration.haproxy_kit import eventually

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1200)]

logger = logging.getLogger(__name__)  # figures: --log-cli-level=INFO
NODES = ("h1-cpu0-0", "h1-cpu0-1")
START_S = 400.0  # two at once, on two processors that others use, too, took more than 180
JOB_S = 180.0  # for a job; some seconds of processor time
COLORS = itertools.count(1)  # no two graphs are the same: nothing comes from a cache


def blur(batch: int) -> dict[str, Any]:
    """A graph that takes a CPU about half a second a picture, more where two run at once."""
    size = {"width": 512, "height": 512, "batch_size": batch, "color": next(COLORS)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 5.0}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "t"}},
    }


@dataclass
class World:
    """A host's agent, and a dispatcher."""

    host: Host
    data: Path

    def start_s(self, node: str) -> float:
        """Return how long a ComfyUI's last start took, by the agent's log."""
        lines = [json.loads(line) for line in (self.data / "agent.log").read_text().splitlines()]
        at = {
            line["phase"]: datetime.fromisoformat(line["ts"]).timestamp()
            for line in lines
            if line["msg"] == "comfyui process" and line["node"] == node
        }
        return at["up"] - at["starting"]

    async def submit(self, batch: int = 1) -> str:
        new = new_job(blur(batch))
        return (await self.host.api.stores.jobs.submit(new, idempotency=None, depth_limit=100)).job.id

    async def job(self, job_id: str) -> Job:
        found = await self.host.api.stores.jobs.get(job_id)
        assert found is not None
        return found

    async def succeeds(self, job_id: str, *, within_s: float = JOB_S) -> Job:
        async def over() -> bool:
            found = await self.job(job_id)
            assert found.status is not JobStatus.FAILED, found.error
            return found.status is JobStatus.SUCCEEDED

        await until(over, what="the job succeeds", timeout_s=within_s)
        return await self.job(job_id)

    async def runs(self, job_id: str) -> str:
        """Wait until a job computes; returns the node."""

        async def computes() -> bool:
            node = (await self.job(job_id)).node
            return node is not None and (await self.host.report(node)).get("busy") is True

        await until(computes, what="the job runs", timeout_s=JOB_S)
        return str((await self.job(job_id)).node)

    @asynccontextmanager
    async def loaded(self) -> AsyncIterator[list[str]]:
        """Keep two jobs in the fleet; at the end every one of them must have succeeded, at its first try."""
        jobs: list[str] = []

        async def one_after_the_other() -> None:
            while True:
                jobs.append(await self.submit())
                await self.succeeds(jobs[-1])

        load = [asyncio.create_task(one_after_the_other()) for _ in range(2)]
        try:
            yield jobs
        finally:
            for task in load:
                task.cancel()
            ended = await asyncio.gather(*load, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended
        done = [await self.succeeds(job_id) for job_id in jobs]
        assert {job.attempt for job in done} <= {0, 1}

    async def fleet(self, *argv: str) -> str:
        """Run ``fleet ...``; returns what it said."""
        command = [sys.executable, "-m", "comfy_fleet", *argv, "--api", self.host.api.url]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=SOURCE)
        told, _ = await process.communicate()
        assert process.returncode == 0, told.decode()
        return told.decode()


@contextmanager
def agent_of(api_url: str, home: Path, data: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``fleet agent`` with a ComfyUI checkout."""
    python = os.environ.get("COMFYUI_PYTHON") or interpreter(home)
    argv = ["agent", "--join", api_url, "--host", "h1", "--port", "0", "--gpus", "cpu", "--per-gpu", "2"]
    argv += ["--comfyui", str(home), "--python", python, "--no-custom-nodes"]
    argv.append(f"--comfyui-args={shlex.join(shlex.split(os.environ.get('COMFYUI_ARGS', '')))}")
    environment = {**os.environ, "FLEET_DATA": str(data), "FLEET_LOG_FORMAT": "json"}
    with (data / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            mortal([sys.executable, "-m", "comfy_fleet", *argv]), env=environment, cwd=SOURCE, stderr=log
        )
    try:
        yield agent
    finally:
        agent.kill()
        agent.wait()


async def test_two_real_comfyuis_under_an_agent(
    redis: Redis, redis_port: int, tmp_path: Path, comfyui_home: Path
) -> None:
    async with host_of(redis_port, tmp_path, haproxy=True, ask_nodes=True) as host:
        with agent_of(host.api.url, comfyui_home, tmp_path) as agent:
            for name in NODES:
                await host.is_up(name, within_s=START_S)
            async with open_dispatcher(host.settings, host.api.stores, name="d1") as dispatcher:
                stop = asyncio.Event()
                running = Running(dispatcher, stop, asyncio.create_task(dispatcher.run(stop)))
                world = World(host, tmp_path)
                await _its_files_go(world)
                await _names_and_previews_are_its_own(world)
                await _a_killed_one_comes_back(world)
                await _a_drain_waits_for_the_job(world)
                await _a_roll_under_load_loses_nothing(world)
                await running.end()
            pids = [(await host.report(name))["pid"] for name in NODES]
            agent.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(agent.wait, 90) == 0
            for pid in pids:
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)


async def _its_files_go(world: World) -> None:
    job = await world.succeeds(await world.submit())
    assert job.outputs
    outputs = world.data / "comfyui" / str(job.node) / "output" / "fleet" / job.id
    await eventually("its files are gone from the node", lambda: not outputs.exists())


async def _names_and_previews_are_its_own(world: World) -> None:
    """Of what equal graphs share in the cache nobody gets a file of another's, whatever they call theirs."""
    source = {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": next(COLORS)},
    }
    assets = world.host.api.deps.assets
    submit = world.host.api.stores.jobs.submit
    for prefix in ("wait... what", "\N{EURO SIGN}" * 200, "../../up", 7):
        graph = {
            "1": source,
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
        }
        sent = [await submit(new_job(graph), idempotency=None, depth_limit=100) for _ in range(4)]
        for one in sent:
            job = await world.succeeds(one.job.id)
            assert {output.node_id for output in job.outputs} == {"2", "3"}
            for output in job.outputs:
                asset = await assets.get(output.asset_id)
                assert asset is not None
                # ComfyUI writes what it was given into its pictures; the fleet puts back what was submitted.
                picture = Image.open(BytesIO(await content_of(assets, asset)))
                assert json.loads(picture.info["prompt"]) == graph, (prefix, output.node_id)


async def _a_killed_one_comes_back(world: World) -> None:
    host = world.host
    job = await world.submit(batch=6)
    first = await world.runs(job)
    pid = (await host.report(first))["pid"]
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)

    async def elsewhere() -> bool:
        found = await world.job(job)
        return found.status is JobStatus.RUNNING and found.node != first

    await until(elsewhere, what="its job runs on the other one", timeout_s=JOB_S)
    moved_s = time.monotonic() - killed_at
    await world.succeeds(job)
    await host.is_up(first, within_s=START_S)
    back_s = time.monotonic() - killed_at
    start_s = world.start_s(first)
    report = await host.report(first)
    assert (report["restarts"], report["pid"] != pid) == (1, True)
    logger.info("killed: start %.1f s, job moved in %.2f s, back in %.1f s", start_s, moved_s, back_s)


async def _a_drain_waits_for_the_job(world: World) -> None:
    job = await world.submit(batch=6)
    node = await world.runs(job)
    began = time.monotonic()
    await world.fleet("node", "drain", node, "--wait", "--timeout", str(JOB_S), "--reason", "fans")
    found = await world.job(job)
    logger.info("drained in %.1f s", time.monotonic() - began)
    assert (found.status, found.node) == (JobStatus.SUCCEEDED, node)
    assert found.outputs
    assert (await world.host.state(node)).why == "cordoned: fans"
    others = [await world.succeeds(await world.submit()) for _ in range(2)]
    assert node not in {one.node for one in others}
    await world.fleet("node", "resume", node)
    await world.host.is_up(node)


async def _a_roll_under_load_loses_nothing(world: World) -> None:
    host = world.host
    before = {name: await host.report(name) for name in NODES}
    began = time.monotonic()
    async with world.loaded() as jobs:
        told = await world.fleet("node", "roll", "--timeout", str(START_S))
        assert told.splitlines() == [f"restarted {name} ({n} of 2)" for n, name in enumerate(NODES, start=1)]
        logger.info("rolled in %.1f s under a load of %d jobs", time.monotonic() - began, len(jobs))
    assert len(jobs) >= 4
    for name in NODES:
        report = await host.report(name)
        assert report["pid"] != before[name]["pid"]
        assert report["restarts"] == before[name]["restarts"] + 1
        assert not (await host.state(name)).node.cordoned
