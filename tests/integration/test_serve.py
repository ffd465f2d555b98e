"""The process `fleet serve`: the API and a dispatcher together."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.rq_worker import live_dispatchers
from comfy_fleet.sim import SimTiming
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import Fleet, fleet_of, until

BODY = 15 * 1024 * 1024
SHORT, LONG = {"timing": SimTiming(job_s=1.5)}, {"timing": SimTiming(job_s=60)}


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


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

    def ended(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)


def start(fleet: Fleet, folder: Path, name: str, **settings: Any) -> tuple[int, subprocess.Popen[bytes]]:
    """Start the process; return the API's port, too."""
    shared = ("redis_url", "data", "lease_port", "direct_port", "lease_ttl_s", "beat_s")
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


async def test_a_job_runs_and_one_port_has_all_metrics(redis_port: int, tmp_path: Path) -> None:
    async with (
        fleet_of(redis_port, "g1", dispatch=False) as fleet,
        served(fleet, tmp_path) as serve,
    ):
        job = await serve.submit(1)
        assert (await fleet.ended(job)).status == "succeeded"
        metrics = (await serve.http.get("/metrics")).text
        for line in (
            'fleet_jobs_submitted_total{workflow="graph"} 1.0',
            'fleet_jobs_total{pool="default",status="succeeded",workflow="graph"} 1.0',
            "fleet_runs_in_flight 0.0",
            "fleet_queue_depth 0.0",
        ):
            assert line in metrics
        assert metrics.count("process_cpu_seconds_total") == 3  # help, type and one value


async def test_a_signal_ends_the_runs_first_and_then_the_api(redis_port: int, tmp_path: Path) -> None:
    async with (
        fleet_of(redis_port, "g1", dispatch=False, sim=SHORT) as fleet,
        served(fleet, tmp_path) as serve,
    ):
        job = await serve.submit(1)
        await running(fleet, job)
        serve.process.send_signal(signal.SIGTERM)
        later = await serve.submit(2)  # it takes jobs while the run goes on, and begins none
        async with serve.http.stream("GET", f"/api/v2/jobs/{job}/events") as stream:
            told = [line async for line in stream.aiter_lines()]
        assert any('"status":"succeeded"' in line for line in told)
        assert serve.ended() == 0
        assert (await fleet.job(job)).attempt == 0
        assert (await fleet.job(later)).status == "queued"
        assert await live_dispatchers(fleet.stores.redis) == []
    assert "Traceback" not in serve.log.read_text()


async def test_a_second_signal_hands_the_runs_over(redis_port: int, tmp_path: Path) -> None:
    async with (
        fleet_of(redis_port, "g1", dispatch=False, sim=LONG) as fleet,
        served(fleet, tmp_path, stop_wait_s=600) as serve,
    ):
        job = await serve.submit(1)
        run = await running(fleet, job)
        serve.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)  # one signal while another is pending is one
        assert serve.process.poll() is None
        serve.process.send_signal(signal.SIGTERM)
        assert serve.ended() == 0
        # Another dispatcher goes on with the same run at once.
        assert await left_s(fleet, run) <= 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_other_one_goes_on_with_the_runs_of_one_that_is_dead_or_frozen(
    redis_port: int, tmp_path: Path, number: signal.Signals
) -> None:
    async with (
        fleet_of(redis_port, "g1", "g2", dispatch=False, sim={"timing": SimTiming(job_s=4)}) as fleet,
        served(fleet, tmp_path, "s1") as first,
        served(fleet, tmp_path, "s2") as second,
    ):
        jobs = [await first.submit(color) for color in (1, 2)]
        for job in jobs:
            await running(fleet, job)
        first.process.send_signal(number)
        jobs += [await second.submit(color) for color in (3, 4)]
        for job in jobs:
            ended = await fleet.ended(job, timeout_s=60)
            assert (ended.status, ended.attempt) == ("succeeded", 0)
        assert sum(sim.stats.done for sim in fleet.sims.values()) == len(jobs)


async def test_a_port_that_is_taken_ends_all_of_it(redis_port: int, tmp_path: Path) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            _, process = start(fleet, tmp_path, "s1", api_port=taken.getsockname()[1])
            try:
                assert process.wait(60) > 0
            finally:
                process.kill()
                process.wait()
        assert "address already in use" in (tmp_path / "s1").read_text()
        assert await live_dispatchers(fleet.stores.redis) == []


async def test_no_renewal_is_late_while_large_bodies_come(redis_port: int, tmp_path: Path) -> None:
    settings = {"lease_ttl_s": 4.0, "beat_s": 0.5}
    async with (
        fleet_of(redis_port, "g1", dispatch=False, sim=LONG, **settings) as fleet,
        served(fleet, tmp_path) as serve,
    ):
        job = await serve.submit(1)
        run = await running(fleet, job)
        left: list[float] = []

        async def watch() -> None:
            while True:
                left.append(await left_s(fleet, run))
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        body = orjson.dumps({"workflow": _large()})
        assert BODY <= len(body) < 16 * 1024 * 1024
        answers = await asyncio.gather(*(serve.http.post("/api/v2/jobs", content=body) for _ in range(8)))
        watching.cancel()
        assert {answer.status_code for answer in answers} <= {201, 422, 503}
        # A renewal gives 4 s and comes every 0.5 s. One is late if less than 2.5 s are left.
        assert left and [seconds for seconds in left if seconds < 2.5] == []


def _large() -> dict[str, Any]:
    """Many nodes, so that reading, checking and writing them takes long."""
    loads = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph: dict[str, Any] = picture(1)
    for number in range(3, 20_003):
        graph[str(number)] = {**loads, "_meta": {"title": "x" * 700}}
    return graph
