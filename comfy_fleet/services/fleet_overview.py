"""What an operator sees of the fleet at one glance, read once however many look."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.nodes.measures import Measures, measured
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.ports.figures import Figures, StoreFigures
from comfy_fleet.ports.jobs import JobsAtBothEnds
from comfy_fleet.ports.nodes import Hosts, NodeRegistry
from comfy_fleet.services.inventories import NodeInventories

KEPT_S = 0.9
"""For how long an answer serves others: less than the shortest interval at which somebody looks."""
MOST_WAITING, MOST_ENDED = 10, 20
_LOOKED_AT = 200
"""Jobs at the front of the queue, and of those that ended last, that are looked at for those of one pool."""
_MOST_RUNNING = 1000
_MOST_KEPT = 8


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The fleet, or one of its pools, at one moment.

    Attributes:
        nodes: The nodes.
        measures: What agents measured of them, by name.
        store: What waits.
        running: The jobs that the nodes work on, by id.
        waiting: Jobs at the front of the queue, with what they wait for.
        ended: The jobs that ended last, the latest first.
        at: Unix seconds of the fleet's time.
    """

    nodes: Sequence[NodeState]
    measures: Mapping[str, Measures]
    store: StoreFigures
    running: Mapping[str, Job]
    waiting: Sequence[Job]
    ended: Sequence[Job]
    at: float


class FleetOverview:
    """Reads it.

    Args:
        nodes: The nodes.
        hosts: What their agents said last.
        figures: What waits.
        jobs: The jobs.
        inventories: Says what a job waits for.
        clock: The fleet's time, Unix seconds.
    """

    def __init__(
        self,
        *,
        nodes: NodeRegistry,
        hosts: Hosts,
        figures: Figures,
        jobs: JobsAtBothEnds,
        inventories: NodeInventories,
        clock: Callable[[], Awaitable[float]],
    ) -> None:
        self._nodes = nodes
        self._hosts = hosts
        self._figures = figures
        self._jobs = jobs
        self._inventories = inventories
        self._clock = clock
        self._reading = asyncio.Lock()
        self._kept: OrderedDict[str, tuple[float, Overview]] = OrderedDict()

    async def look(self, pool: str = "", *, kept_s: float | None = None) -> Overview:
        """Return the fleet as it is now, or was less than a second ago.

        Args:
            pool: Only this pool; empty: all.
            kept_s: How old it may be; None: ``KEPT_S``. With 0, who ask at once still share one look.

        Raises:
            StoreDown: Redis does not answer.
        """
        oldest = time.monotonic() - (KEPT_S if kept_s is None else kept_s)
        async with self._reading:
            kept = self._kept.pop(pool, None)
            if kept is None or kept[0] < oldest:
                kept = time.monotonic(), await self._look(pool)
            self._kept[pool] = kept
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            return kept[1]

    async def _look(self, pool: str) -> Overview:
        nodes = [one for one in await self._nodes.states() if pool in ("", one.node.pool)]
        store = await self._figures.read()
        if pool:
            store = replace(store, queues=[one for one in store.queues if one.pool == pool])
        first = await self._jobs.first_waiting(_LOOKED_AT if pool else MOST_WAITING)
        last = await self._jobs.last_ended(_LOOKED_AT if pool else 2 * MOST_ENDED)
        waiting = await self._of(pool, first, MOST_WAITING)
        ended = await self._of(pool, last, MOST_ENDED)
        at_work = [work.job for one in nodes for work in one.work][:_MOST_RUNNING]
        return Overview(
            nodes=nodes,
            measures=measured(await self._hosts.hosts(), (one.node.name for one in nodes)),
            store=store,
            running={job.id: job for job in await self._jobs.briefs(at_work) if job is not None},
            waiting=[await self._why(job) for job in waiting if job.status is JobStatus.QUEUED],
            ended=[job for job in ended if job.status.terminal],
            at=await self._clock(),
        )

    async def _of(self, pool: str, ids: Collection[str], most: int) -> list[Job]:
        found = await self._jobs.briefs(list(ids))
        return [
            job for job in found if job is not None and not job.removed and pool in ("", job.placement.pool)
        ][:most]

    async def _why(self, job: Job) -> Job:
        why = await self._inventories.waiting_for(job, await self._jobs.waits(job))
        return replace(job, waiting_for=why)
