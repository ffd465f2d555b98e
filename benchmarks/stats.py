"""What the figures are made of: order statistics and shares of time. No clock, no I/O."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Interval = tuple[float, float]
"""Start and end, in seconds of any one clock."""

TIMES = ("times", "median s", "least s", "most s")
"""Heads of the columns that :meth:`Spread.row` fills."""


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a value that was really measured, never one in between.

    Args:
        values: At least one, in any order.
        percent: Above 0 and at most 100.

    Raises:
        ValueError: There are no values, or the percentage is out of range.
    """
    if not values:
        raise ValueError("a percentile needs at least one value")
    if not 0 < percent <= 100:
        raise ValueError(f"percent is {percent}; it must be above 0 and at most 100")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[rank - 1]


def median(values: Sequence[float]) -> float:
    """Return the value in the middle, or the mean of the two in the middle.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def added(values: Sequence[float], to: Sequence[float]) -> "Spread":
    """Describe by how much values exceed those that were measured beside them, one by one.

    Raises:
        ValueError: There are none, or not as many.
    """
    return Spread.of([one - other for one, other in zip(values, to, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a set of measured values lies.

    Attributes:
        count: How many there are.
        p50: Their median.
        p99: Nearest rank.
        least: The smallest.
        most: The largest.
    """

    count: int
    p50: float
    p99: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Describe values.

        Raises:
            ValueError: There are none.
        """
        return cls(
            count=len(values),
            p50=median(values),
            p99=percentile(values, 99),
            least=min(values),
            most=max(values),
        )

    def words(self) -> str:
        """Say it of values in seconds that must all stay below a bound."""
        return f"median {self.p50:.2f} s, most {self.most:.2f} s of {self.count}"

    def row(self, digits: int = 2) -> list[str]:
        """Return the cells below :data:`TIMES`, of values in seconds."""
        return [str(self.count), *(f"{value:.{digits}f}" for value in (self.p50, self.least, self.most))]

    def words_ms(self, digits: int = 0) -> str:
        """Say it in milliseconds, of values in seconds whose tail counts; the digits are the median's."""
        return f"{self.p50 * 1000:.{digits}f} ms, p99 {self.p99 * 1000:.0f} ms"

    def row_ms(self, digits: int = 2) -> list[str]:
        """Return median, p99 and least in milliseconds, of values in seconds."""
        return [f"{value * 1000:.{digits}f}" for value in (self.p50, self.p99, self.least)]


def covered(intervals: Iterable[Interval]) -> float:
    """Return how much time at least one of the intervals covers, in seconds.

    Raises:
        ValueError: An interval ends before it starts.
    """
    total = 0.0
    until = -math.inf
    for start, end in sorted(intervals):
        if end < start:
            raise ValueError(f"an interval ends at {end}, before its start {start}")
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How well a set of GPUs was used by one batch of jobs.

    Attributes:
        jobs: How many intervals there were.
        window_s: From the first start of a computation to the last end, over all GPUs.
        makespan_s: From the submit to the last end.
        share: Computing time over ``GPUs * window_s``, 0 to 1.
        share_from_submit: Computing time over ``GPUs * makespan_s``, 0 to 1.
        gap_s: Median of the idle times between one job and the next on the same GPU; 0 without any.
    """

    jobs: int
    window_s: float
    makespan_s: float
    share: float
    share_from_submit: float
    gap_s: float

    @property
    def jobs_per_s(self) -> float:
        """Throughput in the window."""
        return self.jobs / self.window_s


def computing(by_gpu: Sequence[Sequence[Interval]], *, submitted: float) -> Computing:
    """Account for a batch.

    Args:
        by_gpu: The computations of each GPU; one that did nothing counts as idle, not as absent.
        submitted: When the first submit was sent, on the same clock.

    Raises:
        ValueError: Nothing was computed.
    """
    every = [interval for intervals in by_gpu for interval in intervals]
    if not every:
        raise ValueError("no GPU computed anything")
    first = min(start for start, _ in every)
    last = max(end for _, end in every)
    busy = sum(covered(intervals) for intervals in by_gpu)
    gaps = [
        max(0.0, start - end)
        for intervals in by_gpu
        for (_, end), (start, _) in zip(sorted(intervals), sorted(intervals)[1:], strict=False)
    ]
    return Computing(
        jobs=len(every),
        window_s=last - first,
        makespan_s=last - submitted,
        share=busy / (len(by_gpu) * (last - first)),
        share_from_submit=busy / (len(by_gpu) * (last - submitted)),
        gap_s=median(gaps) if gaps else 0.0,
    )
