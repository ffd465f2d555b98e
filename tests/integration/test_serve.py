"""The process `fleet serve`: the API and a dispatcher together."""

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.dispatchers import live_dispatchers
from comfy_fleet.sim import SimTiming
from tests.factories import picture
from tests.fleet import fleet_of
from tests.integration.serve_kit import left_s, running, served, start

BODY = 15 * 1024 * 1024
SHORT, LONG = {"timing": SimTiming(job_s=1.5)}, {"timing": SimTiming(job_s=60)}


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


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
            'fleet_jobs_total{status="succeeded",workflow="graph",pool="default",tenant="default"} 1',
            "fleet_runs_in_flight 0.0",
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
