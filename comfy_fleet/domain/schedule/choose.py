"""The rules by which an idle node takes one of the jobs that were looked at for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from comfy_fleet.domain.schedule.backlog import Waiting

HYSTERESIS = 1.25
"""How much longer than the load a family's backlog must last before one more node loads it."""
LONGER = 2.0
"""How much longer than the load all holders of a family must be busy before one more node loads it."""


@dataclass(slots=True, eq=False)
class Head:
    """A waiting job that a node could take.

    Attributes:
        waiting: The job.
        lag: How far its owner is ahead of the one that has had least, in GPU seconds.
        load_s: How long loading its models here would take, in seconds.
        cost_s: How long the node would have it, in seconds.
        warm: Whether next to nothing has to be loaded here.
        holders: How many other nodes have its family on their cards, or load it.
        wait_s: For how long the family's jobs would wait for these nodes on average, in seconds.
        soonest_s: In how many seconds one of these nodes is free.
        own_s: For how long the owner's jobs of the family would wait for these nodes at least, in seconds.
        backlog_s: How much computing waits for the family.
        first: A job of the same owner that must not be passed by this one for the sake of models.
    """

    waiting: Waiting
    lag: float
    load_s: float
    cost_s: float
    warm: bool
    holders: int
    wait_s: float
    soonest_s: float
    own_s: float
    backlog_s: float
    first: "Head | None" = None


def choose(heads: Sequence[Head], window_s: float, now: float) -> tuple[Head, str] | None:
    """Choose the job that a node starts.

    Args:
        heads: What it could take.
        window_s: How far ahead of the one that has had least an owner may be, in GPU seconds.
        now: Seconds.

    Returns:
        A job and the rule's name, or None: the node does better to wait.
    """
    entitled = [head for head in heads if head.lag <= max(window_s, head.cost_s)]
    overdue = [head for head in entitled if (at := head.waiting.overdue_at) is not None and at <= now]
    if overdue and (found := _urgent(overdue, now)) is not None:
        return found, "overdue"
    for some in (entitled, heads):
        warm = [head for head in some if head.warm]
        if warm:
            return _in_order(
                min(warm, key=lambda head: (head.lag + head.load_s, head.waiting.order)), "warm", now
            )
        free = [head for head in some if not head.holders]
        if free:
            best = max(free, key=lambda head: (head.backlog_s / head.load_s, -head.waiting.order))
            return _in_order(best, "unheld", now)
        late = [head for head in some if head.own_s > LONGER * head.load_s]
        if late:
            best = max(late, key=lambda head: (head.own_s / head.load_s, -head.waiting.order))
            return _in_order(best, "share", now)
    worth = [head for head in heads if head.wait_s > HYSTERESIS * head.load_s]
    if worth:
        return _in_order(
            max(worth, key=lambda head: (head.wait_s / head.load_s, -head.waiting.order)), "backlog", now
        )
    return None


def _urgent(heads: Iterable[Head], now: float) -> Head | None:
    """Return the job that has waited longest, each load counted as waiting; some are better off elsewhere."""
    here = [head for head in heads if head.warm or not head.holders or _left_s(head, now) > head.load_s]
    return min(here, key=_urgency, default=None)


def _urgency(head: Head) -> tuple[float, float]:
    at = head.waiting.overdue_at
    return (at if at is not None else 0.0) + head.load_s, head.waiting.order


def _left_s(head: Head, now: float) -> float:
    """Return for how long a job will have been left to the nodes that have its models, beyond its time."""
    at = head.waiting.overdue_at
    return head.soonest_s + (max(0.0, now - at) if at is not None else 0.0)


def _in_order(head: Head, rule: str, now: float) -> tuple[Head, str]:
    """Return the job, or the one that it must not pass, unless that is better off elsewhere."""
    if head.first is not None and _urgent((head.first,), now) is not None:
        return head.first, "order"
    return head, rule
