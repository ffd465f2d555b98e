"""How long a job will take, from measured durations and the queue; never from a constant."""

from collections.abc import Sequence
from statistics import median


def seconds_left(
    own: Sequence[float],
    all_jobs: Sequence[float],
    *,
    ahead: int,
    busy: int,
    nodes: int,
) -> float | None:
    """Estimate the seconds until a queued job is done.

    The nodes work off what is ahead of the job side by side, at the median of all recent runs; a run
    that is on its way counts half. Then the job takes the median of its own kind.

    Args:
        own: Measured run times of the same kind of job, in seconds; may be empty.
        all_jobs: Measured run times of all jobs; stands in for ``own`` while that is empty.
        ahead: Queued jobs before this one.
        busy: Jobs that run now.
        nodes: Nodes that are up.

    Returns:
        Seconds, or None while nothing was measured or no node is up: then nobody can know.
    """
    if nodes < 1 or not (own or all_jobs):
        return None
    itself = median(own or all_jobs)
    others = median(all_jobs or own)
    if ahead == 0 and busy < nodes:
        return itself
    return (ahead * others + min(busy, nodes) * others / 2) / nodes + itself


def seconds_running(own: Sequence[float], *, elapsed_s: float) -> float | None:
    """Estimate what is left of a job that runs since ``elapsed_s`` seconds; None without measurements."""
    return max(0.0, median(own) - elapsed_s) if own else None
