"""A store that answers and takes nothing: every face says so, nothing is lost, and all goes on afterwards."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from comfy_fleet.adapters.redis.client import FleetRedis, WrongType, connect_once
from comfy_fleet.adapters.redis.clock import ServerClock
from comfy_fleet.adapters.redis.dispatchers import live_dispatchers
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import StoreDown, StoreRefuses
from comfy_fleet.sim import SimTiming
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_kit import Api, code, running, upload
from tests.integration.sharing_kit import sharing
from tests.stream_server import StreamServer

Change = Callable[[Any], Awaitable[object]]
REFUSING: dict[str, tuple[Change, Change]] = {
    "full": (lambda redis: redis.config_set("maxmemory", 1), lambda redis: redis.config_set("maxmemory", 0)),
    "a replica": (lambda redis: redis.replicaof("127.0.0.1", 1), lambda redis: redis.replicaof("NO", "ONE")),
    "without replicas": (
        lambda redis: redis.config_set("min-replicas-to-write", 1),
        lambda redis: redis.config_set("min-replicas-to-write", 0),
    ),
}


@pytest.fixture
async def api(redis: FleetRedis, redis_port: int, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as made:
        await made.add_node()
        yield made


@pytest.mark.parametrize("state", REFUSING)
async def test_every_write_says_that_the_store_takes_nothing(api: Api, redis: FleetRedis, state: str) -> None:
    job = (await api.submit(picture(1)))["id"]
    asset = (await upload(api, b"bytes")).json()
    begin, end = REFUSING[state]
    body = {"workflow": picture(2)}
    await begin(redis)
    try:
        for answer in (
            await api.client.post("/api/v2/jobs", json=body),
            await api.client.post("/api/v2/jobs", json=body, headers={"Idempotency-Key": "a"}),
            await api.client.post("/api/v1/workflows/image_card/jobs", json={"params": {"prompt": "a"}}),
            await api.client.post("/api/v1/generate", json={"prompt": "a"}, headers={"Idempotency-Key": "b"}),
            await upload(api, b"others"),
            await api.client.post("/api/v2/assets/from-hash", json={"hash": asset["hash"], "file_path": "z"}),
            await api.client.post("/api/v1/nodes", json={"name": "g2", "url": "http://127.0.0.1:9999"}),
            await api.client.post("/api/v1/nodes/g1/drain", json={"reason": "x"}),
            await api.client.post("/api/v1/agents/h1/heartbeat", json={"instance": "a"}),
        ):
            assert code(answer) == (503, "store_unavailable"), answer.request.url
            assert int(answer.headers["retry-after"]) >= 1
            assert "nothing was done" in answer.json()["error"]["message"]
        # What makes room is possible on a full server: a cancel frees memory before it needs any.
        canceled = await api.client.post(f"/api/v2/jobs/{job}/cancel")
        assert canceled.status_code == (200 if state == "full" else 503)
        ready = await api.client.get("/api/v1/ready")
        assert ready.status_code == 503 and ready.headers["retry-after"]
        assert any(
            reason["part"] == "redis" and "takes nothing" in reason["why"]
            for reason in ready.json()["reasons"]
        )
        for path in ("/api/v2/jobs", f"/api/v2/jobs/{job}", "/api/v1/nodes", asset["url"]):
            answer = await api.client.get(path)
            assert answer.status_code == 200, (path, answer.text)
    finally:
        await end(redis)
    assert not any(r["part"] == "redis" for r in (await api.client.get("/api/v1/ready")).json()["reasons"])
    assert (
        await api.client.post("/api/v2/jobs", json=body, headers={"Idempotency-Key": "a"})
    ).status_code == 201
    kept = "canceled" if state == "full" else "queued"
    assert (await api.client.get(f"/api/v2/jobs/{job}")).json()["status"] == kept


async def test_a_run_that_is_on_its_node_ends_in_a_full_store(
    redis: FleetRedis, redis_port: int, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim={"timing": SimTiming(job_s=0.5)}) as world:
        job = await world.submit()

        async def posted() -> bool:
            return bool(world.fleet.sims["g1"].engine.running)

        await until(posted, what="the prompt is on its node")
        await redis.config_set("maxmemory", 1)
        try:
            end = await world.done(job)
        finally:
            await redis.config_set("maxmemory", 0)
        assert [output["temporary"] for output in end["outputs"]] == [False, True]
        assert len(await world.content(end)) == 2


async def heard(pubsub: Any) -> object:
    await pubsub.subscribe("x")
    return await pubsub.get_message(timeout=5)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("MISCONF Redis is configured to save RDB snapshots, but it's unable to persist.", StoreRefuses),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", StoreRefuses),
        ("NOREPLICAS Not enough good replicas to write.", StoreRefuses),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL.", StoreRefuses),
        (
            "OOM command not allowed when used memory > 'maxmemory'. script: abc.",
            StoreRefuses,
        ),
        (
            "READONLY You can't write against a read only replica. script: abc.",
            StoreRefuses,
        ),
        ("LOADING Redis is loading the dataset in memory", StoreRefuses),
        ("NOPERM this user has no permissions to run the 'publish' command", StoreRefuses),
        ("ERR unknown command 'evalsha'", StoreRefuses),
        ("NOAUTH Authentication required.", StoreDown),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", WrongType),
        (
            "ERR wrong number of arguments for 'get' command",
            ResponseError,
        ),  # a mistake of ours
    ],
)
async def test_every_answer_of_the_server_is_known_wherever_it_comes(
    said: str, kind: type[Exception]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):  # each command ends up in one read: they follow an answer
            writer.write(f"-{said}\r\n".encode() * data.count(b"*"))

    async with StreamServer(answer) as server, connect_once(f"redis://127.0.0.1:{server.port}/0") as client:
        with pytest.raises(kind):
            await client.get("x")
        with pytest.raises(kind):
            await Scripts(client).call("store_id", candidate="x")
        async with client.pipeline(transaction=False) as pipe:
            pipe.get("x")
            pipe.get("y")
            with pytest.raises(kind):
                await pipe.execute()
        pubsub = client.pubsub()
        with pytest.raises(kind):
            await heard(pubsub)
        await pubsub.aclose()  # type: ignore[no-untyped-call]  # the library left it untyped


async def test_no_answer_is_known_wherever_it_was_waited_for() -> None:
    client = connect_once(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreDown):
        await client.get("x")
    async with client.pipeline() as pipe:
        pipe.get("x")
        with pytest.raises(StoreDown):
            await pipe.execute()
    with pytest.raises(StoreDown):
        await client.pubsub().subscribe("x")
    with pytest.raises(StoreDown):
        await live_dispatchers(client)
    with pytest.raises(StoreDown):
        await ServerClock(client)()
    await client.aclose()
