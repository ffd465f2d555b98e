"""A lease: a websocket through HAProxy's lease frontend, which occupies its node's only slot until it closes.

HAProxy chooses the node and names it in ``X-Fleet-Node`` of its ``101``, or refuses at once with ``503``.
"""

import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import DATA_OPCODES, CloseCode, Opcode
from websockets.frames import Frame as WireFrame
from websockets.protocol import Event

from comfy_fleet.adapters.comfyui.answers import MIB, AnswerLimits, decoded, shown
from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.domain.frames import frame_of
from comfy_fleet.domain.run_messages import Binary, Frame
from comfy_fleet.ports import NoLease

MAX_NODES = 64  # HAProxy looks at no more
MAX_FRAME_BYTES = 32 * MIB
READ_AHEAD_BYTES = 2 * MIB  # frames that may wait for whoever handles them; a larger one waits alone
_FRAME_COST = 512  # bytes that even an empty frame takes while it waits
MAX_FRAGMENTS = 1024  # parts of one message; ComfyUI sends each in one
MAX_CONTROLS = 64  # pings and the like in a second; each costs an answer
PING_EVERY_S = 5.0  # HAProxy frees the slot of a dispatcher that is silent for 20 s

# Close without lingering: the kernel sends a reset, and HAProxy frees the slot without waiting for the node.
_RESET = struct.pack("ii", 1, 0)


class _Connection(ClientConnection):
    """Reads from the network only while few bytes of whole messages wait to be handled.

    Attributes:
        flood: What the node sent far too much of, in words; it ended the websocket.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flood = ""
        self._waits: deque[tuple[int, bool]] = deque()
        self._waiting = self._part = 0
        self._text = False
        self._fragments = self._controls = 0
        self._second = 0

    def data_received(self, data: bytes) -> None:
        if self.flood:
            return
        super().data_received(data)
        if self.protocol.parser_exc is not None or self.flood:
            self.transport.abort()  # who breaks the protocol or a limit won't answer a goodbye, either

    def process_event(self, event: Event) -> None:
        if self.flood:
            return
        if isinstance(event, WireFrame):
            self._count(event)
        super().process_event(event)
        if not isinstance(event, WireFrame) or event.opcode not in DATA_OPCODES:
            return
        self._part += len(event.data) + _FRAME_COST
        if event.opcode is not Opcode.CONT:
            self._text = event.opcode is Opcode.TEXT
        if event.fin:
            self._waits.append((self._part, self._text))
            self._waiting += self._part
            self._part = 0
            if self._waiting > READ_AHEAD_BYTES:
                with contextlib.suppress(RuntimeError):  # it is closing
                    self.transport.pause_reading()

    def _count(self, frame: WireFrame) -> None:
        """Take note of frames that are cheap to send, dear to take, and no message yet."""
        if frame.opcode in DATA_OPCODES:
            self._fragments = 0 if frame.fin else self._fragments + 1
            if self._fragments > MAX_FRAGMENTS:
                self.flood = f"a websocket message in more than {MAX_FRAGMENTS} parts"
            return
        second = int(self.loop.time())
        self._controls = self._controls + 1 if second == self._second else 1
        self._second = second
        if self._controls > MAX_CONTROLS:
            self.flood = f"more than {MAX_CONTROLS} websocket pings in a second"

    @property
    def text(self) -> bool:
        """Whether the first message that waits, or was received and is not handled yet, is text."""
        return bool(self._waits) and self._waits[0][1]

    def handled(self) -> None:
        """Take note that the first message that waited needs no memory any more."""
        self._waiting -= self._waits.popleft()[0] if self._waits else 0
        if self._waiting <= READ_AHEAD_BYTES:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()


class WebsocketLease:
    """A granted node; see :class:`comfy_fleet.ports.Lease`.

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
        self._connection = connection
        self._released = False

    async def frames(self) -> AsyncIterator[Frame | Binary]:
        """Yield frames in order; ends when the websocket does, for whatever reason."""
        try:
            while True:
                # Undecoded: as text it could take four times as much.
                message = await self._connection.recv(decode=False)
                frame: Frame | Binary | None
                frame = await self._read(message) if self._connection.text else Binary(message)
                del message
                if frame is not None:
                    yield frame
                del frame
                self._connection.handled()
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

    async def _read(self, text: bytes) -> Frame | None:
        """Decode a text frame. Raises NodeFault."""
        limits = AnswerLimits(size=self._max_frame_bytes, setting="FLEET_NODE_FRAME_BYTES")
        return frame_of(await decoded(text, limits, what="a websocket frame"), size=len(text))

    def release(self) -> None:
        """Give the slot back at once; safe to call again.

        A closing handshake, or only the end of our side, waits for the node's event loop, which a model
        load can hold up for a minute. A reset does not: HAProxy 2.6.12 frees the slot in 0.6 ms while
        the node is stopped, and ends its side towards the node, for which that is any client that went
        away.
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
    """HAProxy's lease frontend; see :class:`comfy_fleet.ports.Leases`.

    Args:
        url: ``ws://HOST:PORT`` of the lease frontend.
        silence_s: A node that answers no ping for this long ends the websocket; a model load may hold its
            event loop up for a minute, so less than a run's own limit makes no sense.
        open_timeout_s: For the whole handshake; a frozen node answers none.
        max_frame_bytes: A larger frame ends the websocket (``FLEET_NODE_FRAME_BYTES``).
    """

    def __init__(
        self,
        url: str,
        *,
        silence_s: float = 600.0,
        open_timeout_s: float = 5.0,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._url = url.rstrip("/")
        self._silence_s = silence_s
        self._open_timeout_s = open_timeout_s

    async def lease(self, *, run: str, pool: str, nodes: Sequence[str] = ()) -> WebsocketLease | NoLease:
        """Ask for a node, now. Never raises for what HAProxy or a node does.

        Args:
            run: The run's id; ComfyUI's ``clientId``. Use one only once.
            pool: The lease backend.
            nodes: Able nodes in order of preference, binding; empty means any of the pool.
        """
        headers = {"X-Fleet-Pool": pool}
        if nodes:
            headers["X-Fleet-Nodes"] = " ".join(nodes[:MAX_NODES])
        try:
            connection = await connect(
                f"{self._url}/ws?clientId={quote(run)}",
                additional_headers=headers,
                user_agent_header=None,
                compression=None,
                proxy=None,
                open_timeout=self._open_timeout_s,
                ping_interval=PING_EVERY_S,
                ping_timeout=self._silence_s,
                max_size=self._max_frame_bytes,
                max_queue=None,  # frames are counted by their bytes instead
                create_connection=_Connection,
            )
        except InvalidStatus as error:
            return _refusal(error.response.status_code, error.response.headers.get("X-Fleet-Refused"))
        except TimeoutError:
            return NoLease(why="error", detail=f"no answer within {self._open_timeout_s:g} s")
        except OSError as error:
            return NoLease(why="unreachable", detail=str(error) or type(error).__name__)
        except (InvalidHandshake, EOFError) as error:
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
    # A 503 of the broker's own says why; without that it chose a node that would not connect.
    if status == 503 and refused in ("busy", "nodes"):
        return NoLease(why="busy", detail=f"503 {refused}")
    return NoLease(why="error", detail=f"{status} {refused or 'from a node that does not answer'}")
