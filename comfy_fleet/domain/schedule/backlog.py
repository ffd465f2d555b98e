"""What waits, in indexes that each change keeps up to date with a few operations, and that are never walked.

A *queue* has the waiting jobs of one placement class and one class of cards. In it, jobs are indexed by
owner, and by owner and model family; owners by tag. A tag in an index may be an earlier, lower one: it is
mended when it is read.
"""

from collections.abc import Mapping
from typing import TypeVar

from comfy_fleet.domain.schedule.ordered_index import OrderedIndex
from comfy_fleet.domain.schedule.scheduled_node import GIB
from comfy_fleet.domain.schedule.shares import Account
from comfy_fleet.domain.schedule.tenants import SharedIndex
from comfy_fleet.domain.schedule.waiting_job import WaitingJob

Q = TypeVar("Q", "OwnerQueue", "TenantQueue")

MAX_HEADS = 64
"""Most heads that one decision reads: jobs, and owners whose tags are mended."""
CARDS = tuple(GIB * size for size in (8, 12, 16, 24, 32, 48, 80, 128))
"""Sizes of cards that begin a class, in bytes. A job waits in the queue of the class that it needs, so that
nodes with smaller cards don't meet it."""
MENDED = 5
"""Most owners that are read to find the one with the least tag."""
TIER = 1e11
"""Seconds between two tiers in a job's order: more than any time."""
HORIZON_S = 3600.0
"""A job that has to start in this time, to be finished as wished, is like one that was submitted now."""
UNHELD = 1e12
"""Seconds of backlog that set families that no node holds apart from all others."""


def card_class(size: int) -> int:
    """Return the class of cards of a size, or that a job of this size needs at least."""
    at = 0
    for least in CARDS:
        if size < least:
            break
        at += 1
    return at


def order_of(job: WaitingJob, *, late: bool = False) -> float:
    """Return a job's place among its owner's: the tier, then the rank or the wish to be finished.

    Args:
        job: The job.
        late: Whether it can't be finished as it wished any more. Then it does not hold up those that can.
    """
    if job.finish_by is None:
        return job.tier * TIER + job.rank
    boost = job.submitted - job.rank
    start = job.finish_by if late else job.finish_by - job.run_s - HORIZON_S
    return job.tier * TIER + start - boost


def stronger(one: WaitingJob, other: WaitingJob) -> bool:
    """Whether one job of an owner must not be passed by another: its tier or its priority is better."""
    if one.tier != other.tier:
        return one.tier < other.tier
    return one.submitted - one.rank > other.submitted - other.rank + 1e-6


class TenantQueue:
    """A tenant whose jobs wait in one queue.

    Attributes:
        name: The tenant; empty: the default one.
        account: What it has used.
        base: By how much it was lifted in this queue.
    """

    __slots__ = ("account", "base", "name")

    def __init__(self, name: str, account: Account, base: float) -> None:
        self.name = name
        self.account = account
        self.base = base

    @property
    def tag(self) -> float:
        """The tenant's start tag here, in GPU seconds."""
        return self.account.used + self.base


class OwnerQueue:
    """An owner's waiting jobs in one queue.

    Attributes:
        tenant: The owner's tenant there.
        account: What the owner has used.
        base: By how much the owner was lifted in this queue.
        jobs: All of them, in their order.
        unpassed: Those whose turn has not come yet, in their order.
        passed: Those that were passed over when their turn had come, by the time when they are overdue.
        families: All of them by model family, in their order.
    """

    __slots__ = ("account", "base", "families", "jobs", "passed", "tenant", "unpassed")

    def __init__(self, account: Account, base: float, tenant: TenantQueue) -> None:
        self.tenant = tenant
        self.account = account
        self.base = base
        self.jobs = OrderedIndex()
        self.unpassed = OrderedIndex()
        self.passed = OrderedIndex()
        self.families: dict[str, OrderedIndex] = {}

    @property
    def tag(self) -> float:
        """The owner's start tag here, in GPU seconds."""
        return self.account.used + self.base


class FamilyQueue:
    """The waiting jobs of one model family in one queue.

    Attributes:
        owners: Whose they are, by tag.
        backlog_s: Expected seconds of computing.
        count: How many they are.
        size: Bytes of the family's file.
        holders: How many nodes that can run them have the family on their cards.
    """

    __slots__ = ("backlog_s", "count", "holders", "owners", "size")

    def __init__(self, holders: int, size: int) -> None:
        self.owners = SharedIndex()
        self.backlog_s = 0.0
        self.count = 0
        self.holders = holders
        self.size = size

    @property
    def pressure(self) -> float:
        """Minus the backlog for each holder, those that no node holds first."""
        return -self.backlog_s / self.holders if self.holders else -self.backlog_s - UNHELD


class WaitingQueue:
    """The waiting jobs of one placement class and one class of cards.

    Attributes:
        place: The placement class.
        card: The class of cards.
        name: Of both.
        owners: All owners, by tag.
        unpassed: Owners with jobs whose turn has not come yet, by tag.
        passed: Owners with jobs that were passed over, by the time when the first of them is overdue.
        by_owner: The owners' jobs.
        by_tenant: The tenants of these owners.
        by_family: What waits of each model family.
        pressure: Families with files, the one with the largest backlog for each holder first.
    """

    __slots__ = (
        "by_family",
        "by_owner",
        "by_tenant",
        "card",
        "name",
        "owners",
        "passed",
        "place",
        "pressure",
        "unpassed",
    )

    def __init__(self, place: str, card: int) -> None:
        self.place = place
        self.card = card
        self.name = f"{place} {card}"
        self.owners = SharedIndex()
        self.unpassed = SharedIndex()
        self.passed = OrderedIndex()
        self.by_owner: dict[str, OwnerQueue] = {}
        self.by_tenant: dict[str, TenantQueue] = {}
        self.by_family: dict[str, FamilyQueue] = {}
        self.pressure = OrderedIndex()


class WaitingEntry:
    """A waiting job and where it is.

    Attributes:
        job: The job.
        queue: Its queue.
        owner: Its owner's jobs there.
        since: When it came.
        order: Its place among its owner's.
        late: Whether it can't be finished as it wished any more.
        overdue_at: When it will have been passed over for too long; ``None``: its turn has not come yet.
    """

    __slots__ = ("job", "late", "order", "overdue_at", "owner", "queue", "since")

    def __init__(self, job: WaitingJob, queue: WaitingQueue, owner: OwnerQueue, since: float) -> None:
        self.job = job
        self.queue = queue
        self.owner = owner
        self.since = since
        self.order = order_of(job)
        self.late = False
        self.overdue_at: float | None = None


class Backlog:
    """All waiting jobs.

    Attributes:
        waiting: Them, by id.
        queues: Queues in which jobs wait, by placement class and class of cards.
        reads: How many heads were read since this was set to 0.
        tenanted: Whether jobs of other tenants than the default one have come: then tenants' shares count.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, WaitingEntry] = {}
        self.queues: dict[tuple[str, int], WaitingQueue] = {}
        self.reads = 0
        self.tenanted = False

    def queue_of(self, job: WaitingJob) -> tuple[WaitingQueue, bool]:
        """Return a job's queue, and whether it is new."""
        key = (job.place, card_class(job.memory))
        queue = self.queues.get(key)
        if queue is not None:
            return queue, False
        queue = self.queues[key] = WaitingQueue(*key)
        return queue, True

    def add(self, waiting: WaitingEntry, family: FamilyQueue) -> None:
        """Add a job to all indexes."""
        job, queue, owner, order = waiting.job, waiting.queue, waiting.owner, waiting.order
        self.waiting[job.id] = waiting
        name, tenant = job.models.family, owner.tenant
        owner.jobs.put(job.id, order)
        owner.unpassed.put(job.id, order)
        jobs = owner.families.get(name)
        if jobs is None:
            jobs = owner.families[name] = OrderedIndex()
            family.owners.put(tenant.name, tenant.tag, job.owner, owner.tag)
        jobs.put(job.id, order)
        if len(owner.jobs) == 1:
            queue.owners.put(tenant.name, tenant.tag, job.owner, owner.tag)
        if len(owner.unpassed) == 1:
            queue.unpassed.put(tenant.name, tenant.tag, job.owner, owner.tag)
        family.count += 1
        family.backlog_s += job.run_s
        if name:
            queue.pressure.put(name, family.pressure)

    def remove(self, waiting: WaitingEntry) -> bool:
        """Remove a job from all indexes; return True if its owner has no other in the queue."""
        job, queue = waiting.job, waiting.queue
        del self.waiting[job.id]
        name, owner = job.models.family, waiting.owner
        tenant = owner.tenant.name
        owner.jobs.discard(job.id)
        if waiting.overdue_at is None:
            owner.unpassed.discard(job.id)
            if not len(owner.unpassed):
                queue.unpassed.discard(tenant, job.owner)
        else:
            owner.passed.discard(job.id)
            self._list_passed(queue, job.owner, owner)
        family, jobs = queue.by_family[name], owner.families[name]
        jobs.discard(job.id)
        if not len(jobs):
            del owner.families[name]
            family.owners.discard(tenant, job.owner)
        family.count -= 1
        family.backlog_s -= job.run_s
        if not family.count:
            del queue.by_family[name]
            queue.pressure.discard(name)
        elif name:
            queue.pressure.put(name, family.pressure)
        if len(owner.jobs):
            return False
        del queue.by_owner[job.owner]
        queue.owners.discard(tenant, job.owner)
        if not len(queue.owners.of(tenant)):
            del queue.by_tenant[tenant]
        if not queue.by_owner:
            del self.queues[queue.place, queue.card]
        return True

    def pass_over(self, waiting: WaitingEntry, overdue_at: float) -> None:
        """Note that a job was passed over though its turn had come."""
        job, queue, owner = waiting.job, waiting.queue, waiting.owner
        waiting.overdue_at = overdue_at
        owner.unpassed.discard(job.id)
        if not len(owner.unpassed):
            queue.unpassed.discard(owner.tenant.name, job.owner)
        owner.passed.put(job.id, overdue_at)
        if len(owner.passed) == 1:
            queue.passed.put(job.owner, overdue_at)

    def postpone(self, queue: WaitingQueue, owner: str, until: float) -> None:
        """Note that an owner has used its share: its jobs are not overdue before this time."""
        queue.passed.put(owner, until)

    def be_late(self, waiting: WaitingEntry) -> None:
        """Move a job that can't be finished as it wished behind those that can."""
        job, owner = waiting.job, waiting.owner
        waiting.late = True
        waiting.order = order_of(job, late=True)
        owner.jobs.put(job.id, waiting.order)
        owner.families[job.models.family].put(job.id, waiting.order)
        if waiting.overdue_at is None:
            owner.unpassed.put(job.id, waiting.order)

    def least(self, index: SharedIndex, queue: WaitingQueue, most: int) -> OwnerQueue | None:
        """Return the owner with the least tag of the tenant with the least in one of a queue's indexes.

        Tags are mended on the way.

        Args:
            index: Owners by tag.
            queue: Where they wait.
            most: No more is read once so many heads were.

        Returns:
            An owner, after many mended tags perhaps not the least; None if nothing was read.
        """
        if not self.tenanted:
            return self._mended(index.of(""), queue.by_owner, most)
        tenant = self._mended(index.tenants, queue.by_tenant, most)
        return self._mended(index.of(tenant.name), queue.by_owner, most) if tenant is not None else None

    def least_of(self, tenant: TenantQueue, queue: WaitingQueue, most: int) -> OwnerQueue | None:
        """Return the owner with the least tag of one tenant; None if nothing was read."""
        return self._mended(queue.owners.of(tenant.name), queue.by_owner, most)

    def _mended(self, index: OrderedIndex, members: Mapping[str, Q], most: int) -> Q | None:
        member = None
        for _ in range(MENDED):
            first = index.first()
            if first is None or self.reads >= most:
                break
            member = members[first[1]]
            tag = member.tag
            self.reads += 1
            if tag <= first[0]:
                break
            index.put(first[1], tag)
        return member

    @staticmethod
    def _list_passed(queue: WaitingQueue, name: str, owner: OwnerQueue) -> None:
        """List an owner by its first overdue job, or not at all."""
        first = owner.passed.first()
        if first is None:
            queue.passed.discard(name)
        elif (listed := queue.passed.key_of(name)) is None or listed < first[0]:
            queue.passed.put(name, first[0])
