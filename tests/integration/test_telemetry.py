"""What observers are told of real jobs, and that one which fails hurts none of them."""

from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from comfy_fleet.adapters.telemetry import Observers, PrometheusTelemetry, new_registry
from comfy_fleet.domain.jobs.job import Job, JobFilter, JobStatus, Placement
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.sim import SimTiming
from tests.factories import GRAPH, picture
from tests.fleet import Fleet, fleet_of, until
from tests.integration.api_kit import running


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


class Recorder:
    """Keeps what it is told, and raises afterwards if asked to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.told: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def take(*args: Any, **more: Any) -> None:
            self.told.append((name, args, more))
            if self.fails:
                raise RuntimeError(name)

        return take

    def of_runs(self) -> list[str]:
        return [name for name, _, _ in self.told if name not in ("lease_refused", "store_retried")]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_jobs_life_is_told_in_order(redis_port: int, fails: bool) -> None:
    recorder = Recorder(fails=fails)
    async with fleet_of(redis_port, "g1", dispatch=False, sim={"timing": SimTiming(job_s=0.1)}) as fleet:
        await fleet.dispatcher(telemetry=Observers(cast(Telemetry, recorder)))
        wished = Placement(pool="made-up", spill=("default",))
        done = await fleet.ended((await fleet.submit(GRAPH, placement=wished)).id)
        assert done.status is JobStatus.SUCCEEDED
        await until(lambda: "ended" in recorder.of_runs(), what="the end is told")
    assert sorted(recorder.of_runs()) == ["claimed", "ended", "left", "posted"]
    assert recorder.of_runs()[0] == "claimed" and recorder.of_runs()[-1] == "ended"
    told = {name: (args, more) for name, args, more in recorder.told}
    assert told["left"][1]["busy_s"] > 0
    claims = [told[name][0][0] for name in ("claimed", "posted", "left", "ended")]
    assert {claim.pool for claim in claims} == {"default"}, "not what the client made up"
    (claim, status), more = told["ended"]
    assert (claim.job.id, claim.node, status) == (done.id, "g1", JobStatus.SUCCEEDED)
    assert (more["error"], more["outputs"]) == (None, 1) and more["duration_s"] > 0


async def test_a_lost_run_is_given_back_and_its_node_is_let_go(
    redis_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    async with fleet_of(redis_port, "g1", dispatch=False, sim={"timing": SimTiming(job_s=0.1)}) as fleet:
        fleet.sims["g1"].faults.update({"crash_mid_run": "always"})
        await fleet.dispatcher(telemetry=Observers(cast(Telemetry, recorder)))
        done = await fleet.ended((await fleet.submit(GRAPH, max_attempts=1)).id)
        assert done.status is JobStatus.FAILED
        await until(lambda: "left" in recorder.of_runs(), what="the node is let go")
    assert sorted(recorder.of_runs()) == ["claimed", "given_back", "left", "posted"]
    ((_, status), more) = next((args, more) for name, args, more in recorder.told if name == "given_back")
    assert (status, more["counts"], more["error"].code) == (JobStatus.FAILED, True, "node_lost")
    (line,) = [record for record in caplog.records if record.message == "run ended badly"]
    assert done.error is not None and done.error.details["story"] == line.__dict__["story"]
    assert line.__dict__["story"][-1].endswith("-> done: Finish")


async def test_expired_jobs_are_told(redis_port: int) -> None:
    recorder = Recorder()
    async with fleet_of(redis_port, dispatch=False) as fleet:
        await fleet.submit(GRAPH, deadline_s=0.001)
        await fleet.dispatcher(telemetry=Observers(cast(Telemetry, recorder)))
        await until(lambda: recorder.told, what="it is told")
    ((name, (job,), _),) = recorder.told
    assert (name, job.status, job.workflow) == ("ended_without_run", JobStatus.EXPIRED, None)


def ended_jobs(*texts: str) -> Counter[str]:
    """Add up what the metrics of several processes say of ended jobs, by state."""
    found: Counter[str] = Counter()
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "fleet_jobs_total":
                    found[sample.labels["status"]] += int(sample.value)
    return found


async def test_every_job_that_ended_is_counted_once_among_all_processes(
    redis_port: int, tmp_path: Path
) -> None:
    registries = [new_registry(), new_registry()]
    async with (
        fleet_of(redis_port, "g1", dispatch=False) as fleet,
        running(redis_port, tmp_path) as api,
    ):
        client: Any = fleet.stores.redis

        async def cancel(job: Job, face: str) -> None:
            answer = await api.client.post(f"/api/{face}/jobs/{job.id}/cancel")
            assert answer.status_code in (200, 202), answer.text

        # In the queue, where no dispatcher is.
        for face in ("v1", "v2"):
            job = await fleet.submit()
            await cancel(job, face)
            await cancel(job, face)  # again: it has ended already
        for workflow in ("card", None):
            await fleet.submit(deadline_s=0.001, workflow=workflow)
        await client.hset(f"fleet:job:{(await fleet.submit()).id}", "attempt", "one")
        await client.hset(f"rq:job:{(await fleet.submit()).id}", "data", b"another handler")

        for number, registry in enumerate(registries):
            await fleet.dispatcher(f"d{number}", telemetry=Observers(PrometheusTelemetry(registry)))
        for _ in range(4):
            await fleet.submit()
        await until(lambda: _waiting(fleet, 0), what="all have ended")
        fleet.sims["g1"].faults.update({"execution_error": "always"})
        await fleet.ended((await fleet.submit(picture(1))).id)
        fleet.sims["g1"].faults.update({"execution_error": 0, "crash_mid_run": "always"})
        await fleet.ended((await fleet.submit(picture(2), max_attempts=1)).id)

        await fleet.add_sim("g2", timing=SimTiming(job_s=60.0), node={"pool": "slow"})
        await fleet.verdict("g2")
        job = await fleet.submit(placement=Placement(pool="slow"))
        await until(lambda: _runs(fleet, job), what="it runs")
        await cancel(job, "v1")
        await fleet.ended(job.id)

        page = await fleet.stores.jobs.find(JobFilter(owner=None, limit=100))
        stored = Counter(str(job.status) for job in page.jobs)
        assert set(stored) == {"succeeded", "failed", "canceled", "expired"}

        async def counted() -> Counter[str]:
            texts = [generate_latest(registry).decode() for registry in registries]
            return ended_jobs(*texts, (await api.client.get("/metrics")).text)

        async def equal() -> bool:
            return await counted() == stored

        await until(equal, what=f"{await counted()} is {stored}")


async def _waiting(fleet: Fleet, count: int) -> bool:
    page = await fleet.stores.jobs.find(JobFilter(owner=None, limit=100))
    return sum(not job.status.terminal for job in page.jobs) == count


async def _runs(fleet: Fleet, job: Job) -> bool:
    return (await fleet.job(job.id)).status is JobStatus.RUNNING
