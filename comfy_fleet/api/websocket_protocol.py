"""The server's end of a websocket: uvicorn's over the package ``websockets``, made to let go of its client.

uvicorn's own waits for what it has written before it closes a connection, so a client that never reads could
hold one for as long as it likes. And it logs each request's path, and at level ``debug`` its headers.
"""

import logging
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from comfy_fleet.timeouts import Timeout

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from websockets.frames import Frame

MAX_MESSAGE_BYTES = 256 * 1024
"""Largest message of a client: they send feature flags, of less than 1 kB."""
PING_S = 20.0
"""Proxies and routers forget connections without traffic, often after 60 s. An answer is not waited for: a
program that reads only while its prompt runs gives none for hours. If its machine is gone, TCP finds out."""
STALL_S = 120.0
"""How long a client may take nothing of what it has to be sent."""
LINGER_S = 5.0
"""How long a client has to take the rest and to say goodbye, once it is told to, or its handler is done."""

_GOING_AWAY = 1001
_MOST_UNREAD = 100
"""Messages of one connection about which is asked whether they were read."""
_BAD_HEAD = (
    b'{"error": {"type": "invalid_request", "message": "this request can not be read: a websocket may ask in '
    b'lines of 8 KiB and 128 headers at most; look at its clientId and its cookies", "details": "", '
    b'"extra_info": {}}, "node_errors": {}}'
)
"""The limits are those of ``websockets``."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection.

    A message that a handler sends waits while the client does not take the earlier ones: at most the
    transport's buffer (64 KiB) and one message are in memory. It waits for :data:`STALL_S` at most; then the
    connection is gone, and ``send`` raises OSError. When a handler closes the connection, or returns, it is
    gone :data:`LINGER_S` later, whatever the client does.

    A ``websocket.send`` may have an ``on_read``: it is called once the client has answered a ping that was
    sent behind the message, so that it has read the message.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.logger = logging.getLogger("websockets.server")  # `logs.py` lets through what is worth a line
        self.conn.logger, self.conn.debug = self.logger, False
        self._pings = count(1)
        self._unread: deque[tuple[bytes, Callable[[], None]]] = deque(maxlen=_MOST_UNREAD)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client; answer a handshake that can't be read, as uvicorn does not."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self.handshake_initiated = self.handshake_complete = self.close_sent = True
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Referrer-Policy: no-referrer\r\nConnection: close\r\n\r\n%b" % (len(_BAD_HEAD), _BAD_HEAD)
            )
            self.transport.close()
            self._abort_soon()

    async def run_asgi(self) -> None:
        """Run the handler."""
        await super().run_asgi()
        self._abort_soon()

    async def send(self, message: "ASGISendEvent") -> None:
        """Send one of ASGI's messages, once the client has taken the earlier ones."""
        if message["type"] == "websocket.close":
            self._abort_soon()
        elif not self.writable.is_set():
            try:
                async with Timeout(STALL_S):
                    await self.writable.wait()
            except TimeoutError:
                self.transport.abort()
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # by a refusal; uvicorn would log that there was no answer
        if (on_read := cast("dict[str, Any]", message).get("on_read")) is not None:
            self._ask(on_read)

    def _ask(self, on_read: Callable[[], None]) -> None:
        ping = b"read %d" % next(self._pings)  # uvicorn's own have four bytes
        self._unread.append((ping, on_read))
        self.conn.send_ping(ping)
        self.transport.write(b"".join(self.conn.data_to_send()))

    def handle_pong(self, event: "Frame") -> None:
        """Take the answer to a ping; it stands for those to all earlier ones."""
        pong = bytes(event.data)
        if any(pong == ping for ping, _ in self._unread):
            while self._unread:
                ping, on_read = self._unread.popleft()
                on_read()
                if ping == pong:
                    return
        super().handle_pong(event)

    def shutdown(self) -> None:
        """Say goodbye, because the server stops: the handler's next ``receive`` tells it."""
        if self.handshake_complete and not self.close_sent:
            self.stop_keepalive()
            self.queue.put_nowait({"type": "websocket.disconnect", "code": _GOING_AWAY})
            self.conn.send_close(_GOING_AWAY, "the server stops")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
        else:
            super().shutdown()
        self._abort_soon()

    def _abort_soon(self) -> None:
        self.loop.call_later(LINGER_S, self.transport.abort)
