"""Where nodes come from, and what is remembered of those that were asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.scaling.looks import PoolLook
from comfy_fleet.domain.scaling.orders import PoolBook, ScalingOrder


class NodeProvider(Protocol):
    """Adds and removes nodes of one pool. It is told one thing about an order at a time.

    Attributes:
        again: Whether it may be told twice to add the same order, which is then one node all the same. Else
            an order of which nobody knows whether it was told is only waited for.
    """

    @property
    def again(self) -> bool:
        """Whether it may be told twice."""

    def draw(self, orders: Sequence[ScalingOrder]) -> tuple[str, Mapping[str, str]] | None:
        """Return a new order's name and what has to be remembered of it; None: there is no room for one.

        Args:
            orders: The orders that there are.
        """

    async def add(self, order: ScalingOrder) -> Node | None:
        """Ask for a node.

        Returns:
            What is to be registered; None: its agent registers it.

        Raises:
            ConfigError: It can't be had; the message says why.
        """

    async def remove(self, order: ScalingOrder) -> None:
        """End an order's node. It is no error if there is none.

        Raises:
            ConfigError: That failed, or is not known; the message says why.
        """


@dataclass(frozen=True, kw_only=True)
class ScalingState:
    """What is stored.

    Attributes:
        holder: Who is active; empty: nobody.
        books: By pool.
        looks: The same, what was seen lately.
        unreadable: Pools whose book can't be read.
    """

    holder: str
    books: Mapping[str, PoolBook]
    looks: Mapping[str, Sequence[PoolLook]]
    unreadable: frozenset[str] = frozenset()


class ScalingStore(Protocol):
    """Who is active, and what is remembered. Every method raises StoreDown."""

    async def hold(self, holder: str, *, ttl_s: float) -> bool:
        """Become active, or stay so, for some seconds; return False if somebody else is."""

    async def save(self, holder: str, pool: str, book: PoolBook, looks: Sequence[PoolLook]) -> bool:
        """Store a pool's book; return False, and store nothing, if ``holder`` is no longer active."""

    async def release(self, holder: str) -> None:
        """Let another one be active."""

    async def state(self) -> ScalingState:
        """Return what is stored."""
