"""Jobs in Redis: submitting, idempotency, order, cancelling and listing."""

import json
from dataclasses import replace
from typing import Any

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import BadInput, IdempotencyKeyReuse, QueueFull
from comfy_fleet.domain.jobs.job import (
    JobFilter,
    JobStatus,
)
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.ports.runs import Claim
from tests.factories import new_job
from tests.integration.redis_kit import add_nodes, claim, submit


async def test_priority_orders_the_queue_and_waiting_earns_priority(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    first = await submit(stores)
    high = await submit(stores, priority=1)
    low = await submit(stores, priority=-1_000_000)
    assert [await stores.jobs.position(j) for j in (high, first, low)] == [1, 2, 3]
    # With ageing so quick that the head start outweighs a point, the older job goes first.
    quick = type(stores.jobs)(stores.redis, ageing_s=0.000_001)
    late = (await quick.submit(new_job(priority=1), idempotency=None, depth_limit=9)).job
    order = [(await claim_and_free(stores)).job.id for _ in range(4)]
    assert order == [high.id, first.id, late.id, low.id]


async def claim_and_free(stores: Stores) -> Claim:
    got = await claim(stores)
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)
    return got


async def test_depth_limit_refuses_and_leaves_the_key_free(stores: Stores) -> None:
    key = Idempotency(scope="v2:local", key="k1")
    await stores.jobs.submit(new_job(), idempotency=None, depth_limit=1)
    with pytest.raises(QueueFull) as full:
        await stores.jobs.submit(new_job(), idempotency=key, depth_limit=1)
    assert full.value.retry_after_s >= 1
    again = await stores.jobs.submit(new_job(), idempotency=key, depth_limit=2)
    assert again.job.status is JobStatus.QUEUED
    (kept,) = await stores.redis.keys("fleet:idem:*")
    assert 86_000 < await stores.redis.ttl(kept) <= 86_400


async def test_idempotency_keys_are_single_use_or_replay(stores: Stores) -> None:
    single = Idempotency(scope="v2:local", key="k")
    made = await stores.jobs.submit(new_job(), idempotency=single, depth_limit=10)
    with pytest.raises(IdempotencyKeyReuse) as reuse:
        await stores.jobs.submit(new_job(), idempotency=single, depth_limit=10)
    assert reuse.value.details["job_id"] == made.job.id
    replay = Idempotency(scope="v1:local", key="k", fingerprint="abc", replay=True)
    one = await stores.jobs.submit(new_job(), idempotency=replay, depth_limit=10)
    two = await stores.jobs.submit(new_job(), idempotency=replay, depth_limit=10)
    assert (two.job.id, one.replayed, two.replayed) == (one.job.id, False, True)
    with pytest.raises(IdempotencyKeyReuse):
        await stores.jobs.submit(new_job(), idempotency=replace(replay, fingerprint="x"), depth_limit=10)
    assert await stores.jobs.depth() == 2


@pytest.mark.parametrize("key", [None, Idempotency(scope="s", key="k")])
async def test_a_repeated_submit_of_the_same_id_is_one_job(stores: Stores, key: Idempotency | None) -> None:
    new = new_job()
    for _ in range(2):  # as after a lost reply
        await stores.jobs.submit(new, idempotency=key, depth_limit=10)
    assert await stores.jobs.depth() == 1


async def test_what_the_order_goes_by_is_in_the_record(
    stores: Stores,
) -> None:
    files = (("checkpoints/b", 2**34), ("loras/a", 2**20))
    new = new_job(tier=2, finish_by=2_000_000_000.5, timeout_s=90.0, memory=2**35, models=files)
    job = (await stores.jobs.submit(new, idempotency=None, depth_limit=9)).job
    wanted = (2, 2_000_000_000.5, 90.0, 2**35)
    for seen in (job, await stores.jobs.get(job.id), (await stores.jobs.briefs([job.id]))[0]):
        assert seen and (seen.tier, seen.finish_by, seen.timeout_s, seen.memory) == wanted
    client: Any = stores.redis
    key = f"fleet:sched:set:{(await client.hget(f'fleet:job:{job.id}', 'set')).decode()}"
    assert json.loads(await client.get(key)) == [["checkpoints/b", 2**34], ["loras/a", 2**20]]
    assert await client.ttl(key) > 86_400

    plain = await submit(stores)
    assert (plain.tier, plain.finish_by, plain.timeout_s, plain.memory) == (1, None, None, 0)
    record = await client.hkeys(f"fleet:job:{plain.id}")
    assert not {b"tier", b"finish_by", b"timeout_s", b"memory", b"set"} & set(record)
    assert await stores.jobs.get(plain.id) == plain


async def test_cancel_queued_running_and_final_jobs(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    queued, running = await submit(stores, priority=-5), await submit(stores)
    canceled = await stores.jobs.request_cancel(queued.id)
    assert canceled and canceled.status is JobStatus.CANCELED
    got = await claim(stores)
    assert got.job.id == running.id
    canceling = await stores.jobs.request_cancel(running.id)
    assert canceling and canceling.status is JobStatus.CANCELING
    # Success that comes after the cancel was written does not undo it.
    assert await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1) is JobStatus.CANCELED
    after = await stores.jobs.request_cancel(running.id)
    assert after and after.status is JobStatus.CANCELED
    assert await stores.jobs.request_cancel("nobody") is None
    assert not any((await stores.estimates.errors()).values())


async def test_listing_filters_and_pages(stores: Stores) -> None:
    jobs = [await submit(stores, metadata={"n": str(i % 2)}) for i in range(7)]
    other = await submit(stores, owner="other")
    wanted = JobFilter(owner="local", metadata={"n": "0"}, limit=3)
    one = await stores.jobs.find(wanted)
    assert [j.id for j in one.jobs] == [jobs[6].id, jobs[4].id, jobs[2].id]
    two = await stores.jobs.find(replace(wanted, cursor=one.next_cursor))
    assert ([j.id for j in two.jobs], two.next_cursor) == ([jobs[0].id], None)
    everybody = await stores.jobs.find(JobFilter(owner=None, limit=1))
    assert everybody.jobs[0].id == other.id
    done = await stores.jobs.find(JobFilter(owner="local", statuses=frozenset({JobStatus.RUNNING})))
    assert done.jobs == ()
    with pytest.raises(BadInput):
        await stores.jobs.find(replace(wanted, cursor="nonsense"))
