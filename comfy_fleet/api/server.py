"""The API's HTTP server: how it begins and ends, alone or with a dispatcher in the same process."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from comfy_fleet.api.joined_writes import JoinedHttpProtocol
from comfy_fleet.api.websocket_protocol import MAX_MESSAGE_BYTES, PING_S, WebSocketProtocol
from comfy_fleet.settings import Settings

GRACE_S = 10  # time for requests in flight after SIGTERM
_BACKLOG = 2048


class Companion(Protocol):
    """A dispatcher in the same process, in a thread of its own."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """Stop claiming, end the runs in flight, and end; called again, hand them over at once."""

    async def ended(self) -> None:
        """Wait for its end; raises what ended it."""


class ApiServer(uvicorn.Server):
    """A uvicorn server that ends streams and websockets before it waits for connections to close.

    Args:
        config: Uvicorn's.
        closing: Set when it stops.
        companion: Started once requests are served, and gets the signals: the server stops after it.
    """

    def __init__(
        self, config: uvicorn.Config, closing: asyncio.Event, companion: Companion | None = None
    ) -> None:
        super().__init__(config)
        self._closing = closing
        self._companion = companion

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Obey SIGTERM and SIGINT, and exit with 0: uvicorn itself would exit by the signal."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._obey, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _obey(self, number: int) -> None:
        if self._companion is None:
            self.handle_exit(number, None)
        else:
            self._companion.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept requests."""
        await super().startup(sockets)
        if self.started and self._companion is not None:
            self._companion.start()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, or until the companion ends. Raises what ended that."""
        if self._companion is None:
            await super().serve(sockets)
            return
        following = asyncio.create_task(self._follow(self._companion))
        try:
            await super().serve(sockets)
        finally:
            if not self.started:  # nor was the companion
                following.cancel()
            elif not following.done():
                self._companion.stop()
            await asyncio.gather(following, return_exceptions=not self.started)

    async def _follow(self, companion: Companion) -> None:
        try:
            await companion.ended()
        finally:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting requests; streams end, other requests finish."""
        self._closing.set()
        await super().shutdown(sockets)


def server(
    app: ASGIApp, settings: Settings, closing: asyncio.Event, companion: Companion | None = None
) -> ApiServer:
    """Return the server of an app; ``await server.serve(sockets)`` runs it until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        http=JoinedHttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=PING_S,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,  # pictures do not get smaller, and each socket would cost 64 KiB more
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # links.py reads the edge's headers; nothing else needs them
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
        backlog=_BACKLOG,
    )
    return ApiServer(config, closing, companion)
