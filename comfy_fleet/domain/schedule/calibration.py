"""How far estimates are off, learned from what became of earlier ones; so half of all jobs end by ``p50_s``.

The last jobs' real times over what was estimated are kept, by kind of estimate. Their quantiles, times a new
estimate, are bounds that hold as often as they say as long as jobs stay as they are, whatever is wrong with
the estimate (split conformal prediction).

See Lei et al., "Distribution-Free Predictive Inference for Regression" (2018).
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KEPT = 256
"""How many of the last jobs count."""
ENOUGH = 20
"""With fewer, :data:`UNTAUGHT` counts, too."""
UNTAUGHT = (0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.1, 1.3, 1.6, 2.0)
"""What is assumed of a kind of which little was learned."""
RUNNING = "run"
"""Estimates of runs, from their starts."""
KINDS = (*(f"wait{number}" for number in range(4)), RUNNING)
"""All kinds: of waiting jobs, by how much of the time is waiting."""
_WAITS = (0.01, 1.0, 4.0)
"""Where a kind ends: seconds of waiting for each second of computing."""
LONG_LATE_S = 1e8
"""No estimate goes beyond this: three years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndEstimate:
    """When a job will probably have ended, in seconds from now.

    Attributes:
        p50_s: Half of such jobs have ended by then.
        p90_s: Nine of ten.
    """

    p50_s: float
    p90_s: float


def kind_of(end_in_s: float, run_s: float) -> str:
    """Return the kind of an estimate of a waiting job.

    Args:
        end_in_s: Seconds until its end.
        run_s: Those of them in which it computes.
    """
    waits = max(0.0, end_in_s - run_s) / run_s if run_s > 0.0 else math.inf
    return KINDS[bisect_right(_WAITS, waits)]


class Calibration:
    """The last errors of one kind of estimate.

    Args:
        ratios: Real times over estimated ones; of more than :data:`KEPT`, the first.
    """

    __slots__ = ("_ratios",)

    def __init__(self, ratios: Iterable[float] = ()) -> None:
        found = sorted(list(ratios)[:KEPT])
        self._ratios: Sequence[float] = found if len(found) >= ENOUGH else sorted((*found, *UNTAUGHT))

    def applied(self, end_in_s: float, *, since_s: float = 0.0) -> EndEstimate:
        """Return the estimate for a job, as such jobs have fared.

        Args:
            end_in_s: Seconds that its end is from a moment.
            since_s: How long ago that moment is. Jobs that had ended sooner say nothing of this one.
        """
        first = bisect_right(self._ratios, since_s / end_in_s) if end_in_s > 0.0 else 0
        later = self._ratios[first:]
        if not later:  # later than any before: as long again
            late = min(max(0.0, since_s), LONG_LATE_S)
            return EndEstimate(p50_s=late, p90_s=2 * late)

        def bound(share: float) -> float:
            ratio = later[min(len(later), math.ceil((len(later) + 1) * share)) - 1]
            return min(max(0.0, end_in_s * ratio - since_s), LONG_LATE_S)

        return EndEstimate(p50_s=bound(0.5), p90_s=bound(0.9))
