"""One queue for all nodes, in a fixed order: first in, first out; or earliest deadline first."""

import math
from bisect import bisect_left
from collections.abc import Collection
from heapq import heappop, heappush, heapreplace
from typing import TypeAlias

from comfy_fleet.domain.schedule.policy import JobChoice, Nothing
from comfy_fleet.domain.schedule.scheduled_node import ScheduledNode
from comfy_fleet.domain.schedule.waiting_job import WaitingJob

NOTHING = Nothing()
Key: TypeAlias = tuple[float, float, int]
_Entry: TypeAlias = tuple[Key, WaitingJob]


class Fifo:
    """The best rank first, on whichever node is free. It knows nothing of models."""

    reason = "first"

    def __init__(self) -> None:
        self._waiting: dict[str, int] = {}  # number of the latest submit by job; other entries are void
        self._count = 0
        self._nodes: dict[str, ScheduledNode] = {}
        self._cards: list[int] = []
        self._queues: dict[tuple[str, int], list[_Entry]] = {}

    def submitted(self, job: WaitingJob, now: float) -> None:
        """Put a job in its place."""
        self._count += 1
        self._waiting[job.id] = self._count
        self._push(job, (*self._order(job), self._count))

    def withdrawn(self, job_id: str, now: float) -> None:
        """Forget a job."""
        self._waiting.pop(job_id, None)

    def node_up(self, node: ScheduledNode, now: float) -> None:
        """Note a node."""
        self._nodes[node.name] = node
        if node.vram_bytes not in self._cards:
            self._cards = sorted([*self._cards, node.vram_bytes])
            entries = [entry for queue in self._queues.values() for entry in queue]
            self._queues.clear()
            for key, job in entries:
                self._push(job, key)

    def node_down(self, name: str, now: float) -> None:
        """Forget a node."""
        self._nodes.pop(name, None)

    def next_for(self, node: str, now: float) -> JobChoice | Nothing:
        """Choose the first job that the node's card can hold."""
        found = self._nodes[node]
        best: list[_Entry] | None = None
        for place in found.places:
            for need in range(bisect_left(self._cards, found.vram_bytes) + 1):
                queue = self._queues.get((place, need))
                if queue and self._settle(queue, now) and (best is None or queue[0][0] < best[0][0]):
                    best = queue
        if best is None:
            return NOTHING
        _, job = heappop(best)
        del self._waiting[job.id]
        return JobChoice(job, self.reason, 0.0)

    def node_for(self, job: WaitingJob, idle: Collection[str], now: float) -> str | Nothing:
        """Choose the node that has been idle for the longest."""
        for name in idle:
            node = self._nodes[name]
            if job.memory <= node.vram_bytes and job.place in node.places:
                return name
        return NOTHING

    def ended(self, job_id: str, node: str, *, load_s: float, run_s: float, ok: bool, now: float) -> None:
        """Ignore it: nothing is learned."""

    def _order(self, job: WaitingJob) -> tuple[float, float]:
        return job.rank, 0.0

    def _settle(self, queue: list[_Entry], now: float) -> bool:
        """Remove void entries from a queue's head; return whether a job is left."""
        while queue:
            key, job = queue[0]
            if self._waiting.get(job.id) == key[2]:
                return True
            heappop(queue)
        return False

    def _push(self, job: WaitingJob, key: Key) -> None:
        need = bisect_left(self._cards, job.memory)
        queue = self._queues.get((job.place, need))
        if queue is None:
            queue = self._queues[job.place, need] = []
        heappush(queue, (key, job))


class EarliestDeadline(Fifo):
    """The earliest ``finish_by`` first; wishes that can't be met any more wait behind all others."""

    reason = "deadline"

    def _order(self, job: WaitingJob) -> tuple[float, float]:
        return (math.inf if job.finish_by is None else job.finish_by), job.rank

    def _settle(self, queue: list[_Entry], now: float) -> bool:
        while super()._settle(queue, now):
            key, job = queue[0]
            if key[0] == math.inf or now + job.run_s <= key[0]:
                return True
            heapreplace(queue, ((math.inf, job.rank, key[2]), job))
        return False
