"""Tells the operator's URL what somebody should look at: nodes, queue, disk, Redis' memory, certificates.

Every API process looks, and Redis compares with what was told: each change is told once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.store_memory import StoreMemory
from comfy_fleet.ports.webhooks import OperatorFact, Webhooks

logger = logging.getLogger(__name__)

LOOK_S = 10.0
NODE_STEADY_S = 30.0
"""A restart of a node is no news."""
STUCK_S = 300.0
"""For so long jobs must wait while nothing runs."""
EXPIRING_S = 14 * 86_400.0
"""A certificate that ends sooner is told."""

USUAL = ("up", "moving", "roomy", "valid")
"""States that are not worth a message about a thing of which nothing was told."""

FactSource = Callable[[], Awaitable[Sequence[OperatorFact]]]
"""Returns how some things are now."""


def node_facts(states: Sequence[NodeState], *, steady_s: float = NODE_STEADY_S) -> list[OperatorFact]:
    """Return which nodes are up or down.

    One that an operator has cordoned, or of which nothing is known yet, is neither: it is forgotten.
    """
    found = []
    for state in states:
        if (state.node.cordoned and not state.quarantined) or state.verdict not in ("up", "down"):
            continue
        up = state.verdict == "up" and not state.quarantined
        why = state.why or (state.node.cordon_reason if state.quarantined else "")
        found.append(
            OperatorFact(
                thing=f"node {state.node.name}",
                state="up" if up else "down",
                type="node.up" if up else "node.down",
                steady_s=steady_s,
                data={"node": state.node.name, "pool": state.node.pool, "reason": "" if up else why},
            )
        )
    return found


def queue_fact(*, queued: int, running: int, steady_s: float = STUCK_S) -> OperatorFact:
    """Return whether the queue moves: it is stuck while jobs wait and none runs."""
    stuck = queued > 0 and running == 0
    return OperatorFact(
        thing="queue",
        state="stuck" if stuck else "moving",
        type="queue.stuck" if stuck else "",
        steady_s=steady_s if stuck else 0.0,
        data={"queued": queued, "running": running},
    )


def disk_fact(*, path: str, free_bytes: int, floor_bytes: int) -> OperatorFact:
    """Return whether the fleet's disk has room: it is low below twice its floor."""
    low = free_bytes < 2 * floor_bytes
    return OperatorFact(
        thing="disk",
        state="low" if low else "roomy",
        type="disk.low" if low else "",
        steady_s=0.0 if low else 3600.0,  # around the mark, it is told once an hour at most
        data={"path": path, "free_bytes": free_bytes, "floor_bytes": floor_bytes},
    )


def memory_fact(memory: StoreMemory) -> OperatorFact:
    """Return whether Redis has room, and keeps what it has."""
    low = bool(memory.trouble)
    return OperatorFact(
        thing="redis",
        state="low" if low else "roomy",
        type="redis.memory" if low else "",
        steady_s=0.0 if low else 3600.0,  # as for the disk
        data={
            "used_bytes": memory.used_bytes,
            "maxmemory_bytes": memory.most_bytes,
            "policy": memory.policy,
            "reason": memory.trouble,
        },
    )


def certificate_fact(*, name: str, expires_at: float, now: float) -> OperatorFact:
    """Return whether a certificate is valid for long enough.

    Args:
        name: Which one, in one word.
        expires_at: Unix seconds.
        now: The same.
    """
    expiring = expires_at - now < EXPIRING_S
    return OperatorFact(
        thing=f"certificate {name}",
        state="expiring" if expiring else "valid",
        type="certificate.expiring" if expiring else "",
        steady_s=0.0,
        data={"certificate": name, "expires_at": expires_at, "days_left": int((expires_at - now) // 86_400)},
    )


class OperatorNews:
    """Looks at things now and then, and has what is new told.

    Args:
        webhooks: The messages.
        url: The operator's URL.
        sources: Who knows how things are; the first one knows all nodes.
        look_s: Seconds between two looks.
    """

    def __init__(
        self, webhooks: Webhooks, url: str, sources: Sequence[FactSource], *, look_s: float = LOOK_S
    ) -> None:
        self._webhooks = webhooks
        self._url = url
        self._sources = sources
        self._look_s = look_s

    async def run(self) -> None:
        """Look, until canceled."""
        while True:
            try:
                await self.look()
            except (FleetError, OSError) as error:
                logger.warning("operators are not told of changes", extra={"error": str(error)})
            await asyncio.sleep(self._look_s)

    async def look(self) -> int:
        """Have told what has changed; return how many messages that makes.

        Raises:
            StoreDown: Redis does not answer.
        """
        facts = [fact for source in self._sources for fact in await source()]
        return await self._webhooks.tell(self._url, facts, usual=USUAL, kind="node")
