"""A lease: a websocket through HAProxy's lease frontend, which occupies its node's only slot until it closes.

HAProxy chooses the node and names it in ``X-Fleet-Node`` of its ``101``, or refuses at once with ``503``.
"""

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from comfy_fleet.adapters.comfyui.lenient import decode
from comfy_fleet.domain.frames import frame_of
from comfy_fleet.domain.run_messages import Binary, Frame
from comfy_fleet.ports import NoLease

MAX_NODES = 64  # HAProxy looks at no more
MAX_FRAME_BYTES = 256 * 1024 * 1024  # a picture that comes as a frame is as large as it wants to be
PING_EVERY_S = 5.0  # HAProxy frees the slot of a dispatcher that is silent for 20 s

# Close without lingering: the kernel sends a reset, and HAProxy frees the slot without waiting for the node.
_RESET = struct.pack("ii", 1, 0)


class WebsocketLease:
    """A granted node; see :class:`comfy_fleet.ports.Lease`.

    Attributes:
        node: The node that HAProxy chose.
        close_reason: Why the websocket ended; empty while it is open.
    """

    def __init__(self, connection: ClientConnection, node: str) -> None:
        self.node = node
        self.close_reason = ""
        self._connection = connection
        self._released = False

    async def frames(self) -> AsyncIterator[Frame | Binary]:
        """Yield frames in order; ends when the websocket does, for whatever reason."""
        try:
            while True:
                message = await self._connection.recv()
                if isinstance(message, bytes):
                    yield Binary(message)
                elif (frame := frame_of(decode(message))) is not None:
                    yield frame
        except ConnectionClosed as error:
            self.close_reason = self.close_reason or str(error)

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
    """

    def __init__(self, url: str, *, silence_s: float = 600.0, open_timeout_s: float = 5.0) -> None:
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
                max_size=MAX_FRAME_BYTES,
                max_queue=64,
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
        lease = WebsocketLease(connection, node or "")
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
