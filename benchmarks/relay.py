"""A relay for TCP: an address that can lead elsewhere, or a line with a delay that can be cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_PART = 1 << 16


class Relay:
    """Passes connections to its own port on to another address.

    Args:
        target: Host and port; None: every connection is closed at once.
        delay_s: How long bytes are on their way, in each direction.
    """

    def __init__(self, target: tuple[str, int] | None, *, delay_s: float = 0.0) -> None:
        self.target = target
        self._delay_s = delay_s
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        """Listen on a port of loopback that the kernel chooses, until the block ends."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)  # noqa: TID251
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            self.lead_to(None)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead_to(self, target: tuple[str, int] | None) -> None:
        """Cut all connections, with what is on its way, and lead new ones elsewhere."""
        self.target = target
        for writer in tuple(self._open):
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.target is None:
                return
            host, port = self.target
            there_reader, there = await asyncio.open_connection(host, port)
            self._open.add(there)
            try:
                await asyncio.gather(self._pass(reader, there), self._pass(there_reader, writer))
            finally:
                self._open.discard(there)
                there.transport.abort()
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()

        def send(data: bytes) -> None:
            if not writer.transport.is_closing():
                writer.write(data)

        with contextlib.suppress(OSError):
            while data := await reader.read(_PART):
                if self._delay_s:
                    loop.call_later(self._delay_s, send, data)
                else:
                    send(data)
                    await writer.drain()
        writer.transport.abort()
