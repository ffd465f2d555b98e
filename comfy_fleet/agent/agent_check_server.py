"""One TCP port that answers HAProxy's agent-checks for many nodes.

HAProxy opens a connection, sends ``NAME/`` (its ``agent-send``), and takes one line as the answer:

==================== =====================================================================================
``ready up NN%``     gives: leases may come. NN is the node's weight: the server's own weight is 100
``drain up 0%``      takes: no new lease. The weight goes too, because the lease script sees only weights
``up``               neither: what an operator or the controller has ordered stays
``down 0% #WHY``     takes, and HAProxy shows the reason: the GPU is gone
nothing              the name is unknown here, or nothing was ever heard: nothing changes
==================== =====================================================================================

``drain`` comes with ``up`` because HAProxy considers a server down if its agent never said ``up``.
``maxconn:N`` is never sent: zero means unlimited to HAProxy.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import cast

from comfy_fleet.agent.listening import listen, port_of
from comfy_fleet.connections import close
from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness
from comfy_fleet.domain.nodes.node import NAME

logger = logging.getLogger(__name__)

_QUESTION_LIMIT = 80  # bytes; a name has at most 63
QUESTION_TIMEOUT_S = 2.0
_BACKLOG = 2048  # HAProxy must get in although hundreds of others come at once
_WHY_LIMIT = 80  # characters of a reason; HAProxy reads only one short line


def line(answer: AgentState) -> bytes:
    """Return an agent's state in HAProxy's form."""
    match answer.readiness:
        case Readiness.READY:
            return b"ready up %d%%\n" % answer.weight
        case Readiness.DRAIN:
            return b"drain up 0%\n"
        case Readiness.HOLD:
            return b"up\n"
        case Readiness.DOWN:
            reason = " ".join(answer.reason.split())[:_WHY_LIMIT]
            return b"down 0%% #%s\n" % reason.encode("ascii", errors="replace")


class AgentCheckServer:
    """Answers for every node that its agent knows.

    Args:
        answer: Returns a node's state for HAProxy; None: no answer.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.
    """

    def __init__(self, answer: Callable[[str], AgentState | None], *, host: str, port: int) -> None:
        self._answer = answer
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._questions: dict[asyncio.Transport, bytes] = {}

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return port_of(self._server, self._port)

    @property
    def questions(self) -> Sequence[bytes]:
        """The answers so far to each open question."""
        return list(self._questions.values())

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The port is taken.
        """
        loop = asyncio.get_running_loop()
        opening = loop.create_server(
            lambda: _Question(self._answer, self._questions), self._host, self._port, backlog=_BACKLOG
        )
        way_out = "name a free port: --port or FLEET_AGENT_PORT"
        self._server = await listen(opening, self._host, self._port, way_out=way_out)
        logger.info("agent listens", extra={"host": self._host, "port": self.port})

    async def stop(self) -> None:
        """Stop listening; open requests get no answer."""
        if self._server is not None:
            await close(self._server, self._questions.keys())


class _Question(asyncio.Protocol):
    """One agent-check: a name in, a line out. Without a task, as there may be hundreds a second."""

    def __init__(
        self, answer: Callable[[str], AgentState | None], open_: dict[asyncio.Transport, bytes]
    ) -> None:
        self._answer = answer
        self._open = open_
        self._text = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has only its methods
        self._open[self._transport] = b""
        self._timer = asyncio.get_running_loop().call_later(QUESTION_TIMEOUT_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._text += data
        self._open[self._transport] = self._text
        name, end, _ = self._text.replace(b"\n", b"/").partition(b"/")
        if not end and len(self._text) <= _QUESTION_LIMIT:
            return
        text = name[:_QUESTION_LIMIT].strip().decode("ascii", errors="replace")
        whole = end and len(name) <= _QUESTION_LIMIT
        answer = self._answer(text) if whole and NAME.fullmatch(text) else None
        if answer is not None:
            self._transport.write(line(answer))
        self._transport.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.pop(self._transport, None)
        if self._timer is not None:
            self._timer.cancel()
