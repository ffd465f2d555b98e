"""A real edge with a small API behind it that echoes what it gets."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.settings import Settings
from tests.fakes.nodes import FakeNodeRegistry
from tests.integration.haproxy_kit import (
    TICKETS,
    Broker,
    TinyNode,
    client,
    make_settings,
    raw_request,
    running,
)

LIMIT = 4096


class TinyApi(TinyNode):
    """Echoes requests, and streams events that the test lets go one by one."""

    def __init__(self, port: int) -> None:
        super().__init__("api")
        self.port = port
        self.events: asyncio.Queue[str | None] = asyncio.Queue()
        self.breaks = 0  # requests that it still gets, and does not answer

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if self.breaks:
            self.breaks -= 1
            return False
        if b"/events " in head:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            while (event := await self.events.get()) is not None:
                data = f"data: {event}\n\n".encode()
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            writer.write(b"0\r\n\r\n")
            return True
        if b"\r\nupgrade: websocket" in head.lower() and re.match(rb"GET \S*/ws[ ?]", head):
            accept = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            writer.write(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + accept)
            while data := await reader.read(1024):
                writer.write(data)
            return True
        rest = asyncio.StreamReader()
        rest.feed_data(head)
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        rest.feed_data(await reader.readexactly(length))
        return await super().serve_one(rest, writer)


@dataclass
class Edge:
    settings: Settings
    api: TinyApi
    http: httpx.AsyncClient
    broker: Broker

    async def raw(
        self, path: str, *headers: str, method: str = "GET", body: bytes = b"", console: bool = False
    ) -> bytes:
        port = self.settings.console_port if console else self.settings.port
        return await raw_request(port, method, path, *headers, body=body)


@contextlib.asynccontextmanager
async def edge_of(
    folder: Path,
    *nodes: Node,
    ticket_key: Callable[[], bytes | None] = lambda: TICKETS.key,
    certificate_look_s: float = 5.0,
    **more: object,
) -> AsyncIterator[Edge]:
    settings = make_settings(folder, max_body_bytes=LIMIT, **more)
    api = TinyApi(settings.api_port)
    async with (
        api,
        running(
            folder,
            FakeNodeRegistry(nodes),
            settings=settings,
            ticket_key=ticket_key,
            certificate_look_s=certificate_look_s,
        ) as broker,
        client(base_url=f"http://127.0.0.1:{settings.port}") as http,
    ):
        yield Edge(settings, api, http, broker)
