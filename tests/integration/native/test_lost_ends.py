"""Ends of prompts while their client is slow, cut off, or at another process: each is told, and told once."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.sockets import RedisSocketStore
from comfy_fleet.api.native.outgoing import Outgoing
from comfy_fleet.ports.runs import Claim
from comfy_fleet.sim import SimTiming
from tests.children import mortal
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.integration.native.socket_kit import Client, client_of, faced
from tests.integration.native.test_client_hub import hub_of
from tests.integration.native.test_socket import over_websocket
from tests.integration.native.test_socket_kills import api_process, said

_RESET = struct.pack("ii", 1, 0)


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


class Deaf:
    """A client that has opened a websocket, answers no ping, and reads only what a test has it read."""

    def __init__(self, url: str, client_id: str) -> None:
        self._read = b""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        self._socket.sendall(
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def read(self) -> bytes:
        """Return what has come."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while data := self._socket.recv(65536):
                self._read += data
        return self._read

    def say_goodbye(self) -> None:
        """Close the websocket as the protocol has it."""
        self._socket.sendall(b"\x88\x82\0\0\0\0" + struct.pack(">H", 1000))

    def cut(self) -> None:
        """Break the connection without a word."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()


@asynccontextmanager
async def deaf_client(url: str, client_id: str) -> AsyncIterator[Deaf]:
    client = Deaf(url, client_id)
    try:
        await until(lambda: b'"sid"' in client.read(), what="it is connected")
        yield client
    finally:
        client.cut()


async def ends(client: Client, *prompts: str) -> dict[str, int]:
    """Read until each prompt has ended, and then to the end of another one; return how often each ended."""
    last = await client.post(picture(9))
    await client.http.post("/queue", json={"delete": [last]})
    waited = {*prompts, last}
    while waited:
        type_, data = await client.next()
        if type_ == "executing" and data["node"] is None:
            waited.discard(data["prompt_id"])
    return {prompt: client.of(prompt).count("executing None") for prompt in prompts}


async def prompts_of(api: Api, client_id: str, count: int) -> list[str]:
    bodies = [{"prompt": picture(color), "client_id": client_id} for color in range(count)]
    return [(await api.client.post("/prompt", json=body)).json()["prompt_id"] for body in bodies]


async def stuff(api: Api, run: Claim, *, times: int) -> None:
    """Send a client what it must not miss, until nothing more goes to its socket."""
    for _ in range(times):
        await api.stores.runs.frames([(run, [said(run, "an.extension's", 60_000)])])


@pytest.mark.parametrize("back", ["the same process", "another process"])
@pytest.mark.parametrize("way", ["cut", "too slow", "given up"])
async def test_what_ended_before_a_websocket_broke_is_told_when_its_client_comes_back(
    redis_port: int, tmp_path: Path, way: str, back: str
) -> None:
    async with (
        running(redis_port, tmp_path, socket_bytes=1024 * 1024) as api,
        running(redis_port, tmp_path) as other,
    ):
        await api.add_node("g1")
        name = uuid4().hex

        async def known(untold: set[str]) -> bool:
            kept = await RedisSocketStore(api.stores.redis).last("local", name)
            return kept is not None and untold <= set(kept.untold)

        async with deaf_client(api.url, name) as deaf:
            sent, waits, later = await prompts_of(api, name, 3)
            run = await api.claim(sent)
            await api.finish(run)  # its end goes into the socket, where it stays
            run = await api.claim(waits)
            await stuff(api, run, times=12)
            await api.finish(run)  # its end waits behind what the socket does not take
            run = await api.claim(later)
            if way == "too slow":
                while api.deps.sockets["local"]:
                    await stuff(api, run, times=5)
            elif way == "cut":
                deaf.cut()
                await until(lambda: not api.deps.sockets["local"], what="it is seen that it is gone")
            if back == "another process":
                await until(partial(known, {sent, waits, later}), what="all processes know what is untold")
            at = api if back == "the same process" else other
            async with client_of(at.url, name) as again:
                await api.finish(run)
                assert await ends(again, sent, waits, later) == {sent: 1, waits: 1, later: 1}


@pytest.mark.parametrize("back", ["the same process", "another process"])
async def test_what_a_client_has_read_is_not_told_again(redis_port: int, tmp_path: Path, back: str) -> None:
    async with running(redis_port, tmp_path) as api, running(redis_port, tmp_path) as other:
        await api.add_node("g1")
        name = uuid4().hex
        async with client_of(api.url, name) as client:
            first, second = await prompts_of(api, name, 2)
            for prompt in (first, second):
                await api.finish(await api.claim(prompt))
            assert await ends(client, first, second) == {first: 1, second: 1}

            job = await api.stores.jobs.get(second)
            assert job is not None and job.completed_at is not None
            ended_at = job.completed_at

            async def known() -> bool:
                kept = await RedisSocketStore(api.stores.redis).last("local", name)
                return kept is not None and not kept.untold and kept.kept_at > ended_at

            await until(known, what="every process knows that it was told")
            client.socket.transport.abort()
            await until(lambda: not api.deps.sockets["local"], what="it is seen that it is gone")
        async with client_of(api.url if back == "the same process" else other.url, name) as again:
            await ends(again)
            assert not again.of(first) and not again.of(second)


async def test_a_client_that_says_goodbye_has_read_all_even_if_it_answers_no_ping(
    redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api:
        await api.add_node("g1")
        name = uuid4().hex
        async with deaf_client(api.url, name) as client:
            (prompt,) = await prompts_of(api, name, 1)
            await api.finish(await api.claim(prompt))
            await until(lambda: b'"executing", "data": {"node": null' in client.read(), what="it has come")
            client.say_goodbye()
            await until(lambda: not api.deps.sockets["local"], what="it has left")
        async with client_of(api.url, name) as again:
            await ends(again)
            assert not again.of(prompt)


async def test_an_end_that_a_killed_process_had_sent_to_a_slow_client_is_told_by_another(
    redis_port: int, tmp_path: Path
) -> None:
    async with (
        faced(redis_port, "g1") as fleet,
        api_process(fleet.fleet, tmp_path) as (url, killed),
        client_of(fleet.url) as other,
    ):
        name = uuid4().hex
        async with deaf_client(url, name):
            prompt = await other.post(picture(1), client_id=name)
            await fleet.fleet.ended(prompt)
            killed.kill()
            killed.wait()
        async with client_of(fleet.url, name) as again:
            assert await ends(again, prompt) == {prompt: 1}
            assert again.of(prompt).count("executed 2") == again.of(prompt).count("execution_success") == 1
        theirs = await other.post(picture(2))
        assert await ends(other, theirs) == {theirs: 1} and not other.of(prompt)


@pytest.mark.parametrize("how", ["cut", "killed"])
async def test_a_client_with_hundreds_of_prompts_loses_no_end(
    redis_port: int, tmp_path: Path, how: str
) -> None:
    async with (
        running(redis_port, tmp_path) as api,
        running(redis_port, tmp_path) as other,
        hub_of(api) as (dying, store),
    ):
        await api.add_node("g1")
        name = uuid4().hex

        async def known() -> bool:
            kept = await store.last("local", name)
            return kept is not None and owed <= set(kept.untold)

        outgoing = Outgoing(1024 * 1024)  # nobody reads it
        detach = await dying.attach("local", name, outgoing)
        prompts = await prompts_of(api, name, 250)
        owed = set(prompts)
        await until(known, what="all processes know of all prompts")
        for prompt in prompts[:2]:
            await api.finish(await api.claim(prompt))
        await until(lambda: len(outgoing.untold()) == 2, what="the first ends are on their way")
        if how == "cut":
            detach()
            await until(known, what="all processes know what is untold")
        store.down = True  # as if it were killed now
        await api.client.post("/queue", json={"delete": prompts[2:]})
        async with client_of(other.url, name) as again:
            assert await ends(again, *prompts) == dict.fromkeys(prompts, 1)


@pytest.mark.parametrize("lost", ["gone", "cut short"])
async def test_a_picture_that_can_not_be_read_costs_its_client_that_picture_alone(
    redis_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    async with running(redis_port, tmp_path) as api, client_of(api.url, uuid4().hex) as client:
        await api.add_node("g1")
        prompt = await client.post(over_websocket(1))
        run = await api.claim(prompt)
        lost_one = await api.output(run, b"a picture", name="websocket_1.png", node="2")
        await api.output(run, b"another picture", name="websocket_2.png", node="3")
        asset = await api.assets.get(lost_one.asset_id)
        assert asset is not None
        file = api.deps.settings.files_dir / asset.path
        if lost == "gone":
            file.unlink()
        else:
            file.write_bytes(b"a")
        await api.finish(run)
        told = await client.ended(prompt)
        assert [data[8:] for type_, data in told if type_ == "binary"] == [b"another picture"]
        assert "execution_success" in [type_ for type_, _ in told]
        assert asset.id in caplog.text


async def test_a_dispatchers_process_is_killed_while_frames_flow(redis_port: int, tmp_path: Path) -> None:
    async with faced(redis_port, "g1", "g2", dispatch=False, sim={"timing": SimTiming(job_s=3)}) as fleet:
        clients = [await fleet.client() for _ in range(2)]
        prompts = [await client.post(picture(color)) for color, client in enumerate(clients)]
        settings = fleet.fleet.settings
        names = ("redis_url", "data", "lease_ttl_s", "beat_s")
        env = {**os.environ, **{f"FLEET_{name.upper()}": str(getattr(settings, name)) for name in names}}
        with (tmp_path / "log").open("wb") as log:
            argv = [sys.executable, "-m", "comfy_fleet", "dispatch", "--name", "killed"]
            process = subprocess.Popen(mortal(argv), env=env, stderr=log)
        try:
            for client in clients:
                await client.until(lambda type_, _: type_ == "progress_state")
        finally:
            process.kill()
            process.wait()
        await fleet.fleet.dispatcher("d2")
        for client, prompt in zip(clients, prompts, strict=True):
            await client.ended(prompt)
            told = client.of(prompt)
            assert told.count("execution_start") == told.count("executed 2") == 1
            assert told[-3:] == ["executed 2", "execution_success", "executing None"]
            assert len((await fleet.fleet.ended(prompt)).attempts) == 1  # it went on
