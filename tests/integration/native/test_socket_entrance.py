"""Websockets at the entrance: who gets in, how many, and how each one ends."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from comfy_fleet.api import websocket_protocol
from comfy_fleet.api.native import routes
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.timeouts import Timeout
from tests.fleet import until
from tests.integration.api_kit import Api, running

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
LIMIT = 4


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, max_sockets=LIMIT) as started:
        yield started


def dial(api: Api, path: str = "/ws?clientId=c1", **more: Any) -> connect:
    return connect(api.url.replace("http", "ws") + path, proxy=None, **more)


async def refusal(api: Api, path: str = "/ws", **more: Any) -> tuple[int, bytes]:
    with pytest.raises(InvalidStatus) as caught:
        await dial(api, path, **more)
    return caught.value.response.status_code, bytes(caught.value.response.body or b"")


def serving(monkeypatch: pytest.MonkeyPatch, handler: Handler) -> None:
    monkeypatch.setattr(routes, "SOCKETS", {"/ws": handler})


async def accepted(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})


@pytest.mark.parametrize("path", ["/ws", "/api/ws"])
async def test_a_client_is_let_in_with_and_without_the_prefix(api: Api, path: str) -> None:
    async with dial(api, f"{path}?clientId=me") as client:
        first = json.loads(await client.recv())
        assert first["type"] == "status"


async def test_other_paths_have_no_websocket(api: Api) -> None:
    for path in ("/", "/queue", "/api/v1/jobs", "/ws/x"):
        assert (await refusal(api, path))[0] == 404


async def test_the_path_of_the_websocket_is_no_page(api: Api) -> None:
    answer = await api.client.get("/ws")
    assert answer.status_code == 426
    assert answer.headers["upgrade"] == "websocket"


async def test_an_owner_has_so_many_and_no_more(api: Api) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(dial(api)) for _ in range(LIMIT)]
        status, body = await refusal(api)
        assert status == 429 and b"FLEET_MAX_SOCKETS" in body
        assert f"fleet_websockets {LIMIT}.0" in (await api.client.get("/metrics")).text
        await clients[0].close()
        await until(lambda: api.deps.sockets["local"] < LIMIT, what="a place is free")
        await stack.enter_async_context(dial(api))
    await until(lambda: not api.deps.sockets, what="all are gone")


async def test_an_error_before_the_handshake_is_an_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFound("no such thing")

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    serving(monkeypatch, refuses)
    assert (await refusal(api))[0] == 404
    assert [
        one for one in caplog.records if one.levelname in ("WARNING", "ERROR")
    ] == []  # nobody fills the log
    serving(monkeypatch, breaks)
    assert (await refusal(api))[0] == 500
    assert not api.deps.sockets


async def test_an_error_after_the_handshake_closes_the_connection(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await accepted(receive, send)
        raise ZeroDivisionError

    serving(monkeypatch, breaks)
    async with dial(api) as client:
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1011


async def test_a_message_that_is_too_large_ends_the_connection(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_protocol, "LINGER_S", 0.2)
    async with dial(api) as client:
        await client.recv()
        await client.send("x" * websocket_protocol.MAX_MESSAGE_BYTES)
        with contextlib.suppress(ConnectionClosed):
            await client.send("x" * (websocket_protocol.MAX_MESSAGE_BYTES + 1))
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009
    await until(lambda: not api.deps.sockets, what="it is gone")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /ws?clientId=" + b"x" * 9000 + b" HTTP/1.1\r\n",
        b"GET /ws HTTP/1.1\r\nCookie: other=" + b"x" * 9000 + b"\r\n",
        b"GET /ws HTTP/1.1\r\n" + b"X-A: b\r\n" * 130,
    ],
    ids=["a long id", "a long cookie", "many headers"],
)
async def test_a_handshake_that_is_too_long_is_answered(api: Api, head: bytes) -> None:
    host, _, port = api.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(
            head + b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with Timeout(60):
            answer = await reader.read()
    finally:
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert "8 KiB" in told["error"]["message"]
    await until(lambda: not api.server.server_state.connections, what="it is gone")


async def test_of_two_client_ids_the_first_counts(api: Api) -> None:
    async with dial(api, "/ws?clientId=me&clientId=you") as client:
        assert json.loads(await client.recv())["data"]["sid"] == "me"


def connections(api: Api) -> list[websocket_protocol.WebSocketProtocol]:
    return [
        one
        for one in api.server.server_state.connections
        if isinstance(one, websocket_protocol.WebSocketProtocol)
    ]


def deaf(api: Api) -> socket.socket:
    """Open a websocket of a client that reads only the answer to its handshake."""
    host, _, port = api.url.removeprefix("http://").partition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    sock.sendall(
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    return sock


async def test_a_client_that_never_reads_holds_up_its_own_sender_alone_and_is_let_go(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_protocol, "LINGER_S", 0.2)
    enough = asyncio.Event()

    async def floods(scope: Scope, receive: Receive, send: Send) -> None:
        async def flood() -> None:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(64 * 1024)})

        await accepted(receive, send)
        flooding = asyncio.create_task(flood())
        await enough.wait()
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)

    serving(monkeypatch, floods)
    with deaf(api) as sock:
        await until(lambda: connections(api), what="it is connected")
        (connection,) = connections(api)
        await until(lambda: not connection.writable.is_set(), what="the kernel takes no more")
        assert connection.transport.get_write_buffer_size() < 256 * 1024
        enough.set()
        await until(
            lambda: not connections(api), what="the connection is gone although its client still holds it"
        )
        assert sock.fileno() >= 0


@pytest.mark.parametrize("last", ["a message", "the close"])
async def test_a_handler_is_not_held_up_by_a_client_that_never_reads(
    api: Api, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    monkeypatch.setattr(websocket_protocol, "LINGER_S", 0.2)
    monkeypatch.setattr(websocket_protocol, "STALL_S", 0.2 if last == "a message" else 60.0)
    ended = asyncio.Event()

    async def floods(scope: Scope, receive: Receive, send: Send) -> None:
        await accepted(receive, send)
        try:
            (connection,) = connections(api)
            while last == "a message" or connection.writable.is_set():
                await send({"type": "websocket.send", "bytes": bytes(64 * 1024)})
            await send({"type": "websocket.close", "code": 1013})
        finally:
            ended.set()

    serving(monkeypatch, floods)
    with deaf(api):
        await asyncio.wait_for(ended.wait(), 60)
        await until(lambda: not connections(api) and not api.deps.sockets, what="it is gone")


async def test_the_end_of_the_server_is_told(api: Api) -> None:
    async with dial(api) as client:
        await client.recv()
        api.server.should_exit = True
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1001
    await asyncio.wait_for(api.serving, 60)


async def test_no_client_holds_up_the_end_of_the_server(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_protocol, "LINGER_S", 0.2)

    async def floods(scope: Scope, receive: Receive, send: Send) -> None:
        await accepted(receive, send)
        while True:
            await send({"type": "websocket.send", "bytes": bytes(64 * 1024)})

    serving(monkeypatch, floods)
    with deaf(api):
        await until(lambda: api.deps.sockets["local"] == 1, what="it is let in")
        api.server.should_exit = True
        await asyncio.wait_for(api.serving, 60)
