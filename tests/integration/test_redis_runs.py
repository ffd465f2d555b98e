"""Runs in Redis: claiming, leases and their fence, requeueing, and what is forgotten in the end."""

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import Conflict, LeaseLost, MissingAsset, NotFound
from comfy_fleet.domain.jobs.job import (
    JobStatus,
    Placement,
    Progress,
)
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.ports.runs import Refused
from tests.factories import new_job
from tests.integration.redis_kit import BROKEN, add_nodes, claim, forget, output, refused, stored, submit


async def test_a_job_goes_from_submit_to_succeeded(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(
        stores, metadata={"client": "acme"}, params={"seed": 7}, workflow="card", profile="card"
    )
    assert job.status is JobStatus.QUEUED
    assert await stores.jobs.position(job) == 1
    got = await claim(stores)
    assert got.job.id == job.id
    assert json.loads(got.graph) == json.loads(await stores.jobs.graph(job))
    await stores.runs.accepted(got)
    await stores.runs.progress(got, Progress(value=0.5, nodes_done=1, nodes_total=2))
    await stores.runs.commit(got, stored(got, output()))
    await stores.runs.left(got, [{"name": "a.png"}])
    assert await stores.runs.lease_of("g1") is None
    assert (
        await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1.5) is JobStatus.SUCCEEDED
    )
    done = await stores.jobs.get(job.id)
    assert done is not None
    assert (done.status, done.node, done.metadata, done.params) == (
        JobStatus.SUCCEEDED,
        "g1",
        {"client": "acme"},
        {"seed": 7},
    )
    assert [o.name for o in done.outputs] == ["a.png"]
    assert done.completed_at and done.started_at and done.completed_at >= done.started_at
    assert abs(done.expires_at - done.completed_at - 3600) < 1
    assert 0 < (await stores.estimates.mean_run_s() or 0.0) < 60
    state = (await stores.nodes.states())[0]
    assert (state.done, state.run) == (1, None)


async def test_claim_refuses_leased_cordoned_and_removed_nodes(stores: Stores) -> None:
    await submit(stores)
    await submit(stores)
    assert (await refused(stores)).why == "removed"
    await add_nodes(stores, "g1")
    await stores.nodes.cordon("g1", reason="kernel upgrade")
    assert (await refused(stores)).why == "cordoned"
    await stores.nodes.uncordon("g1")
    got = await claim(stores)
    assert await refused(stores) == Refused(why="leased", run=got.run)
    with pytest.raises(Conflict):
        await stores.nodes.remove("g1")
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)
    await stores.nodes.remove("g1")
    assert (await refused(stores)).why == "removed"


async def test_four_dispatchers_never_claim_a_job_twice(stores: Stores) -> None:
    names = [f"g{i}" for i in range(8)]
    await add_nodes(stores, *names)
    for _ in range(60):
        await submit(stores)
    seen: list[str] = []

    async def work(node: str) -> None:
        while True:
            got = await stores.runs.claim(
                node=node,
                placements=[Placement()],
                run=str(uuid4()),
                token=uuid4().hex,
                dispatcher=node,
                ttl_s=5,
            )
            if isinstance(got, Refused):
                assert got.why == "empty"
                return
            seen.append(got.job.id)
            await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)

    await asyncio.gather(*(work(name) for name in names))
    assert len(seen) == len(set(seen)) == 60


async def test_beat_tells_lost_leases_and_cancels(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    await submit(stores)
    job = await submit(stores)
    one, two = await claim(stores, "g1"), await claim(stores, "g2")
    assert two.job.id == job.id
    await stores.jobs.request_cancel(job.id)
    stale = replace(one, token="old")
    beat = await stores.runs.beat("d1", [stale, two], ttl_s=5)
    assert beat.lost == {one.run}
    assert beat.cancel == {two.run}


async def test_an_expired_run_is_taken_over_once_and_the_old_owner_is_fenced(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    old = await claim(stores, ttl=0.01)
    await stores.runs.left(old, [{"name": "x"}])
    await asyncio.sleep(0.03)
    takers = await asyncio.gather(
        *(stores.runs.take_over(dispatcher=f"d{i}", ttl_s=5, limit=10) for i in range(4))
    )
    held = [held for taken in takers for held in taken]
    assert len(held) == 1
    assert (held[0].claim.run, held[0].phase, held[0].manifest) == (old.run, "left", [{"name": "x"}])
    assert held[0].claim.token != old.token
    for stale_call in (
        stores.runs.finish(old, JobStatus.SUCCEEDED, error=None, duration_s=None),
        stores.runs.commit(old, stored(old, output())),
        stores.runs.left(old, [], ui=UI),
        stores.runs.requeue(old, counts=True, reason=BROKEN, ui=UI),
        stores.runs.finish(old, JobStatus.FAILED, error=BROKEN, duration_s=None, ui=UI),
    ):
        with pytest.raises(LeaseLost):
            await stale_call
    assert (await stores.jobs.with_ui(old.job.id))[1] == {}
    assert (
        await stores.runs.finish(held[0].claim, JobStatus.SUCCEEDED, error=None, duration_s=1) == "succeeded"
    )


async def test_requeue_counts_attempts_and_drops_outputs_of_the_lost_run(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores, max_attempts=2)
    behind = await submit(stores)
    for counts, wanted in ((False, "queued"), (True, "queued"), (True, "failed")):
        got = await claim(stores)
        assert got.job.id == job.id  # it keeps its place in front of the job behind
        await stores.runs.commit(got, stored(got, output()))
        assert await stores.runs.requeue(got, counts=counts, reason=BROKEN) == wanted
        now = await stores.jobs.get(job.id)
        assert now is not None
        assert now.outputs == () or wanted == "failed"
    ended = await stores.jobs.get(job.id)
    assert ended is not None and ended.error == BROKEN
    assert await stores.jobs.position(behind) == 1


UI = '{"9":{"images":[{"filename":"a.png"}],"animated":[false]},"10":{"custom":{"n":[null,0.5,"ü"]}}}'


async def test_what_nodes_handed_over_stays_with_the_job_that_ends(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores, max_attempts=2)
    got = await claim(stores)
    await stores.runs.left(got, [], ui=UI)
    assert (await stores.jobs.with_ui(job.id))[1] == json.loads(UI)
    await stores.runs.requeue(got, counts=True, reason=BROKEN, ui=UI)
    assert (await stores.jobs.with_ui(job.id))[1] == {}  # the next run makes its own
    got = await claim(stores)
    assert await stores.runs.requeue(got, counts=True, reason=BROKEN, ui=UI) == "failed"
    assert (await stores.jobs.with_ui(job.id))[1] == json.loads(UI)
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED):
        job = await submit(stores)
        got = await claim(stores)
        await stores.runs.finish(got, status, error=None, duration_s=None, models=["m"], ui=UI)
        assert (await stores.jobs.with_ui(job.id))[1] == json.loads(UI)
        assert list((await stores.jobs.with_ui(job.id))[1]) == ["9", "10"]
    job = await submit(stores)
    got = await claim(stores)
    await stores.jobs.request_cancel(job.id)
    await stores.runs.requeue(got, counts=False, reason=BROKEN, ui=UI)
    assert (await stores.jobs.with_ui(job.id))[1] == json.loads(UI)


async def test_whoever_only_ends_a_run_keeps_what_its_nodes_handed_over(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    got = await claim(stores, ttl=0.01)
    await stores.runs.left(got, [], ui=UI)
    await asyncio.sleep(0.03)
    (held,) = await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=1)
    await stores.runs.finish(held.claim, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert (await stores.jobs.with_ui(job.id))[1] == json.loads(UI)


async def test_a_canceled_job_is_not_requeued(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    got = await claim(stores)
    await stores.jobs.request_cancel(job.id)
    assert await stores.runs.requeue(got, counts=False, reason=BROKEN) == "canceled"
    assert await stores.jobs.depth() == 0


async def test_overdue_jobs_expire_and_are_never_claimed(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores, deadline_s=-1)
    assert (await refused(stores)).why == "empty"
    assert await stores.runs.overdue(10) == 1
    ended = await stores.jobs.get(job.id)
    assert ended and ended.status is JobStatus.EXPIRED
    assert ended.error and ended.error.code == "deadline_exceeded"
    await submit(stores)
    runs = (await claim(stores)).job
    await stores.redis.zadd("fleet:deadlines", {runs.id: 1})  # a leftover
    assert await stores.runs.overdue(10) == 0
    still = await stores.jobs.get(runs.id)
    assert still is not None and still.status is JobStatus.RUNNING
    assert await stores.redis.exists("fleet:deadlines") == 0


async def test_secrets_live_apart_and_die_with_the_job(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores, secret=b"cipher")
    got = await claim(stores)
    assert await stores.runs.secret(got) == b"cipher"
    assert "cipher" not in str(await stores.redis.hgetall(f"fleet:job:{job.id}"))
    await stores.runs.requeue(got, counts=False, reason=BROKEN)
    got = await claim(stores)
    assert await stores.runs.secret(got) == b"cipher"
    await stores.runs.finish(got, JobStatus.FAILED, error=BROKEN, duration_s=None)
    assert await stores.runs.secret(got) is None


async def test_no_job_is_accepted_whose_file_is_gone(stores: Stores) -> None:
    """A process may be stopped between holding a file and writing the job, for longer than the hold lasts."""
    before = set(await stores.redis.keys("*"))
    new = new_job(assets=frozenset({"a1"}))
    once = Idempotency(scope="local", key="k", fingerprint="f")
    with pytest.raises(MissingAsset, match="asset a1 does not exist any more"):
        await stores.jobs.submit(new, idempotency=once, depth_limit=9)
    assert await stores.jobs.get(new.id) is None
    assert set(await stores.redis.keys("*")) - before <= {b"fleet:schema"}


async def test_forgetting_leaves_nothing_behind(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    before = set(await stores.redis.keys("*"))
    await stores.redis.hset("fleet:asset:a1", "owner", "local")
    job = await submit(stores, expires_in_s=0.01, assets=frozenset({"a1"}), deadline_s=1e9)
    twin = await submit(stores)  # the same graph: it must stay
    assert await stores.redis.smembers("fleet:asset:a1:jobs") == {job.id.encode()}
    got = await claim(stores)
    await stores.runs.commit(got, stored(got, output()))
    await stores.runs.finish(got, JobStatus.FAILED, error=BROKEN, duration_s=None, ui=UI)
    assert await stores.redis.exists("fleet:asset:a1:jobs") == 0
    await asyncio.sleep(0.03)
    assert await stores.runs.forgettable(10) == [job.id]
    await stores.runs.postpone(job.id, seconds=60)
    assert await stores.runs.forgettable(10) == []
    await stores.runs.postpone(job.id, seconds=-60)
    assert await stores.runs.forgettable(10) == [job.id]
    await stores.runs.forget(job.id)
    await stores.runs.postpone(job.id, seconds=-60)
    assert await stores.runs.forgettable(10) == []
    assert await stores.jobs.get(job.id) is None
    assert await stores.jobs.graph(twin)
    await stores.jobs.request_cancel(twin.id)
    await forget(stores, twin.id)
    found: Any = await stores.redis.keys("*")
    # Another store forgets files.
    left = {
        key for key in found if not key.startswith((b"fleet:asset:", b"fleet:blob:", b"fleet:stored:"))
    } - before
    # Per owner one number stays: it is never given twice.
    lasting = {b"rq:queues", b"fleet:node:g1", b"fleet:node:g1:errors", b"fleet:numbers", b"fleet:schema"}
    lasting |= {b"fleet:server", b"fleet:sched:node:g1", b"fleet:sched:pools"}
    lasting.add(b"fleet:ended")  # ids of the last few that ended, known or not
    # What an owner has used counts for a while.
    assert {key for key in left - lasting if await stores.redis.ttl(key) < 0} == set()
    assert not [key for key in left if job.id.encode() in key or twin.id.encode() in key]
    with pytest.raises(NotFound):
        await stores.jobs.graph(twin)
