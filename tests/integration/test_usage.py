"""What was used: the sums that the ends of runs and jobs leave, and who may see them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.errors import LeaseLost
from comfy_fleet.domain.jobs.job import JobError, JobStatus
from tests.factories import picture
from tests.fleet import fleet_of
from tests.integration.api_kit import Api, code, running
from tests.integration.test_merged_runs import SLOW, ended, pictures
from tests.key_files import write_keys

ANN, BOB, OPS = "ann-key-0123456789", "bob-key-0123456789", "ops-key-0123456789"
ENDS = ("succeeded", "failed", "canceled", "expired")
LOST = JobError(code="node_lost", message="gone")


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    write_keys(tmp_path / "keys", f"ann {ANN}\nbob {BOB}\nops {OPS} operator\n")
    async with running(redis_port, tmp_path, keys_file=tmp_path / "keys") as started:
        await started.add_node(info=False)
        yield started


def by(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def made(api: Api, key: str, color: int = 1) -> str:
    answer = await api.client.post("/api/v2/jobs", json={"workflow": picture(color)}, headers=by(key))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def rows(api: Api, key: str = OPS, **query: Any) -> dict[str, dict[str, Any]]:
    answer: httpx.Response = await api.client.get("/api/v1/usage", params=query, headers=by(key))
    assert answer.status_code == 200, answer.text
    return {row["name"]: row for row in answer.json()["rows"]}


async def test_retries_cancels_and_ends_that_came_twice(api: Api) -> None:
    first = await made(api, ANN)
    claim = await api.claim(first)
    await asyncio.sleep(0.3)
    await api.stores.runs.requeue(claim, counts=True, reason=LOST)
    once = (await rows(api))["ann"]
    assert 0.3 <= once["gpu_seconds"] < 30
    assert once["jobs"] == 0
    with pytest.raises(LeaseLost):  # whoever wrote this died before it heard so
        await api.stores.runs.requeue(claim, counts=True, reason=LOST)
    again = await api.claim(first)
    size = len(content := uuid4().bytes * 10)
    await api.output(again, content, saved=True)
    await api.stores.runs.left(again, [])
    await asyncio.sleep(0.5)  # its outputs are collected: the node is another one's
    await api.stores.runs.finish(again, JobStatus.SUCCEEDED, error=None, duration_s=1)
    with pytest.raises(LeaseLost):
        await api.stores.runs.finish(again, JobStatus.SUCCEEDED, error=None, duration_s=1)
    done = (await rows(api))["ann"]
    assert [done[end] for end in ENDS] == [1, 0, 0, 0]
    assert done["output_bytes"] == size
    job = await api.stores.jobs.get(first)
    assert job is not None
    held = sum(one.ended_at - one.started_at for one in job.attempts)
    assert once["gpu_seconds"] <= done["gpu_seconds"] <= held - 0.45

    waits, fails = await made(api, ANN, 2), await made(api, BOB, 3)
    await api.stores.jobs.request_cancel(waits)
    await api.stores.jobs.request_cancel(waits)
    await api.finish(await api.claim(fails), JobStatus.FAILED)
    found = await rows(api)
    assert [found["ann"][end] for end in ENDS] == [1, 0, 1, 0]
    assert [found["bob"][end] for end in ENDS] == [0, 1, 0, 0]
    for each in (first, waits, fails):
        await api.client.delete(f"/api/v1/jobs/{each}", headers=by(OPS))
        await api.stores.runs.forget(each)
    assert await rows(api) == found, "what was used stays when jobs are forgotten"


async def test_each_sees_their_own_and_by_what_they_ask(api: Api) -> None:
    for key in (ANN, BOB, BOB):
        await api.finish(await api.claim(await made(api, key, 1 if key == ANN else 2)))
    assert {name: row["jobs"] for name, row in (await rows(api)).items()} == {"ann": 1, "bob": 2}
    assert set(await rows(api, ANN)) == {"ann"}
    assert (await rows(api, ANN, by="pool"))["default"]["jobs"] == 1
    assert (await rows(api, by="workflow"))[""]["jobs"] == 3
    assert (await rows(api, by="tenant"))[""]["jobs"] == 3
    assert await rows(api, until=86400 * 3, since=0) == {}
    for wrong in ({"by": "node"}, {"since": "x"}, {"since": 5e9}, {"since": 0}):
        answer = await api.client.get("/api/v1/usage", params=wrong, headers=by(ANN))
        assert answer.status_code in (400, 422), wrong
        assert code(answer)


async def test_keys_are_bounded_and_do_not_stay_for_ever(api: Api) -> None:
    await api.finish(await api.claim(await made(api, ANN)))
    redis: Any = api.stores.redis
    (key,) = [one async for one in redis.scan_iter("fleet:usage:*")]
    assert 399 * 86400 < await redis.ttl(key) <= 400 * 86400
    await redis.hset(key, mapping={f"t\nu{n}\nw\np\nms": 1 for n in range(12_000)})
    await api.finish(await api.claim(await made(api, BOB, 2)))
    found = await rows(api)
    assert found["*"]["jobs"] == 1
    assert await redis.hlen(key) < 12_010
    await redis.set(key, "of another kind")
    await api.finish(await api.claim(await made(api, BOB, 3)))
    assert (await rows(api))["bob"]["jobs"] == 1


async def test_jobs_of_one_prompt_share_its_time(redis_port: int, redis: Redis) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False, sim=SLOW) as fleet:
        jobs = await pictures(fleet, 4)
        await fleet.dispatcher()
        done = await ended(fleet, jobs)
        assert {job.status for job in done} == {JobStatus.SUCCEEDED}
        client: Any = fleet.stores.redis
        (key,) = [one async for one in client.scan_iter("fleet:usage:*")]
        sums = {name.rpartition(b"\n")[2]: int(count) for name, count in (await client.hgetall(key)).items()}
        longest = max(one.ended_at - one.started_at for job in done for one in job.attempts)
        assert fleet.sims["g1"].stats.done == 1
        assert 1450 <= sums[b"ms"] <= 1000 * longest + 50, "of the four together"
        assert sums[b"succeeded"] == 4
