"""Estimates of jobs' ends at their submits, as the fleet makes them, against what happens."""

from array import array
from collections import defaultdict, deque
from dataclasses import dataclass
from statistics import median

from comfy_fleet.domain.schedule.calibration import KEPT, Calibration, kind_of
from comfy_fleet.domain.schedule.chooser import FairChooser
from comfy_fleet.domain.schedule.standing import end_in_s
from comfy_fleet.domain.schedule.waiting_job import WaitingJob

EWMA = 0.1
"""How much the last job counts in the averages that estimates are compared with."""


@dataclass(frozen=True, kw_only=True)
class EstimateQuality:
    """How good estimates were, of jobs that succeeded and were submitted after the first had ended.

    Attributes:
        jobs: How many they were.
        by_p50: Which part of them had ended by ``p50_s``.
        by_p90: The same of ``p90_s``.
        error_s: Median of how far ``p50_s`` was off, in seconds.
        ewma_error_s: The same of an exponentially weighted moving average of times from submit to end.
        ewma_wait_error_s: The same of such an average of waits, and the job's own loading and computing.
    """

    jobs: int
    by_p50: float
    by_p90: float
    error_s: float
    ewma_error_s: float
    ewma_wait_error_s: float


@dataclass(slots=True)
class _Estimate:
    at: float
    kind: str
    end_s: float
    p50_s: float
    p90_s: float
    run_s: float
    ewma: tuple[float, float] | None


class JudgedEstimates:
    """Estimates each job's end when it is submitted, and learns from each end.

    Args:
        policy: Knows where jobs stand.
    """

    def __init__(self, policy: FairChooser) -> None:
        self._policy = policy
        self._open: dict[str, _Estimate] = {}
        self._errors: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._ewma: tuple[float, float] | None = None
        self._off, self._off_ewma, self._off_ewma_wait = array("d"), array("d"), array("d")
        self._by_p50 = self._by_p90 = 0

    def submitted(self, job: WaitingJob, now: float) -> None:
        """Estimate the end of a job that waits from now on, if that is not known of it yet."""
        standing, nodes = self._policy.standing(job.id, now), self._policy.capacity(job.id, now)
        if job.id in self._open or standing is None or nodes is None:
            return
        end_s = end_in_s(standing, nodes)
        if end_s is None:
            return
        run_s = standing.run_s / nodes.speed_of(standing)
        kind = kind_of(end_s, run_s)
        end = Calibration(reversed(self._errors[kind])).applied(end_s)
        run_s += standing.load_s
        self._open[job.id] = _Estimate(now, kind, end_s, end.p50_s, end.p90_s, run_s, self._ewma)

    def ended(self, job_id: str, *, started: float, ended: float) -> None:
        """Note that a job has succeeded."""
        found = self._open.pop(job_id, None)
        if found is None:
            return
        took_s, wait_s = ended - found.at, started - found.at
        self._errors[found.kind].append(took_s / found.end_s if found.end_s > 0 else 1.0)
        if found.ewma is not None:
            self._off.append(abs(took_s - found.p50_s))
            self._off_ewma.append(abs(took_s - found.ewma[0]))
            self._off_ewma_wait.append(abs(took_s - found.ewma[1] - found.run_s))
            self._by_p50 += took_s <= found.p50_s
            self._by_p90 += took_s <= found.p90_s
        before = self._ewma or (took_s, wait_s)
        self._ewma = (
            before[0] + EWMA * (took_s - before[0]),
            before[1] + EWMA * (wait_s - before[1]),
        )

    def over(self, job_id: str) -> None:
        """Note that a job is over; of one that did not succeed, no end is expected any more."""
        self._open.pop(job_id, None)

    def quality(self) -> EstimateQuality | None:
        """Return how good the estimates were; None if there was none."""
        jobs = len(self._off)
        if not jobs:
            return None
        return EstimateQuality(
            jobs=jobs,
            by_p50=self._by_p50 / jobs,
            by_p90=self._by_p90 / jobs,
            error_s=median(self._off),
            ewma_error_s=median(self._off_ewma),
            ewma_wait_error_s=median(self._off_ewma_wait),
        )
