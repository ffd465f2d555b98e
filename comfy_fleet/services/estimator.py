"""When jobs will have ended, by what the store knows, the nodes that can run them, and earlier errors."""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.schedule.calibration import RUNNING, Calibration, EndEstimate, kind_of
from comfy_fleet.domain.schedule.standing import Capacity, Underway, end_in_s
from comfy_fleet.domain.schedule.waiting_job import WARMING
from comfy_fleet.ports.estimates import EstimateStore
from comfy_fleet.ports.jobs import JobStore, Waits

LOOK_S = 1.0
LEARN_S = 10.0
"""Earlier errors are read this often at most."""
MOMENT_S = 0.2
"""A request for a job waits if the job should end within this time."""
LONGEST_RETRY_S = 60
NO_NODE_RETRY_S = 30
MOST_NOTED = 10_000
_RUNS = (JobStatus.RUNNING, JobStatus.CANCELING)


class UsableNodes(Protocol):
    """The nodes that take jobs."""

    async def usable(self, placement: Placement | None) -> Sequence[NodeState]:
        """Return the nodes that take jobs of a class, now or once they are free; None: of any class."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What can be said of a job's end.

    Attributes:
        waits: What it waits for, if it does.
        end: When it will have ended; None if nothing is known of how long jobs take, if no node can run it,
            or if it has ended.
    """

    waits: Waits = field(default_factory=Waits)
    end: EndEstimate | None = None


class Estimator:
    """Estimates when jobs will have ended.

    The nodes are looked at once a second at most, however many ask.

    Args:
        store: What estimates are made of.
        jobs: Where jobs stand.
        nodes: Which nodes can run them.
        monotonic: Seconds, for intervals.
    """

    def __init__(
        self,
        store: EstimateStore,
        jobs: JobStore,
        nodes: UsableNodes,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._nodes = nodes
        self._monotonic = monotonic
        self._learned_at = self._looked_at = float("-inf")
        self._fleet = _Fleet()
        self._looking: asyncio.Task[_Fleet] | None = None
        self._noted: OrderedDict[str, None] = OrderedDict()

    async def outlook(self, job: Job) -> Outlook:
        """Return what a job waits for, and when it will have ended."""
        if job.status in _RUNS:
            underway = await self._store.underway(job.id)
            if underway is None:
                return Outlook()
            done = None if job.progress is None else job.progress.value
            return Outlook(end=_end_of_run(underway, done, (await self._look()).errors[RUNNING]))
        if job.status is not JobStatus.QUEUED:
            return Outlook()
        fleet = await self._look()
        able = await self._nodes.usable(job.placement)
        free = sorted((fleet.free_in_s(one), -one.speed, one.node.name) for one in able)
        waits = await self._jobs.waits(job, node=free[0][2] if free else None)
        if waits.standing is None or not free:
            return Outlook(waits=waits)
        nodes = Capacity(
            free_in_s=[free_in_s for free_in_s, _, _ in free],
            speed=sum(one.speed for one in able) / len(able),
            first_speed=-free[0][1],
        )
        end_s = end_in_s(waits.standing, nodes)
        if end_s is None:
            return Outlook(waits=waits)
        kind = kind_of(end_s, waits.standing.run_s / nodes.speed_of(waits.standing))
        # Estimates learn from the leader's end, and nothing from a run that only warms a node.
        if not job.follows and job.tier != WARMING:
            await self._note(job.id, kind, end_s)
        return Outlook(waits=waits, end=fleet.errors[kind].applied(end_s))

    async def whole_seconds(self, job: Job) -> int | None:
        """Return the seconds until a job's end as :func:`whole_seconds` does."""
        return whole_seconds(job, (await self.outlook(job)).end)

    async def retry_after(self) -> int:
        """Return the whole seconds after which a full queue should have room."""
        fleet = await self._look()
        if not fleet.speeds:
            return NO_NODE_RETRY_S
        each_s = (fleet.run_s or 0.0) / sum(fleet.speeds.values())
        soonest_s = min((fleet.free.get(name, 0.0) for name in fleet.speeds), default=0.0)
        return min(LONGEST_RETRY_S, max(1, math.ceil(max(each_s, soonest_s))))

    async def soon(self, job: Job, now: float) -> bool:
        """Return whether the job should end within a moment, judging by jobs of its kind.

        Args:
            job: The job.
            now: Unix seconds.
        """
        if job.status in _RUNS:
            underway = await self._store.underway(job.id)
            if underway is None or not underway.own_kind:
                return False
            usual = (await self._look()).errors[RUNNING].applied(underway.run_s)
            return abs(usual.p50_s - underway.since_s) <= MOMENT_S  # one that is late may be late for long
        if job.status is not JobStatus.QUEUED or now - job.created_at > MOMENT_S:
            return False
        found = await self.outlook(job)
        standing = found.waits.standing
        return (
            found.end is not None
            and standing is not None
            and standing.own_kind
            and found.end.p50_s <= MOMENT_S
        )

    async def _note(self, job_id: str, kind: str, end_s: float) -> None:
        """Remember a job's first estimate, to learn from it."""
        if job_id in self._noted:
            return
        self._noted[job_id] = None
        if len(self._noted) > MOST_NOTED:
            self._noted.popitem(last=False)
        with contextlib.suppress(StoreDown):  # whoever asked for the estimate has it nevertheless
            await self._store.note(job_id, kind, end_s)

    async def _look(self) -> "_Fleet":
        if self._monotonic() - self._looked_at <= LOOK_S:
            return self._fleet
        if self._looking is None:  # hundreds of refused submits may ask at once
            self._looking = asyncio.create_task(self._look_now(), name="estimates look at the nodes")
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, task: "asyncio.Task[_Fleet]") -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # the caller has the result, if it is still there

    async def _look_now(self) -> "_Fleet":
        states = await self._nodes.usable(None)
        errors = self._fleet.errors
        if self._monotonic() - self._learned_at > LEARN_S:
            errors = _Errors(
                (kind, Calibration(found)) for kind, found in (await self._store.errors()).items()
            )
            self._learned_at = self._monotonic()
        self._fleet = _Fleet(
            free=await self._store.free_in_s([one.node.name for one in states if one.run is not None]),
            speeds={one.node.name: one.speed for one in states},
            run_s=await self._store.mean_run_s(),
            errors=errors,
        )
        self._looked_at = self._monotonic()
        return self._fleet


class _Errors(dict[str, Calibration]):
    """What was learned, by kind; nothing of those that are missing."""

    def __missing__(self, kind: str) -> Calibration:
        return Calibration()


@dataclass(frozen=True, kw_only=True)
class _Fleet:
    """The nodes at one look.

    Attributes:
        free: In how many seconds nodes are free that run something, as far as that is known.
        speeds: Of the nodes that take jobs.
        run_s: How long runs compute on a node of speed 1; None if none was measured.
        errors: What was learned.
    """

    free: Mapping[str, float] = field(default_factory=dict)
    speeds: Mapping[str, float] = field(default_factory=dict)
    run_s: float | None = None
    errors: _Errors = field(default_factory=_Errors)

    def free_in_s(self, state: NodeState) -> float:
        """Return in how many seconds a node is free; of one that is not known, after half a usual run."""
        if state.run is None:
            return 0.0
        return self.free.get(state.node.name, (self.run_s or 0.0) / state.speed / 2)


def whole_seconds(job: Job, end: EndEstimate | None) -> int | None:
    """Return the whole seconds after which half of such jobs have ended; 0 if it has; None if unknown."""
    if job.status.terminal:
        return 0
    return None if end is None else math.ceil(end.p50_s)


def _end_of_run(underway: Underway, progress: float | None, errors: Calibration) -> EndEstimate:
    usual = errors.applied(underway.run_s, since_s=underway.since_s)
    if not progress:
        return usual
    paced = errors.applied(max(0.0, underway.whole_s(progress) - underway.since_s))
    if not underway.own_kind or underway.since_s >= underway.run_s:
        return paced
    # Progress counts a graph's nodes, and cheap ones mostly come first: it is no reason to promise an end
    # that such jobs don't reach.
    return EndEstimate(p50_s=max(usual.p50_s, paced.p50_s), p90_s=max(usual.p90_s, paced.p90_s))
