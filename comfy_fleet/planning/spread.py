"""Order statistics of waits, kept in eight bytes each."""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How durations in seconds lie. Percentiles are nearest-rank: values that there were.

    Attributes:
        count: How many there are.
        mean: Their mean.
        p50: Half of them are at most this.
        p90: Nine of ten.
        p99: 99 of 100.
        most: The longest.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Describe values; None without any."""
        ordered = sorted(values)
        if not ordered:
            return None
        count = len(ordered)

        def rank(percent: int) -> float:
            return ordered[math.ceil(percent * count / 100) - 1]

        return cls(
            count=count,
            mean=math.fsum(ordered) / count,
            p50=rank(50),
            p90=rank(90),
            p99=rank(99),
            most=ordered[-1],
        )


def seconds() -> "array[float]":
    """Return an empty list of seconds."""
    return array("d")
