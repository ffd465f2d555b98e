"""The order in which able nodes are asked to run a job.

HAProxy grants the first free node of a list of names, so an order is a list. It is made from what is known
of the nodes and from what the job asks for, never from who is free: only HAProxy knows that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.nodes.weights import drawn

FASTER = 2.0
"""A node with this many times another's share is worth a short wait."""

Nodes: TypeAlias = Mapping[str, NodeState]


class NodeOrder(Protocol):
    """A way to order nodes.

    Attributes:
        as_haproxy: Whether HAProxy's own choice among all nodes of a pool is as good. Then no names are
            sent.
    """

    as_haproxy: bool

    def preferred(self, placement: Placement, able: Nodes) -> list[str]:
        """Return the able nodes of one pool, the most wanted first; those at the end may be left out."""

    def better(
        self, placement: Placement, granted: str, pools: Sequence[tuple[str, Nodes]]
    ) -> Mapping[str, Sequence[str]]:
        """Return the better nodes: if one of them is free, the granted one is given back.

        Args:
            placement: What the job asks for.
            granted: A node of the last pool; it may be so new that it is not among the pool's nodes yet.
            pools: The pools that were asked, in the placement's order, each with its able nodes.

        Returns:
            Nodes by pool, in the order in which pools are asked, the most preferred node first.
        """


class ByShare:
    """By shares of the work, and all nodes of an earlier pool before those of a later one.

    Args:
        chance: Random numbers from 0 to 1.
    """

    as_haproxy = True  # HAProxy uses the same weights

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def preferred(self, placement: Placement, able: Nodes) -> list[str]:
        """Draw the nodes by their shares."""
        return drawn({name: state.node.share for name, state in able.items()}, self._chance)

    def better(
        self, placement: Placement, granted: str, pools: Sequence[tuple[str, Nodes]]
    ) -> Mapping[str, Sequence[str]]:
        """Return all nodes of the earlier pools, and the much faster nodes of the same pool."""
        *before, (pool, nodes) = pools
        found = {earlier: self._fastest_first(placement, able) for earlier, able in before}
        if granted in nodes:
            enough = FASTER * nodes[granted].node.share
            faster = {name: state for name, state in nodes.items() if state.node.share >= enough}
            found[pool] = self._fastest_first(placement, faster)
        return found

    def _fastest_first(self, placement: Placement, nodes: Nodes) -> list[str]:
        """Sort nodes by their shares; equal ones are drawn."""
        return sorted(self.preferred(placement, nodes), key=lambda name: nodes[name].node.share, reverse=True)
