"""How a websocket of ComfyUI's clients ends."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

from starlette.types import Message

from comfy_fleet.api.native import socket
from comfy_fleet.ports.sessions import Sessions
from comfy_fleet.services.session_watch import SessionWatch


class SignedOut(SessionWatch):
    """Every session is over."""

    @contextmanager
    def follow(self, token: str, key: str) -> Iterator[asyncio.Event]:
        over = asyncio.Event()
        over.set()
        yield over


async def test_a_client_that_goes_just_before_it_is_let_go_is_no_error() -> None:
    comes = [{"type": "websocket.connect"}]
    gone: list[str] = []

    async def attach(*_: object) -> Any:
        return lambda: gone.append("it has left")

    async def receive() -> Message:
        if comes:
            return comes.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "websocket.close":
            raise OSError("the client is gone")

    deps = SimpleNamespace(
        settings=SimpleNamespace(socket_bytes=1000),
        session_watch=SignedOut(cast(Sessions, None)),
        clients=SimpleNamespace(attach=attach),
    )
    scope = {
        "type": "websocket",
        "path": "/ws",
        "query_string": b"",
        "headers": [],
        "deps": deps,
        "principal": SimpleNamespace(owner="me", key=""),
        "session": "s",
    }
    await socket.serve(scope, receive, send)
    assert gone
