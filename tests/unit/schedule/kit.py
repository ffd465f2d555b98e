"""Jobs, nodes and sets of models for the rules, and a fleet that plays them in made-up time."""

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from comfy_fleet.domain.schedule.chooser import FairChooser
from comfy_fleet.domain.schedule.model_set import NO_MODELS, ModelSet
from comfy_fleet.domain.schedule.policy import JobChoice, Nothing
from comfy_fleet.domain.schedule.scheduled_node import GIB, ScheduledNode
from comfy_fleet.domain.schedule.waiting_job import SINGLE, WaitingJob
from comfy_fleet.domain.schedule.warmth import Warmth


def models(*files: str, gib: float = 18) -> ModelSet:
    """Return a set of files of this size; the first counts as the largest."""
    sizes = [int(gib * GIB)] + [GIB // 8] * (len(files) - 1)
    return ModelSet(key="+".join(files), files=tuple(zip(files, sizes, strict=True)))


def job(
    name: str, loads: ModelSet = NO_MODELS, *, at: float = 0.0, priority_s: float = 0.0, **more: Any
) -> WaitingJob:
    """Return a job of 1 s; ``priority_s`` is what its priority is worth."""
    usual = {
        "owner": "ann",
        "place": "any",
        "tier": SINGLE,
        "run_s": 1.0,
        "submitted": at,
        "rank": at - priority_s,
    }
    return WaitingJob(**{"id": name, "models": loads, **usual, **more})


def node(
    name: str = "n1", *places: str, vram_gib: float = 24, ram_gib: float = 64, load_s: float = 9, **more: Any
) -> ScheduledNode:
    """Return a node on which 18 GiB take ``load_s`` from the disk and 1.5 s from memory."""
    return ScheduledNode(
        name=name,
        places=frozenset(places or ("any",)),
        vram_bytes=int(vram_gib * GIB),
        ram_bytes=int(ram_gib * GIB),
        disk_rate=18 * GIB / load_s,
        **more,
    )


def chooser(*nodes: ScheduledNode, waiting: Iterable[WaitingJob] = (), **more: Any) -> FairChooser:
    """Return a chooser that knows these nodes, and jobs that wait at time 0."""
    made = FairChooser(**more)
    for each in nodes:
        made.node_up(each, 0.0)
    for each_job in waiting:
        made.submitted(each_job, 0.0)
    return made


def chosen(answer: JobChoice | Nothing) -> str | None:
    """Return the id of the job that was chosen."""
    return answer.job.id if isinstance(answer, JobChoice) else None


@dataclass
class Started:
    """A run that was started."""

    job: WaitingJob
    node: str
    at: float
    load_s: float
    run_s: float
    reason: str

    @property
    def wait_s(self) -> float:
        return self.at - self.job.submitted


@dataclass
class Fleet:
    """Nodes that load and compute as the rules expect, and ask as dispatchers would.

    Args:
        nodes: Them.
        policy: What chooses.
        noise: Given a run's expected seconds, returns the real ones.
        watch: Called before a node is asked.
    """

    nodes: Collection[ScheduledNode]
    policy: FairChooser
    noise: Callable[[float], float] = lambda seconds: seconds
    watch: Callable[[str, float], None] = lambda name, now: None
    started: list[Started] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    most_heads: int = 0

    def __post_init__(self) -> None:
        self._ticks = count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._known = {each.name: each for each in self.nodes}
        self._warmth = {each.name: Warmth(each) for each in self.nodes}
        self._idle = dict.fromkeys(self._known)
        for each in self.nodes:
            self.policy.node_up(each, 0.0)

    def at(self, when: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._ticks), do))

    def submit(self, *jobs: WaitingJob) -> None:
        for each in jobs:
            self.at(each.submitted, lambda now, each=each: self._submit(each, now))  # type: ignore[misc]

    def cancel(self, job_id: str, at: float) -> None:
        self.at(at, lambda now: self.policy.withdrawn(job_id, now))

    def run(self, until: float = float("inf")) -> "Fleet":
        while self._events and self._events[0][0] <= until:
            when, _, do = heapq.heappop(self._events)
            do(when)
        return self

    def start_of(self, job_id: str) -> Started:
        return next(each for each in self.started if each.job.id == job_id)

    def _submit(self, each: WaitingJob, now: float) -> None:
        self.policy.submitted(each, now)
        while self._idle:
            name = self.policy.node_for(each, self._idle.keys(), now)
            if isinstance(name, Nothing) or self._ask(name, now) in (None, each.id):
                return

    def _ask(self, name: str, now: float) -> str | None:
        self.watch(name, now)
        answer = self.policy.next_for(name, now)
        self.most_heads = max(self.most_heads, self.policy.heads_read)
        if isinstance(answer, Nothing):
            self._idle[name] = None
            if answer.look_again_at is not None:
                self.at(max(now, answer.look_again_at), lambda then: self._look(name, then))
            return None
        self._idle.pop(name, None)
        load_s = self._warmth[name].load_s(answer.job.models)
        self._warmth[name].use(answer.job.models)
        run_s = self.noise(answer.job.run_s) / self._known[name].speed
        self.started.append(Started(answer.job, name, now, load_s, run_s, answer.reason))
        self.at(now + load_s + run_s, lambda then: self._end(answer.job, name, load_s, run_s, then))
        return answer.job.id

    def _look(self, name: str, now: float) -> None:
        if name in self._idle:
            self._ask(name, now)

    def _end(self, each: WaitingJob, name: str, load_s: float, run_s: float, now: float) -> None:
        self.ended[each.id] = now
        self.policy.ended(each.id, name, load_s=load_s, run_s=run_s, ok=True, now=now)
        self._ask(name, now)
