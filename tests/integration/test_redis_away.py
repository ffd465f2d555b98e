"""What the stores say while Redis is away, or is there and can't write."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from comfy_fleet.adapters.redis.client import FleetRedis, connect_once
from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.adapters.redis.jobs import RedisJobStore
from comfy_fleet.adapters.redis.nodes import RedisNodeRegistry
from comfy_fleet.adapters.redis.replays import RedisReplays
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import StoreDown, StoreRefuses
from comfy_fleet.domain.jobs.job import Job, JobFilter, JobStatus
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.ports.runs import Claim
from tests.conftest import free_port
from tests.integration.api_kit import running
from tests.integration.redis_kit import BROKEN, add_nodes, submit

JOB = Job(id="j", owner="o", status=JobStatus.RUNNING, created_at=0, expires_at=9, graph_hash="h")
CLAIM = Claim(job=JOB, graph=b"{}", run="r", node="g1", token="t", attempt=0)

CALLS: list[Callable[[RedisJobStore, RedisRunStore, RedisNodeRegistry, RedisReplays], Awaitable[object]]] = [
    lambda jobs, runs, nodes, replays: jobs.get("j"),
    lambda jobs, runs, nodes, replays: jobs.graph(JOB),
    lambda jobs, runs, nodes, replays: jobs.find(JobFilter(owner=None, limit=5)),
    lambda jobs, runs, nodes, replays: jobs.depth(),
    lambda jobs, runs, nodes, replays: jobs.snapshot("j"),
    lambda jobs, runs, nodes, replays: jobs.with_ui("j"),
    lambda jobs, runs, nodes, replays: jobs.made_by(Idempotency(scope="s", key="k")),
    lambda jobs, runs, nodes, replays: jobs.replayed(Idempotency(scope="s", key="k")),
    lambda jobs, runs, nodes, replays: runs.waiting(),
    lambda jobs, runs, nodes, replays: runs.lease_of("g1"),
    lambda jobs, runs, nodes, replays: runs.occupied(["g1"]),
    lambda jobs, runs, nodes, replays: runs.secret(CLAIM),
    lambda jobs, runs, nodes, replays: runs.forgettable(5),
    lambda jobs, runs, nodes, replays: runs.requeue(CLAIM, counts=True, reason=BROKEN),
    lambda jobs, runs, nodes, replays: nodes.states(),
    lambda jobs, runs, nodes, replays: nodes.errors("g1"),
    lambda jobs, runs, nodes, replays: nodes.models("g1"),
    lambda jobs, runs, nodes, replays: nodes.cordon("g1", reason=""),
    lambda jobs, runs, nodes, replays: replays.begin("s", "k"),
    lambda jobs, runs, nodes, replays: replays.recall("s", "k"),
    lambda jobs, runs, nodes, replays: replays.end("s", "k", answer=None),
]


@pytest.fixture
async def nowhere() -> AsyncIterator[FleetRedis]:
    client = connect_once(f"redis://127.0.0.1:{free_port()}/0")
    yield client
    await client.aclose()


async def test_every_call_says_that_the_store_is_down(nowhere: FleetRedis) -> None:
    stores = (
        RedisJobStore(nowhere, ageing_s=1),
        RedisRunStore(nowhere),
        RedisNodeRegistry(nowhere, RedisEvents(nowhere)),
        RedisReplays(nowhere),
    )
    for call in CALLS:
        with pytest.raises(StoreDown):
            await call(*stores)


async def test_a_server_that_is_full_is_down_for_writers(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await stores.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreDown, match="maxmemory"):
            await submit(stores)
    finally:
        await stores.redis.config_set("maxmemory", 0)
    await submit(stores)


async def test_a_server_that_may_not_write_is_down_for_writers(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await stores.redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(StoreDown, match="replica"):
            await submit(stores)
    finally:
        await stores.redis.config_set("min-replicas-to-write", 0)
    await stores.redis.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreDown, match="read only"):
            await submit(stores)
    finally:
        await stores.redis.replicaof("NO", "ONE")
    await submit(stores)


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_pipeline_is_refused_like_a_single_call(stores: Stores, transaction: bool) -> None:
    await stores.redis.config_set("min-replicas-to-write", 1)
    try:
        async with stores.redis.pipeline(transaction=transaction) as pipe:
            pipe.hset("fleet:x", "a", "1")
            pipe.expire("fleet:x", 5)
            with pytest.raises(StoreRefuses, match="NOREPLICAS"):
                await pipe.execute()
    finally:
        await stores.redis.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize("trouble", ["full", "a replica", "too few replicas"])
async def test_ready_says_that_redis_answers_and_takes_nothing(
    redis_port: int, redis: FleetRedis, tmp_path: Path, trouble: str
) -> None:
    async with running(redis_port, tmp_path) as api:

        async def said() -> str:
            reasons = (await api.client.get("/api/v1/ready")).json()["reasons"]
            return "".join(reason["why"] for reason in reasons if reason["part"] == "redis")

        assert await said() == ""
        if trouble == "full":
            await redis.config_set("maxmemory", 1)
        elif trouble == "a replica":
            await redis.replicaof("127.0.0.1", 1)
        else:
            await redis.config_set("min-replicas-to-write", 1)
        try:
            assert (await said()).startswith("answers, but takes nothing: ")
        finally:
            await redis.config_set("maxmemory", 0)
            await redis.config_set("min-replicas-to-write", 0)
            await redis.replicaof("NO", "ONE")
        assert await said() == ""
        assert await redis.exists("fleet:ready") == 0
