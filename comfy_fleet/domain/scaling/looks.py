"""What was seen of a pool, moment by moment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLook:
    """A pool at one moment.

    Attributes:
        at: Unix seconds.
        waiting: Jobs that wait.
        oldest_s: For how many seconds the oldest of them has waited.
        nodes: Nodes that can take jobs.
        busy: Those of them that work on one.
        ended: Jobs that have ended on the pool's nodes since whenever.
    """

    at: float
    waiting: int
    oldest_s: float
    nodes: int
    busy: int
    ended: int = 0

    @property
    def sound(self) -> bool:
        """Whether these are numbers that a fleet can have."""
        return (
            math.isfinite(self.at)
            and math.isfinite(self.oldest_s)
            and min(self.waiting, self.oldest_s, self.nodes, self.busy, self.ended) >= 0
            and self.busy <= self.nodes
        )


def with_look(
    looks: Sequence[PoolLook], look: PoolLook, *, keep_s: float, most_gap_s: float
) -> tuple[PoolLook, ...]:
    """Return the looks with one more.

    Nobody knows what was between two looks that are far apart, or in the wrong order: they begin anew then.

    Args:
        looks: The earlier ones.
        look: The new one; one that is not sound makes them empty.
        keep_s: For how long a look is kept.
        most_gap_s: Most seconds between two.
    """
    if not look.sound:
        return ()
    if looks and not 0.0 <= look.at - looks[-1].at <= most_gap_s:
        return (look,)
    # One that is older than the span must stay: it shows that the span is covered.
    first = 0
    while first + 1 < len(looks) and looks[first + 1].at <= look.at - keep_s:
        first += 1
    return (*looks[first:], look)


def within(looks: Sequence[PoolLook], span_s: float) -> Sequence[PoolLook]:
    """Return the looks of the last seconds; none if they do not go back as far."""
    if not looks or looks[0].at > looks[-1].at - span_s:
        return ()
    since = looks[-1].at - span_s
    return [look for look in looks if look.at >= since]


def busy_share(looks: Sequence[PoolLook]) -> float:
    """Return which share of the nodes' time was work, 0 to 1; without any node, 1."""
    nodes = sum(look.nodes for look in looks)
    return sum(look.busy for look in looks) / nodes if nodes else 1.0


def mean_busy(looks: Sequence[PoolLook]) -> float:
    """Return how many nodes worked on average; 0 without looks."""
    return sum(look.busy for look in looks) / len(looks) if looks else 0.0


def run_s(looks: Sequence[PoolLook]) -> float:
    """Return about how long a node works on a job, in seconds; at least one."""
    busy_s = sum(after.busy * (after.at - before.at) for before, after in pairwise(looks))
    ended = sum(max(0, after.ended - before.ended) for before, after in pairwise(looks))
    return max(1.0, busy_s / max(1, ended))
