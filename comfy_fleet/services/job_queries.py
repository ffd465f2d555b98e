"""Reading jobs: who may see which, and how long they will take."""

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeGuard

from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.jobs import estimate
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.ports.jobs import Events, JobStore
from comfy_fleet.ports.nodes import NodeRegistry
from comfy_fleet.timeouts import Timeout

LOOK_S = 1.0
MOMENT_S = 0.2
"""A request for a job waits if the job should end within this time."""
MOST_PROMPT_ID = 128
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def owned(jobs: JobStore, owner: str, job_id: str) -> Job:
    """Return a job of this owner.

    Raises:
        NotFound: There is none; somebody else's job looks the same.
    """
    job = await jobs.get(job_id) if _ID.fullmatch(job_id) else None
    if job is None or job.owner != owner or job.removed:
        raise NotFound(f"no job {job_id[:80]}", details={"job_id": job_id[:80]})
    return job


async def prompt_job(jobs: JobStore, owner: str, prompt_id: str) -> Job | None:
    """Return an owner's job by what its client calls it, or by its own id; None if there is none.

    Of several with the same name, the newest.
    """
    if not is_prompt_id(prompt_id):
        return None
    job_id = await jobs.by_prompt(owner, prompt_id) or (prompt_id if is_id(prompt_id) else None)
    job = await jobs.get(job_id) if job_id is not None else None
    return job if job is not None and job.owner == owner and not job.removed else None


def is_prompt_id(value: object) -> TypeGuard[str]:
    """Return whether a client may call a job so: 1 to 128 printable characters that fit into a path.

    ComfyUI 0.3.64 takes any text, 0.33 only UUIDs in lower case. The edge lets no path through with a slash
    or a backslash in a name, or with a name of dots: such a prompt could never be asked for.
    """
    return (
        isinstance(value, str)
        and 0 < len(value) <= MOST_PROMPT_ID
        and value.isprintable()
        and value not in (".", "..")
        and not {"/", "\\"} & set(value)
    )


def is_id(text: str) -> bool:
    """Return whether a text has the form of our ids (a lower-case UUID)."""
    return _ID.fullmatch(text) is not None


class Estimator:
    """Estimates from measured durations; reads the nodes and the latest runs at most once a second.

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
        self._looked_at = float("-inf")
        self._load = _Load()
        self._looking: asyncio.Task[_Load] | None = None

    async def whole_seconds(self, job: Job) -> int | None:
        """Return the same as :meth:`seconds` in whole seconds, rounded up."""
        left = await self.seconds(job)
        return None if left is None else math.ceil(left)

    async def seconds(self, job: Job) -> float | None:
        """Return the seconds until the job is done; None if that can't be known, 0 if it is done."""
        if job.status.terminal:
            return 0.0
        own = await self._jobs.durations(job.profile)
        if job.status is not JobStatus.QUEUED:
            elapsed = self._clock() - (job.started_at or self._clock())
            return estimate.seconds_running(own or await self._jobs.durations("*"), elapsed_s=elapsed)
        position = await self._jobs.position(job) or 1
        load = await self._look()
        return estimate.seconds_left(own, load.took_s, ahead=position - 1, busy=load.busy, nodes=load.up)

    async def retry_after(self) -> int:
        """Return the whole seconds after which a full queue should have room."""
        load = await self._look()
        return estimate.retry_after(load.took_s, nodes=load.up)

    async def soon(self, job: Job) -> bool:
        """Return whether the job should end within a moment, judging by jobs of its kind."""
        if job.status.terminal or not (own := await self._jobs.durations(job.profile)):
            return False
        if job.status is not JobStatus.QUEUED:
            elapsed = self._clock() - (job.started_at or self._clock())
            return abs(median(own) - elapsed) <= MOMENT_S  # one that is late may be late for long
        if self._clock() - job.created_at > MOMENT_S:
            return False
        left = await self.seconds(job)
        return left is not None and left <= MOMENT_S

    async def _look(self) -> "_Load":
        if self._monotonic() - self._looked_at <= LOOK_S:
            return self._load
        if self._looking is None:  # hundreds of refused submits may ask at once
            self._looking = asyncio.create_task(self._look_now(), name="estimates look at the nodes")
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, task: "asyncio.Task[_Load]") -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # the caller has the result, if it is still there

    async def _look_now(self) -> "_Load":
        states, runs = await self._nodes.states(), await self._jobs.latest_runs()
        if not runs:  # nothing has ended since an earlier version, which did not store the nodes
            runs = [(seconds, "") for seconds in await self._jobs.durations("*")]
        rates = {s.node.name: s.speed for s in states}
        up = [s.node.name for s in states if s.verdict == "up" and not s.node.cordoned]
        self._load = _Load(
            up=len(up),
            busy=sum(s.run is not None for s in states),
            took_s=estimate.evened(runs, rates, up),
        )
        self._looked_at = self._monotonic()
        return self._load


@dataclass(frozen=True, kw_only=True)
class _Load:
    """How many nodes are up and busy, and the last runs' times, as on a node of mean speed."""

    up: int = 0
    busy: int = 0
    took_s: Sequence[float] = ()


async def settled(job: Job, *, jobs: JobStore, events: Events, estimator: Estimator) -> Job:
    """Return a job; wait up to 0.2 s if it is about to end.

    Clients poll with pauses, the official SDK with half a second at first. A client that asks just before the
    end gets the result now and not at its next poll.
    """
    if not await estimator.soon(job):
        return job
    with contextlib.suppress(TimeoutError):
        async with Timeout(MOMENT_S), events.subscribe(job.id) as stream:
            now = await jobs.get(job.id)  # it may have ended before we listened
            if now is None or now.status.terminal:
                return now or job
            async for event in stream:
                if event.type == "status" and JobStatus(event.data["status"]).terminal:
                    break
    return await jobs.get(job.id) or job
