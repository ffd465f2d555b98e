"""A way between two processes that can be cut, stalled and refused."""

import asyncio
import socket
import struct
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
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Open it."""
        self._server = await asyncio.start_server(  # noqa: TID251 - its transports are kept, and closed
            self._accept, "127.0.0.1", self.port, limit=_CHUNK
        )

    async def close(self) -> None:
        """Close it for good."""
        self._flows.set()
        if self._server is not None:
            await close(self._server, self._open)
        await asyncio.gather(*self._serving, return_exceptions=True)

    def cut(self) -> None:
        """Reset all its connections; new ones are possible."""
        for transport in tuple(self._open):
            _reset(transport)

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

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Here, not in the task: it is known from the first moment.
        self._open.add(writer.transport)
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        both = {writer.transport}
        try:
            if self._refused:
                _reset(writer.transport)
                return
            there, back = await self._connect()
            both.add(back.transport)
            self._open.add(back.transport)
            await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        except (OSError, RuntimeError):  # nobody is there, or a side is gone: so is the other then
            for one in both:
                _reset(one)
        finally:
            self._open -= both
            for one in both:
                one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        await self._flows.wait()
        with suppress(OSError, RuntimeError):  # it is closed already
            writer.write_eof()


def _reset(transport: asyncio.WriteTransport) -> None:
    """Close a connection so that the other side sees a reset."""
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.family != socket.AF_UNIX:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
