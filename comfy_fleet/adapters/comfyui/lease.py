"""A lease: a websocket through HAProxy's lease frontend, which occupies its node's only slot until it closes.

HAProxy chooses the node and names it in ``X-Fleet-Node`` of its ``101``, or refuses at once with ``503``.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Generator, Sequence
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import DATA_OPCODES, CloseCode, Opcode
from websockets.frames import Frame as WireFrame
from websockets.protocol import Event
from websockets.streams import StreamReader

from comfy_fleet.adapters.comfyui.answer_limits import MIB, AnswerLimits, decoded, shown
from comfy_fleet.adapters.comfyui.broker_headers import REFUSED, broker_headers, socket_of
from comfy_fleet.adapters.comfyui.unredirected import UnredirectedConnect
from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.domain.jobs.frames import frame_of
from comfy_fleet.domain.jobs.run_messages import Binary, Frame
from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE
from comfy_fleet.ports.comfyui import NoLease
from comfy_fleet.timeouts import Timeout

MAX_NODES = 64  # HAProxy ignores further names
MAX_FRAME_BYTES = 32 * MIB
READ_AHEAD_BYTES = 2 * MIB  # bytes of frames that may wait to be handled; a larger one waits alone
_SLICE = 8 * 1024  # bytes parsed before other tasks get a turn
_FRAMES_A_TURN = 256
_TAKEN_A_TURN = 16
_LARGE = 64 * 1024
_FRAME_COST = 512  # bytes that an empty frame takes while it waits
MAX_FRAGMENTS = 1024  # parts of one message; ComfyUI sends every message in one part
MAX_CONTROLS = 64  # control frames, such as pings, per second; each costs an answer
MAX_FRAMES = 20_000  # at once, e.g. after a minute without reading; ComfyUI sends a few hundred a second
MAX_FRAMES_A_SECOND = 2_000  # over a long time
_HELD = 1.75  # a text, the decoder's copy and the decoded value, as a multiple of the largest frame
PING_EVERY_S = 5.0  # HAProxy frees the slot of a dispatcher that is silent for 20 s

# Close without lingering: the kernel sends a reset, and HAProxy frees the slot without waiting for the node.
# A unix socket knows no resets; there the broker's `option nolinger` has the same effect.
_RESET = struct.pack("ii", 1, 0)


class _Reader(StreamReader):
    """Returns a large payload without a copy."""

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        return super().read_exact(n) if n < _LARGE else self._read_large(n)

    def _read_large(self, n: int) -> Generator[None, None, bytearray]:
        while len(self.buffer) < n:
            if self.eof:
                raise EOFError(f"stream ends after {len(self.buffer)} bytes, expected {n} bytes")
            yield
        found, self.buffer = self.buffer, self.buffer[n:]
        del found[n:]
        return found


class _Connection(ClientConnection):
    """Reads from the network only while few bytes of complete messages wait to be handled.

    The bytes are parsed in slices: one read can contain tens of thousands of tiny frames, and all other tasks
    on the event loop would have to wait for them.

    Attributes:
        flood: What the node sent too much of, in words; it ended the websocket.
    """

    def __init__(self, protocol: ClientProtocol, *args: Any, **kwargs: Any) -> None:
        protocol.reader = _Reader()
        protocol.parser = protocol.parse()
        next(protocol.parser)
        super().__init__(protocol, *args, **kwargs)
        self.flood = ""
        self._unparsed: deque[bytes] = deque()
        self._parsing: asyncio.Handle | None = None
        self._messages: deque[tuple[bytearray, bool, int]] = deque()
        self._came: asyncio.Future[None] | None = None
        self._paused = False
        self._part: bytearray | None = None
        self._text = False
        self._part_cost = self._waiting = self._handling = self._turn = 0
        self._fragments = self._controls = self._second = 0
        self._allowance, self._counted_at = float(MAX_FRAMES), self.loop.time()

    # Parsing ----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.flood:
            return
        self._unparsed.extend(data[at : at + _SLICE] for at in range(0, len(data), _SLICE))
        if self._parsing is None:
            self._parse()

    def eof_received(self) -> None:
        self._parse(to_the_end=True)
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._parse(to_the_end=True)
        super().connection_lost(exc)
        self._wake()

    def _parse(self, *, to_the_end: bool = False) -> None:
        """Parse bytes until the turn is over or enough messages wait."""
        if self._parsing is not None:
            self._parsing.cancel()
            self._parsing = None
        self._turn = 0
        while self._unparsed and (to_the_end or self._may_parse()):
            super().data_received(self._unparsed.popleft())
            if self.protocol.parser_exc is not None or self.flood:
                self._unparsed.clear()
                self.transport.abort()  # no close frame: such a node won't answer it
        if self._unparsed and self._waiting <= READ_AHEAD_BYTES:
            self._parsing = self.loop.call_soon(self._parse)
        if to_the_end:
            return
        pause = bool(self._unparsed) or self._waiting > READ_AHEAD_BYTES
        if pause is not self._paused:
            with contextlib.suppress(RuntimeError):  # it is closing
                (self.transport.pause_reading if pause else self.transport.resume_reading)()
            self._paused = pause

    def _may_parse(self) -> bool:
        return self._turn < _FRAMES_A_TURN and self._waiting <= READ_AHEAD_BYTES

    def process_event(self, event: Event) -> None:
        if self.flood:
            return
        if not isinstance(event, WireFrame):
            super().process_event(event)
            return
        self._count(event)
        if event.opcode not in DATA_OPCODES:
            super().process_event(event)
            return
        if event.opcode is not Opcode.CONT:
            self._text = event.opcode is Opcode.TEXT
        self._part = _joined(self._part, event.data)
        self._part_cost += len(event.data) + _FRAME_COST
        event.data = b""  # the parser keeps its last frame
        if event.fin:
            self._messages.append((self._part, self._text, self._part_cost))
            self._waiting += self._part_cost
            self._part, self._part_cost = None, 0
            self._wake()

    def _count(self, frame: WireFrame) -> None:
        """Count frames that are cheap to send and costly to receive."""
        self._turn += 1
        now = self.loop.time()
        self._allowance = (
            min(MAX_FRAMES, self._allowance + (now - self._counted_at) * MAX_FRAMES_A_SECOND) - 1
        )
        self._counted_at = now
        if self._allowance < 0:
            self.flood = (
                f"more than {MAX_FRAMES} websocket frames at once or {MAX_FRAMES_A_SECOND} a second for long"
            )
        if frame.opcode in DATA_OPCODES:
            self._fragments = 0 if frame.fin else self._fragments + 1
            if self._fragments > MAX_FRAGMENTS:
                self.flood = f"a websocket message in more than {MAX_FRAGMENTS} parts"
            return
        second = int(now)
        self._controls = self._controls + 1 if second == self._second else 1
        self._second = second
        if self._controls > MAX_CONTROLS:
            self.flood = f"more than {MAX_CONTROLS} websocket pings in a second"

    # Messages ---------------------------------------------------------------------------------------------

    async def message(self) -> tuple[bytearray, bool]:
        """Return the next message, and True if it is text. Raises ConnectionClosed after the last one."""
        while not self._messages:
            if self.connection_lost_waiter.done():
                raise self.protocol.close_exc
            self._came = self.loop.create_future()
            await self._came
        message, text, self._handling = self._messages.popleft()
        return message, text

    def handled(self) -> None:
        """Note that the last message taken no longer needs memory."""
        self._waiting -= self._handling
        self._handling = 0
        if self._paused and self._parsing is None and self._waiting <= READ_AHEAD_BYTES:
            self._parse()

    def _wake(self) -> None:
        if self._came is not None and not self._came.done():
            self._came.set_result(None)


def _joined(part: bytearray | None, data: bytes | bytearray | memoryview) -> bytearray:
    """Return both; the larger one is not copied."""
    more = data if isinstance(data, bytearray) else bytearray(data)
    if part is None:
        return more
    if len(part) < len(more):
        more[:0] = part
        return more
    part += more
    return part


class WebsocketLease:
    """A granted node; see :class:`comfy_fleet.ports.comfyui.Lease`.

    Attributes:
        node: The node that HAProxy chose.
        close_reason: Why the websocket ended; empty while it is open.
        limit: The limit that a frame broke, in words; it ended the websocket.
    """

    def __init__(self, connection: _Connection, node: str, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.node = node
        self.close_reason = ""
        self.limit = ""
        self._max_frame_bytes = max_frame_bytes
        self._limits = AnswerLimits(size=max_frame_bytes, setting="FLEET_NODE_FRAME_BYTES", held=_HELD)
        self._connection = connection
        self._released = False

    async def frames(self) -> AsyncIterator[Frame | Binary]:
        """Yield frames in order; ends when the websocket does, for whatever reason."""
        taken = 0
        try:
            while True:
                message, text = await self._connection.message()
                frame: Frame | Binary | None
                frame = await self._read(message) if text else Binary(message)
                del message
                if frame is not None:
                    yield frame
                del frame
                self._connection.handled()
                taken += 1
                if taken % _TAKEN_A_TURN == 0:
                    await asyncio.sleep(0)  # many messages may wait, and nothing here gives others a turn
        except NodeFault as fault:
            self.limit = f"node {self.node}: {fault.message}"
            self.release()
        except ConnectionClosed as error:
            if error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG:
                self.limit = (
                    f"node {self.node} sent a websocket frame of more than {shown(self._max_frame_bytes)} "
                    "(FLEET_NODE_FRAME_BYTES)"
                )
            if self._connection.flood:
                self.limit = f"node {self.node} sent {self._connection.flood}"
            self.close_reason = self.close_reason or str(error)

    async def _read(self, text: bytearray) -> Frame | None:
        """Decode a text frame. Raises NodeFault."""
        return frame_of(await decoded(text, self._limits, what="a websocket frame"), raw=text)

    async def answers(self, within_s: float) -> bool:
        """Return whether the node answers a ping in time."""
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with Timeout(within_s):
                await (await self._connection.ping())
                return True
        return False

    def release(self) -> None:
        """Give the slot back at once; safe to call again.

        A closing handshake, or closing only our side, waits for the node's event loop, which a model load can
        block for a minute. A reset does not: HAProxy 2.6.12 frees the slot in 0.6 ms even while the node is
        stopped, and closes its connection to the node, as for any client that goes away.
        """
        if self._released:
            return
        self._released = True
        self.close_reason = self.close_reason or "released"
        transport = self._connection.transport
        raw = transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()


class LeaseClient:
    """HAProxy's lease frontend; see :class:`comfy_fleet.ports.comfyui.Leases`.

    Args:
        url: ``unix:PATH`` or ``ws://HOST:PORT`` of the lease frontend.
        silence_s: The websocket ends if the node answers no ping for this long. A model load may block its
            event loop for a minute, so this should not be less than a run's own limit.
        open_timeout_s: Limit for the whole handshake; a frozen node does not answer.
        max_frame_bytes: A larger frame ends the websocket (``FLEET_NODE_FRAME_BYTES``).
        namespace: The namespace that the broker must have.
        secret: What the broker's port asks for.
    """

    def __init__(
        self,
        url: str,
        *,
        silence_s: float = 600.0,
        open_timeout_s: float = 5.0,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        namespace: str = DEFAULT_NAMESPACE,
        secret: str = "",
    ) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._headers = broker_headers(namespace, secret)
        path = socket_of(url)
        self._url = url.rstrip("/") if path is None else "ws://localhost"
        self._where: dict[str, Any] = {} if path is None else {"unix": True, "path": path}
        self._silence_s = silence_s
        self._open_timeout_s = open_timeout_s

    async def lease(self, *, run: str, pool: str, nodes: Sequence[str] = ()) -> WebsocketLease | NoLease:
        """Ask for a node that is free now. Never raises because of HAProxy or a node.

        Args:
            run: The run's id; ComfyUI's ``clientId``. Use one only once.
            pool: The pool, which is a backend of the broker.
            nodes: Able nodes in order of preference; no other node is granted. Empty means any of the pool.
        """
        headers = {"X-Fleet-Pool": pool, **self._headers}
        if nodes:
            headers["X-Fleet-Nodes"] = " ".join(nodes[:MAX_NODES])
        try:
            connection = await UnredirectedConnect(
                f"{self._url}/ws?clientId={quote(run)}",
                additional_headers=headers,
                user_agent_header=None,
                compression=None,
                proxy=None,
                open_timeout=self._open_timeout_s,
                ping_interval=PING_EVERY_S,
                ping_timeout=self._silence_s,
                max_size=self._max_frame_bytes,
                max_queue=None,  # frames are limited by their bytes instead
                create_connection=_Connection,
                **self._where,
            )
        except InvalidStatus as error:
            return _refusal(error.response.status_code, error.response.headers.get(REFUSED))
        except TimeoutError:
            return NoLease(why="error", detail=f"no answer within {self._open_timeout_s:g} s")
        except OSError as error:
            return NoLease(why="unreachable", detail=str(error) or type(error).__name__)
        except (ConnectionClosed, InvalidHandshake, EOFError) as error:  # the broker may end at any moment
            return NoLease(why="error", detail=str(error) or type(error).__name__)
        response = connection.response
        node = response.headers.get("X-Fleet-Node") if response else None
        assert isinstance(connection, _Connection)  # noqa: S101 - for the type checker
        lease = WebsocketLease(connection, node or "", max_frame_bytes=self._max_frame_bytes)
        if not node:
            lease.release()
            return NoLease(
                why="error", detail="the lease frontend names no node: it is not the fleet's broker"
            )
        return lease


def _refusal(status: int, refused: str | None) -> NoLease:
    # The broker's own 503 has a reason; without it, the chosen node did not accept the connection.
    if status == 503 and refused in ("busy", "nodes"):
        return NoLease(why="busy", detail=f"503 {refused}")
    return NoLease(why="error", detail=f"{status} {refused or 'from a node that does not answer'}")
