"""RQ's own view of the records: true figures, and nothing of it that is run."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import redis as sync_redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from comfy_fleet.adapters.redis.dispatchers import LivingDispatcher, live_dispatchers, outdated_dispatchers
from comfy_fleet.adapters.redis.job_records import HANDLER
from comfy_fleet.adapters.redis.jobs import RedisJobStore
from comfy_fleet.adapters.redis.rq_worker import RqWorker
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.adapters.redis.scripts import SCHEMA, whole
from comfy_fleet.bootstrap import Stores, check_schema
from comfy_fleet.domain.jobs.job import (
    JobStatus,
)
from tests.factories import new_job, picture
from tests.fleet import fleet_of, until
from tests.integration.redis_kit import BROKEN, add_nodes, claim, forget, submit


async def test_rq_sees_true_figures(stores: Stores, redis_port: int) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    jobs = [await submit(stores) for _ in range(4)]
    ok, bad, _running = await claim(stores, "g1"), await claim(stores, "g2"), await claim(stores, "g3")
    await stores.runs.finish(ok, JobStatus.SUCCEEDED, error=None, duration_s=1)
    await stores.runs.finish(bad, JobStatus.FAILED, error=BROKEN, duration_s=None)

    await stores.runs.tend()

    def look() -> None:
        with sync_redis.Redis(port=redis_port) as connection:
            queue = Queue("fleet.jobs", connection=connection, serializer=JSONSerializer)
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


async def test_what_is_given_back_stands_in_front_for_rq_too(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    first, second = await submit(stores), await submit(stores)
    await stores.runs.requeue(await claim(stores), counts=False, reason=BROKEN)
    assert await shown(stores) == [first.id, second.id]


async def shown(stores: Stores) -> list[str]:
    """Return RQ's list, brought up to date."""
    client: Any = stores.redis
    await client.delete("fleet:queued:tended")
    await stores.runs.tend()
    return [raw.decode() for raw in await client.lrange("rq:queue:fleet.jobs", 0, -1)]


async def test_only_upkeep_writes_rqs_list_once_a_second_in_the_whole_fleet(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    jobs = [await submit(stores) for _ in range(3)]
    assert not await client.exists("rq:queue:fleet.jobs")
    assert await shown(stores) == [job.id for job in jobs]
    await claim(stores)
    await stores.jobs.request_cancel(jobs[1].id)
    await submit(stores)
    await stores.runs.tend()  # a moment ago somebody did
    assert await client.lrange("rq:queue:fleet.jobs", 0, -1) == [job.id.encode() for job in jobs]
    assert 0 < await client.pttl("fleet:queued:tended") <= 1000


async def test_nothing_is_written_where_nothing_waits(stores: Stores) -> None:
    await stores.runs.tend()
    assert not await stores.redis.keys("fleet:queued*")


async def test_a_dispatcher_keeps_rqs_list(redis_port: int, redis: Redis) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        await fleet.stores.nodes.cordon("g1", reason="fans")
        ids = [(await fleet.submit(picture(number))).id for number in range(3)]

        async def listed() -> list[str]:
            client: Any = fleet.stores.redis
            return [raw.decode() for raw in await client.lrange("rq:queue:fleet.jobs", 0, -1)]

        async def shows(wanted: list[str]) -> bool:
            return await listed() == wanted

        await until(lambda: shows(ids), what="RQ sees what waits")
        await fleet.stores.nodes.uncordon("g1")
        assert [(await fleet.ended(job_id)).status for job_id in ids] == ["succeeded"] * 3
        await until(lambda: shows([]), what="RQ sees that nothing waits")


async def test_rqs_list_has_the_first_thousand_and_nothing_else(stores: Stores) -> None:
    client: Any = stores.redis
    await client.rpush("rq:queue:fleet.jobs", "mine", *[f"gone{number}" for number in range(5000)])
    ids = [
        (await stores.jobs.submit(new_job(), idempotency=None, depth_limit=9999)).job.id for _ in range(1010)
    ]
    assert await shown(stores) == ids[:1000]
    for job_id in ids[:3]:
        await stores.jobs.request_cancel(job_id)
    await client.lpush("rq:queue:fleet.jobs", "mine")
    assert await shown(stores) == ids[3:1003]
    for job_id in ids[3:]:
        await stores.jobs.request_cancel(job_id)
    assert await shown(stores) == []


async def test_ids_that_older_versions_have_left_in_the_inbox_go_when_the_layout_is_raised(
    stores: Stores,
) -> None:
    client: Any = stores.redis
    waits = await submit(stores)
    await client.rpush("rq:queue:fleet", waits.id, "another's")
    await client.set("fleet:schema", 3)
    await check_schema(stores)
    assert await client.lrange("rq:queue:fleet", 0, -1) == [b"another's"]


@pytest.mark.parametrize("waits", [0, 2])
async def test_something_else_in_the_place_of_rqs_list_is_dropped(stores: Stores, waits: int) -> None:
    ids = [(await submit(stores)).id for _ in range(waits)]
    await stores.redis.set("rq:queue:fleet.jobs", "mine")
    assert await shown(stores) == ids


@settings(deadline=None)  # on a busy machine, one call may take long
@given(st.integers(0, 4_000_000_000))
def test_every_second_is_written_as_rq_writes_it(redis_port: int, at: int) -> None:
    with sync_redis.Redis(port=redis_port) as connection:
        script = whole("return iso(args.at)", "fleet")
        written = connection.eval(script, 0, json.dumps({"at": at}))
    assert written == datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z").encode()


async def test_rq_hears_of_a_run_at_its_own_pace_and_leases_are_renewed_at_each_beat(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    run = await claim(stores)
    execution = f"rq:execution:{run.job.id}:{run.run}"

    async def heard() -> tuple[bytes, bytes, float]:
        redis: Any = stores.redis
        return (
            await redis.hget(execution, "last_heartbeat"),
            await redis.hget(f"rq:job:{run.job.id}", "last_heartbeat"),
            await redis.zscore("fleet:runs", run.run),
        )

    first = await heard()
    for _ in range(3):
        await stores.runs.beat("d1", [run], ttl_s=5)
    second = await heard()
    assert second[:2] == first[:2]
    assert second[2] > first[2]
    for since in ("1.0", None):  # long ago; or never, as of a run that an earlier version has begun
        before = await heard()
        if since is None:
            await stores.redis.hdel(f"fleet:run:{run.run}", "rq_beat")
        else:
            await stores.redis.hset(f"fleet:run:{run.run}", "rq_beat", since)
        assert not (await stores.runs.beat("d1", [run], ttl_s=5)).lost
        after = await heard()
        assert after[0] > before[0]
        assert after[1] > before[1]
        await stores.runs.beat("d1", [run], ttl_s=5)
        assert (await heard())[:2] == after[:2]


@pytest.mark.parametrize("way", ["cancel", "delete", "empty", "another function", "of another kind"])
async def test_what_others_do_to_the_mirror_changes_no_job(stores: Stores, redis_port: int, way: str) -> None:
    await add_nodes(stores, "g1")
    client: Any = stores.redis
    job = await submit(stores)
    await stores.runs.tend()

    def change() -> None:
        with sync_redis.Redis(port=redis_port) as connection:
            queue = Queue("fleet.jobs", connection=connection, serializer=JSONSerializer)
            assert queue.job_ids == [job.id]
            seen = RqJob.fetch(job.id, connection=connection, serializer=JSONSerializer)
            if way == "cancel":
                seen.cancel()
            elif way == "delete":
                seen.delete()
            elif way == "empty":
                queue.empty()  # type: ignore[no-untyped-call]
            elif way == "another function":
                connection.hset(seen.key, "data", json.dumps(["os.system", None, ["true"], {}]))

    await asyncio.to_thread(change)
    if way == "of another kind":
        for key in ("queues", "wip:fleet.jobs", "queue:fleet.jobs", f"executions:{job.id}", f"job:{job.id}"):
            await client.delete(f"rq:{key}")
            await client.set(f"rq:{key}", "mine")
        other = await submit(stores)
        await stores.runs.tend()
        await stores.jobs.request_cancel(other.id)
    run = await claim(stores)
    assert run.job.id == job.id
    await client.delete("rq:finished:fleet.jobs")
    await client.set("rq:finished:fleet.jobs", "mine")
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1)
    ended = await stores.jobs.get(job.id)
    assert ended and ended.status is JobStatus.SUCCEEDED
    await forget(stores, job.id)
    assert await stores.jobs.get(job.id) is None


async def test_what_others_put_in_the_place_of_a_dispatchers_record_is_replaced(stores: Stores) -> None:
    async def stop(rq_id: str) -> None:
        raise AssertionError(rq_id)

    client: Any = stores.redis
    worker = RqWorker(stores.redis, stores.events, "d1", stop=stop)
    await LivingDispatcher(stores.redis, "d1").beat()
    await worker.beat(busy=0, done=0)
    for key, kind in (
        *((key, b"set") for key in ("rq:workers", "rq:workers:fleet", "rq:workers:fleet.jobs")),
        ("rq:worker:d1", b"hash"),
    ):
        await client.set(key, "mine")
        await worker.beat(busy=0, done=0)
        assert await client.type(key) == kind
        await client.delete(key)
        assert await live_dispatchers(stores.redis) == ["d1"]  # nothing of RQ's is looked at
    await client.sadd("rq:workers:fleet", "rq:worker:made-up")
    await client.hset("rq:worker:made-up", mapping={"schema": 0, "state": "idle"})
    await client.set("fleet:schema", SCHEMA)
    assert await live_dispatchers(stores.redis) == ["d1"]
    assert await outdated_dispatchers(stores.redis) == []


@pytest.mark.parametrize(("mirror", "tenants"), [("auto", True), ("off", False)])
async def test_the_mirror_is_off_where_tenants_are_or_on_request(
    stores: Stores, redis: Redis, mirror: str, tenants: bool
) -> None:
    client: Any = stores.redis
    shown_before = await submit(stores)
    await add_nodes(stores, "g1")
    await stores.runs.tend()
    if tenants:
        await client.hset("fleet:tenants", "shop", "{}")
    jobs = RedisJobStore(stores.redis, ageing_s=60, mirror=mirror)
    runs = RedisRunStore(stores.redis, mirror=mirror)
    job = (await jobs.submit(new_job(), idempotency=None, depth_limit=9)).job
    await client.delete("fleet:queued:tended")
    await runs.tend()
    assert not await client.exists("rq:queue:fleet.jobs")
    for wanted in (shown_before, job):
        run = await claim(stores)
        assert run.job.id == wanted.id
        await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1)
    left = await client.keys("rq:*")
    assert {key for key in left if job.id.encode() in key} == set()
    assert await client.zrange("rq:finished:fleet.jobs", 0, -1) == [shown_before.id.encode()]


async def test_the_mirror_may_be_wanted_beside_tenants(stores: Stores) -> None:
    client: Any = stores.redis
    await client.hset("fleet:tenants", "shop", "{}")
    jobs = RedisJobStore(stores.redis, ageing_s=60, mirror="on")
    job = (await jobs.submit(new_job(), idempotency=None, depth_limit=9)).job
    await RedisRunStore(stores.redis, mirror="on").tend()
    assert await client.lrange("rq:queue:fleet.jobs", 0, -1) == [job.id.encode()]
