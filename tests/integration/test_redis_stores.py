"""Every move of a job through Redis, and RQ's view of it."""

import asyncio
import json
import time
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import redis as sync_redis
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from comfy_fleet.adapters.redis.client import subscriber
from comfy_fleet.adapters.redis.codec import HANDLER
from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import BadInput, Conflict, IdempotencyKeyReuse, LeaseLost, NotFound, QueueFull
from comfy_fleet.domain.job import (
    Job,
    JobError,
    JobFilter,
    JobStatus,
    Output,
    OutputKind,
    Placement,
    Progress,
)
from comfy_fleet.domain.node import Node
from comfy_fleet.ports import Claim, Idempotency, Refused
from tests.conftest import free_port
from tests.factories import new_job

BROKEN = JobError(code="node_lost", message="gone")


async def submit(stores: Stores, **fields: Any) -> Job:
    return (await stores.jobs.submit(new_job(**fields), idempotency=None, depth_limit=1000)).job


async def add_nodes(stores: Stores, *names: str) -> None:
    for index, name in enumerate(names):
        await stores.nodes.add(Node(name=name, url=f"http://127.0.0.1:{9000 + index}"))


async def claim(
    stores: Stores, node: str = "g1", placement: Placement | None = None, ttl: float = 5
) -> Claim:
    got = await stores.runs.claim(
        node=node,
        placements=[placement or Placement()],
        run=str(uuid4()),
        token=uuid4().hex,
        dispatcher="d1",
        ttl_s=ttl,
    )
    assert isinstance(got, Claim), got
    return got


async def refused(stores: Stores, node: str = "g1") -> Refused:
    got = await stores.runs.claim(
        node=node, placements=[Placement()], run=str(uuid4()), token="t", dispatcher="d1", ttl_s=5
    )
    assert isinstance(got, Refused)
    return got


def output(index: int = 0, **fields: Any) -> Output:
    base = Output(
        asset_id=str(uuid4()),
        node_id="2",
        key="images",
        index=index,
        name="a.png",
        kind=OutputKind.IMAGE,
        content_type="image/png",
        size_bytes=3,
        hash="blake3:00",
    )
    return replace(base, **fields)


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
    await stores.runs.output(got, output())
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
    assert await stores.jobs.durations("card") == [1.5]
    assert await stores.jobs.durations("*") == [1.5]
    state = (await stores.nodes.states())[0]
    assert (state.done, state.run) == (1, None)


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


async def test_a_repeated_submit_of_the_same_id_is_one_job(stores: Stores) -> None:
    new = new_job()
    for _ in range(2):  # as after a lost reply
        await stores.jobs.submit(new, idempotency=Idempotency(scope="s", key="k"), depth_limit=10)
    assert await stores.jobs.depth() == 1


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
        stores.runs.output(old, output()),
        stores.runs.left(old, []),
        stores.runs.requeue(old, counts=True, exclude=False, reason=BROKEN),
    ):
        with pytest.raises(LeaseLost):
            await stale_call
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
        await stores.runs.output(got, output())
        assert await stores.runs.requeue(got, counts=counts, exclude=False, reason=BROKEN) == wanted
        now = await stores.jobs.get(job.id)
        assert now is not None
        assert now.outputs == () or wanted == "failed"
    assert now is not None and now.error == BROKEN
    assert await stores.jobs.position(behind) == 1


async def test_a_refusing_node_never_gets_the_job_again(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    job = await submit(stores)
    got = await claim(stores, "g1")
    assert await stores.runs.requeue(got, counts=False, exclude=True, reason=BROKEN) == "queued"
    (waiting,) = await stores.runs.waiting()
    assert waiting.placement.able(["g1", "g2"]) == {"g2"}
    again = await claim(stores, "g2", waiting.placement)
    assert again.job.id == job.id
    assert await stores.runs.requeue(again, counts=False, exclude=True, reason=BROKEN) == "failed"
    assert await stores.runs.waiting() == []


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
    assert await stores.jobs.durations("*") == []


async def test_a_canceled_job_is_not_requeued(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    got = await claim(stores)
    await stores.jobs.request_cancel(job.id)
    assert await stores.runs.requeue(got, counts=False, exclude=False, reason=BROKEN) == "canceled"
    assert await stores.jobs.depth() == 0


async def test_overdue_jobs_expire_and_are_never_claimed(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores, deadline_at=time.time() - 1)
    assert (await refused(stores)).why == "empty"
    assert await stores.runs.overdue(10) == 1
    ended = await stores.jobs.get(job.id)
    assert ended and ended.status is JobStatus.EXPIRED
    assert ended.error and ended.error.code == "deadline_exceeded"


async def test_secrets_live_apart_and_die_with_the_job(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores, secret=b"cipher")
    got = await claim(stores)
    assert await stores.runs.secret(got) == b"cipher"
    assert "cipher" not in str(await stores.redis.hgetall(f"fleet:job:{job.id}"))
    await stores.runs.requeue(got, counts=False, exclude=False, reason=BROKEN)
    got = await claim(stores)
    assert await stores.runs.secret(got) == b"cipher"
    await stores.runs.finish(got, JobStatus.FAILED, error=BROKEN, duration_s=None)
    assert await stores.runs.secret(got) is None


async def test_forgetting_leaves_nothing_behind(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    before = set(await stores.redis.keys("*"))
    job = await submit(stores, expires_in_s=0.01, assets=frozenset({"a1"}))
    twin = await submit(stores)  # the same graph: it must stay
    assert await stores.redis.smembers("fleet:asset:a1:jobs") == {job.id.encode()}
    got = await claim(stores)
    await stores.runs.output(got, output())
    await stores.runs.finish(got, JobStatus.FAILED, error=BROKEN, duration_s=None)
    assert await stores.redis.exists("fleet:asset:a1:jobs") == 0
    await asyncio.sleep(0.03)
    assert await stores.runs.forgettable(10) == [job.id]
    await stores.runs.forget(job.id)
    assert await stores.jobs.get(job.id) is None
    assert await stores.jobs.graph(twin)
    await stores.jobs.request_cancel(twin.id)
    await stores.runs.forget(twin.id)
    left = set(await stores.redis.keys("*")) - before
    assert left <= {b"fleet:stats", b"rq:queues", b"fleet:node:g1", b"fleet:node:g1:errors"}, left
    with pytest.raises(NotFound):
        await stores.jobs.graph(twin)


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


async def test_events_come_in_order_with_the_run(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    async with stores.events.subscribe(job.id) as events:
        got = await claim(stores)
        await stores.runs.progress(got, Progress(value=0.1, nodes_done=0, nodes_total=2))
        await stores.runs.output(got, output())
        await stores.runs.output(replace(got), output(asset_id="again"))  # the same place: no second output
        await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)
        seen = []
        async for event in events:
            seen.append(event)
            if event.type == "status" and event.data["status"] == "succeeded":
                break
    assert [e.type for e in seen] == ["status", "progress", "output", "status"]
    assert [e.seq for e in seen] == sorted(e.seq for e in seen)
    assert {e.run for e in seen} == {got.run}


async def test_the_registry_refuses_twins_and_announces_changes(stores: Stores) -> None:
    changes = stores.nodes.changes()
    await anext(changes)
    await add_nodes(stores, "g1")
    async with asyncio.timeout(2):
        await anext(changes)
    with pytest.raises(Conflict, match="exists already"):
        await stores.nodes.add(Node(name="g1", url="http://127.0.0.1:1"))
    with pytest.raises(Conflict, match="is node g1 already"):
        await stores.nodes.add(Node(name="g2", url="http://127.0.0.1:9000"))
    await stores.nodes.cordon("g1", reason="why not")
    async with asyncio.timeout(2):
        await anext(changes)
    node = await stores.nodes.get("g1")
    assert node and (node.cordoned, node.cordon_reason) == (True, "why not")
    with pytest.raises(NotFound):
        await stores.nodes.cordon("g9", reason="")
    await stores.nodes.report("g1", verdict="up", why="")
    assert (await stores.nodes.states())[0].verdict == "up"
    await changes.aclose()


async def test_rq_sees_true_figures(stores: Stores, redis_port: int) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    jobs = [await submit(stores) for _ in range(4)]
    ok, bad, _running = await claim(stores, "g1"), await claim(stores, "g2"), await claim(stores, "g3")
    await stores.runs.finish(ok, JobStatus.SUCCEEDED, error=None, duration_s=1)
    await stores.runs.finish(bad, JobStatus.FAILED, error=BROKEN, duration_s=None)

    def look() -> None:
        with sync_redis.Redis(port=redis_port) as connection:
            queue = Queue("fleet", connection=connection, serializer=JSONSerializer)
            assert Queue.all(connection=connection) == [queue]
            for _ in range(2):  # counting runs RQ's clean-up: it must not touch a run
                assert queue.count == 1
                assert queue.started_job_registry.count == 1
                assert queue.finished_job_registry.count == 1
                assert queue.failed_job_registry.count == 1
            finished = RqJob.fetch(ok.job.id, connection=connection, serializer=JSONSerializer)
            assert finished.get_status() == "finished"
            assert finished.return_value() == {"job": ok.job.id, "run": ok.run, "node": "g1"}
            assert finished.func_name == HANDLER
            assert finished.args == [ok.job.id]
            assert finished.started_at and finished.ended_at and finished.ended_at >= finished.started_at
            failed = RqJob.fetch(bad.job.id, connection=connection, serializer=JSONSerializer)
            result = failed.latest_result()
            assert result is not None and result.exc_string is not None
            assert "node_lost: gone" in result.exc_string
            assert (
                RqJob.fetch(jobs[3].id, connection=connection, serializer=JSONSerializer).get_status()
                == "queued"
            )

    await asyncio.to_thread(look)


async def test_a_foreign_handler_in_rqs_record_is_never_run(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    await stores.redis.hset(f"rq:job:{job.id}", "data", json.dumps(["os.system", None, ["true"], {}]))
    assert (await refused(stores)).why == "empty"
    ended = await stores.jobs.get(job.id)
    assert ended and ended.status is JobStatus.FAILED
    assert ended.error and "handler" in ended.error.message
    assert await stores.runs.lease_of("g1") is None


async def test_events_come_once_redis_is_there_even_if_it_was_away_at_first(
    redis: Any, redis_port: int
) -> None:
    # The first subscription meets a closed port; the server comes later.
    port = free_port()
    listening = subscriber(f"redis://127.0.0.1:{port}/0")
    events = RedisEvents(listening)

    async def first() -> bytes:
        async with events.channel("news") as queue:
            return await queue.get()

    reading = asyncio.create_task(first())
    await asyncio.sleep(0.1)
    server = await asyncio.start_server(partial(_relay, redis_port), "127.0.0.1", port)
    async with asyncio.timeout(15):
        while not reading.done():
            await redis.publish("news", "good")
            await asyncio.sleep(0.05)
    assert await reading == b"good"
    await events.close()
    await listening.aclose()
    server.close()


async def _relay(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    there, back = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(4096):
            target.write(data)
        target.close()

    await asyncio.gather(copy(reader, back), copy(there, writer))


async def test_no_flood_of_other_messages_hides_a_change_of_the_nodes(stores: Stores) -> None:
    async with aclosing(stores.nodes.changes()) as changes:
        await anext(changes)
        await stores.redis.publish("fleet:wake", "nodes")
        for number in range(600):  # more than wait for a slow reader
            await stores.redis.publish("fleet:wake", f"job {number}")
        async with asyncio.timeout(2):  # long before it would look by itself
            await anext(changes)


async def test_nodes_are_the_same_objects_until_something_about_them_changes(stores: Stores) -> None:
    for name in ("a", "b"):
        await stores.nodes.add(Node(name=name, url=f"http://{name}:1"))
    before = await stores.nodes.states()
    await stores.nodes.cordon("b", reason="x")
    after = await stores.nodes.states()
    assert after[0] is before[0] and after[1] is not before[1]
    assert after[1].node.cordoned and (await stores.nodes.state("b")) is after[1]
    await stores.nodes.remove("a")
    assert [state.node.name for state in await stores.nodes.states()] == ["b"]
    assert await stores.nodes.state("a") is None
    await stores.nodes.add(Node(name="c", url="http://a:1"))  # the address is free again
