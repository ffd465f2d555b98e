"""Whoever asks for a job that is just about to end is told of its end."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import orjson
import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services import estimator as estimator_module
from comfy_fleet.services import job_queries
from comfy_fleet.services.estimator import Estimator
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.job_queries import settled
from tests.factories import new_job
from tests.fakes.comfyui import FakeNodeApi


@pytest.fixture(autouse=True)
async def node(stores: Stores) -> None:
    await stores.nodes.add(Node(name="g1", url="http://127.0.0.1:1"))


async def started(stores: Stores) -> tuple[Job, Claim]:
    job = (await stores.jobs.submit(new_job(), idempotency=None, depth_limit=9)).job
    got = await stores.runs.claim(
        node="g1", placements=[Placement()], run=str(uuid4()), token=uuid4().hex, dispatcher="d1", ttl_s=5
    )
    assert isinstance(got, Claim)
    return await again(stores, job), got


async def again(stores: Stores, job: Job) -> Job:
    found = await stores.jobs.get(job.id)
    assert found is not None
    return found


async def end(stores: Stores, claim: Claim, duration_s: float) -> None:
    await stores.runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=duration_s)


async def asked(stores: Stores, job: Job) -> Job:
    """Ask for a job as the API does."""
    registry = NodeInventories(stores.nodes, stores.inventories, FakeNodeApi())
    estimator = Estimator(stores.estimates, stores.jobs, registry)
    return await settled(job, jobs=stores.jobs, events=stores.events, estimator=estimator, now=time.time())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a moment so long that a slow machine changes nothing."""
    for module in (job_queries, estimator_module):
        monkeypatch.setattr(module, "MOMENT_S", 20.0)


@pytest.mark.usefixtures("patient")
async def test_the_end_of_a_short_job_is_waited_for(stores: Stores) -> None:
    _, first = await started(stores)
    await end(stores, first, 0.05)
    job, second = await started(stores)
    task = asyncio.create_task(asked(stores, job))
    done, _ = await asyncio.wait({task}, timeout=0.3)
    assert not done
    await end(stores, second, 0.05)
    assert (await task).status is JobStatus.SUCCEEDED


@pytest.mark.usefixtures("patient")
async def test_an_end_between_two_looks_is_seen(stores: Stores) -> None:
    _, first = await started(stores)
    await end(stores, first, 0.05)
    job, second = await started(stores)
    await end(stores, second, 0.05)
    async with asyncio.timeout(10):  # its news came before anybody listened
        assert (await asked(stores, job)).status is JobStatus.SUCCEEDED


async def test_a_job_that_is_late_is_told_as_it_is(stores: Stores) -> None:
    _, first = await started(stores)
    await end(stores, first, 0.05)
    job, _ = await started(stores)
    assert (await asked(stores, job)).status is JobStatus.RUNNING


@pytest.mark.usefixtures("patient")
async def test_nobody_waits_for_a_long_job_a_late_one_or_one_of_an_unknown_kind(stores: Stores) -> None:
    client: Any = stores.redis
    job, first = await started(stores)
    async with asyncio.timeout(10):  # less than the moment that is waited for otherwise
        assert (await asked(stores, job)).status is JobStatus.RUNNING
    await end(stores, first, 1.0)
    job, second = await started(stores)
    for run_s, since in ((300.0, time.time()), (0.1, time.time() - 3600)):
        await client.hset("fleet:sched:profile:graph", "run_s", run_s)
        await client.hset(f"fleet:job:{job.id}", "run_s", run_s)
        had = orjson.loads(await client.hget(f"fleet:run:{second.run}", "sched"))
        had[2] = repr(since)
        await client.hset(f"fleet:run:{second.run}", "sched", orjson.dumps(had))
        async with asyncio.timeout(10):
            assert (await asked(stores, job)).status is JobStatus.RUNNING
