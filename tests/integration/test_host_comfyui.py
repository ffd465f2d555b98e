"""A real ComfyUI on the CPU under ``fleet agent``: jobs, kill -9, drain, files, the end."""

import asyncio
import os
import shlex
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.agent.supervisor import Supervision
from comfy_fleet.dispatch_main import open_dispatcher
from comfy_fleet.domain.job import JobStatus
from tests.comfyui_server import interpreter
from tests.factories import GRAPH, new_job
from tests.fleet import Running, until
from tests.integration.agent_kit import Host, host_of
from tests.integration.haproxy_kit import eventually

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

NODE = "h1-cpu0"
START_S = 90.0


async def succeeds(host: Host, color: int) -> str:
    """Run a job to its end; returns its id."""
    graph = {**GRAPH, "1": {**GRAPH["1"], "inputs": {**GRAPH["1"]["inputs"], "color": color}}}
    job = (await host.api.stores.jobs.submit(new_job(graph), idempotency=None, depth_limit=10)).job

    async def over() -> bool:
        found = await host.api.stores.jobs.get(job.id)
        assert found is not None
        assert found.status is not JobStatus.FAILED, found.error
        return found.status is JobStatus.SUCCEEDED

    await until(over, what="the job succeeds", timeout_s=60)
    return job.id


async def _taken_out(host: Host) -> bool:
    return (await host.state(NODE)).verdict in ("drain", "down")


async def test_a_real_comfyui_under_the_agent(
    redis: Redis, redis_port: int, tmp_path: Path, comfyui_home: Path
) -> None:
    python = os.environ.get("COMFYUI_PYTHON") or interpreter(comfyui_home)
    args = shlex.split(os.environ.get("COMFYUI_ARGS", ""))
    wanted = Supervision(
        checkout=Checkout.find(comfyui_home, python=python, custom_nodes=False, args=args), gpus="cpu"
    )
    async with host_of(redis_port, tmp_path, supervision=wanted, haproxy=True) as host:
        began = time.monotonic()
        await host.is_up(NODE, within_s=START_S)
        start_s = time.monotonic() - began
        async with open_dispatcher(host.settings, host.api.stores, name="d1") as dispatcher:
            stop = asyncio.Event()
            running = Running(dispatcher, stop, asyncio.create_task(dispatcher.run(stop)))
            first = await succeeds(host, 1)
            outputs = tmp_path / "comfyui" / NODE / "output" / "fleet"
            await eventually("its files are gone from the node", lambda: not (outputs / first).exists())

            pid = (await host.report(NODE))["pid"]
            killed_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await until(partial(_taken_out, host), what="HAProxy gives no lease", timeout_s=5)
            await host.is_up(NODE, within_s=START_S)
            back_s = time.monotonic() - killed_at
            assert back_s <= start_s + 2, (back_s, start_s)
            report = await host.report(NODE)
            assert report["restarts"] == 1
            assert report["pid"] != pid
            await succeeds(host, 2)

            await host.api.stores.nodes.cordon(NODE, reason="fans")
            await host.is_up(NODE, "drain")
            await host.said(NODE, "drain")
            waiting = await host.api.stores.jobs.submit(new_job(), idempotency=None, depth_limit=10)
            await host.api.stores.nodes.uncordon(NODE)

            async def done() -> bool:
                found = await host.api.stores.jobs.get(waiting.job.id)
                return found is not None and found.status is JobStatus.SUCCEEDED

            await until(done, what="the drained node's job runs after its return", timeout_s=30)
            await running.end()
        last = (await host.report(NODE))["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)
