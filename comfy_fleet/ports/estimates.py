"""What estimates of jobs' ends are made of."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from comfy_fleet.domain.schedule.standing import Underway


class EstimateStore(Protocol):
    """How long runs take, and how far earlier estimates were off."""

    async def underway(self, job_id: str) -> Underway | None:
        """Return how far a job's run is in time; None if it does not run, or nothing is known of runs.

        Of one that has just ended, nothing is left.
        """

    async def free_in_s(self, nodes: Sequence[str]) -> Mapping[str, float]:
        """Return in how many seconds nodes are free that run something, as far as that is known."""

    async def mean_run_s(self) -> float | None:
        """Return how long runs compute on a node of speed 1, of all kinds; None if none was measured."""

    async def errors(self) -> Mapping[str, Sequence[float]]:
        """Return what the last estimates' jobs really took over what was estimated, by kind of estimate."""

    async def note(self, job_id: str, kind: str, end_in_s: float) -> None:
        """Remember the first estimate of a job that waits, to learn from it when it has succeeded.

        Args:
            job_id: The job; one that does not wait is left alone.
            kind: See :mod:`comfy_fleet.domain.schedule.calibration`.
            end_in_s: Seconds until its end, as estimated before anything learned was applied.
        """
