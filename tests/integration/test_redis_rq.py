"""RQ's own view of the records: true figures, and nothing of it that is run."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import redis as sync_redis
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from comfy_fleet.adapters.redis.job_records import HANDLER
from comfy_fleet.adapters.redis.scripts import whole
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import (
    JobStatus,
)
from tests.factories import new_job, picture
from tests.fleet import fleet_of, until
from tests.integration.redis_kit import BROKEN, add_nodes, claim, forget, refused, submit


async def test_rq_sees_true_figures(stores: Stores, redis_port: int) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    jobs = [await submit(stores) for _ in range(4)]
    ok, bad, _running = await claim(stores, "g1"), await claim(stores, "g2"), await claim(stores, "g3")
    await stores.runs.finish(ok, JobStatus.SUCCEEDED, error=None, duration_s=1)
    await stores.runs.finish(bad, JobStatus.FAILED, error=BROKEN, duration_s=None)

    await stores.runs.tend()

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
    return [raw.decode() for raw in await client.lrange("rq:queue:fleet", 0, -1)]


async def test_only_upkeep_writes_rqs_list_once_a_second_in_the_whole_fleet(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    jobs = [await submit(stores) for _ in range(3)]
    assert not await client.exists("rq:queue:fleet")
    assert await shown(stores) == [job.id for job in jobs]
    await claim(stores)
    await stores.jobs.request_cancel(jobs[1].id)
    await submit(stores)
    await stores.runs.tend()  # a moment ago somebody did
    assert await client.lrange("rq:queue:fleet", 0, -1) == [job.id.encode() for job in jobs]
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
            return [raw.decode() for raw in await client.lrange("rq:queue:fleet", 0, -1)]

        async def shows(wanted: list[str]) -> bool:
            return await listed() == wanted

        await until(lambda: shows(ids), what="RQ sees what waits")
        await fleet.stores.nodes.uncordon("g1")
        assert [(await fleet.ended(job_id)).status for job_id in ids] == ["succeeded"] * 3
        await until(lambda: shows([]), what="RQ sees that nothing waits")


async def test_rqs_list_has_the_first_thousand_and_what_others_have_pushed(stores: Stores) -> None:
    client: Any = stores.redis

    def push(front: bool = False) -> str:
        with sync_redis.Redis(port=client.connection_pool.connection_kwargs["port"]) as connection:
            queue = Queue("fleet", connection=connection, serializer=JSONSerializer)
            return str(queue.enqueue("os.getcwd", at_front=front).id)

    others = [await asyncio.to_thread(push), await asyncio.to_thread(push, True)]
    ids = [
        (await stores.jobs.submit(new_job(), idempotency=None, depth_limit=9999)).job.id for _ in range(1010)
    ]
    assert await shown(stores) == [*ids[:1000], others[1], others[0]]
    third = await asyncio.to_thread(push)
    for job_id in ids[:3]:
        await stores.jobs.request_cancel(job_id)
    assert await shown(stores) == [*ids[3:1003], others[1], others[0], third]
    for job_id in ids[3:]:
        await stores.jobs.request_cancel(job_id)
    assert await shown(stores) == [others[1], others[0], third]


async def test_ids_that_older_versions_have_left_in_rqs_list_go(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    ran, forgotten, waits = [await submit(stores) for _ in range(3)]
    await stores.jobs.request_cancel(forgotten.id)
    await forget(stores, forgotten.id)
    await claim(stores)
    await client.rpush("rq:queue:fleet", ran.id, forgotten.id, *[f"gone{number}" for number in range(5000)])
    assert [await shown(stores) for _ in range(4)][-1] == [waits.id]


@pytest.mark.parametrize("waits", [0, 2])
async def test_something_else_in_the_place_of_rqs_list_is_dropped(stores: Stores, waits: int) -> None:
    ids = [(await submit(stores)).id for _ in range(waits)]
    await stores.redis.set("rq:queue:fleet", "mine")
    assert await shown(stores) == ids


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


async def test_a_foreign_handler_in_rqs_record_is_never_run(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    await stores.redis.hset(f"rq:job:{job.id}", "data", json.dumps(["os.system", None, ["true"], {}]))
    assert (await refused(stores)).why == "broken"
    ended = await stores.jobs.get(job.id)
    assert ended and ended.status is JobStatus.FAILED
    assert ended.error and "handler" in ended.error.message
    assert await stores.runs.lease_of("g1") is None
