"""Where a job goes whose run has not succeeded."""

from dataclasses import replace

from comfy_fleet.planning.contenders import AfterOom
from comfy_fleet.planning.states import SimulatedJob, SimulatedNode


def goes_back(job: SimulatedJob, node: SimulatedNode, after_oom: AfterOom, *, max_attempts: int) -> bool:
    """Return whether a job is tried again; note what is known of its memory then.

    Args:
        job: The job.
        node: Where it ran; if that is down, it was the node's fault.
        after_oom: Where jobs go that ran out of memory.
        max_attempts: Runs that may end with their node.
    """
    if not node.up:
        return job.attempts < max_attempts
    if after_oom is AfterOom.OTHER:
        return job.attempts < node.pool.size
    vram = node.planned.node.vram_bytes
    job.seen = replace(job.seen, memory=max(job.seen.memory, vram + 1))
    return vram < node.pool.largest
