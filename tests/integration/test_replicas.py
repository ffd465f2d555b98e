"""Answers wait until a replica of Redis has what their requests have written."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.cli import doctor_checks
from comfy_fleet.cli.doctor_checks import Severity
from comfy_fleet.domain.errors import NotReplicated
from comfy_fleet.settings import Settings
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_kit import Api, code, running, upload
from tests.integration.replica_kit import RedisServer, eventually, pair

BODY = {"workflow": picture(1)}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, RedisServer]]:
    with pair(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest.fixture(autouse=True)
def emptied(servers: tuple[RedisServer, RedisServer]) -> None:
    with servers[0].client as client:
        client.flushall()


@pytest.fixture
async def api(servers: tuple[RedisServer, RedisServer], tmp_path: Path) -> AsyncIterator[Api]:
    async with running(servers[0].port, tmp_path, redis_replicas=1, redis_replicas_s=1) as made:
        await made.add_node()
        yield made


def jobs_in(server: RedisServer) -> set[str]:
    with server.client as client:
        return {raw.decode() for raw in client.zrange("fleet:jobs", 0, -1)}


async def test_what_was_answered_is_on_the_replica(
    api: Api, servers: tuple[RedisServer, RedisServer]
) -> None:
    made = await asyncio.gather(*(api.submit(picture(seed)) for seed in range(10)))
    assert {one["id"] for one in made} <= jobs_in(servers[1])


async def test_without_its_replica_each_face_says_that_it_is_done(
    api: Api, servers: tuple[RedisServer, RedisServer]
) -> None:
    job = (await api.submit(picture(2)))["id"]
    replica = servers[1].process.pid
    os.kill(replica, signal.SIGSTOP)
    try:
        native = await api.client.post("/api/prompt", json={"prompt": picture(3)})
        assert native.status_code == 503 and "it is done" in native.text
        for answer in (
            await api.client.post("/api/v2/jobs", json=BODY),
            await api.client.post("/api/v1/workflows/image_card/jobs", json={"params": {"prompt": "a"}}),
            await api.client.post(f"/api/v2/jobs/{job}/cancel"),
            await upload(api, b"bytes"),
        ):
            assert code(answer) == (503, "not_replicated"), answer.request.url
            assert int(answer.headers["retry-after"]) >= 1
        # What reads, and what is said anew each second, needs no replica.
        assert (await api.client.get(f"/api/v2/jobs/{job}")).json()["status"] == "canceled"
        beat = await api.client.post("/api/v1/agents/h1/heartbeat", json={"instance": "a"})
        assert beat.status_code != 503, beat.text
    finally:
        os.kill(replica, signal.SIGCONT)


async def test_a_replica_that_is_away_is_told(api: Api, servers: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = servers
    replicas = api.stores.replicas

    async def well() -> bool:
        return await replicas.lacking() is None

    async def told() -> bool:
        said = "replicas: 0 of 1 can be heard: whatever changes something gets 503 not_replicated"
        return await replicas.lacking() == said

    await until(well, what="it is heard")
    with replica.client as client:
        client.replicaof("NO", "ONE")
        try:
            await until(told, what="it is away")
        finally:
            client.replicaof("127.0.0.1", primary.port)
    await until(well, what="it is heard again")


async def test_a_repeated_submit_waits_too_and_makes_no_second_job(
    api: Api, servers: tuple[RedisServer, RedisServer]
) -> None:
    replica = servers[1].process.pid
    bodies = {"/api/v2/jobs": BODY, "/api/v1/workflows/image_card/jobs": {"params": {"prompt": "b"}}}
    os.kill(replica, signal.SIGSTOP)
    try:
        for path, body in bodies.items():
            for _ in range(2):
                answer = await api.client.post(path, json=body, headers={"Idempotency-Key": path})
                assert code(answer) == (503, "not_replicated")
    finally:
        os.kill(replica, signal.SIGCONT)
    told = []
    for path, body in bodies.items():
        for _ in range(2):
            answer = await api.client.post(path, json=body, headers={"Idempotency-Key": path})
            while answer.status_code == 503:  # a replica that goes on may be slow at first
                answer = await api.client.post(path, json=body, headers={"Idempotency-Key": path})
            said = answer.json()
            told.append(said["error"]["details"]["job_id"] if answer.status_code == 422 else said["id"])
    listed = (await api.client.get("/api/v1/jobs")).json()["jobs"]
    assert len(listed) == 2 and set(told) == {one["id"] for one in listed} <= jobs_in(servers[1])


async def test_an_operator_may_prefer_answers(
    servers: tuple[RedisServer, RedisServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted: dict[str, Any] = {"redis_replicas": 2, "redis_replicas_s": 0.1}
    async with running(servers[0].port, tmp_path, redis_replicas_missing="accept", **wanted) as api:
        await api.add_node()
        await api.submit(picture(4))
        await api.submit(picture(5))
    assert [one.message for one in caplog.records].count("answered without replicas") == 1


async def test_requests_share_what_they_ask(api: Api, servers: tuple[RedisServer, RedisServer]) -> None:
    replicas = api.stores.replicas
    server = await replicas.server()
    with servers[0].client as client:
        before = client.info("commandstats")["cmdstat_wait"]["calls"]
        await asyncio.gather(*(replicas.confirm(server) for _ in range(50)))
        assert client.info("commandstats")["cmdstat_wait"]["calls"] - before <= 2


async def test_doctor_tells_of_replicas(servers: tuple[RedisServer, RedisServer]) -> None:
    def found(port: int, **more: Any) -> list[tuple[Severity, str]]:
        settings = Settings(redis_url=f"redis://127.0.0.1:{port}/0", **more)
        # It runs a loop of its own.
        all_ = doctor_checks.redis_server(settings, asked=True)
        return [(one.verdict, one.found) for one in all_ if one.check == "Redis replicas"]

    assert await asyncio.to_thread(found, servers[0].port) == []
    ((severity, words),) = await asyncio.to_thread(found, servers[0].port, redis_replicas=1)
    assert severity is Severity.OK and "bytes behind" in words
    ((severity, words),) = await asyncio.to_thread(found, servers[0].port, redis_replicas=2)
    assert severity is Severity.FAIL and "1 of 2 online" in words
    ((severity, words),) = await asyncio.to_thread(found, servers[1].port)
    assert severity is Severity.FAIL and "it takes nothing" in words


async def test_a_write_to_a_server_that_is_gone_is_not_confirmed_by_the_next(tmp_path: Path) -> None:
    with pair(tmp_path) as (primary, replica):
        async with running(replica.port, tmp_path, redis_replicas=1, redis_replicas_s=5) as api:
            replicas = api.stores.replicas
            before = await replicas.server()
            replica.promote()
            with primary.client as client:
                client.replicaof("127.0.0.1", replica.port)
                eventually(lambda: client.info("replication")["master_link_status"] == "up")
            with pytest.raises(NotReplicated):
                await replicas.confirm(before)
            await replicas.confirm(await replicas.server())
