"""Reading jobs: who may see which, and how long one will take."""

import re
import time
from collections.abc import Callable

from comfy_fleet.domain import estimate
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.job import Job, JobStatus
from comfy_fleet.ports import JobStore, NodeRegistry

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
        """Return the seconds until the job is done, None when nobody can know, 0 when it is."""
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

    async def _up_and_busy(self) -> tuple[int, int]:
        at, up, busy = self._seen
        if self._monotonic() - at > 1.0:
            states = await self._nodes.states()
            up = sum(s.verdict == "up" and not s.node.cordoned for s in states)
            busy = sum(s.run is not None for s in states)
            self._seen = (self._monotonic(), up, busy)
        return up, busy
