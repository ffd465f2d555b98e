"""Nodes that the autoscaler has asked for, from the order to the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comfy_fleet.domain.backoff import Backoff

BACKOFF = Backoff(first_s=30.0, longest_s=1800.0)
"""The pauses after orders that failed."""

GONE_S = 60.0
"""A node whose machine was ended is forgotten after this many seconds, even if something answers for it."""

REJOIN_S = 10.0
"""For how long an agent whose machine was ended may still register its node again."""


class OrderPhase(StrEnum):
    """How far an order is."""

    ASKED = "asked"
    """The provider was told, or is about to be. It is never told twice."""
    READY = "ready"
    """Its node has taken jobs, or could have."""
    DRAINING = "draining"
    """Its node gets no jobs, and is ended once it has no work."""
    ENDING = "ending"
    """The provider is told to remove it, until it has."""
    GONE = "gone"
    """The provider has removed it; the fleet forgets its node."""


@dataclass(frozen=True, kw_only=True)
class ScalingOrder:
    """A node that was asked for.

    Attributes:
        name: The node's name, or its host's.
        asked_at: Unix seconds of the fleet's time; so are the others.
        phase: How far it is.
        since: When that phase began.
        facts: What its provider has to remember.
        missing_since: Since when its node could take no jobs; None: it can.
        failed: Why it is removed, if that is not for want of work.
    """

    name: str
    asked_at: float
    phase: OrderPhase = OrderPhase.ASKED
    since: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)
    missing_since: float | None = None
    failed: str = ""

    def at(self, phase: OrderPhase, now: float, *, failed: str = "") -> "ScalingOrder":
        """Return it in another phase."""
        return replace(self, phase=phase, since=now, missing_since=None, failed=failed or self.failed)


@dataclass(frozen=True, kw_only=True)
class OrderedNode:
    """What the fleet knows of an order's nodes, of all of them together.

    Attributes:
        count: How many the registry has.
        open: How many can take jobs now.
        cordoned: Whether all of them are cordoned.
        quarantined: Whether the fleet itself has cordoned one, after faults.
        busy: Whether any job needs one of them.
        answered: Whether an agent of its own speaks for one of them.
    """

    count: int = 0
    open: int = 0
    cordoned: bool = False
    quarantined: bool = False
    busy: bool = False
    answered: bool = False


class Step(StrEnum):
    """What an order needs now."""

    NOTHING = "nothing"
    ADD = "add"
    """Tell the provider."""
    DRAIN = "drain"
    RESUME = "resume"
    REMOVE = "remove"
    """Tell the provider."""
    FORGET = "forget"
    """Remove its nodes from the registry."""
    DROP = "drop"
    """Drop the order."""


def followed(
    order: ScalingOrder, node: OrderedNode, *, now: float, boot_s: float
) -> tuple[ScalingOrder, Step]:
    """Follow an order: return it as it is now, and what it needs.

    Args:
        order: As it was.
        node: What the fleet knows of its nodes.
        now: Unix seconds.
        boot_s: For how long a node may boot, or be away.
    """
    if order.phase is OrderPhase.ASKED:
        if node.open:
            return order.at(OrderPhase.READY, now), Step.NOTHING
        if now - order.asked_at > boot_s:
            return order.at(
                OrderPhase.DRAINING, now, failed=f"can't take jobs {boot_s:g} s after its order"
            ), Step.DRAIN
        return order, Step.NOTHING
    if order.phase is OrderPhase.READY:
        if node.open or (node.cordoned and not node.quarantined):  # whoever drains it by hand may
            return replace(order, missing_since=None), Step.NOTHING
        since = now if order.missing_since is None else order.missing_since
        if now - since > boot_s:
            away = "left the fleet" if not node.count else "could take no jobs"
            failed = f"{away} for {boot_s:g} s"
            return order.at(OrderPhase.DRAINING, now, failed=failed), Step.DRAIN
        return replace(order, missing_since=since), Step.NOTHING
    if order.phase is OrderPhase.DRAINING:
        if not node.busy and (node.cordoned or not node.count):
            return order.at(OrderPhase.ENDING, now), Step.REMOVE
        if node.cordoned:
            return order, Step.NOTHING
        if order.failed:
            return order, Step.DRAIN
        return order.at(OrderPhase.READY, now), Step.NOTHING  # somebody has resumed it
    if order.phase is OrderPhase.ENDING:
        return order, Step.REMOVE
    if node.count:
        if node.answered and now - order.since < GONE_S:
            return order, Step.NOTHING
        return order, Step.FORGET
    return order, Step.DROP if now - order.since >= REJOIN_S else Step.NOTHING


@dataclass(frozen=True, kw_only=True)
class PoolBook:
    """What is remembered of a pool, whoever is active.

    Attributes:
        orders: Nodes that were asked for and are not gone.
        changed_at: When a node was last asked for, became ready or began to be removed; 0: never.
        failures: Orders that failed one after the other.
        failed_at: When the last one did.
        told: The last decision, in words.
        told_at: When it was made.
        added: Nodes that were asked for in all.
        removed: Nodes that were removed for want of work in all.
        failed: Orders that failed in all.
    """

    orders: tuple[ScalingOrder, ...] = ()
    changed_at: float = 0.0
    failures: int = 0
    failed_at: float = 0.0
    told: str = ""
    told_at: float = 0.0
    added: int = 0
    removed: int = 0
    failed: int = 0

    def with_order(self, order: ScalingOrder) -> "PoolBook":
        """Return it with an order in place of that of the same name, or with one more."""
        others = [one for one in self.orders if one.name != order.name]
        return replace(self, orders=tuple(sorted([*others, order], key=lambda one: one.asked_at)))

    def with_orders(self, orders: Sequence[ScalingOrder]) -> "PoolBook":
        """Return it with these orders."""
        return replace(self, orders=tuple(orders))

    def without(self, name: str) -> "PoolBook":
        """Return it without an order."""
        return replace(self, orders=tuple(one for one in self.orders if one.name != name))

    def failing(self, now: float) -> "PoolBook":
        """Return it after an order has failed."""
        return replace(self, failures=self.failures + 1, failed=self.failed + 1, failed_at=now)

    def pause_s(self, now: float) -> float:
        """Return for how many seconds nothing is ordered after failures."""
        if not self.failures:
            return 0.0
        return max(0.0, self.failed_at + BACKOFF.pause_s(self.failures) - now)


def leaving(
    orders: Sequence[ScalingOrder], nodes: Mapping[str, OrderedNode], count: int
) -> list[ScalingOrder]:
    """Return the orders whose nodes go first: those without work, the newest first."""
    ready = [order for order in orders if order.phase is OrderPhase.READY and nodes[order.name].open]
    ready.sort(key=lambda order: (nodes[order.name].busy, -order.asked_at))
    return ready[:count]
