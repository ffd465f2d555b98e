"""Websockets at the entrance: how many a caller may have, and how one that breaks ends."""

import contextlib
from collections import Counter

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comfy_fleet.api.deps import owner_of
from comfy_fleet.api.errors import HttpError
from comfy_fleet.domain.about import NOTHING_HERE, WHERE_INSTEAD
from comfy_fleet.domain.principal import Principal

NO_REFERRER = (b"referrer-policy", b"no-referrer")
"""On every answer: a key may stand in the path."""

_INTERNAL_ERROR = 1011


class Handshake:
    """One websocket on its way through the entrance.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's.
        open_sockets: Counts the open ones by owner.

    Attributes:
        status: The answer to the handshake: 101 if it was accepted, 0 as long as there is none.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, open_sockets: Counter[str]) -> None:
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._open = open_sockets

    async def serve(self, handler: ASGIApp | None, who: Principal) -> None:
        """Let the handler of its path serve it, if there is one and the caller has not too many.

        Raises:
            HttpError: 403 for agents; 404; 429 ``too_many_sockets``.
        """
        if handler is None:
            raise HttpError(404, "not_found", NOTHING_HERE, details=WHERE_INSTEAD)
        owner = owner_of(who)
        most = who.limits.sockets
        if self._open[owner] >= most:
            raise HttpError(
                429,
                "too_many_sockets",
                f"{most} websockets are open already (FLEET_MAX_SOCKETS): close one",
                headers={"Retry-After": "5"},
            )
        self._open[owner] += 1
        try:
            await handler(self._scope, self._receive, self.send)
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]

    async def send(self, message: Message) -> None:
        """Send one of ASGI's messages."""
        if message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"] == "websocket.http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), NO_REFERRER]}
        await self._send(message)

    async def refuse(self, answer: Response) -> None:
        """Answer the handshake; after it, close the connection."""
        if not self.status:
            await answer(self._scope, self._receive, self.send)
        elif self.status == 101:
            with contextlib.suppress(OSError, RuntimeError):  # the client is gone, or it is closed already
                await self._send({"type": "websocket.close", "code": _INTERNAL_ERROR})
