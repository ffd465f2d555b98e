"""How long a job will take, from measured durations and the queue; never from a constant."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

LONGEST_RETRY_S = 60
NO_NODE_RETRY_S = 30


def seconds_left(
    own: Sequence[float],
    all_jobs: Sequence[float],
    *,
    ahead: int,
    busy: int,
    nodes: int,
) -> float | None:
    """Estimate the seconds until a queued job is done.

    The nodes work side by side on the jobs ahead of this one, at the mean time of all recent runs. A run in
    progress counts half. Then the job itself takes the median of its own kind.

    Args:
        own: Measured run times of the same kind of job, in seconds; may be empty.
        all_jobs: Measured run times of all jobs, as on a node of mean speed (see :func:`evened`); used in
            place of ``own`` while that is empty.
        ahead: Queued jobs before this one.
        busy: Jobs that run now.
        nodes: Nodes that are up.

    Returns:
        Seconds, or None while nothing was measured or no node is up.
    """
    if nodes < 1 or not (own or all_jobs):
        return None
    itself = median(own or all_jobs)
    others = fmean(all_jobs or own)
    if ahead == 0 and busy < nodes:
        return itself
    return (ahead * others + min(busy, nodes) * others / 2) / nodes + itself


def seconds_running(own: Sequence[float], *, elapsed_s: float) -> float | None:
    """Estimate the time left for a job that has run for ``elapsed_s`` seconds; None without measurements."""
    return max(0.0, median(own) - elapsed_s) if own else None


def evened(runs: Sequence[tuple[float, str]], rates: Mapping[str, float], up: Sequence[str]) -> list[float]:
    """Return the times that runs would have taken on a node of mean speed, of those that are up.

    Under load every node has its share of the last runs, and this changes little. In quiet times most jobs
    run on the fastest nodes, which says little about how long all nodes need for a full queue.

    Args:
        runs: Seconds and node of each run.
        rates: The nodes' relative speeds, by name.
        up: The nodes that are up, all of them in ``rates``.
    """
    if not up:
        return [seconds for seconds, _ in runs]
    mean = fmean(rates[node] for node in up)
    return [seconds * rates.get(node, mean) / mean for seconds, node in runs]


def retry_after(all_jobs: Sequence[float], *, nodes: int) -> int:
    """Return the whole seconds until a full queue should have room for a job.

    Args:
        all_jobs: Measured run times of all jobs in seconds; may be empty.
        nodes: Nodes that are up.
    """
    if nodes < 1:
        return NO_NODE_RETRY_S
    return min(LONGEST_RETRY_S, max(1, math.ceil(fmean(all_jobs or [0.0]) / nodes)))
