"""Reading jobs: who may see which, and how long one will take."""

import contextlib
import re
import time
from collections.abc import Callable
from statistics import median

from comfy_fleet.domain import estimate
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.job import Job, JobStatus
from comfy_fleet.ports import Events, JobStore, NodeRegistry
from comfy_fleet.timeouts import Timeout

MOMENT_S = 0.2
"""A job that should end within this time is waited for when somebody asks how it is."""
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def owned(jobs: JobStore, owner: str, job_id: str) -> Job:
    """Return a job of this owner.

    Raises:
        NotFound: There is none; somebody else's job looks the same.
    """
    job = await jobs.get(job_id) if _ID.fullmatch(job_id) else None
    if job is None or job.owner != owner:
        raise NotFound(f"no job {job_id[:80]}", details={"job_id": job_id[:80]})
    return job


def is_id(text: str) -> bool:
    """Tell whether a text can be one of our ids at all (a lower-case UUID)."""
    return _ID.fullmatch(text) is not None


class Estimator:
    """Estimates from measured durations; looks at the nodes at most once a second.

    Args:
        jobs: Where durations and positions are.
        nodes: Which nodes are up and busy.
        clock: Unix seconds.
    """

    def __init__(
        self,
        jobs: JobStore,
        nodes: NodeRegistry,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._nodes = nodes
        self._clock = clock
        self._monotonic = monotonic
        self._seen = (float("-inf"), 0, 0)

    async def seconds(self, job: Job) -> float | None:
        """Return the seconds until the job is done, in whole ms; None when nobody can know, 0 when it is."""
        left = await self._seconds(job)
        return None if left is None else round(left, 3)

    async def _seconds(self, job: Job) -> float | None:
        if job.status.terminal:
            return 0.0
        own = await self._jobs.durations(job.profile)
        if job.status is not JobStatus.QUEUED:
            elapsed = self._clock() - (job.started_at or self._clock())
            return estimate.seconds_running(own or await self._jobs.durations("*"), elapsed_s=elapsed)
        position = await self._jobs.position(job) or 1
        up, busy = await self._up_and_busy()
        return estimate.seconds_left(
            own, await self._jobs.durations("*"), ahead=position - 1, busy=busy, nodes=up
        )

    async def soon(self, job: Job) -> bool:
        """Tell whether the job should end within a moment, as jobs of its own kind did."""
        if job.status.terminal or not (own := await self._jobs.durations(job.profile)):
            return False
        if job.status is not JobStatus.QUEUED:
            elapsed = self._clock() - (job.started_at or self._clock())
            return abs(median(own) - elapsed) <= MOMENT_S  # one that is late may be late for long
        if self._clock() - job.created_at > MOMENT_S:
            return False
        left = await self.seconds(job)
        return left is not None and left <= MOMENT_S

    async def _up_and_busy(self) -> tuple[int, int]:
        at, up, busy = self._seen
        if self._monotonic() - at > 1.0:
            states = await self._nodes.states()
            up = sum(s.verdict == "up" and not s.node.cordoned for s in states)
            busy = sum(s.run is not None for s in states)
            self._seen = (self._monotonic(), up, busy)
        return up, busy


async def settled(job: Job, *, jobs: JobStore, events: Events, estimator: Estimator) -> Job:
    """Return a job as it is, or as it ended if that was a matter of a moment.

    Clients look, sleep, and look again: the official SDK half a second at first. Whoever looks just before
    the end is told of it now and not at the next look.
    """
    if not await estimator.soon(job):
        return job
    with contextlib.suppress(TimeoutError):
        async with Timeout(MOMENT_S), events.subscribe(job.id) as stream:
            now = await jobs.get(job.id)  # it may have ended before anybody listened
            if now is None or now.status.terminal:
                return now or job
            async for event in stream:
                if event.type == "status" and JobStatus(event.data["status"]).terminal:
                    break
    return await jobs.get(job.id) or job
