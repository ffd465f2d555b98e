"""One TCP port that answers HAProxy's agent-checks for many nodes.

HAProxy opens a connection, sends ``NAME/`` (its ``agent-send``), and takes one line as the answer:

==================== =====================================================================================
``ready up NN%``     gives: leases may come. NN is the node's weight: the server's own weight is 100
``drain up 0%``      takes: no new lease. The weight goes too, because the lease script sees only weights
``up``               neither: what an operator or the controller has ordered stays
``down 0% #WHY``     takes, and HAProxy shows the reason: the GPU is gone
nothing              the name is unknown here, or nothing was ever heard: nothing changes
==================== =====================================================================================

``up`` stands beside ``drain`` because HAProxy takes a server whose agent never said it for down.
``maxconn:N`` is never sent: zero means unlimited to HAProxy.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from comfy_fleet.agent.listening import listen, port_of
from comfy_fleet.agent.node_source import NodesSource
from comfy_fleet.agent.reach import Reach
from comfy_fleet.connections import close
from comfy_fleet.domain.nodes.agent_state import HEAVIEST, AgentState, Facts, Readiness, both, verdict
from comfy_fleet.domain.nodes.node import NAME, Node

logger = logging.getLogger(__name__)

_QUESTION_LIMIT = 80  # bytes: a name has at most 63
_QUESTION_TIMEOUT_S = 2.0
_WHY_LIMIT = 80  # characters of a reason; HAProxy reads no more than one short line


def line(answer: AgentState) -> bytes:
    """Return a verdict as HAProxy reads it."""
    match answer.word:
        case Readiness.READY:
            return b"ready up %d%%\n" % answer.weight
        case Readiness.DRAIN:
            return b"drain up 0%\n"
        case Readiness.HOLD:
            return b"up\n"
        case Readiness.DOWN:
            why = " ".join(answer.why.split())[:_WHY_LIMIT]
            return b"down 0%% #%s\n" % why.encode("ascii", errors="replace")


class Agent:
    """Answers for every node that its source tells of."""

    def __init__(
        self,
        source: NodesSource,
        *,
        host: str,
        port: int,
        grace_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        reach: Reach | None = None,
        opinion: Callable[[str], AgentState | None] | None = None,
        on_nodes: Callable[[Sequence[Node]], None] | None = None,
    ) -> None:
        """Describe the agent; nothing is opened before :meth:`start`.

        Args:
            source: The nodes.
            host: Address to listen on.
            port: Port to listen on; 0 lets the kernel choose.
            grace_s: How old the source's last word may be before ``ready`` is no longer said.
            clock: Seconds, monotonic.
            reach: Asks new nodes whether they are there.
            opinion: What was seen of a node itself: its GPU, its process, what it works on. None from it
                means that nothing is known yet.
            on_nodes: Gets the nodes whenever the source told them.
        """
        self._source = source
        self._host = host
        self._port = port
        self._grace_s = grace_s
        self._clock = clock
        self._nodes: Mapping[str, Node] = {}
        self._heard_at: float | None = None
        self._said: dict[str, Readiness] = {}
        self._reach = reach or Reach()
        self._opinion = opinion
        self._on_nodes = on_nodes
        self._server: asyncio.Server | None = None
        self._listener: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()
        self._questions: set[asyncio.Transport] = set()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return port_of(self._server, self._port)

    async def start(self) -> None:
        """Listen, and begin to follow the source.

        Raises:
            ConfigError: The port is taken.
        """
        loop = asyncio.get_running_loop()
        opening = loop.create_server(lambda: _Question(self, self._questions), self._host, self._port)
        way_out = "name a free port: --port or FLEET_AGENT_PORT"
        self._server = await listen(opening, self._host, self._port, way_out=way_out)
        self._listener = asyncio.create_task(self._follow(), name="agent's nodes")
        logger.info("agent listens", extra={"host": self._host, "port": self.port})

    async def stop(self) -> None:
        """Stop listening and following; who still asks gets no answer."""
        if self._server is not None:
            await close(self._server, self._questions)
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await self._reach.stop()

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until ``stop`` is set.

        Raises:
            ConfigError: The port is taken.
        """
        await self.start()
        try:
            waiter = asyncio.create_task(stop.wait())
            assert self._listener is not None  # noqa: S101 - start() has made it
            done, _ = await asyncio.wait({waiter, self._listener}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
            if self._listener in done:
                self._listener.result()  # a source never ends: this raises
        finally:
            await self.stop()

    async def heard(self) -> None:
        """Wait until the source has told the nodes for the first time."""
        await self._heard.wait()

    def answer(self, name: str) -> AgentState | None:
        """Return the verdict on a node, or None if nothing can be said of it."""
        node = self._nodes.get(name)
        if node is None or self._heard_at is None:
            return None
        facts = Facts(
            age_s=self._clock() - self._heard_at,
            grace_s=self._grace_s,
            reached=self._reach.reached(node),
            trouble=self._reach.trouble(node),
        )
        found = verdict(node, facts)
        if self._opinion is not None:
            seen = self._opinion(name) or AgentState(word=Readiness.HOLD, why="was not looked at yet")
            found = both(found, seen)
        found = replace(found, weight=min(HEAVIEST, found.weight))
        if self._said.get(name) is not found.word:
            self._said[name] = found.word
            logger.info("agent says", extra={"node": name, "verdict": found.word.value, "why": found.why})
        return found

    async def _follow(self) -> None:
        async for nodes in self._source.watch():
            self._take(nodes)

    def _take(self, nodes: Sequence[Node]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._reach.follow(nodes)
        if self._on_nodes is not None:
            self._on_nodes(nodes)
        self._said = {name: word for name, word in self._said.items() if name in self._nodes}
        self._heard_at = self._clock()
        self._heard.set()


class _Question(asyncio.Protocol):
    """One agent-check: a name in, a line out. Without a task: a fleet asks hundreds of times a second."""

    def __init__(self, agent: Agent, open_: set[asyncio.Transport]) -> None:
        self._agent = agent
        self._open = open_
        self._text = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class, only by methods
        self._open.add(self._transport)
        self._timer = asyncio.get_running_loop().call_later(_QUESTION_TIMEOUT_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._text += data
        name, end, _ = self._text.replace(b"\n", b"/").partition(b"/")
        if not end and len(self._text) <= _QUESTION_LIMIT:
            return
        text = name.strip().decode("ascii", errors="replace")
        answer = self._agent.answer(text) if end and NAME.fullmatch(text) else None
        if answer is not None:
            self._transport.write(line(answer))
        self._transport.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self._transport)
        if self._timer is not None:
            self._timer.cancel()
