"""Where a job stands that waits, in a few numbers, and when it will probably have ended.

Under fair sharing a job's turn comes when virtual time reaches its *start tag*: its owner's tag and the GPU
time, divided by the owner's weight, of the owner's jobs before it. By then every other owner has had what
lifts its own tag as high, or all that it waits for. That much work, and what runs now, keeps the nodes busy
until then, at their mean speed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FEW_LOADS = 1.5
"""A job waits for a node that has its models for at most this many of its load times beyond its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How a tenant stands: its start tag, and its share compared with 1."""

    tag: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerBacklog:
    """What waits of another owner, or of several that are taken together.

    Attributes:
        tag: Its start tag: GPU seconds over its weight.
        weight: Its share compared with 1.
        jobs: How many jobs it has.
    """

    tag: float
    weight: float
    jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a waiting job stands. Seconds are those of a node of speed 1.

    Its *queue* has the jobs of its placement class. Others beside it may wait for the same nodes.

    Attributes:
        run_s: How long it probably computes.
        load_s: How long loading its models takes on the node that is free first.
        tag: Its owner's start tag.
        weight: Its owner's share compared with 1.
        ahead: How many of its owner's jobs go before it in its queue.
        own: How many jobs its owner has there, this one included.
        own_s: What one of those before it computes on average.
        beside: How many of its owner's jobs go before it in queues beside.
        jobs: How many jobs wait in its queue, of all owners.
        jobs_s: What these compute together.
        owners: How many owners of its tenant have jobs there.
        others: The other ones of them with the least tags.
        tenant: How its tenant stands.
        tenants: Other tenants with jobs there: those with the least tags.
        foreign: How many more jobs wait in queues beside.
        queues: How many such queues there are.
        family_s: What the jobs compute that load the same largest model file.
        family_own: How many of these are its owner's.
        family_ahead: How many of its owner's go before it.
        holders: How many nodes have that file on their cards.
        held_in_s: In how many seconds the one of them that is free first is; 0: it is.
        own_kind: Whether ``run_s`` was learned from jobs of its own kind, and not from all.
    """

    run_s: float
    load_s: float = 0.0
    tag: float = 0.0
    weight: float = 1.0
    ahead: int = 0
    own: int = 1
    own_s: float = 0.0
    beside: int = 0
    jobs: int = 1
    jobs_s: float = 0.0
    owners: int = 1
    others: tuple[OwnerBacklog, ...] = ()
    tenant: Share = Share()
    tenants: tuple[Share, ...] = ()
    foreign: int = 0
    queues: int = 0
    family_s: float = 0.0
    family_own: int = 1
    family_ahead: int = 0
    holders: int = 0
    held_in_s: float = 0.0
    own_kind: bool = True

    @property
    def job_s(self) -> float:
        """What a job in its queue computes on average."""
        return max(0.0, self.jobs_s) / max(1, self.jobs)

    @property
    def ahead_s(self) -> float:
        """What its owner's jobs compute that go before it."""
        return (self.ahead + self.beside) * self.own_s

    def others_before_s(self) -> tuple[float, float]:
        """Return what other owners' jobs in its queue compute that start before it, and those beside."""
        foreign_jobs = max(0, self.jobs - self.own)
        each_s = max(0.0, self.jobs_s - self.own * self.own_s) / max(1, foreign_jobs)
        start = self.tag + self.ahead_s / self.weight
        backlogs = list(self.others)
        rest = foreign_jobs - sum(each.jobs for each in backlogs)
        more = self.owners - 1 - len(backlogs)
        if rest > 0 and more > 0:
            latest = max((each.tag for each in backlogs), default=self.tag)
            backlogs.append(OwnerBacklog(tag=latest, weight=float(more), jobs=rest))
        here = sum(min(one.jobs * each_s, max(0.0, start - one.tag) * one.weight) for one in backlogs)
        # By then its tenant has had all that, and each other one what lifts its tag as high.
        until = self.tenant.tag + (self.ahead_s + here) / self.tenant.weight
        if self.tenants:
            theirs_s = sum(max(0.0, until - one.tag) * one.weight for one in self.tenants)
            here = min(here + theirs_s, foreign_jobs * each_s)
        lowest = min((each.tag for each in backlogs), default=self.tag)
        beside = min(self.foreign * self.job_s, max(0.0, start - min(lowest, self.tag)) * self.queues)
        return here, beside

    def before_s(self) -> float:
        """Return what all jobs compute that start before it under fair sharing."""
        return self.ahead_s + sum(self.others_before_s())

    def family_before_s(self) -> float:
        """Return what those of them compute that load the same largest model file."""
        others_s = max(0.0, self.jobs_s - self.own * self.own_s)
        share = self.others_before_s()[0] / others_s if others_s > 0.0 else 0.0
        theirs_s = max(0.0, self.family_s - self.family_own * self.own_s)
        return self.family_ahead * self.own_s + min(1.0, share) * theirs_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The nodes that can run a job.

    Attributes:
        free_in_s: In how many seconds each is free, the first one first; 0: it is idle.
        speed: Their mean speed.
        first_speed: The speed of the one that is free first; None: the same.
    """

    free_in_s: Sequence[float]
    speed: float = 1.0
    first_speed: float | None = None

    def speed_of(self, standing: Standing) -> float:
        """Return the speed at which a job will probably compute: the first node's if nothing is before it."""
        first = self.first_speed is not None and standing.before_s() <= 0.0
        return self.first_speed if first and self.first_speed else self.speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway:
    """How far a run is in time.

    Attributes:
        since_s: Seconds since its start.
        run_s: How long it probably takes from there, loading included.
        own_kind: Whether that was learned from jobs of its own kind, and not from all.
    """

    since_s: float
    run_s: float
    own_kind: bool = True

    def whole_s(self, progress: float | None) -> float:
        """Return how long it probably takes, if it is so far: the further, the more its own pace counts.

        Args:
            progress: The part of its work that is done, 0 to 1; None: unknown.
        """
        if not progress or not 0.0 < progress <= 1.0:
            return self.run_s
        left = 1.0 - progress
        return self.since_s + left * (left * self.run_s + self.since_s)


def end_in_s(standing: Standing, nodes: Capacity) -> float | None:
    """Return in how many seconds a waiting job has probably ended; None if no node can run it."""
    if not nodes.free_in_s:
        return None
    turn_s = _worked_off_s(nodes.free_in_s, standing.before_s(), standing.job_s, nodes.speed)
    start_s = turn_s + standing.load_s
    if standing.holders and standing.load_s > 0.0:
        held = [standing.held_in_s] * min(standing.holders, len(nodes.free_in_s))
        warm_s = _worked_off_s(held, standing.family_before_s(), standing.job_s, nodes.speed)
        if warm_s - turn_s <= FEW_LOADS * standing.load_s:
            start_s = warm_s
    return start_s + standing.run_s / nodes.speed_of(standing)


def _worked_off_s(free_in_s: Sequence[float], work_s: float, job_s: float, speed: float) -> float:
    """Return when a node is free for the next job after so much work.

    The nodes share the work evenly, each from when it is free. When the last of its jobs starts, the others
    are half done on average.
    """
    count = len(free_in_s)
    if job_s > 0.0:
        rounds = work_s / (count * job_s)
        work_s -= min(1.0, rounds) * (count - 1) * job_s / 2
    left = work_s
    for number, free in enumerate(free_in_s, 1):
        until = free_in_s[number] if number < count else math.inf
        room = (until - free) * number * speed
        if left <= room:
            return free + left / (number * speed)
        left -= room
    return free_in_s[-1]
