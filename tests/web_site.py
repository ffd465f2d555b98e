"""A web site whose answers a test chooses by path, and that counts what it is asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.stream_server import StreamServer

Sends = Callable[[asyncio.StreamWriter], Awaitable[None]]


def page(body: bytes = b"hello", head: str = "", status: str = "200 OK") -> Sends:
    """Return what sends this answer; ``head`` are more lines, each with its end; surrogates are odd bytes."""

    async def send(writer: asyncio.StreamWriter) -> None:
        lines = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n"
        writer.write(lines.encode("utf-8", "surrogateescape") + body)
        await writer.drain()

    return send


class Site:
    """The site.

    Attributes:
        pages: Its answers by path and query; others are a 404.
        heads: The requests' heads.
        bodies: Their bodies.
        port: Where it is on loopback.
    """

    def __init__(self) -> None:
        self.pages: dict[str, Sends] = {}
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.port = 0

    def url(self, path: str) -> str:
        """Return a page's URL."""
        return f"http://127.0.0.1:{self.port}{path}"

    def asked(self, path: str) -> int:
        """Return how often a page was asked for."""
        return sum(head.split()[1] == path for head in self.heads)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        lines = head.lower().split("\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
        self.bodies.append(await reader.readexactly(length))
        await self.pages.get(head.split()[1], page(status="404 Not Found"))(writer)


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """Serve one on loopback."""
    made = Site()
    async with StreamServer(made.serve) as server:
        made.port = server.port
        yield made
