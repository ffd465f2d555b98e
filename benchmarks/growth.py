"""Whether a series of measured values goes on growing. No clock, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.stats import median

Point = tuple[float, float]
"""Seconds from the start, and the value then."""

MOST_POINTS = 400
"""Of more, every n-th is fitted: the pairs of a long run would be too many."""
FEWEST_POINTS = 10


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """By how much a series may have grown at its end: the larger one of both counts.

    Attributes:
        share: A part of its first value.
        least: In the series' own unit.
    """

    share: float
    least: float

    def allows(self, first: float) -> float:
        """Return the most that a series with this first value may grow."""
        return max(self.share * abs(first), self.least)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a series went, without its warm-up.

    Attributes:
        first: Median of its second tenth.
        last: Median of its last tenth.
        most: Its highest value, warm-up included.
        fitted: By how much it grew from end to end, by the slope of Theil and Sen: the median of the slopes
            between any two of its points.
        allowed: By how much it may.
        judged: Whether there were enough points.
    """

    first: float
    last: float
    most: float
    fitted: float
    allowed: float
    judged: bool

    @property
    def grown(self) -> float:
        """By how much it grew, as both ways of looking agree."""
        return min(self.fitted, self.last - self.first)

    @property
    def level(self) -> bool:
        """Whether it did not grow beyond what is allowed."""
        return self.judged and self.grown <= self.allowed


def theil_sen(points: Sequence[Point]) -> float:
    """Return the median slope between any two points, a second.

    Raises:
        ValueError: There are no two points at different times.
    """
    slopes = [
        (value - earlier) / (at - before)
        for number, (at, value) in enumerate(points)
        for before, earlier in points[:number]
        if at > before
    ]
    return median(slopes)


def growth(points: Sequence[Point], tolerance: Tolerance, *, warm_up_s: float) -> Growth:
    """Judge a series.

    Args:
        points: In the order of time.
        tolerance: By how much it may grow.
        warm_up_s: What was before that is left out.
    """
    most = max((value for _, value in points), default=0.0)
    kept = [point for point in points if point[0] >= warm_up_s]
    if len(kept) < FEWEST_POINTS:
        last = kept[-1][1] if kept else 0.0
        return Growth(first=last, last=last, most=most, fitted=0.0, allowed=0.0, judged=False)
    tenth = len(kept) // 10
    first = median([value for _, value in kept[tenth : 2 * tenth]])
    last = median([value for _, value in kept[-tenth:]])
    every = -(-len(kept) // MOST_POINTS)
    fitted = theil_sen(kept[::every]) * (kept[-1][0] - kept[0][0])
    return Growth(
        first=first, last=last, most=most, fitted=fitted, allowed=tolerance.allows(first), judged=True
    )


def growths(
    series: Mapping[str, Sequence[Point]], tolerances: Mapping[str, Tolerance], *, warm_up_s: float
) -> dict[str, Growth]:
    """Judge several series, by name; the tolerance is that of the name's first word, if it has one."""
    return {
        name: growth(points, tolerances[word], warm_up_s=warm_up_s)
        for name, points in series.items()
        if (word := name.partition(" ")[0]) in tolerances
    }
