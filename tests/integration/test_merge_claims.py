"""Which jobs of stored workflows a claim takes together, from the request over HTTP on."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.adapters.redis.scripts import SCHEMA
from comfy_fleet.domain.graphs.merging import MergeMode
from comfy_fleet.domain.jobs.batch_part import BatchPart
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Placement
from comfy_fleet.ports.runs import Claim
from tests.factories import sampled
from tests.integration.api_kit import Api, running

MANIFEST = """
[parameters.seed]
type = "seed"
target = { class = "KSampler", input = "seed" }
[parameters.text]
type = "string"
default = "a cat"
target = { class = "CLIPTextEncode", input = "text" }
[merge]
mode = "%s"
window_s = 0
"""
FILE = "v1-5-pruned-emaonly-fp16.safetensors"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    for mode in ("batch", "exact"):
        folder = tmp_path / "workflows" / mode
        folder.mkdir(parents=True)
        (folder / "workflow.json").write_bytes(orjson.dumps(sampled(64, file=FILE)))
        (folder / "workflow.toml").write_text(MANIFEST % mode)
    async with running(redis_port, tmp_path / "data", workflows=tmp_path / "workflows") as api:
        await api.add_node(info=False)
        yield api


async def sent(api: Api, workflow: str = "batch", **body: Any) -> str:
    """Submit a job of a stored workflow."""
    answer = await api.client.post(f"/api/v1/workflows/{workflow}/jobs", json={"params": {}, **body})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def claimed(api: Api, placement: Placement) -> Claim:
    got = await api.stores.runs.claim(
        node="g1",
        placements=[placement],
        run=str(uuid4()),
        token=str(uuid4()),
        dispatcher="d1",
        ttl_s=30,
        runs=[str(uuid4()) for _ in range(3)],
    )
    assert isinstance(got, Claim)
    return got


async def placement(api: Api, job_id: str) -> Placement:
    job = await api.stores.jobs.get(job_id)
    assert job is not None
    return job.placement


async def test_waiting_jobs_of_a_workflow_are_claimed_together(api: Api, redis: Redis) -> None:
    jobs = [await sent(api) for _ in range(6)]
    got = await claimed(api, await placement(api, jobs[0]))
    assert [one.job.id for one in (got, *got.others)] == jobs[:4], (
        "the first that came, and no more than four"
    )
    assert got.merged is MergeMode.BATCH
    assert got.jobs_behind == 2
    assert len({one.run for one in (got, *got.others)}) == len({one.token for one in (got, *got.others)}) == 4
    assert await api.stores.runs.lease_of("g1") == got.run
    parts = [one.job.batch for one in (got, *got.others)]
    seed = got.job.params["seed"]
    assert parts == [BatchPart(seed=seed, first=n, count=1, size=4) for n in range(4)]
    told = (await api.client.get(f"/api/v1/jobs/{jobs[2]}")).json()
    assert told["batch"] == {"seed": seed, "batch_index": 2, "count": 1, "batch_size": 4}
    for one in (got, *got.others):
        record = await redis.hmget(Keyspace().run(one.run), "merged", "parts", "schema")
        assert record == [b"batch", b"4", str(SCHEMA + 1).encode()], "older versions leave it alone"


@pytest.mark.parametrize("other", [{"params": {"seed": 5}}, {"params": {"text": "a dog"}}, {"timeout_s": 30}])
async def test_a_job_that_differs_runs_alone(api: Api, other: dict[str, Any]) -> None:
    first, _ = await sent(api), await sent(api, **other)
    assert (await claimed(api, await placement(api, first))).others == ()


async def test_a_job_of_which_fewer_may_run_is_not_taken_past_its_bound(api: Api, redis: Redis) -> None:
    first, second, third = [await sent(api) for _ in range(3)]
    await redis.hset(Keyspace().job(second), "bounds", "user:ada=1")  # as that of a key with a limit
    got = await claimed(api, await placement(api, first))
    assert [one.job.id for one in got.others] == [third]


async def test_branches_may_differ(api: Api) -> None:
    first = await sent(api, "exact")
    others = [await sent(api, "exact", params={"text": "a dog", "seed": 5}), await sent(api, "exact")]
    got = await claimed(api, await placement(api, first))
    assert [one.job.id for one in got.others] == others
    assert got.merged is MergeMode.EXACT
    assert got.job.batch is None


async def test_who_is_canceled_while_it_waits_is_not_taken(api: Api) -> None:
    first, second, third = [await sent(api) for _ in range(3)]
    await api.stores.jobs.request_cancel(second)
    got = await claimed(api, await placement(api, first))
    assert [one.job.id for one in got.others] == [third]


async def test_a_job_that_was_given_back_runs_alone(api: Api) -> None:
    jobs = [await sent(api) for _ in range(3)]
    got = await claimed(api, await placement(api, jobs[0]))
    why = JobError(code="node_lost", message="gone")
    for one in (*got.others, got):
        assert await api.stores.runs.requeue(one, counts=True, reason=why) is JobStatus.QUEUED
    again = await claimed(api, await placement(api, jobs[0]))
    assert (again.others, again.merged, again.job.batch, again.job.attempt) == ((), None, None, 0)


async def test_ends_of_one_prompts_jobs_do_not_touch_each_other(api: Api) -> None:
    jobs = [await sent(api) for _ in range(3)]
    got = await claimed(api, await placement(api, jobs[0]))
    for one in got.others:
        done = await api.stores.runs.finish(one, JobStatus.SUCCEEDED, error=None, duration_s=None)
        assert done is JobStatus.SUCCEEDED
        assert await api.stores.runs.lease_of("g1") == got.run
    await api.stores.runs.left(got, [])
    assert await api.stores.runs.lease_of("g1") is None
    await api.stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)
