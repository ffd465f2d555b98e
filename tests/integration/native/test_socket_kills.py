"""Websocket clients while processes die: each is told its end, and nobody else is hurt."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis
from websockets.exceptions import ConnectionClosed

from comfy_fleet.domain.jobs.frames import RawFrame
from comfy_fleet.ports.runs import Claim
from comfy_fleet.sim import SimTiming
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import Fleet, fleet_of, until
from tests.integration.api_kit import running
from tests.integration.native.socket_kit import client_of, faced, shapes


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


@asynccontextmanager
async def api_process(fleet: Fleet, folder: Path) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `fleet api`; yields its URL once it serves."""
    settings = fleet.settings
    names = ("redis_url", "data")
    env = {**os.environ, **{f"FLEET_{name.upper()}": str(getattr(settings, name)) for name in names}}
    env["FLEET_API_PORT"] = str(port := free_port())
    url = f"http://127.0.0.1:{port}"
    with (folder / f"api-{port}").open("wb") as log:
        process = subprocess.Popen(mortal([sys.executable, "-m", "comfy_fleet", "api"]), env=env, stderr=log)
    try:
        async with httpx.AsyncClient(timeout=10) as asking:

            async def ready() -> bool:
                assert process.poll() is None
                with contextlib.suppress(httpx.TransportError):
                    answer = await asking.get(f"{url}/object_info/SaveImage")
                    return answer.status_code == 200 and bool(answer.json())
                return False

            await until(ready, what="an API serves", timeout_s=60)
        yield url, process
    finally:
        process.kill()
        process.wait()


async def test_one_of_two_api_processes_is_killed(redis_port: int, tmp_path: Path) -> None:
    async with (
        fleet_of(redis_port, "g1", "g2", sim={"timing": SimTiming(job_s=3)}) as fleet,
        AsyncExitStack() as stack,
    ):
        (first, killed), (second, _) = [
            await stack.enter_async_context(api_process(fleet, tmp_path)) for _ in range(2)
        ]
        name = uuid4().hex
        other = await stack.enter_async_context(client_of(second))
        theirs = await other.post(picture(2))
        async with client_of(first, name) as client:
            mine = await client.post(picture(1))
            await client.until(lambda type_, _: type_ == "progress_state")
            killed.kill()
            with pytest.raises(ConnectionClosed):
                await client.until(lambda *_: False)
        async with client_of(second, name) as again:
            told = await again.ended(mine)
            assert shapes(told)[0] == "execution_start"
            assert shapes(told)[-3:] == ["executed 2", "execution_success", "executing None"]
        await other.ended(theirs)
        assert other.of(theirs).count("execution_success") == 1 and not other.of(mine)


async def test_a_dispatcher_is_killed_while_frames_flow(redis_port: int) -> None:
    async with faced(redis_port, "g1", "g2", sim={"timing": SimTiming(job_s=3)}) as fleet:
        clients = [await fleet.client() for _ in range(2)]
        prompts = [await client.post(picture(color)) for color, client in enumerate(clients)]
        for client in clients:
            await client.until(lambda type_, _: type_ == "progress_state")
        await fleet.fleet.dispatchers[0].kill()
        await fleet.fleet.dispatcher("d2")
        for client, prompt in zip(clients, prompts, strict=True):
            await client.ended(prompt)
            told = client.of(prompt)
            assert told.count("execution_start") == told.count("executed 2") == 1
            assert told[-3:] == ["executed 2", "execution_success", "executing None"]
            job = await fleet.fleet.ended(prompt)
            assert len(job.attempts) == 1  # it went on


async def test_a_client_that_never_reads_costs_little_and_nobody_else_anything(
    redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, socket_bytes=256 * 1024) as api, client_of(api.url) as other:
        await api.add_node()
        await api.add_node("g2")
        name = uuid4().hex
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", int(api.url.rpartition(":")[2])))
            deaf.sendall(
                f"GET /ws?clientId={name} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            await until(lambda: api.deps.sockets["local"] == 2, what="it is connected")
            body = {"prompt": picture(1), "client_id": name}
            its = (await api.client.post("/prompt", json=body)).json()["prompt_id"]
            theirs = await other.post(picture(2))
            unread, read = await api.claim(its), await api.claim(theirs, "g2")
            sent = 0
            while api.deps.sockets["local"] == 2:
                await api.stores.runs.frames([(unread, [said(unread, "progress", 2_000) for _ in range(50)])])
                await api.stores.runs.frames([(unread, [said(unread, "an.extension's", 50_000)])])
                await api.stores.runs.frames([(read, [said(read, "progress", 10)])])
                assert (await other.until(lambda type_, _: type_ == "progress"))[-1][1]["prompt_id"] == theirs
                assert (sent := sent + 1) < 500
            await api.finish(read)
            assert shapes(await other.ended(theirs))[-2:] == ["execution_success", "executing None"]
            await api.finish(unread)
        async with client_of(api.url, name) as again:  # it is told what it missed
            assert shapes(await again.ended(its))[-2:] == ["execution_success", "executing None"]


def said(claim: Claim, type_: str, size: int) -> RawFrame:
    data = {"type": type_, "data": {"prompt_id": claim.run, "x": "x" * size}}
    return RawFrame(run=claim.run, data=json.dumps(data).encode(), text=True)
