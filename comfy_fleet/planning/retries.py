"""Where a job goes whose run has not succeeded."""

from collections.abc import Mapping
from dataclasses import replace

from comfy_fleet.planning.contenders import AfterOom
from comfy_fleet.planning.states import SimulatedJob, SimulatedNode


class Retries:
    """Decides if a job goes back.

    Args:
        after_oom: Where jobs go that ran out of memory.
        max_attempts: Runs that may end with their node.
        largest: Bytes of the largest card, by pool.
        pool_sizes: How many nodes a pool has.
    """

    def __init__(
        self,
        after_oom: AfterOom,
        *,
        max_attempts: int,
        largest: Mapping[str, int],
        pool_sizes: Mapping[str, int],
    ) -> None:
        self._after_oom = after_oom
        self._max_attempts = max_attempts
        self._largest = largest
        self._pool_sizes = pool_sizes

    def goes_back(self, job: SimulatedJob, node: SimulatedNode) -> bool:
        """Return whether a job is tried again; note what is known of its memory then."""
        pool = job.real.pool
        if not node.up:
            return job.attempts < self._max_attempts
        if self._after_oom is AfterOom.OTHER:
            return job.attempts < self._pool_sizes[pool]
        vram = node.planned.node.vram_bytes
        job.seen = replace(job.seen, memory=max(job.seen.memory, vram + 1))
        return vram < self._largest[pool]
