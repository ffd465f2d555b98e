"""One pool whose nodes come and go: by rules, fixed, or as somebody would who knows the future.

The rules are the fleet's own code (:mod:`comfy_fleet.domain.scaling`). Jobs are taken in the order of their
submits, and load nothing: what is compared is the number of nodes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise

from comfy_fleet.domain.scaling.decide import PoolStrength, decide
from comfy_fleet.domain.scaling.looks import PoolLook, with_look
from comfy_fleet.domain.scaling.rules import ScalingRules
from comfy_fleet.planning.spread import Spread
from comfy_fleet.planning.trace import TraceJob

_FREE, _UP, _SUBMIT, _LOOK = range(4)  # what happens first at the same moment


@dataclass(frozen=True, kw_only=True)
class ScaledOutcome:
    """What became of jobs in a pool whose nodes come and go.

    Attributes:
        wait: From submit to start, in seconds.
        gpu_s: Seconds of nodes from the order to the end, boots included.
        work_s: Seconds in which they worked.
        most: Most nodes at one time, those that boot or drain included.
        least: Fewest nodes that took jobs or booted.
        changes: When nodes were added or removed, and how many.
        interrupted: Jobs whose node was ended: must be none.
        counts: When the number of nodes changed, and to what, those that boot or drain included.
    """

    wait: Spread | None
    gpu_s: float
    work_s: float
    most: int
    least: int
    changes: Sequence[tuple[float, int]] = ()
    interrupted: int = 0
    counts: Sequence[tuple[float, int]] = ()

    def turns(self, within_s: float) -> int:
        """Return how often nodes were added and removed, or the other way round, within so many seconds."""
        return sum(
            1
            for (before, first), (after, second) in pairwise(self.changes)
            if (first > 0) != (second > 0) and after - before < within_s
        )


@dataclass(slots=True, eq=False)
class _ScaledNode:
    number: int
    ordered_at: float
    up: bool = False
    draining: bool = False
    ends_at: float | None = None
    """When its job ends."""


@dataclass(slots=True)
class _Books:
    waits: list[float] = field(default_factory=list)
    gpu_s: float = 0.0
    work_s: float = 0.0
    most: int = 0
    least: int = 0
    interrupted: int = 0
    changes: list[tuple[float, int]] = field(default_factory=list)
    counts: list[tuple[float, int]] = field(default_factory=list)


class ScaledPool:
    """A pool under rules.

    Args:
        rules: They; with a minimum that is the maximum, the pool is fixed.
        boot_s: Seconds from the order of a node until it takes jobs.
        every_s: Seconds between two looks.
        start: Nodes at the beginning; None: the minimum.
    """

    def __init__(
        self, rules: ScalingRules, *, boot_s: float, every_s: float = 5.0, start: int | None = None
    ) -> None:
        self._rules, self._boot_s, self._every_s = rules, boot_s, every_s
        self._start = rules.minimum if start is None else start
        self._events: list[tuple[float, int, int, _ScaledNode | TraceJob | None]] = []
        self._nodes: list[_ScaledNode] = []
        self._queue: deque[TraceJob] = deque()
        self._looks: tuple[PoolLook, ...] = ()
        self._changed_at = float("-inf")
        self._count = self._ended = 0
        self._books = _Books(least=self._start)

    def run(self, jobs: Iterable[TraceJob], *, until: float) -> ScaledOutcome:
        """Simulate.

        Args:
            jobs: In the order of their submits, which begin at 0.
            until: Seconds for which the pool is kept, at least; no job may come later.
        """
        books = self._books
        for _ in range(self._start):
            self._order(0.0).up = True
        left = 0
        for job in jobs:
            self._plan(job.submitted, _SUBMIT, job)
            left += 1
        self._plan(0.0, _LOOK, None)
        now = 0.0
        while self._events:
            now, kind, _, what = heappop(self._events)
            if kind == _LOOK:
                self._look(now)
                if now + self._every_s <= until or left:
                    self._plan(now + self._every_s, _LOOK, None)
                continue
            if isinstance(what, TraceJob):
                self._queue.append(what)
            elif what is not None and kind == _UP:
                what.up, self._changed_at = True, now
            elif what is not None:
                what.ends_at = None
                self._ended += 1
                left -= 1
                if what.draining:
                    self._end(what, now)
            self._give(now)
        for node in list(self._nodes):
            books.gpu_s += max(now, until) - node.ordered_at
        return ScaledOutcome(
            wait=Spread.of(books.waits),
            gpu_s=books.gpu_s,
            work_s=books.work_s,
            most=books.most,
            least=books.least,
            changes=books.changes,
            interrupted=books.interrupted,
            counts=books.counts,
        )

    def _plan(self, at: float, kind: int, what: _ScaledNode | TraceJob | None) -> None:
        self._count += 1
        heappush(self._events, (at, kind, self._count, what))

    def _order(self, now: float) -> _ScaledNode:
        self._count += 1
        node = _ScaledNode(number=self._count, ordered_at=now)
        self._nodes.append(node)
        self._counted(now)
        return node

    def _end(self, node: _ScaledNode, now: float) -> None:
        self._books.interrupted += node.ends_at is not None
        self._books.gpu_s += now - node.ordered_at
        self._nodes.remove(node)
        self._counted(now)

    def _counted(self, now: float) -> None:
        books = self._books
        books.most = max(books.most, len(self._nodes))
        books.counts.append((now, len(self._nodes)))

    def _give(self, now: float) -> None:
        for node in self._nodes:
            if not self._queue:
                return
            if node.up and not node.draining and node.ends_at is None:
                job = self._queue.popleft()
                node.ends_at = now + job.run_s
                self._books.waits.append(now - job.submitted)
                self._books.work_s += job.run_s
                self._plan(node.ends_at, _FREE, node)

    def _look(self, now: float) -> None:
        kept = [node for node in self._nodes if not node.draining]
        ready = [node for node in kept if node.up]
        look = PoolLook(
            at=now,
            waiting=len(self._queue),
            oldest_s=now - self._queue[0].submitted if self._queue else 0.0,
            nodes=len(ready),
            busy=sum(1 for node in ready if node.ends_at is not None),
            ended=self._ended,
        )
        keep_s = self._rules.longest_s
        self._looks = with_look(self._looks, look, keep_s=keep_s, most_gap_s=3 * self._every_s)
        strength = PoolStrength(
            ready=len(ready),
            booting=len(kept) - len(ready),
            others=len(self._nodes) - len(kept),
            draining=len(self._nodes) - len(kept),
            removable=len(ready),
        )
        found = decide(self._rules, self._looks, strength, now=now, changed_at=self._changed_at)
        if not found.change:
            return
        self._changed_at = now
        self._books.changes.append((now, found.change))
        wanted = found.change
        for node in self._nodes:
            if node.draining and wanted > 0:  # it stays after all
                node.draining = False
                wanted -= 1
        for _ in range(wanted):
            self._plan(now + self._boot_s, _UP, self._order(now))
        if found.change < 0:
            # An idle one, else the newest.
            node = min(ready, key=lambda one: (one.ends_at is not None, -one.number))
            node.draining = True
            if node.ends_at is None:
                self._end(node, now)
        self._books.least = min(self._books.least, len(kept) + min(0, found.change))


def oracle(
    jobs: Sequence[TraceJob], *, boot_s: float, patience_s: float, minimum: int, maximum: int, until: float
) -> ScaledOutcome:
    """Return what somebody reaches who knows all jobs beforehand.

    A node is there the moment it is needed, and is ended when its next job is further away than a boot. No
    job waits for longer than ``patience_s``, but where ``maximum`` nodes are not enough.

    Args:
        jobs: In the order of their submits.
        boot_s: Seconds of a boot; it is paid for.
        patience_s: For how long a job may wait.
        minimum: So many are never ended.
        maximum: Most nodes.
        until: Seconds for which the minimum is kept.
    """
    free = [0.0] * minimum
    gpu_s = 0.0
    waits: list[float] = []
    for job in jobs:
        idle = [number for number, at in enumerate(free) if at <= job.submitted]
        soonest = min(range(len(free)), key=free.__getitem__, default=None)
        if idle:
            chosen = max(idle, key=free.__getitem__)  # the others may end
        elif len(free) >= maximum or (soonest is not None and free[soonest] <= job.submitted + patience_s):
            if soonest is None:
                raise ValueError("a maximum below 1")
            chosen = soonest
        else:
            chosen = len(free)
            free.append(job.submitted)
            gpu_s += boot_s
        begins = max(job.submitted, free[chosen])
        if chosen >= minimum:
            gpu_s += min(begins - free[chosen], boot_s) + job.run_s
        free[chosen] = begins + job.run_s
        waits.append(begins - job.submitted)
    end = max([until, *free])
    return ScaledOutcome(
        wait=Spread.of(waits),
        gpu_s=gpu_s + minimum * end,
        work_s=sum(job.run_s for job in jobs),
        most=len(free),
        least=minimum,
    )
