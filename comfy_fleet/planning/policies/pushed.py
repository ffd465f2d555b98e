"""Jobs are pushed to nodes' own queues as they come, and stay there: leastconn and round-robin."""

from collections import deque
from collections.abc import Collection, Iterator
from heapq import heapify, heappop, heappush

from comfy_fleet.domain.schedule.policy import JobChoice, Nothing
from comfy_fleet.domain.schedule.scheduled_node import ScheduledNode
from comfy_fleet.domain.schedule.waiting_job import WaitingJob
from comfy_fleet.planning.policies.ranked import NOTHING


class Pushed:
    """What both have in common. A job that failed on a node is not pushed there again."""

    reason = "own queue"

    def __init__(self) -> None:
        self._nodes: dict[str, ScheduledNode] = {}
        self._queues: dict[str, deque[WaitingJob]] = {}
        self._node_of: dict[str, str] = {}
        self._failed: dict[str, set[str]] = {}
        self._homeless: list[WaitingJob] = []

    def submitted(self, job: WaitingJob, now: float) -> None:
        """Push a job to a node."""
        name = self._pick(job)
        if name is None:
            self._homeless.append(job)
            return
        self._queues[name].append(job)
        self._node_of[job.id] = name
        self._changed(name, 1)

    def withdrawn(self, job_id: str, now: float) -> None:
        """Forget a job; its entry is passed over later."""
        name = self._node_of.pop(job_id, None)
        if name is not None:
            self._changed(name, -1)
        else:
            self._homeless = [job for job in self._homeless if job.id != job_id]

    def node_up(self, node: ScheduledNode, now: float) -> None:
        """Note a node; it gets what no other could take."""
        self._nodes[node.name] = node
        self._queues[node.name] = deque()
        self._joined(node)
        homeless, self._homeless = self._homeless, []
        for job in homeless:
            self.submitted(job, now)

    def node_down(self, name: str, now: float) -> None:
        """Push a node's queue to others."""
        for failed in self._failed.values():
            failed.discard(name)  # it was the node's fault, and it comes back
        node, queue = self._nodes.pop(name), self._queues.pop(name)
        self._left(node)
        for job in queue:
            if self._node_of.get(job.id) == name:
                del self._node_of[job.id]
                self.submitted(job, now)

    def next_for(self, node: str, now: float) -> JobChoice | Nothing:
        """Choose the first job of the node's own queue."""
        queue = self._queues[node]
        while queue:
            job = queue.popleft()
            if self._node_of.get(job.id) == node:
                del self._node_of[job.id]
                return JobChoice(job, self.reason, 0.0)
        return NOTHING

    def node_for(self, job: WaitingJob, idle: Collection[str], now: float) -> str | Nothing:
        """Choose the node to which the job was pushed, if it is idle."""
        name = self._node_of.get(job.id)
        return name if name is not None and name in idle else NOTHING

    def ended(self, job_id: str, node: str, *, load_s: float, run_s: float, ok: bool, now: float) -> None:
        """Note a connection less, and where a job failed."""
        if ok:
            self._failed.pop(job_id, None)
        else:
            self._failed.setdefault(job_id, set()).add(node)
        if node in self._nodes:
            self._changed(node, -1)

    def _able(self, job: WaitingJob) -> Iterator[str]:
        failed = self._failed.get(job.id, ())
        return (name for name, node in self._nodes.items() if job.place in node.places and name not in failed)

    def _pick(self, job: WaitingJob) -> str | None:
        raise NotImplementedError

    def _changed(self, name: str, by: int) -> None:
        pass

    def _joined(self, node: ScheduledNode) -> None:
        pass

    def _left(self, node: ScheduledNode) -> None:
        pass


class LeastConnections(Pushed):
    """HAProxy's leastconn: to the node with the fewest jobs, of those with equally many in turn."""

    def __init__(self) -> None:
        super().__init__()
        self._connections: dict[str, int] = {}
        self._stamps: dict[str, int] = {}
        self._stamp = 0
        self._heaps: dict[str, list[tuple[int, int, str]]] = {}

    def _pick(self, job: WaitingJob) -> str | None:
        if job.id in self._failed:
            return min(
                self._able(job), key=lambda name: (self._connections[name], self._stamps[name]), default=None
            )
        heap = self._heaps.get(job.place, [])
        while heap:
            _, stamp, name = heap[0]
            if self._stamps.get(name) == stamp:
                return name
            heappop(heap)
        return None

    def _changed(self, name: str, by: int) -> None:
        self._connections[name] += by
        self._stamp += 1
        self._stamps[name] = self._stamp
        for place in self._nodes[name].places:
            heap = self._heaps.setdefault(place, [])
            if len(heap) > 64 + 8 * len(self._nodes):
                heap[:] = [entry for entry in heap if self._stamps.get(entry[2]) == entry[1]]
                heapify(heap)
            heappush(heap, (self._connections[name], self._stamp, name))

    def _joined(self, node: ScheduledNode) -> None:
        self._connections[node.name] = 0
        self._changed(node.name, 0)

    def _left(self, node: ScheduledNode) -> None:
        del self._connections[node.name], self._stamps[node.name]


class RoundRobin(Pushed):
    """To each node in turn, whatever waits there."""

    def __init__(self) -> None:
        super().__init__()
        self._turns: dict[str, deque[str]] = {}

    def _pick(self, job: WaitingJob) -> str | None:
        turn = self._turns.get(job.place, deque())
        failed = self._failed.get(job.id, ())
        for _ in range(len(turn)):
            name = turn[0]
            turn.rotate(-1)
            if name not in failed:
                return name
        return None

    def _joined(self, node: ScheduledNode) -> None:
        for place in node.places:
            self._turns.setdefault(place, deque()).append(node.name)

    def _left(self, node: ScheduledNode) -> None:
        for place in node.places:
            self._turns[place].remove(node.name)
