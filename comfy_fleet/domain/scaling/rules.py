"""The rules by which a pool grows and shrinks."""

from dataclasses import dataclass
from enum import Enum

MOST_NODES = 1000
"""No pool may be given a maximum above this."""


class GrowSignal(Enum):
    """What a rule for more nodes looks at."""

    WAIT = "wait"
    """For how many seconds the oldest job has waited."""
    BACKLOG = "backlog"
    """How many jobs wait."""


@dataclass(frozen=True, kw_only=True)
class GrowRule:
    """A rule for more nodes.

    Attributes:
        signal: What is looked at.
        above: It holds while that is more than this.
        for_s: For how many seconds without a break it must have held.
        add: How many nodes are added then.
    """

    signal: GrowSignal
    above: float
    for_s: float
    add: int

    def holds_at(self, *, oldest_s: float, waiting: float) -> bool:
        """Return whether it holds at one moment."""
        return (oldest_s if self.signal is GrowSignal.WAIT else waiting) > self.above

    @property
    def words(self) -> str:
        """It, as a condition in words."""
        what = f"a job has waited over {self.above:g} s"
        if self.signal is GrowSignal.BACKLOG:
            what = f"over {self.above:g} jobs have waited"
        return f"{what} for {self.for_s:g} s"


@dataclass(frozen=True, kw_only=True)
class ShrinkRule:
    """The rule for fewer nodes; one at a time.

    Attributes:
        busy_below: It holds while less than this share of the nodes' time was work, 0 to 1.
        for_s: Over how many seconds.
    """

    busy_below: float = 0.3
    for_s: float = 600.0


GROW = (
    GrowRule(signal=GrowSignal.WAIT, above=30.0, for_s=120.0, add=1),
    GrowRule(signal=GrowSignal.BACKLOG, above=50.0, for_s=300.0, add=2),
)
"""The rules for more of a pool that names none."""


@dataclass(frozen=True, kw_only=True)
class ScalingRules:
    """How a pool may grow and shrink.

    Attributes:
        minimum: Fewest nodes that can take jobs.
        maximum: Most nodes, whatever state they are in.
        cool_down_s: Seconds after a change within which no rule makes another one.
        grow: Rules for more.
        shrink: The rule for fewer; None: nodes are never removed.
        least_busy: Jobs that wait while nodes are idle wait for something else than a node: no rule for more
            holds unless this share of the nodes' time was work meanwhile, 0 to 1.
    """

    minimum: int
    maximum: int
    cool_down_s: float = 120.0
    grow: tuple[GrowRule, ...] = GROW
    shrink: ShrinkRule | None = ShrinkRule()
    least_busy: float = 0.5

    @property
    def longest_s(self) -> float:
        """For how long a look is needed, in seconds."""
        spans = [rule.for_s for rule in self.grow]
        return max([*spans, self.shrink.for_s if self.shrink else 0.0], default=0.0)
