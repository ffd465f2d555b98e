"""Which of the nodes that are able to run a job it is offered to first.

HAProxy grants the first free node of a list of names, so an order is a list. It is made from what is known
of the nodes and from what the job asks for, never from who is free: only HAProxy knows that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.nodes.weights import drawn

FASTER = 2.0
"""A node with this many times the share of another is worth a moment's wait."""

Nodes: TypeAlias = Mapping[str, NodeState]


class NodeOrder(Protocol):
    """A way to order nodes.

    Attributes:
        as_haproxy: Whether HAProxy's own choice among all nodes of a pool is just as good. Then no names are
            sent.
    """

    as_haproxy: bool

    def preferred(self, placement: Placement, able: Nodes) -> list[str]:
        """Return the able nodes of one pool, the most wanted first; those at the end may be left out."""

    def better(
        self, placement: Placement, granted: str, pools: Sequence[tuple[str, Nodes]]
    ) -> Mapping[str, Sequence[str]]:
        """Return the nodes for which a granted one is given back if one of them is free.

        Args:
            placement: What the job asks for.
            granted: A node of the last of the pools; one that was added just now is not among them yet.
            pools: Each pool that was asked, in the placement's order, with its able nodes.

        Returns:
            By pool, in the order in which they are asked: nodes, the most wanted first.
        """


class ByShare:
    """The more work a node should get, the sooner; every node of an earlier pool before those of a later one.

    Args:
        chance: Random numbers from 0 to 1.
    """

    as_haproxy = True  # it shares by the same weights

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def preferred(self, placement: Placement, able: Nodes) -> list[str]:
        """Draw the nodes by their shares."""
        return drawn({name: state.node.share for name, state in able.items()}, self._chance)

    def better(
        self, placement: Placement, granted: str, pools: Sequence[tuple[str, Nodes]]
    ) -> Mapping[str, Sequence[str]]:
        """Return every node of the pools before, and the nodes of the same pool that are much faster."""
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
