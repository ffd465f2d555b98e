"""Why a job waits, in words for the one who sent it."""

import math
from collections.abc import Container
from dataclasses import dataclass

from comfy_fleet.domain.schedule.backlog import WaitingEntry
from comfy_fleet.domain.schedule.known_nodes import KnownNodes

NEXT = "the next free node takes it"


@dataclass(frozen=True, kw_only=True)
class QueuePlace:
    """Where a job stands in its queue.

    Attributes:
        ahead: How many of its owner's jobs there go before it.
        overdue_in_s: Seconds until it is overdue, less than 0 if it is; None if it was not passed over.
        holder: A node that has its models, or loads them; empty if there is none.
        free_in_s: Seconds until that node is free, as it is expected; 0: it is.
        share_used: Whether somebody else of its tenant who waits there has had less than its owner.
        bounded_by: Who has as many jobs running as may be at once, ``user`` or ``tenant``; empty: nobody.
        most_running: How many these are.
        tenant_used: Whether another tenant that waits there has had less than its tenant.
    """

    ahead: int
    overdue_in_s: float | None = None
    holder: str = ""
    free_in_s: float = 0.0
    share_used: bool = False
    tenant_used: bool = False
    bounded_by: str = ""
    most_running: int = 0


def words(place: QueuePlace, *, usable: Container[str], busy: str | None) -> str | None:
    """Return why a job waits; None if there is no reason.

    Args:
        place: Where it stands.
        usable: The nodes that can run it and take jobs, now or once they are free.
        busy: What keeps all of these from it, in words; None if one of them is free.
    """
    if place.bounded_by:
        whose = "your tenant" if place.bounded_by == "tenant" else "you"
        return f"{whose} may have {place.most_running} running at once: one of them has to end"
    holder = place.holder if place.holder in usable else ""
    overdue_in_s = place.overdue_in_s
    if overdue_in_s is not None and overdue_in_s > 0 and (holder or busy):
        most = f"at most {math.ceil(overdue_in_s)} s more"
        if holder:
            return f"{holder} has the model: {most}"
        why = f"jobs whose models are loaded go first: {most}"
    elif overdue_in_s is not None:
        why = NEXT
    elif place.ahead:
        why = f"behind {place.ahead} of your own"
    elif place.tenant_used:
        why = "your tenant's share is used"
    elif place.share_used:
        why = "your share is used"
    elif holder and busy is None and place.free_in_s > 0:
        return f"{holder} has the model, and is free in about {math.ceil(place.free_in_s)} s"
    else:
        return busy
    return f"{why}; {busy}" if busy else why


def waiting_for(waiting: WaitingEntry, nodes: KnownNodes, now: float) -> str:
    """Return why a job waits in a queue that is kept here."""
    job, queue, owner = waiting.job, waiting.queue, waiting.owner
    if not nodes.serve(queue):
        return "no node can run it"
    held = (one.facts.name for _, one in nodes.holders(job.models.family) if one.kind.serves(queue))
    holder = next(held, "")
    tenant = owner.tenant
    first, first_tenant = queue.owners.of(tenant.name).first(), queue.owners.tenants.first()
    place = QueuePlace(
        ahead=owner.jobs.before(job.id),
        overdue_in_s=None if waiting.overdue_at is None else waiting.overdue_at - now,
        holder=holder,
        share_used=first is not None and first[1] != job.owner and first[0] < owner.tag,
        tenant_used=first_tenant is not None
        and first_tenant[1] != tenant.name
        and first_tenant[0] < tenant.tag,
    )
    return words(place, usable=(holder,), busy=None) or "all nodes are busy"
