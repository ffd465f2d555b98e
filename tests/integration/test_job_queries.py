"""Whoever asks for a job that is just about to end is told of its end."""

import asyncio
import time
from uuid import uuid4

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services import job_queries
from comfy_fleet.services.job_queries import Estimator, settled
from tests.factories import new_job


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


def asked(stores: Stores, job: Job, *, after_s: float = 0.0) -> "asyncio.Task[Job]":
    estimator = Estimator(stores.jobs, stores.nodes, clock=lambda: time.time() + after_s)
    looking = settled(job, jobs=stores.jobs, events=stores.events, estimator=estimator)
    return asyncio.create_task(looking)


async def test_the_end_of_a_short_job_is_waited_for(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_queries, "MOMENT_S", 20.0)  # so that a slow machine changes nothing
    _, first = await started(stores)
    await end(stores, first, 0.05)
    job, second = await started(stores)
    task = asked(stores, job)
    done, _ = await asyncio.wait({task}, timeout=0.3)
    assert not done
    await end(stores, second, 0.05)
    assert (await task).status is JobStatus.SUCCEEDED


async def test_an_end_between_two_looks_is_seen(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_queries, "MOMENT_S", 20.0)  # as above
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


async def test_nobody_waits_for_a_long_job_a_late_one_or_one_of_an_unknown_kind(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_queries, "MOMENT_S", 20.0)
    job, first = await started(stores)
    async with asyncio.timeout(10):  # less than the moment that is waited for otherwise
        assert (await asked(stores, job)).status is JobStatus.RUNNING
    await end(stores, first, 300.0)
    job, _ = await started(stores)
    for after_s in (0.0, 3600.0):
        async with asyncio.timeout(10):
            assert (await asked(stores, job, after_s=after_s)).status is JobStatus.RUNNING
