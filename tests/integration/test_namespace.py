"""Two fleets on one Redis: each has its own jobs, nodes, events, pools and RQ queue, and touches no other."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis as sync_redis
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from comfy_fleet.adapters.comfyui.lease import LeaseClient
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.dispatchers import LivingDispatcher, live_dispatchers
from comfy_fleet.adapters.redis.rq_worker import RqWorker
from comfy_fleet.bootstrap import Stores, check_schema, open_nodes, open_stores
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.jobs.job import JobFilter, JobStatus
from comfy_fleet.domain.jobs.run_messages import AskFailed
from comfy_fleet.domain.nodes.pool import Pool
from comfy_fleet.ports.comfyui import NoLease
from comfy_fleet.settings import Settings
from tests.assets_kit import assets_on
from tests.conftest import free_port
from tests.fleet import Fleet, fleet_of, until
from tests.integration.redis_kit import add_nodes, claim, submit
from tests.integration.up_kit import Up, up
from tests.integration.up_kit import fleet as command
from tests.integration.up_kit import until as soon


@pytest.fixture
async def pair(redis: FleetRedis, redis_port: int) -> AsyncIterator[tuple[Stores, Stores]]:
    """The stores of two fleets."""
    url = f"redis://127.0.0.1:{redis_port}/0"
    async with (
        open_stores(Settings(redis_url=url)) as one,
        open_stores(Settings(redis_url=url, namespace="blue")) as other,
    ):
        for stores in (one, other):
            await check_schema(stores)  # as each process does at its start
        yield one, other


async def everything(redis: Any, begin: str) -> dict[bytes, bytes]:
    """Return all that stands under keys with this beginning."""
    return {key: await redis.dump(key) for key in await redis.keys(f"{begin}*")}


def worker(stores: Stores, name: str) -> RqWorker:
    async def cancel(_: str) -> None:
        pass

    return RqWorker(stores.redis, stores.events, name, stop=cancel)


async def test_each_sees_its_own_jobs_nodes_pools_and_dispatchers(pair: tuple[Stores, Stores]) -> None:
    one, other = pair
    await add_nodes(one, "g1", "g2")
    await add_nodes(other, "g1")
    mine, theirs = await submit(one), await submit(other)
    await other.pools.set(Pool(name="default", free_idle_s=5))
    await worker(one, "d1").beat(busy=0, done=0)
    await worker(other, "d1").beat(busy=1, done=0)
    for fleet in pair:
        await LivingDispatcher(fleet.redis, "d1").beat()

    assert [job.id for job in (await one.jobs.find(JobFilter(owner=None))).jobs] == [mine.id]
    assert [job.id for job in (await other.jobs.find(JobFilter(owner=None))).jobs] == [theirs.id]
    assert await one.jobs.get(theirs.id) is None
    assert [node.name for node in await one.nodes.nodes()] == ["g1", "g2"]
    assert [node.name for node in await other.nodes.nodes()] == ["g1"]
    assert await one.jobs.depth() == await other.jobs.depth() == 1
    assert await one.pools.pools() == []
    assert [pool.name for pool in await other.pools.pools()] == ["default"]
    assert await live_dispatchers(one.redis) == await live_dispatchers(other.redis) == ["d1"]
    assert await one.nodes.store_id() != await other.nodes.store_id()

    taken = await claim(other, "g1")  # the same node's name is another node
    assert taken.job.id == theirs.id
    assert await one.runs.lease_of("g1") is None


async def test_events_and_wake_ups_reach_their_own_fleet_alone(pair: tuple[Stores, Stores]) -> None:
    one, other = pair
    async with one.events.wakes() as mine, other.events.wakes() as theirs:
        await submit(one)
        await asyncio.wait_for(mine.get(), 60)
        await submit(other)
        await asyncio.wait_for(theirs.get(), 60)
        assert mine.empty() and theirs.empty()
    async with other.events.channel(other.redis.keyspace.wake_nodes) as theirs:
        await add_nodes(one, "g1")
        await add_nodes(other, "g2")
        await asyncio.wait_for(theirs.get(), 60)
        assert theirs.empty()  # its own change alone


async def test_what_one_takes_over_ends_and_forgets_is_its_own(pair: tuple[Stores, Stores]) -> None:
    one, other = pair
    for stores in pair:
        await add_nodes(stores, "g1")
    held = [await submit(other), await submit(other, deadline_s=0.001)]
    await claim(other, "g1", ttl=0.001)
    before = await everything(one.redis, "blue:")
    assert before

    assert await one.runs.take_over(dispatcher="d2", ttl_s=5, limit=10) == []
    assert await one.runs.overdue(10) == 0
    assert await one.runs.forgettable(10) == []
    for job in held:
        assert await one.jobs.request_cancel(job.id) is None
        await one.runs.forget(job.id)
    await one.nodes.remove("g1", force=True)
    await worker(one, "d1").leave()
    assert await everything(one.redis, "blue:") == before
    assert [claimed.claim.job.id for claimed in await other.runs.take_over(dispatcher="d2", ttl_s=5, limit=9)]
    assert await other.runs.overdue(10) == 1


async def test_one_fleets_sweep_leaves_the_others_files(pair: tuple[Stores, Stores], tmp_path: Path) -> None:
    one, other = pair

    async def later() -> float:
        return 4e9

    async def data() -> AsyncIterator[bytes]:
        yield b"x"

    theirs = assets_on(other.redis, tmp_path / "blue")
    kept, _ = await theirs.upload(owner="ann", chunks=data(), content_type="image/png", file_path="a.png")
    before = await everything(one.redis, "blue:")
    await assets_on(one.redis, tmp_path / "own", clock=later).sweep()
    assert await everything(one.redis, "blue:") == before
    assert await theirs.get(kept.id) == kept


async def test_rq_shows_each_fleet_as_a_queue(pair: tuple[Stores, Stores], redis_port: int) -> None:
    one, other = pair
    for stores, jobs in ((one, 2), (other, 3)):
        await add_nodes(stores, "g1")
        for _ in range(jobs):
            await submit(stores)
        await worker(stores, "d1").beat(busy=1, done=0)
    await claim(other, "g1")
    for stores in pair:
        await stores.runs.tend()

    def look() -> None:
        with sync_redis.Redis(port=redis_port) as connection:
            for name, count, started, known in (("fleet.jobs", 2, 0, "d1"), ("blue.jobs", 2, 1, "blue.d1")):
                queue = Queue(name, connection=connection, serializer=JSONSerializer)
                assert (queue.count, queue.started_job_registry.count) == (count, started)
                assert [found.name for found in Worker.all(queue=queue)] == [known]
            assert {queue.name for queue in Queue.all(connection=connection)} == {"fleet.jobs", "blue.jobs"}
            running = Queue("blue.jobs", connection=connection, serializer=JSONSerializer)
            (job_id,) = running.started_job_registry.get_job_ids(cleanup=False)
            assert connection.hget(f"rq:job:{job_id}", "worker_name") == b"blue.d1"

    await asyncio.to_thread(look)


async def test_a_killed_dispatchers_name_is_forgotten_by_its_own_fleet(pair: tuple[Stores, Stores]) -> None:
    one, other = pair
    client: Any = one.redis
    await worker(other, "killed").beat(busy=0, done=0)
    await client.delete("rq:worker:blue.killed")  # its time has run out
    await worker(one, "d1").beat(busy=0, done=0)
    assert await client.sismember("rq:workers:blue", "rq:worker:blue.killed")
    await worker(other, "d2").beat(busy=0, done=0)
    assert await client.smembers("rq:workers") == {b"rq:worker:d1", b"rq:worker:blue.d2"}


async def finished(fleet: Fleet, job_id: str) -> None:
    async with asyncio.timeout(30):
        while True:
            job = await fleet.stores.jobs.get(job_id)
            assert job is not None
            if job.completed_at:
                assert job.status is JobStatus.SUCCEEDED, job
                return
            await asyncio.sleep(0.02)


def on_ports() -> dict[str, Any]:
    """Settings with which the broker is reached by ports, which may be wrong."""
    here = "127.0.0.1"
    return {"broker_bind": here, "broker_host": here, "lease_port": free_port(), "direct_port": free_port()}


async def test_each_fleets_haproxy_has_its_name_and_refuses_another_ones_calls(
    redis: FleetRedis, redis_port: int
) -> None:
    async with fleet_of(redis_port, "g1") as one, fleet_of(redis_port, "g1", namespace="blue") as blue:
        servers = await blue.controller.broker.runtime.ask("show servers state")
        assert "blue.be_pool_1" in servers
        assert "blue.be_direct" in servers
        assert " be_pool_1" not in servers
        jobs = [await submit(one.stores), await submit(blue.stores)]
        await asyncio.gather(finished(one, jobs[0].id), finished(blue, jobs[1].id))
        assert len(one.sims["g1"].engine.history) == len(blue.sims["g1"].engine.history) == 1
        for url, namespace in ((one.settings.lease_url, "blue"), (blue.settings.lease_url, "fleet")):
            refused = await LeaseClient(url, namespace=namespace).lease(run=str(uuid4()), pool="default")
            assert isinstance(refused, NoLease)
            assert refused.detail == "404 namespace"


@pytest.mark.parametrize("shared", [True, False], ids=["of one secret", "of another secret"])
async def test_a_run_that_meets_another_fleets_broker_waits_for_its_own(
    redis: FleetRedis, redis_port: int, caplog: pytest.LogCaptureFixture, tmp_path: Path, *, shared: bool
) -> None:
    secret: dict[str, Any] = {"secret_file": tmp_path / "secret.key"} if shared else {}
    async with (
        fleet_of(redis_port, "g1", dispatch=False, **on_ports(), **secret) as one,
        fleet_of(redis_port, "g1", namespace="blue", **on_ports(), **secret) as blue,
    ):
        wrong = one.settings.model_copy(update={"direct_port": blue.settings.direct_port})
        async with open_nodes(wrong, one.stores) as nodes:
            assert await nodes.queue_state("g1", str(uuid4())) == AskFailed("queue", "unreachable")
            with pytest.raises(NodeError, match=r"g1 can't be asked: the broker .* is another fleet's"):
                await nodes.system_stats("g1")
        job = await submit(one.stores)
        lost = await one.dispatcher("d0", direct_port=wrong.direct_port)
        await until(lambda: "prompt not posted" in caplog.text, what="its prompt was refused")
        there = await one.stores.jobs.get(job.id)
        assert there is not None
        assert (there.status, there.attempts) == (JobStatus.RUNNING, ())
        await lost.kill()  # its successor reaches the right broker
        await one.dispatcher()
        await finished(one, job.id)
        assert [len(fleet.sims["g1"].engine.history) for fleet in (one, blue)] == [1, 0]


def run(fleet: Up, prompt: str) -> str:
    """Return the id of a job that has run."""
    job = fleet.json("submit", "image_card", "-p", f"prompt={prompt}", "--wait")
    assert job["status"] == "succeeded"
    return str(job["id"])


def is_refused_beside(one: Up, folders: tuple[Path, Path], url: str) -> None:
    """A second fleet in the same namespace does not start, and changes nothing of the first one's."""
    nodes = one.json("node", "ls")["nodes"]
    port = str(free_port())
    told = command("up", "--data", str(folders[1]), "--redis", url, "--nodes", "1", "--port", port)
    words = " ".join(told.stderr.split())
    assert told.returncode != 0 and "FLEET_NAMESPACE" in words, told.stderr
    assert f"it was {folders[0] / 'files'} at first" in words
    assert {node["url"] for node in one.json("node", "ls")["nodes"]} == {node["url"] for node in nodes}


@pytest.mark.timeout(300)
def test_two_whole_fleets_on_one_redis(redis_port: int, tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{redis_port}/0"
    with sync_redis.Redis(port=redis_port) as client:
        client.flushall()
    folders = tmp_path / "a", tmp_path / "b"
    with (
        up(folders[0], "--redis", url, "--nodes", "1") as one,
        up(folders[1], "--redis", url, "--nodes", "2", "--namespace", "blue") as blue,
    ):
        is_refused_beside(one, (folders[0], tmp_path / "c"), url)
        jobs = [run(fleet, "first") for fleet in (one, blue)]
        for fleet, job in ((one, jobs[0]), (blue, jobs[1])):
            assert [row["id"] for row in fleet.json("job", "ls")["jobs"]] == [job]
        assert [len(fleet.json("node", "ls")["nodes"]) for fleet in (one, blue)] == [1, 2]
        with sync_redis.Redis(port=redis_port) as client:
            assert {queue.name for queue in Queue.all(connection=client)} == {"fleet.jobs", "blue.jobs"}
            assert [found.name.split(".")[0] for found in Worker.all(queue=Queue("blue", connection=client))]
        for part in ("api", "dispatch", "haproxy", "agent"):  # by its folder alone
            words = ("health", part, "--data", str(folders[1]))
            soon(lambda: command(*words, FLEET_REDIS_URL=url).returncode == 0, f"{part} is well")  # noqa: B023
        assert one.stop() == 0
        run(blue, "its neighbour has stopped")
        os.kill(blue.child("dispatch"), signal.SIGKILL)
        run(blue, "its dispatcher was killed")


def test_a_namespace_that_is_no_name_is_refused_by_every_process(tmp_path: Path) -> None:
    for argv in (("api",), ("dispatch",), ("doctor",), ("up", "--data", str(tmp_path))):
        told = command(*argv, FLEET_NAMESPACE="a:b")
        assert told.returncode == 2, told
        assert "FLEET_NAMESPACE: " in told.stderr
