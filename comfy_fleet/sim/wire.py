"""A small HTTP/1.1 and websocket server with faults on the wire.

It exists because faults have to be real: a frozen node still accepts connections but answers nothing,
not even a ping; a crashed one drops every socket at once; a slow one hands out bytes at a trickle.
httptools and websockets do the parsing; this module only moves bytes.
"""

import asyncio
import contextlib
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import httptools
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol

from comfy_fleet.connections import close
from comfy_fleet.sim.messages import Request, Response

logger = logging.getLogger(__name__)

MAX_BODY = 100 * 1024 * 1024
CONTROL = "/sim/"  # paths that answer even while the node is frozen or slow
TICK_S = 0.05  # a slow node writes in portions of this much time


class WireBehavior:
    """How the node's wire behaves right now; shared by all its connections.

    Attributes:
        delay_s: Every response and frame leaves this much later.
        bytes_per_s: Every connection writes this fast; 0 means at full speed.
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self._open = asyncio.Event()
        self._open.set()

    @property
    def frozen(self) -> bool:
        """Whether the node answers nothing."""
        return not self._open.is_set()

    @property
    def plain(self) -> bool:
        """Whether no fault is active."""
        return self._open.is_set() and not self.delay_s and not self.bytes_per_s

    def freeze(self) -> None:
        """Stop answering."""
        self._open.clear()

    def thaw(self) -> None:
        """Answer again, including requests that came meanwhile."""
        self._open.set()

    async def opened(self) -> None:
        """Wait until the node is not frozen."""
        await self._open.wait()


class Socket:
    """The server's side of one open websocket.

    Attributes:
        query: Of the URL it was opened with.
        on_text: Called with each text message.
        on_close: Called once, when it is closed however that happened.
    """

    def __init__(self, connection: "SimConnection", protocol: ServerProtocol, query: dict[str, str]) -> None:
        self.query = query
        self.on_text: Callable[[str], None] = lambda _: None
        self.on_close: Callable[[], None] = lambda: None
        self._connection = connection
        self._protocol = protocol
        self._text = bytearray()

    def send_text(self, data: bytes) -> None:
        """Send one text message, encoded."""
        with contextlib.suppress(Exception):  # a socket that is closing: ComfyUI only warns, too
            self._protocol.send_text(data)
            self._flush()

    def send_bytes(self, data: bytes) -> None:
        """Send one binary message."""
        with contextlib.suppress(Exception):
            self._protocol.send_binary(data)
            self._flush()

    def abort(self) -> None:
        """Drop the connection without a close frame."""
        self._connection.abort()

    def receive(self, data: bytes) -> None:
        """Take bytes from the network."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.CONT):
                self._text += event.data
                if event.fin:
                    text, self._text = self._text.decode(errors="replace"), bytearray()
                    self.on_text(text)
        self._flush()
        if self._protocol.close_expected():
            self._connection.finish()

    def _flush(self) -> None:
        for chunk in self._protocol.data_to_send():
            if chunk:
                self._connection.write(chunk)


Handler = Callable[[Request], Awaitable[Response]]


class SimConnection(asyncio.Protocol):
    """One TCP connection; requests on it are answered one after the other."""

    def __init__(
        self,
        handler: Handler,
        on_socket: Callable[[Socket], None],
        line: WireBehavior,
        open_: set["SimConnection"],
        headers: dict[str, str],
    ) -> None:
        self._handler = handler
        self._on_socket = on_socket
        self._line = line
        self._open = open_
        self._headers = headers
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._requests: deque[tuple[Request, bool]] = deque()
        self._out: deque[bytes] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = False
        self._pumping = False
        self._held: list[bytes] = []
        self._socket: Socket | None = None
        self._closing = False
        self._reset()

    @property
    def busy(self) -> bool:
        """Whether a request is not answered yet."""
        return self._busy

    @property
    def is_websocket(self) -> bool:
        """Whether it has become a websocket."""
        return self._socket is not None

    def _reset(self) -> None:
        self._url = b""
        self._fields: dict[str, str] = {}
        self._body = bytearray()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        # A stream server hands out stream transports; uvloop's are of no class that says so.
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything about the connection."""
        self._open.discard(self)
        self._transport = None
        for task in self._tasks:
            task.cancel()
        if self._socket is not None:
            self._socket.on_close()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the network."""
        if self._socket is None:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError:
                self._respond(Response(status=400), keep=False)
        elif self._line.frozen or self._held:
            self._held.append(data)
            if len(self._held) == 1:
                self._start(self._release())
        else:
            self._socket.receive(data)

    def eof_received(self) -> bool:
        """Close with a client that ended its side; a frozen node learns of it when it goes on."""
        if self._line.frozen:
            self._start(self._end_later())
        return self._line.frozen

    async def _end_later(self) -> None:
        await self._line.opened()
        self.abort()

    # httptools' side

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Let a client that asks first send its body."""
        if self._fields.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Collect the body, as far as ComfyUI's limit."""
        if len(self._body) <= MAX_BODY:
            self._body += body

    def on_message_complete(self) -> None:
        """Answer, or wait until the requests before it are answered."""
        if self._parser.should_upgrade() and self._fields.get("upgrade", "").lower() == "websocket":
            return
        self._requests.append((self._request(), self._parser.should_keep_alive()))
        self._reset()
        if not self._busy:
            self._busy = True
            self._start(self._answer())

    def _request(self) -> Request:
        parts = urlsplit(self._url.decode("latin-1"))
        transport = self._transport
        peer = transport.get_extra_info("peername") if transport else None
        return Request(
            method=self._parser.get_method().decode(),
            path=unquote(parts.path),
            query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers=self._fields,
            body=bytes(self._body),
            peer=peer[0] if isinstance(peer, tuple) else "",
        )

    # answering

    async def _answer(self) -> None:
        try:
            while self._requests:
                request, keep = self._requests.popleft()
                control = request.path.startswith(CONTROL)
                if self._line.frozen and not control:
                    await self._line.opened()
                if len(request.body) > MAX_BODY:
                    response = Response(status=413)
                else:
                    response = await self._handler(request)
                self._respond(response, keep=keep, control=control, head=request.method == "HEAD")
        finally:
            self._busy = False

    def _respond(self, response: Response, *, keep: bool, control: bool = False, head: bool = False) -> None:
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        fields = {**response.headers, "Content-Length": str(len(response.body)), **self._headers}
        if not keep:
            fields["Connection"] = "close"
        lines += [f"{name}: {value}" for name, value in fields.items()]
        top = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        self.write(top if head else top + response.body, control=control)
        if not keep:
            self.finish()

    def _upgrade(self, rest: bytes) -> None:
        request = self._request()
        if request.path.rstrip("/") not in ("/ws", "/api/ws"):
            self._respond(Response(status=404), keep=False)
            return
        protocol = ServerProtocol(max_size=None)
        lines = [f"GET {self._url.decode('latin-1')} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self._fields.items()]
        protocol.receive_data(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        handshake = next((e for e in protocol.events_received() if isinstance(e, Handshake)), None)
        if handshake is None:
            self._respond(Response(status=400), keep=False)
            return
        self._start(self._open_socket(request, protocol, handshake, rest))

    async def _open_socket(
        self, request: Request, protocol: ServerProtocol, handshake: Handshake, rest: bytes
    ) -> None:
        if self._line.frozen:
            await self._line.opened()
        refused = await self._handler(request)
        if refused.status != HTTPStatus.SWITCHING_PROTOCOLS:
            self._respond(refused, keep=False)
            return
        response = protocol.accept(handshake)
        for name, value in self._headers.items():
            response.headers[name] = value
        protocol.send_response(response)
        self._socket = Socket(self, protocol, request.query)
        self._socket.receive(rest)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self._on_socket(self._socket)

    async def _release(self) -> None:
        await self._line.opened()
        held, self._held = self._held, []
        if self._socket is not None:
            self._socket.receive(b"".join(held))

    # writing

    def write(self, data: bytes, *, control: bool = False) -> None:
        """Send bytes, as fast as the line allows."""
        if self._transport is None or self._transport.is_closing():
            return
        if control or (self._line.plain and not self._out and not self._pumping):
            self._transport.write(data)
            return
        self._out.append(data)
        if not self._pumping:
            self._pumping = True
            self._start(self._pump())

    async def _pump(self) -> None:
        try:
            while self._out:
                data = self._out.popleft()
                await self._line.opened()
                if self._line.delay_s:
                    await asyncio.sleep(self._line.delay_s)
                while data and self._transport is not None:
                    await self._line.opened()
                    rate = self._line.bytes_per_s
                    size = max(1, int(rate * TICK_S)) if rate else len(data)
                    self._transport.write(data[:size])
                    data = data[size:]
                    if rate:
                        await asyncio.sleep(size / rate)
        finally:
            self._pumping = False
        if self._closing:
            self.finish()

    def finish(self) -> None:
        """Close once everything is written."""
        self._closing = True
        if self._transport is not None and not self._pumping:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("connection failed", exc_info=error)
            self.abort()


class SimServer:
    """Listens on one port.

    Args:
        handler: Answers requests; for a websocket's request it answers 101 to let it in.
        on_socket: Gets each opened websocket.
        headers: Added to every response.
    """

    def __init__(
        self, handler: Handler, on_socket: Callable[[Socket], None], headers: dict[str, str]
    ) -> None:
        self.line = WireBehavior()
        self._connections: set[SimConnection] = set()
        self._make = functools.partial(
            SimConnection, handler, on_socket, self.line, self._connections, headers
        )
        self._server: asyncio.Server | None = None

    @property
    def calls(self) -> int:
        """How many connections have a request that is not answered yet."""
        return sum(one.busy for one in self._connections)

    @property
    def websockets(self) -> int:
        """How many websockets are open."""
        return sum(one.is_websocket for one in self._connections)

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._server is not None

    async def listen(self, host: str, port: int) -> int:
        """Open the port (0: the kernel chooses) and return it."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make, host, port, reuse_address=True, backlog=512)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Close the port and drop every connection."""
        server, self._server = self._server, None
        if server is not None:
            await close(server, self._connections)
            await server.wait_closed()
