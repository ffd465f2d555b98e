"""Where a waiting job stands, read from a few entries of the indexes, whatever waits.

The scripts read the same (``sched_standing`` in ``schedule_standing.lua``).
"""

from comfy_fleet.domain.schedule.backlog import Backlog, WaitingEntry
from comfy_fleet.domain.schedule.known_nodes import KnownNodes
from comfy_fleet.domain.schedule.standing import OwnerBacklog, Share, Standing

OTHERS = 2
"""Most other owners of its tenant, and other tenants, that are looked at: those with the least tags."""
SAMPLED = 2
"""Most of an owner's jobs that are read to know how long its jobs before one take."""
QUEUES = 2
"""Most other queues in which an owner's jobs are counted."""


def read_standing(waiting: WaitingEntry, backlog: Backlog, nodes: KnownNodes, now: float) -> Standing:
    """Return where a waiting job stands."""
    job, queue, owner = waiting.job, waiting.queue, waiting.owner
    ahead = owner.jobs.before(job.id)
    before = [owner.jobs.at(at) for at in range(max(0, ahead - SAMPLED), ahead)] or [job.id]
    beside = nodes.beside(queue, backlog.queues.values())
    mine = [other.by_owner[job.owner].jobs for other in beside if job.owner in other.by_owner]
    earlier = sum(jobs.below(waiting.order) for jobs in mine[:QUEUES])
    tenant, owners = owner.tenant, queue.owners.of(owner.tenant.name)
    others = [name for _, name in owners.head(OTHERS + 1) if name != job.owner][:OTHERS]
    tenants = [name for _, name in queue.owners.tenants.head(OTHERS + 1) if name != tenant.name][:OTHERS]
    family, own_family = queue.by_family[job.models.family], owner.families[job.models.family]
    holders = nodes.holder_count(job.models.family, queue) if job.models.files else 0
    serving = nodes.serving(queue)
    return Standing(
        run_s=job.run_s,
        load_s=serving[0].warmth.load_s(job.models) if serving else 0.0,
        tag=owner.tag,
        weight=owner.account.weight,
        ahead=ahead,
        own=len(owner.jobs),
        own_s=sum(backlog.waiting[name].job.run_s for name in before) / len(before),
        beside=earlier,
        jobs=sum(each.count for each in queue.by_family.values()),
        jobs_s=sum(each.backlog_s for each in queue.by_family.values()),
        owners=len(owners),
        others=tuple(
            OwnerBacklog(
                tag=queue.by_owner[name].tag,
                weight=queue.by_owner[name].account.weight,
                jobs=len(queue.by_owner[name].jobs),
            )
            for name in others
        ),
        tenant=Share(tag=tenant.tag, weight=tenant.account.weight),
        tenants=tuple(
            Share(tag=queue.by_tenant[name].tag, weight=queue.by_tenant[name].account.weight)
            for name in tenants
        ),
        foreign=sum(each.count for other in beside for each in other.by_family.values()) - earlier,
        queues=len(beside),
        family_s=family.backlog_s,
        family_own=len(own_family),
        family_ahead=own_family.before(job.id),
        holders=holders,
        held_in_s=nodes.held_in_s(job.models.family, queue, now) if holders else 0.0,
    )
