"""Run the API: one process, one event loop, behind the edge."""

import asyncio
import socket
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp

from comfy_fleet.settings import Settings

GRACE_S = 10  # requests in flight get this long after SIGTERM
_BACKLOG = 2048


class Server(uvicorn.Server):
    """A uvicorn server that ends event streams before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests; streams end, other requests finish."""
        self._closing.set()
        await super().shutdown(sockets)


def server(app: ASGIApp, settings: Settings, closing: asyncio.Event) -> Server:
    """Return the server of an app; ``await server.serve(sockets=...)`` runs it."""
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # links.py reads what the edge says; nothing else needs it
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
        backlog=_BACKLOG,
    )
    return Server(config, closing)


async def run(
    app: ASGIApp, settings: Settings, closing: asyncio.Event, sockets: Sequence[socket.socket] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT."""
    await server(app, settings, closing).serve(list(sockets) if sockets else None)
