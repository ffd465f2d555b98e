"""A node between the fleet and a sound one: it passes all on but the calls that it answers badly."""

import asyncio
import base64
import hashlib
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterable
from functools import cache
from typing import Any, Self

from tests.stream_server import StreamServer

MIB = 1024 * 1024
HUGE = 1200 * MIB
JSON = "Content-Type: application/json\r\n"


@cache
def packed_blanks() -> bytes:
    """Return 600 MiB of blanks in a list, as gzip packs them; one MiB is packed once, and repeated."""
    blanks, whole = b" " * MIB, zlib.crc32(b"[")
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    head = packer.compress(b"[") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(blanks) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = packer.compress(b"]") + packer.flush()
    for _ in range(600):
        whole = zlib.crc32(blanks, whole)
    whole, size = zlib.crc32(b"]", whole), 600 * MIB + 2
    checks = whole.to_bytes(4, "little") + size.to_bytes(4, "little")
    return b"\x1f\x8b\x08" + bytes(5) + b"\x02\xff" + head + block * 600 + tail + checks


async def endless(writer: asyncio.StreamWriter) -> None:
    """Send bytes until nobody takes them."""
    writer.write(f"HTTP/1.1 200 OK\r\n{JSON}Connection: close\r\n\r\n[".encode())
    while True:
        writer.write(b" " * MIB)
        await writer.drain()


async def huge(writer: asyncio.StreamWriter) -> None:
    """Announce 1.2 GB and send them."""
    writer.write(f"HTTP/1.1 200 OK\r\n{JSON}Content-Length: {HUGE}\r\n\r\n".encode())
    for _ in range(HUGE // MIB):
        writer.write(b" " * MIB)
        await writer.drain()


async def bomb(writer: asyncio.StreamWriter) -> None:
    """Send a small body that unpacks to 600 MB."""
    body = packed_blanks()
    head = f"HTTP/1.1 200 OK\r\n{JSON}Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def answer(body: bytes) -> "Bad":
    """Return what answers this."""

    async def answered(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\n{JSON}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    return answered


async def unavailable(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


Bad = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]
ANSWERS: dict[str, Bad] = {
    "endless": endless,
    "huge": huge,
    "bomb": bomb,
    "values": answer(b"[" + b"[]," * (7 * MIB) + b"[]]"),  # twenty times as much to hold
}


def frame(opcode: int, size: int) -> bytes:
    """Return the head of a server's websocket frame."""
    return bytes([0x80 | opcode, 127]) + size.to_bytes(8, "big")


class HostileNode:
    """Listens in a thread of its own.

    Attributes:
        bad: What is answered badly: the beginning of a path, and how.
        frames: What a websocket gets after its handshake: heads and bodies, or what makes them for a run's
            id; None passes it on.
        sent: All frames were taken.
    """

    def __init__(self, port: int, sound: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.bad: dict[str, Bad] = {}
        self.frames: Iterable[bytes] | Callable[[str], Iterable[bytes]] | None = None
        self.sent = False
        self.asked: list[str] = []
        self._server = StreamServer(self._serve, port)
        self._sound = sound.removeprefix("http://").split(":")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            self.asked.append(path)
            bad = next((answer for start, answer in self.bad.items() if path.startswith(start)), None)
            if path.startswith("/ws") and self.frames is not None:
                await self._websocket(head, reader, writer)
            elif bad is not None:
                await bad(writer)
            else:
                await self._pass_on(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _websocket(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        key = next(
            line.split(b":")[1].strip()
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        )
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        run = head.split(b" ", 2)[1].decode().rpartition("clientId=")[2]
        for part in (self.frames(run) if callable(self.frames) else self.frames) or ():
            writer.write(part)
            await writer.drain()
        self.sent = True
        await reader.read()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(*self._sound)
        upgrade = b"upgrade: websocket" in head.lower()
        lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(b"connection:")]
        lines.append(b"Connection: Upgrade" if upgrade else b"Connection: close")
        here.write(b"\r\n".join(lines) + b"\r\n\r\n")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()

        sending = asyncio.create_task(copy(reader, here))
        try:
            await copy(there, writer)
        finally:
            sending.cancel()
            here.transport.abort()
