"""Estimates of jobs' ends: what Redis knows, on a fleet that works, and over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.schedule.calibration import ENOUGH, KEPT, EndEstimate
from comfy_fleet.services.estimator import Estimator
from comfy_fleet.sim import SimTiming
from tests.factories import GRAPH, picture
from tests.fleet import fleet_of, until
from tests.integration.api_kit import Api, running
from tests.integration.redis_kit import add_nodes, claim, submit

JOB_S = 0.3


@pytest.fixture
async def stores_with_node(stores: Stores) -> Stores:
    await add_nodes(stores, "g1")
    return stores


@pytest.fixture
async def api(redis_port: int, redis: FleetRedis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        await started.add_node()
        yield started


async def learn(stores: Stores, profile: str, run_s: float) -> None:
    client: Any = stores.redis
    await client.hset(f"fleet:sched:profile:{profile}", mapping={"run_s": run_s, "runs": 9})


async def again(stores: Stores, job: Job) -> Job:
    found = await stores.jobs.get(job.id)
    assert found is not None
    return found


async def test_nothing_is_made_up_before_a_run_was_measured(stores_with_node: Stores) -> None:
    stores = stores_with_node
    job = await submit(stores)
    assert (await stores.jobs.waits(job)).standing is None
    assert await stores.estimates.mean_run_s() is None
    started = await claim(stores)
    assert await stores.estimates.underway(started.job.id) is None
    await stores.runs.finish(started, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert (await stores.estimates.mean_run_s() or 0.0) > 0
    waits = await stores.jobs.waits(await submit(stores, profile="another"))
    assert waits.standing is not None and not waits.standing.own_kind  # as all others


async def test_where_a_job_stands(stores_with_node: Stores) -> None:
    stores = stores_with_node
    await learn(stores, "p", 7.0)
    jobs = [await submit(stores, profile="p") for _ in range(3)]
    await submit(stores, profile="p", owner="other", weight=2.0)
    standing = (await stores.jobs.waits(jobs[2], node="g1")).standing
    assert standing is not None
    assert (standing.run_s, standing.ahead, standing.own, standing.own_s) == (7.0, 2, 3, 7.0)
    assert (standing.jobs, standing.jobs_s, standing.owners) == (4, 28.0, 2)
    assert [(one.weight, one.jobs) for one in standing.others] == [(2.0, 1)]
    assert standing.own_kind and standing.load_s == 0.0


async def test_what_became_of_estimates_is_kept(stores_with_node: Stores) -> None:
    stores = stores_with_node
    await learn(stores, "p", 5.0)
    job = await submit(stores, profile="p")
    await stores.estimates.note(job.id, "wait1", 1000.0)
    await stores.estimates.note(job.id, "wait2", 1.0)  # the first is what it is held to
    started = await claim(stores)
    underway = await stores.estimates.underway(job.id)
    assert underway is not None and (underway.run_s, underway.own_kind) == (5.0, True)
    assert 0 <= underway.since_s < 60
    assert (await stores.estimates.free_in_s(["g1", "none"])).keys() == {"g1"}
    await stores.runs.finish(started, JobStatus.SUCCEEDED, error=None, duration_s=1)
    errors = await stores.estimates.errors()
    assert {kind: len(found) for kind, found in errors.items() if found} == {"wait1": 1, "run": 1}
    assert 0 < errors["wait1"][0] < 0.06 and 0 < errors["run"][0] < 12
    ended = await stores.estimates.underway(job.id)
    assert ended is not None and (ended.since_s, ended.run_s) == (0.0, 0.0)
    assert await stores.estimates.free_in_s(["g1"]) == {}


async def test_canceled_and_failed_jobs_teach_nothing(stores_with_node: Stores) -> None:
    stores = stores_with_node
    await learn(stores, "p", 5.0)
    for status in (JobStatus.FAILED, JobStatus.CANCELED):
        job = await submit(stores, profile="p")
        await stores.estimates.note(job.id, "wait0", 5.0)
        await stores.runs.finish(await claim(stores), status, error=None, duration_s=None)
        await stores.estimates.note(job.id, "wait0", 5.0)  # it has ended
    assert not any((await stores.estimates.errors()).values())
    await stores.estimates.note("00000000-0000-0000-0000-000000000000", "wait0", 5.0)
    assert await stores.redis.exists("fleet:job:00000000-0000-0000-0000-000000000000") == 0


async def test_the_newest_errors_are_kept_and_odd_ones_ignored(stores_with_node: Stores) -> None:
    stores, client = stores_with_node, stores_with_node.redis
    await learn(stores, "p", 5.0)
    await client.rpush("fleet:sched:errors:run", *["9"] * KEPT)
    await client.rpush("fleet:sched:errors:wait0", "1.5", "nan", "-1", "x", "inf")
    await client.set("fleet:sched:errors:wait1", "of another type")
    job = await submit(stores, profile="p")
    await client.hset(f"fleet:job:{job.id}", "estimate", "odd")
    await stores.runs.finish(await claim(stores), JobStatus.SUCCEEDED, error=None, duration_s=1)
    errors = await stores.estimates.errors()
    assert len(errors["run"]) == KEPT and errors["run"][0] < 9
    assert errors["wait0"] == [1.5] and errors["wait1"] == []


async def test_a_fleet_at_work(redis_port: int, redis: FleetRedis) -> None:
    """What is told of a job that waits shrinks, and comes true."""
    timing = SimTiming(job_s=JOB_S)
    async with fleet_of(redis_port, "g1", "g2", sim={"timing": timing}) as fleet:
        estimator = Estimator(fleet.stores.estimates, fleet.stores.jobs, await fleet.refresher())
        first = await fleet.submit(picture(0))
        assert (await estimator.outlook(first)).end is None
        await fleet.ended(first.id)
        jobs = [await fleet.submit(picture(number)) for number in range(1, 25)]
        last = jobs[-1]
        told: list[EndEstimate] = []
        while not (now := await fleet.job(last.id)).status.terminal:
            if (end := (await estimator.outlook(now)).end) is not None:
                assert 0 <= end.p50_s <= end.p90_s
                told.append(end)
            await asyncio.sleep(0.1)
        took_s = (now.completed_at or 0.0) - now.created_at
        assert took_s > 10 * JOB_S
        assert 0.3 * took_s < told[0].p50_s < 3 * took_s
        assert len({end.p50_s for end in told}) > 3
        middle = told[len(told) // 2]
        assert told[-1].p50_s < middle.p50_s < told[0].p50_s and told[-1].p50_s < 4 * JOB_S
        await until(lambda: _learned(fleet.stores), what="it has taught how far estimates are off")


async def _learned(stores: Stores) -> bool:
    errors = await stores.estimates.errors()
    return len(errors["run"]) >= ENOUGH and any(errors[kind] for kind in ("wait2", "wait3"))


async def test_http_tells_the_end_of_jobs_that_wait_or_run(api: Api) -> None:
    job = await api.submit(GRAPH)
    assert job["estimate"] is None  # it was just submitted
    for path in (f"/api/v2/jobs/{job['id']}", f"/api/v1/jobs/{job['id']}"):
        assert (await api.client.get(path)).json()["estimate"] is None  # nothing was measured yet
    await api.learned("graph", 40.0)
    waiting = (await api.client.get(f"/api/v1/jobs/{job['id']}")).json()
    assert waiting["estimate"]["p50_s"] == 40.0 < waiting["estimate"]["p90_s"]
    assert waiting["estimated_wait_time_sec"] == 40
    assert (await api.client.get(f"/api/v2/jobs/{job['id']}")).json()["estimate"] == waiting["estimate"]
    behind = await api.submit(GRAPH)
    assert (await api.client.get(f"/api/v2/jobs/{behind['id']}")).json()["estimate"]["p50_s"] == 80.0
    async with api.client.stream("GET", behind["urls"]["events"]) as stream:
        lines = [line async for line in _some(stream.aiter_lines(), 5)]
    assert "estimate" not in lines[1]  # the first is told at once
    told = orjson.loads(lines[4].removeprefix("data: "))
    assert told["status"] == "queued" and told["estimate"]["p50_s"] == 80.0
    started = await api.claim(job["id"])
    running = (await api.client.get(f"/api/v2/jobs/{job['id']}")).json()["estimate"]
    assert 0 < running["p50_s"] <= 40 < running["p90_s"]
    await api.finish(started)
    done = (await api.client.get(f"/api/v1/jobs/{job['id']}")).json()
    assert (done["estimate"], done["estimated_wait_time_sec"]) == (None, 0)


async def _some(lines: Any, count: int) -> Any:
    async for line in lines:
        yield line
        count -= 1
        if not count:
            return
