"""Why a job waits, in words for the one who sent it."""

import math

from comfy_fleet.domain.schedule.backlog import WaitingEntry
from comfy_fleet.domain.schedule.known_nodes import KnownNodes


def waiting_for(waiting: WaitingEntry, nodes: KnownNodes, now: float) -> str:
    """Return why a job waits."""
    job, queue, owner = waiting.job, waiting.queue, waiting.owner
    if not nodes.serve(queue):
        return "no node can run it"
    if waiting.overdue_at is not None:
        left = math.ceil(waiting.overdue_at - now)
        for _, holder in nodes.holders(job.models.family) if left > 0 else ():
            if holder.kind.serves(queue):
                return f"{holder.facts.name} has the model: at most {left} s more"
        return "the next free node takes it"
    ahead = owner.jobs.before(job.id)
    if ahead:
        return f"behind {ahead} of your own"
    first = queue.owners.first()
    if first is not None and first[1] != job.owner and first[0] < owner.tag:
        return "your share is used"
    return "all nodes are busy"
