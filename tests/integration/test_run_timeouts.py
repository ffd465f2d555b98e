"""How long a run may take: what the operator allows, and what a job says for itself."""

from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.pool import Pool
from tests.factories import picture
from tests.fleet import fleet_of


def sleeping(seconds: float) -> dict[str, Any]:
    """Return a graph that takes so long."""
    graph = picture(1)
    graph["2"]["inputs"]["images"] = ["3", 0]
    return {**graph, "3": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": seconds}}}


@pytest.mark.parametrize(("own_s", "allowed_s"), [(1.0, 600.0), (600.0, 1.0), (None, 1.0)])
async def test_the_smaller_limit_ends_a_run_and_its_node_goes_on(
    redis: Redis, redis_port: int, own_s: float | None, allowed_s: float
) -> None:
    async with fleet_of(redis_port, "g1", run_timeout_s=allowed_s) as fleet:
        job = await fleet.submit(sleeping(60.0), timeout_s=own_s)
        ended = await fleet.ended(job.id)
        assert ended.error is not None
        assert (ended.status, ended.error.code) == (JobStatus.FAILED, "run_timeout")
        assert "still running after 1 s" in ended.error.message
        assert len(ended.attempts) == 1  # another run would take as long
        after = await fleet.ended((await fleet.submit(picture(2), timeout_s=30)).id)
        assert after.status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("fleet_s", "pool_s", "own_s", "of"),
    [
        (1.0, None, None, "FLEET_SILENCE_S"),
        (600.0, 1.0, None, "pool default"),
        (600.0, 600.0, 1.0, "workflow postcard"),
    ],
)
async def test_a_run_without_a_sign_of_progress_is_interrupted_by_the_nearest_limit(
    redis: Redis, redis_port: int, fleet_s: float, pool_s: float | None, own_s: float | None, of: str
) -> None:
    async with fleet_of(redis_port, "g1", silence_s=fleet_s, dispatch=False) as fleet:
        if pool_s:
            await fleet.stores.pools.set(Pool(name="default", silence_s=pool_s))
        fleet.sims["g1"].faults.update({"drop_types": ["progress", "progress_state"]})
        await fleet.dispatcher()
        job = await fleet.submit(sleeping(60.0), workflow="postcard", silence_s=own_s)
        ended = await fleet.ended(job.id)
        assert ended.error is not None
        assert (ended.status, ended.error.code) == (JobStatus.FAILED, "run_timeout")
        assert f"no sign of progress for 1 s, the limit of {of}" in ended.error.message
        after = await fleet.ended((await fleet.submit(picture(2))).id)
        assert after.status is JobStatus.SUCCEEDED


async def test_a_workflow_that_allows_more_than_its_pool_goes_on(redis: Redis, redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", silence_s=1.0) as fleet:
        fleet.sims["g1"].faults.update({"drop_types": ["progress", "progress_state"]})
        job = await fleet.submit(sleeping(3.0), workflow="postcard", silence_s=600.0)
        assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
