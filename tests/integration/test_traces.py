"""Traces of jobs across processes, as a collector gets them over OTLP/HTTP."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.dispatchers import live_dispatchers
from comfy_fleet.sim import SimTiming
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import Fleet, fleet_of, until
from tests.integration.api_process import api_process
from tests.integration.trace_kit import Collector, Seen, collecting
from tests.integration.webhook_kit import receiver

CALLER = "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


def trace(number: int, *, flags: str = "01") -> tuple[str, str]:
    """Return a trace's id, and the header of a caller within it."""
    id_ = f"{number:032x}"
    return id_, f"00-{id_}-{CALLER}-{flags}"


@contextmanager
def dispatch(
    fleet: Fleet, folder: Path, name: str, env: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run ``fleet dispatch``; yields the process and the port of its metrics."""
    port = free_port()
    told = {one: getattr(fleet.settings, one) for one in ("redis_url", "data", "lease_ttl_s", "beat_s")}
    told |= {"log_format": "json", "dispatch_metrics_port": port}
    more = {f"FLEET_{one.upper()}": str(value) for one, value in told.items()}
    with (folder / name).open("wb") as log:
        argv = mortal([sys.executable, "-m", "comfy_fleet", "dispatch", "--name", name])
        process = subprocess.Popen(argv, env={**os.environ, **more, **env}, stderr=log)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def traced(
    redis_port: int, folder: Path, collector: Collector
) -> AsyncIterator[tuple[Fleet, httpx.AsyncClient, dict[str, str]]]:
    """Run nodes and an API whose spans go to a collector; yields the variables for dispatchers, too."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    sim = {"timing": SimTiming(job_s=1.0)}
    async with fleet_of(redis_port, "g1", dispatch=False, sim=sim) as fleet:
        allowed = {"FLEET_WEBHOOK_ALLOW": "127.0.0.1", **env}
        folder.joinpath("api").mkdir()
        async with api_process(redis_port, folder / "api", **allowed) as (client, _):
            yield fleet, client, env


async def submit(client: httpx.AsyncClient, color: int, header: str = "", **more: Any) -> tuple[str, str]:
    """Submit a job; return its id and the answer's ``traceparent``."""
    headers = {"traceparent": header, "tracestate": "odd=" + "x" * 600} if header else {}
    answer = await client.post("/api/v2/jobs", json={"workflow": picture(color), **more}, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"]), answer.headers["traceparent"]


async def spans(port: int) -> dict[str, float]:
    """Return what became of a process's spans, by its metrics."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "fleet_spans_total"
    }


def only(found: dict[str, list[Seen]], name: str) -> Seen:
    (one,) = found[name]
    return one


@pytest.mark.timeout(240)
async def test_a_job_is_one_trace_across_processes_retries_and_take_overs(
    redis_port: int, tmp_path: Path
) -> None:
    async with (
        collecting() as collector,
        receiver() as shop,
        traced(redis_port, tmp_path, collector) as (fleet, client, env),
    ):
        with dispatch(fleet, tmp_path, "d1", env) as (first, port):
            await until(lambda: _lives(fleet, "d1"), what="it serves")

            # From the caller to the webhook.
            trace_id, header = trace(1)
            shop_url = {"webhook_url": f"{shop.url}/x"}
            job_id, answered = await submit(client, 1, header, **shop_url)
            await fleet.ended(job_id)
            await until(lambda: {"job", "webhook"} <= collector.of(trace_id).keys(), what="it is told")
            await _is_whole(collector, trace_id, job_id, answered)
            told = shop.received[0].headers["traceparent"]
            assert told == f"00-{trace_id}-{only(collector.of(trace_id), 'webhook').span_id}-01"

            # A run that is lost, and the next: two attempts.
            await fleet.sims["g1"].set_faults({"crash_mid_run": 1, "restart_after_s": 0.2})
            again, answered = await submit(client, 2)
            own = again.replace("-", "")
            assert answered.split("-")[1] == own, "without a caller, the trace has the job's id"
            done = await fleet.ended(again)
            assert done.status == "succeeded" and len(done.attempts) == 2
            await until(lambda: "job" in collector.of(own), what="it is told")
            found = collector.of(own)
            lost, won = found["attempt"]
            assert (lost.failed, won.failed) == (True, False)
            assert lost.facts["fleet.error_code"] == "node_lost"
            assert [one.facts["fleet.attempt"] for one in (lost, won)] == [1, 2]
            assert len(found["queue"]) == 2 and only(found, "submit").parent_id == ""

            # What is not to be recorded, and what is no trace.
            quiet, header = trace(3, flags="00")
            unsampled, answered = await submit(client, 3, header)
            assert answered.startswith(f"00-{quiet}-") and answered.endswith("-00")
            odd = f"00-{'0' * 32}-{CALLER}-01,vendor=" + "x" * 600
            strange, answered = await submit(client, 4, odd)
            assert answered.split("-")[1] == strange.replace("-", "")
            for job in (unsampled, strange):
                assert (await fleet.ended(job)).status == "succeeded"
            await until(lambda: "job" in collector.of(strange.replace("-", "")), what="it is told")
            assert not collector.of(quiet)

            # Another dispatcher goes on with the run of one that is killed.
            trace_id, header = trace(5)
            job_id, _ = await submit(client, 5, header)
            await until(lambda: _runs(fleet, job_id), what="it runs")
            assert (await spans(port))["exported"] > 0
            first.kill()
        with dispatch(fleet, tmp_path, "d2", env) as (_, port):
            done = await fleet.ended(job_id)
            assert done.status == "succeeded" and len(done.attempts) == 1
            await until(lambda: "job" in collector.of(trace_id), what="it is told")
            found = collector.of(trace_id)
            assert only(found, "submit").span_id == only(found, "job").parent_id
            assert only(found, "attempt").facts["fleet.steps_unknown"] is True

            # Without the collector, jobs go on.
            trace_id, header = trace(6)
            collector.spans.clear()
            await _away(collector, client, fleet, header, port)


async def _is_whole(collector: Collector, trace_id: str, job_id: str, answered: str) -> None:
    found = collector.of(trace_id)
    assert found.keys() == {
        "submit",
        "job",
        "queue",
        "attempt",
        "lease",
        "stage",
        "post",
        "wait_on_node",
        "run",
        "collect",
        "webhook",
    }
    submitted, job, attempt = only(found, "submit"), only(found, "job"), only(found, "attempt")
    lease, run = only(found, "lease"), only(found, "run")
    assert answered == f"00-{trace_id}-{submitted.span_id}-01"
    parents = {
        "submit": CALLER,
        "job": submitted.span_id,
        "queue": job.span_id,
        "attempt": job.span_id,
        "webhook": job.span_id,
        "lease": attempt.span_id,
        "collect": attempt.span_id,
        **dict.fromkeys(("stage", "post", "wait_on_node", "run"), lease.span_id),
    }
    assert {name: only(found, name).parent_id for name in found} == parents
    services = {name: only(found, name).service for name in found}
    assert services == dict.fromkeys(found, "fleet-dispatch") | dict.fromkeys(
        ("submit", "webhook"), "fleet-api"
    )
    assert job.facts["fleet.job_id"] == job_id and job.facts["fleet.status"] == "succeeded"
    assert attempt.facts["fleet.node"] == "g1" and not job.failed
    slack = 0.01  # steps are rounded to milliseconds
    for outer, inner in ((job, attempt), (attempt, lease), (lease, run)):
        assert outer.start - slack <= inner.start <= inner.end <= outer.end + slack
    assert run.end - run.start > 0.5 and run.events, "the graph's nodes are its events"
    assert all(run.start - slack <= at <= run.end + slack for _, at in run.events)


async def _lives(fleet: Fleet, name: str) -> bool:
    return name in await live_dispatchers(fleet.stores.redis)


async def _runs(fleet: Fleet, job_id: str) -> bool:
    return (await fleet.job(job_id)).status == "running"


async def _away(
    collector: Collector, client: httpx.AsyncClient, fleet: Fleet, header: str, port: int
) -> None:
    before = await spans(port)
    collector.refuses = True
    jobs = [(await submit(client, color, header))[0] for color in (7, 8)]
    for job in jobs:
        assert (await fleet.ended(job)).status == "succeeded"

    async def counted() -> bool:
        return (await spans(port))["failed"] > before["failed"]

    await until(counted, what="what could not be sent is counted")
    assert not collector.spans
    collector.refuses = False
    ended = (await submit(client, 9))[0]
    await fleet.ended(ended)
    await until(lambda: "job" in collector.of(ended.replace("-", "")), what="it goes on by itself")
