"""Keep the nodes of ``fleet up`` registered."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from comfy_fleet.cli.up.nodes import MANAGED, MANAGER
from comfy_fleet.domain.errors import Conflict, FleetError
from comfy_fleet.domain.nodes.node import Node

LOOK_EVERY_S = 2.0


class Roster(Protocol):
    """The part of the node registry that is needed here."""

    async def store_id(self) -> str:
        """Return the store's id, which changes if it is emptied."""

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes."""

    async def add(self, node: Node) -> Node:
        """Register a node."""

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Forget a node."""

    async def cordon(self, name: str, *, reason: str) -> Node:
        """Stop new jobs."""


async def reconcile(
    registry: Roster,
    wanted: Sequence[Node],
    joining: Collection[str] = (),
    *,
    now: float,
    credentials: Callable[[str], str] = str,
) -> None:
    """Register the wanted nodes; nodes that others added stay.

    Args:
        registry: Where nodes are registered.
        wanted: What this ``fleet up`` serves.
        joining: Names of nodes that an agent will register later.
        now: Unix seconds, as the time when new nodes are added.
        credentials: Decrypts passwords, to compare them: the same one is encrypted differently each time.

    Raises:
        Conflict: A name or URL belongs to a node that somebody else added.
    """
    by_name = {node.name: node for node in wanted}
    kept = set(joining)
    cordons: dict[str, str] = {}
    for node in await registry.nodes():
        new = by_name.get(node.name)
        if new and _served(node, credentials) == _served(new, credentials):
            kept.add(node.name)
        elif node.name not in kept and node.labels.get(MANAGED) == MANAGER:
            await registry.remove(node.name, force=True)
            if node.cordoned and not node.twin:
                cordons[node.name] = node.cordon_reason
    for node in wanted:
        if node.name not in kept:
            await registry.add(replace(node, added_at=now))
            if node.name in cordons:  # a cordon belongs to the name, wherever the node listens
                await registry.cordon(node.name, reason=cordons[node.name])


def _served(node: Node, credentials: Callable[[str], str]) -> tuple[object, ...]:
    return node.url, node.simulated, credentials(node.sealed)


async def keep(
    registry: Roster,
    wanted: Sequence[Node],
    joining: Collection[str],
    say: Callable[[str, str], None],
    *,
    clock: Callable[[], Awaitable[float]],
    credentials: Callable[[str], str] = str,
    every_s: float = LOOK_EVERY_S,
) -> None:
    """Register the nodes again whenever the store was emptied; one that an operator removed stays removed.

    Args:
        registry: Where nodes are registered; :func:`reconcile` was called already.
        wanted: As for :func:`reconcile`.
        joining: As for :func:`reconcile`.
        say: Called with a message, and a reason if it is bad news.
        clock: Unix seconds, the store's.
        credentials: As for :func:`reconcile`.
        every_s: How often the store is checked.
    """
    known = ""
    while True:
        with contextlib.suppress(FleetError):  # Redis is away: its own watcher reports that
            found = await registry.store_id()
            if known and found != known:
                await _put_back(registry, wanted, joining, say, now=await clock(), credentials=credentials)
            known = found
        await asyncio.sleep(every_s)


async def _put_back(
    registry: Roster,
    wanted: Sequence[Node],
    joining: Collection[str],
    say: Callable[[str, str], None],
    *,
    now: float,
    credentials: Callable[[str], str],
) -> None:
    try:
        await reconcile(registry, wanted, joining, now=now, credentials=credentials)
    except Conflict as error:  # somebody else was faster; a retry would not help
        say("nodes not registered again", str(error))
    else:
        say("the store was emptied: nodes are registered again", "")
