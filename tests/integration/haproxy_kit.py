"""What the HAProxy tests share: tiny nodes, and a running controller with its agent."""

import asyncio
import base64
import contextlib
import csv
import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import InvalidStatus

from comfy_fleet.adapters.haproxy.controller import Controller
from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.agent import AgentCheckServer
from comfy_fleet.agent.host import HostAgent
from comfy_fleet.agent.node_source import NodesSource
from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.services.editor_ticket import EditorTickets
from comfy_fleet.settings import Settings
from tests.conftest import free_port
from tests.fakes.nodes import FakeNodeRegistry
from tests.fleet import PATIENCE_S, followed, unsealed
from tests.stream_server import StreamServer

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def eventually(
    what: str, done: Callable[[], bool | Awaitable[bool]], *, within_s: float = PATIENCE_S
) -> None:
    """Poll until something holds."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                held = done()
                if held if isinstance(held, bool) else await held:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}") from None


async def raw_request(where: int | Path, method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """Send a request to a port or a socket exactly as written; httpx would tidy its path up.

    Returns the whole answer.
    """
    if isinstance(where, int):
        reader, writer = await asyncio.open_connection("127.0.0.1", where)
    else:
        reader, writer = await asyncio.open_unix_connection(str(where))
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: fleet.test", "Connection: close", *headers])
    writer.write(head.encode() + b"\r\n\r\n" + body)
    answer = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer


def client(**options: Any) -> httpx.AsyncClient:
    """Return a client that opens a connection for each call.

    HAProxy may close one that is kept without an answer, and the client has to send the call again: when its
    worker is replaced, or when the call met a kept connection to a node that had just gone.
    """
    return httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0), **options)


async def counted(runtime: Runtime, proxy: str, column: str, *, kind: int = 4) -> int:
    """Sum a column of HAProxy's statistics up: of a backend's servers, or with kind 1 of a frontend."""
    told = await runtime.ask(f"show stat {proxy} {kind} -1")
    return sum(int(row[column] or 0) for row in csv.DictReader(io.StringIO(told.removeprefix("# "))))


class Listening(ABC):
    """A server on a port that the kernel chose; started again, it takes the same one."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.port = free_port()

    async def __aenter__(self) -> Self:
        self._server = StreamServer(self._serve, self.port, host=self.host)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""


SOUND = {
    "devices": [{"name": "cpu", "type": "cpu", "vram_total": 2**34, "vram_free": 2**33}],
    "queue_running": [],
    "queue_pending": [],
}
"""What an agent wants to hear of a node that is well, whatever it asks."""


class TinyNode(Listening):
    """An HTTP server that says who it is, and holds websockets open."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.tunnels = 0
        self.most_tunnels = 0
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.serve_one(reader, writer):
                pass

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("upgrade") == "websocket":
            key = base64.b64encode(hashlib.sha1((headers["sec-websocket-key"] + _GUID).encode()).digest())
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + key + b"\r\n\r\n"
            )
            self.tunnels += 1
            self.most_tunnels = max(self.most_tunnels, self.tunnels)
            try:
                await self._tunnel(reader, writer)
            finally:
                self.tunnels -= 1
            return False
        request = {"method": method, "target": target, "headers": headers, "bytes": len(body)}
        if target != "/system_stats":
            self.requests.append(request)
        answer = json.dumps({"node": self.name, **request, **SOUND}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        return True

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            if data[0] == 0x88:  # close
                writer.write(b"\x88\x00")
                return
            if data[0] == 0x81:  # a short masked text comes back as it was
                mask, text = data[2:6], data[6:]
                plain = bytes(byte ^ mask[i % 4] for i, byte in enumerate(text))
                writer.write(bytes([0x81, len(plain)]) + plain)


class CountingAgent:
    """A central agent, as far as HAProxy sees it; counts how often it was asked."""

    def __init__(self, host: HostAgent, source: NodesSource, *, port: int) -> None:
        self.host = host
        self.asked = 0
        self._source = source
        self._server = AgentCheckServer(self.answer, host="127.0.0.1", port=port)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._server.start()
        looking = self.host.run(), followed(self.host, self._source)
        self._tasks = [asyncio.create_task(work) for work in looking]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()

    async def silent(self) -> None:
        """Answer HAProxy no more."""
        await self._server.stop()

    async def back(self) -> None:
        """Answer again."""
        await self._server.start()

    def answer(self, name: str) -> AgentState | None:
        self.asked += 1
        return self.host.answer(name)


async def why_held(node: Node, *, ca_file: Path | None = None) -> str:
    """Return why an agent holds a new node back, once it knows."""
    host = HostAgent("central", central=True, ca_file=ca_file)
    looking = asyncio.create_task(host.run())
    host.follow([node])

    def known() -> bool:
        state = host.answer(node.name)
        assert state is not None and state.readiness is Readiness.HOLD
        return bool(host.members[node.name].probe.trouble)

    try:
        await eventually("the agent knows why", known)
        state = host.answer(node.name)
        return state.reason if state is not None else ""
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


TICKETS = EditorTickets(b"of these tests, 32 bytes of them!")
"""What signs the tickets that the edge takes."""


SECRET = "of these tests"
"""What the broker's ports ask for, where it has any."""


def make_settings(data: Path, **more: Any) -> Settings:
    """Settings with ports of our own."""
    ports = ("port", "console_port", "api_port", "agent_port")
    return Settings(**{"data": data, **{name: free_port() for name in ports}, "pool_slots": 4, **more})


@dataclass
class Broker:
    """A running controller, its agent, and a client's view of them."""

    settings: Settings
    registry: FakeNodeRegistry
    agent: CountingAgent
    controller: Controller
    task: asyncio.Task[None]
    http: httpx.AsyncClient
    direct: httpx.AsyncClient
    stop: asyncio.Event
    tunnels: list[ClientConnection] = field(default_factory=list)

    async def lease(self, *, pool: str = "default", nodes: str | None = None) -> tuple[str, ClientConnection]:
        """Open a lease; returns the node's name and the websocket."""
        headers = {"X-Fleet-Pool": pool, **({} if nodes is None else {"X-Fleet-Nodes": nodes})}
        socket = await unix_connect(
            str(self.settings.lease_socket),
            "ws://localhost/ws?clientId=r1",
            additional_headers=headers,
            ping_interval=5,
        )
        self.tunnels.append(socket)
        assert socket.response is not None
        return socket.response.headers["X-Fleet-Node"], socket

    async def refused(self, *, pool: str = "default", nodes: str | None = None) -> tuple[int, str, str]:
        """Try a lease that must be refused; returns status, reason and Retry-After."""
        try:
            await self.lease(pool=pool, nodes=nodes)
        except InvalidStatus as error:
            headers = error.response.headers
            return (
                error.response.status_code,
                headers.get("X-Fleet-Refused", ""),
                headers.get("Retry-After", ""),
            )
        raise AssertionError("the lease was granted")

    async def grants(self, *, nodes: str, pool: str = "default") -> str | None:
        """Return which node a lease gets, and give it back at once; None if it is refused."""
        try:
            name, socket = await self.lease(pool=pool, nodes=nodes)
        except InvalidStatus:
            return None
        await socket.close()
        return name

    async def call(self, node: str, method: str = "GET", path: str = "/queue") -> httpx.Response:
        """Make a pinned call."""
        return await self.direct.request(method, f"http://localhost{path}", headers={"X-Fleet-Node": node})

    async def told(self, name: str, verdict: str) -> None:
        """Wait until a verdict was reported."""
        await eventually(
            f"{name} is {verdict}, not {self.registry.told.get(name)}",
            lambda: self.registry.told.get(name, ("", ""))[0] == verdict,
        )

    async def raw(self, order: str) -> str:
        """Ask the broker's Runtime API."""
        return await self.controller.broker.runtime.ask(order)


@contextlib.asynccontextmanager
async def running(
    data: Path,
    registry: FakeNodeRegistry,
    *,
    settings: Settings | None = None,
    stale_s: float = 10.0,
    ca_file: Path | None = None,
    **more: Any,
) -> AsyncIterator[Broker]:
    """Run a controller and an agent on the nodes of a registry."""
    settings = settings or make_settings(data)
    host = HostAgent("central", central=True, ca_file=ca_file, credentials=unsealed, grace_s=stale_s)
    agent = CountingAgent(host, registry, port=settings.agent_port)
    keys = {"ticket_key": lambda: TICKETS.key, "broker_secret": lambda: SECRET}
    controller = Controller(settings, registry, **{"poll_s": 0.05, **keys, **more})
    stop = asyncio.Event()
    await agent.start()
    task = asyncio.create_task(controller.run(stop))
    ready = asyncio.create_task(controller.ready.wait())
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if task.done():
        await agent.stop()
        task.result()
    uds = str(settings.direct_socket)
    limits = httpx.Limits(max_keepalive_connections=0)
    transport = httpx.AsyncHTTPTransport(uds=uds, limits=limits)
    async with client() as http, httpx.AsyncClient(transport=transport) as direct:
        broker = Broker(settings, registry, agent, controller, task, http, direct, stop)
        try:
            yield broker
        finally:
            for socket in broker.tunnels:
                await socket.close()
            stop.set()
            await task
            await agent.stop()
