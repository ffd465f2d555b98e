"""Keep the nodes of ``fleet up`` in the registry."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

from comfy_fleet.cli.up.nodes import MANAGED, MANAGER
from comfy_fleet.domain.node import Node


class Roster(Protocol):
    """The part of the node registry that :func:`reconcile` needs."""

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes."""

    async def add(self, node: Node) -> Node:
        """Register a node."""

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Forget a node."""

    async def cordon(self, name: str, *, reason: str) -> Node:
        """Keep new jobs away."""


async def reconcile(
    registry: Roster, wanted: Sequence[Node], joining: Collection[str] = (), *, now: float
) -> None:
    """Make the registry hold the wanted nodes; nodes that others added stay.

    Args:
        registry: Where nodes are registered.
        wanted: What this ``fleet up`` serves.
        joining: Names of nodes that an agent will register, where they are not yet.
        now: Unix seconds: when nodes that are new were added.

    Raises:
        Conflict: A name or URL belongs to a node that somebody else added.
    """
    by_name = {node.name: node for node in wanted}
    kept = set(joining)
    cordons: dict[str, str] = {}
    for node in await registry.nodes():
        new = by_name.get(node.name)
        if new and (node.url, node.simulated) == (new.url, new.simulated):
            kept.add(node.name)
        elif node.name not in kept and node.labels.get(MANAGED) == MANAGER:
            await registry.remove(node.name, force=True)
            if node.cordoned:
                cordons[node.name] = node.cordon_reason
    for node in wanted:
        if node.name not in kept:
            await registry.add(replace(node, added_at=now))
            if node.name in cordons:  # an operator's word holds for the name, wherever it listens now
                await registry.cordon(node.name, reason=cordons[node.name])
