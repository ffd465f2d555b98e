"""Leases held ready: who holds the lease of an idle node for the next job.

HAProxy has granted them beforehand. So what it would know at the moment of a grant has to be known here: if
the node still gets leases, and if its holder still lives.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class ReadyBeat:
    """What a holder's beat learned.

    Attributes:
        holders: How many live dispatchers share the idle nodes.
        lost: Nodes whose leases it has to give back now.
    """

    holders: int
    lost: frozenset[str]


class ReadyLeaseStore(Protocol):
    """The record of leases held ready. Every method maps nodes to the ids that their runs will have."""

    async def beat(
        self, dispatcher: str, held: Mapping[str, str], new: Mapping[str, str], dropped: Mapping[str, str]
    ) -> ReadyBeat:
        """Renew a dispatcher's leases; those that are not renewed for about a second can't be used any more.

        A node is lost if HAProxy gives no leases on it, if it is cordoned or gone, if a run has it, if
        another dispatcher holds it, or if nobody watches (:meth:`expired`).

        Args:
            dispatcher: The holder.
            held: What it holds, and has told before.
            new: What it was just granted.
            dropped: What it has given back.
        """

    async def expired(self) -> Mapping[str, str]:
        """Return the leases that have to be cut, and note that somebody watches."""

    async def unexplained(self, nodes: Collection[str]) -> frozenset[str]:
        """Return those of the nodes that no run has and nobody holds ready."""

    async def give_up(self, leases: Mapping[str, str]) -> frozenset[str]:
        """Give up those of the leases that still have to be cut: no run begins there; return their nodes."""
