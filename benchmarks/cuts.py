"""A way between two processes that can be cut, stalled and refused."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

from comfy_fleet.cli.up import ports
from comfy_fleet.connections import close

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_CHUNK = 256 * 1024


class Way:
    """A port on loopback that leads to another address.

    Args:
        name: Whose way it is, and where it leads.
        connect: Connects to that address.
    """

    def __init__(self, name: str, connect: Callable[[], Awaitable[Streams]]) -> None:
        self.name = name
        self.port = ports.draw(1)[0]
        self._connect = connect
        self._flows = asyncio.Event()
        self._flows.set()
        self._refused = False
        self._open: set[asyncio.WriteTransport] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Open it."""
        self._server = await asyncio.start_server(  # noqa: TID251 - its transports are kept, and closed
            self._serve, "127.0.0.1", self.port, limit=_CHUNK
        )

    async def close(self) -> None:
        """Close it for good."""
        self._flows.set()
        if self._server is not None:
            await close(self._server, self._open)

    def cut(self) -> None:
        """Reset all its connections; new ones are possible."""
        for transport in tuple(self._open):
            transport.abort()

    def refuse(self) -> None:
        """Reset all its connections, and every new one."""
        self._refused = True
        self.cut()

    def stall(self) -> None:
        """Pass nothing on, and close nothing."""
        self._flows.clear()

    def mend(self) -> None:
        """Let everything through again."""
        self._refused = False
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refused:
            writer.transport.abort()
            return
        try:
            there, back = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        both = {writer.transport, back.transport}
        self._open |= both
        try:
            ways = [asyncio.create_task(self._copy(*one)) for one in ((reader, back), (there, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open -= both
            for one in both:
                one.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
