"""A node between the fleet and a sound one, which answers some calls as no ComfyUI does."""

import asyncio
import contextlib
import random
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from comfy_fleet.connections import close

PIECE = b" " * 65536
PIECES = 2000
"""So many pieces are sent at most: more than the fleet reads of any answer."""


class HostileProxy:
    """Listens on a port of its own; an async context manager.

    Args:
        sound: URL of the node that gets what is not answered badly.
        rng: Chooses.
    """

    def __init__(self, sound: str, rng: random.Random) -> None:
        parts = urlsplit(sound)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        self.bad = False
        """Whether it answers badly now and then; at first it does not, so that it is taken for a node."""

    async def __aenter__(self) -> Self:
        # What it has taken is closed below.
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)  # noqa: TID251
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await close(self._server, self._serving.values())
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def url(self) -> str:
        """Where it is."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer.transport
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if self.bad and self._rng.random() < 0.5:
                await self._answer_badly(writer)
            else:
                await self._pass_on(head, reader, writer)
        except (OSError, RuntimeError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a RuntimeError is uvloop's word for a connection that is closed
        finally:
            self._serving.pop(task, None)
            writer.transport.abort()

    async def _answer_badly(self, writer: asyncio.StreamWriter) -> None:
        json = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        way = self._rng.randrange(5)
        if way == 0:  # without end
            writer.write(json + b"Connection: close\r\n\r\n[")
            for _ in range(PIECES):
                writer.write(PIECE)
                await writer.drain()
        elif way == 1:  # something else
            body = self._rng.choice((b"null", b"[]", b"{", b'{"exec_info":-1}', b"\xff" * 100, b"[" * 9999))
            writer.write(json + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        elif way == 2:  # no HTTP
            writer.write(b"\0" * 1000)
        elif way == 3:  # a piece, and then nothing
            writer.write(json + b"Content-Length: 1000\r\n\r\n{")
            await writer.drain()
            await asyncio.sleep(self._rng.uniform(1, 10))
        with contextlib.suppress(OSError):
            await writer.drain()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection(self._host, self._port)
        try:
            their_writer.write(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, their_writer))
                group.create_task(_pump(their_reader, writer))
        except* (OSError, RuntimeError):
            pass
        finally:
            their_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
