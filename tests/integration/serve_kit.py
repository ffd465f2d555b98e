"""Runs `fleet serve` in front of a fleet of simulated nodes."""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from comfy_fleet.adapters.redis.dispatchers import live_dispatchers
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import Fleet, until


@dataclass
class Serve:
    """A running `fleet serve`."""

    name: str
    process: subprocess.Popen[bytes]
    http: httpx.AsyncClient
    log: Path

    async def submit(self, color: int) -> str:
        answer = await self.http.post("/api/v2/jobs", json={"workflow": picture(color)})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def status(self, job_id: str) -> str:
        return str((await self.http.get(f"/api/v2/jobs/{job_id}")).json()["status"])

    def ended(self, timeout_s: float = 60) -> int:
        return self.process.wait(timeout_s)


def start(fleet: Fleet, folder: Path, name: str, **settings: Any) -> tuple[int, subprocess.Popen[bytes]]:
    """Start the process; return the API's port, too."""
    shared = ("redis_url", "data", "lease_ttl_s", "beat_s")
    told = {one: getattr(fleet.settings, one) for one in shared}
    told |= {"api_port": free_port(), "log_format": "json", **settings}
    env = {**os.environ, **{f"FLEET_{one.upper()}": str(value) for one, value in told.items()}}
    argv = [sys.executable, "-m", "comfy_fleet", "serve", "--name", name]
    with (folder / name).open("wb") as log:
        return told["api_port"], subprocess.Popen(mortal(argv), env=env, stderr=log)


@asynccontextmanager
async def served(fleet: Fleet, folder: Path, name: str = "s1", **settings: Any) -> AsyncIterator[Serve]:
    """Run `fleet serve`; yields it once a job could run."""
    port, process = start(fleet, folder, name, **settings)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            async def ready() -> bool:
                assert process.poll() is None, (folder / name).read_text()
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/api/v1/ready")).status_code == 200:
                        return name in await live_dispatchers(fleet.stores.redis)
                return False

            await until(ready, what=f"{name} serves", timeout_s=60)
            yield Serve(name, process, client, folder / name)
    finally:
        process.kill()
        process.wait()


async def left_s(fleet: Fleet, run: str) -> float:
    """Return in how many seconds a run's lease expires."""
    expires: Any = await fleet.stores.redis.zscore("fleet:runs", run)
    return float(expires) - await fleet.stores.clock()


async def running(fleet: Fleet, job_id: str) -> str:
    """Wait until a job runs; return its run."""

    async def runs() -> bool:
        return (await fleet.job(job_id)).status == "running"

    await until(runs, what=f"job {job_id} runs", timeout_s=30)
    return str((await fleet.job(job_id)).run)
