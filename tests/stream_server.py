"""A TCP server for tests that leaves no connection open when it stops."""

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Awaitable, Callable
from typing import Self

from comfy_fleet.connections import close

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class StreamServer:
    """Serves each connection in a task, and closes it then.

    ``asyncio.start_server`` with a coroutine function loses those that it has taken and not begun to serve
    when the loop ends; whoever finds such a socket, in another test, is told of a leak.

    Args:
        serve: Serves a connection; it is cancelled when the server stops.
        port: Port to listen on; 0 lets the kernel choose.
        host: Address to listen on.
        context: For TLS.

    Attributes:
        port: The port that it listens on.
        open: Its connections.
    """

    def __init__(
        self,
        serve: Serve,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.port = port
        self._serve = serve
        self._host = host
        self._context = context
        self.open: set[asyncio.WriteTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(  # noqa: TID251
            self._accept, self._host, self.port
        )
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Here, not in the task: one that is cancelled before it begins does nothing at all.
        self.open.add(writer.transport)
        task = asyncio.create_task(self._attend(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, writer.transport))

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._context is not None:
            # Not by asyncio's server: nobody knows of a connection of its that is still shaking hands.
            try:
                await writer.start_tls(self._context)
            except OSError:
                return
        await self._serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def _ended(self, transport: asyncio.WriteTransport, task: asyncio.Task[None]) -> None:
        transport.abort()
        self.open.discard(transport)
        self._tasks.discard(task)

    async def stop(self) -> None:
        """Close everything; nothing happens if it was done before."""
        self._cancel()
        await close(self._server, self.open)
        while self._tasks:
            self._cancel()
            await asyncio.wait(self._tasks, timeout=0.1)
        await asyncio.sleep(0)  # what the last of them have aborted is closed

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
