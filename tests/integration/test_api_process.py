"""The process `fleet api`."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.domain.jobs.job import JobFilter, JobStatus
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.settings import Settings
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import GRAPH
from tests.fleet import until


@asynccontextmanager
async def _process(
    redis_port: int, folder: Path
) -> AsyncIterator[tuple["subprocess.Popen[bytes]", httpx.AsyncClient, Stores]]:
    """Run the process with a node; its log is in the folder."""
    port = free_port()
    settings = {"FLEET_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0", "FLEET_DATA": str(folder)}
    env = {**os.environ, **settings, "FLEET_API_PORT": str(port), "FLEET_LOG_FORMAT": "json"}
    async with open_stores(Settings(redis_url=settings["FLEET_REDIS_URL"])) as stores:
        await stores.nodes.add(Node(name="g1", url="http://127.0.0.1:9"))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                mortal([sys.executable, "-m", "comfy_fleet", "api"]), env=env, stderr=log
            )
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

                async def up() -> bool:
                    assert process.poll() is None
                    try:
                        return (await client.get("/health")).status_code == 200
                    except httpx.ConnectError:
                        return False

                await until(up, what="the API serves", timeout_s=50)
                yield process, client, stores
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_with_zero_though_streams_are_open(
    redis_port: int, redis: Redis, tmp_path: Path, number: signal.Signals
) -> None:
    async with _process(redis_port, tmp_path) as (process, client, _):
        job = (await client.post("/api/v2/jobs", json={"workflow": GRAPH})).json()
        async with client.stream("GET", job["urls"]["events"]) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: status"
            process.send_signal(number)
            async for _ in lines:  # ends by itself
                pass
        assert process.wait(20) == 0
    written = (tmp_path / "log").read_text()
    assert f'"job_id":"{job["id"]}"' in written
    assert "Traceback" not in written


async def test_one_that_is_killed_while_submits_wait_cancels_no_job(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with _process(redis_port, tmp_path) as (process, client, stores):
        asked = {"wait": "60", "cancel_on_disconnect": "true"}
        waiting = asyncio.create_task(client.post("/api/v2/jobs", params=asked, json={"workflow": GRAPH}))

        async def waits() -> bool:
            return "fleet_waiting_submits 1.0" in (await client.get("/metrics")).text

        await until(waits, what="the submit waits")
        process.kill()
        with pytest.raises(httpx.TransportError):
            await waiting
        found = await stores.jobs.find(JobFilter(owner="local"))
        assert [job.status for job in found.jobs] == [JobStatus.QUEUED]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"FLEET_HOST": "0.0.0.0"}, "FLEET_KEYS_FILE"),
        ({"FLEET_WORKFLOWS": "/no/such/folder"}, "/no/such/folder, can't be read"),
    ],
)
def test_it_refuses_to_start_with_what_it_can_not_serve(
    tmp_path: Path, wrong: dict[str, str], told: str
) -> None:
    env = {**os.environ, "FLEET_DATA": str(tmp_path), **wrong}
    done = subprocess.run(
        [sys.executable, "-m", "comfy_fleet", "api"],
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
