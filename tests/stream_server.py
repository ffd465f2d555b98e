"""A TCP server for tests that leaves no connection open when it stops."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class StreamServer:
    """Serves each connection in a task.

    ``asyncio.start_server`` with a coroutine function loses those that it has taken and not begun to serve
    when the loop ends; whoever finds such a socket, in another test, is told of a leak.

    Args:
        serve: Serves a connection; it is cancelled when the server stops.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._transports: list[asyncio.WriteTransport] = []
        self._serving: set[asyncio.Future[None]] = set()

    async def start(
        self, port: int = 0, *, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
    ) -> int:
        """Listen, with TLS if there is a context; returns the port."""
        self._server = await asyncio.start_server(self._accept, host, port, ssl=context)
        return int(self._server.sockets[0].getsockname()[1])

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports = [one for one in self._transports if not one.is_closing()]
        self._transports.append(writer.transport)
        task: asyncio.Future[None] = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    async def stop(self) -> None:
        """Close everything."""
        self.close()
        for _ in range(5):
            await asyncio.sleep(0)  # what was taken just now is handed over
        while self._serving:
            for task in self._serving:
                task.cancel()
            await asyncio.wait(self._serving, timeout=0.1)
        for transport in self._transports:
            transport.abort()
        await asyncio.sleep(0)
