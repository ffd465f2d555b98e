"""The rules by which an idle node takes one of the jobs that were looked at for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from comfy_fleet.domain.schedule.backlog import WaitingEntry

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

    waiting: WaitingEntry
    lag: float
    load_s: float
    cost_s: float
    warm: bool
    holders: int = 0
    wait_s: float = inf
    soonest_s: float = inf
    own_s: float = inf
    backlog_s: float = 0.0
    first: "Head | None" = None


def choose_first(heads: Sequence[Head], window_s: float, now: float) -> tuple[Head, str] | None:
    """Choose a job that is taken whatever else there is: an overdue one, else a warm one.

    Args:
        heads: What the node could take: of overdue jobs and of those that are warm the best.
        window_s: How far ahead of the one that has had least an owner may be, in GPU seconds; with an overdue
            job by what that costs, if it is more.
        now: Seconds.

    Returns:
        A job and the rule's name, or None: more jobs are to be looked at.
    """
    overdue = [
        head
        for head in heads
        if (at := head.waiting.overdue_at) is not None
        and at <= now
        and head.lag <= max(window_s, head.cost_s)
    ]
    if overdue and (found := _urgent(overdue, now)) is not None:
        return found, "overdue"
    return _warm([head for head in heads if head.lag <= window_s], now)


def choose_next(heads: Sequence[Head], window_s: float, now: float) -> tuple[Head, str] | None:
    """Choose a job if there is none to be taken first.

    Args:
        heads: What the node could take.
        window_s: How far ahead of the one that has had least an owner may be, in GPU seconds.
        now: Seconds.

    Returns:
        A job and the rule's name, or None: the node does better to wait.
    """
    entitled = [head for head in heads if head.lag <= window_s]
    short = [head for head in entitled if head.holders and head.own_s > LONGER * head.load_s]
    return (
        _unheld(entitled, now)
        or _longest(short, [head.own_s for head in short], "share", now)
        or _warm(heads, now)
        or _unheld(heads, now)
        or _worth(heads, now)
    )


def _warm(heads: Sequence[Head], now: float) -> tuple[Head, str] | None:
    """Return a warm job: the one of the owner that has had least."""
    warm = [head for head in heads if head.warm]
    if not warm:
        return None
    best = min(warm, key=lambda head: (head.lag + head.load_s, head.waiting.order))
    return _in_order(best, "warm", now)


def _unheld(heads: Sequence[Head], now: float) -> tuple[Head, str] | None:
    """Return a job of a family that no node holds: the one with the most work for its load."""
    unheld = [head for head in heads if not head.warm and not head.holders]
    return _longest(unheld, [head.backlog_s for head in unheld], "unheld", now)


def _worth(heads: Sequence[Head], now: float) -> tuple[Head, str] | None:
    """Return a job of a family whose holders need so long for its backlog that one more is worth the load."""
    worth = [head for head in heads if head.holders and head.wait_s > HYSTERESIS * head.load_s]
    return _longest(worth, [head.wait_s for head in worth], "backlog", now)


def _longest(
    heads: Sequence[Head], seconds: Sequence[float], rule: str, now: float
) -> tuple[Head, str] | None:
    """Return the job with the most seconds for each second of its load."""
    if not heads:
        return None
    best = max(
        zip(heads, seconds, strict=True), key=lambda each: (each[1] / each[0].load_s, -each[0].waiting.order)
    )
    return _in_order(best[0], rule, now)


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
