"""Reading jobs: who may see which, and how long they will take."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Collection
from typing import TypeGuard

from comfy_fleet.domain.errors import NotFound, StoreDown
from comfy_fleet.domain.jobs.job import Job, JobEvent, JobStatus
from comfy_fleet.ports.jobs import Events, JobStore
from comfy_fleet.services.estimator import MOMENT_S, Estimator
from comfy_fleet.timeouts import Timeout

MOST_PROMPT_ID = 128
_LOOK_AGAIN_S, _NOT_READ_S = 15.0, 0.5
_ENDS = frozenset(status.value for status in JobStatus if status.terminal)
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def owned(jobs: JobStore, owner: str, job_id: str) -> Job:
    """Return a job of this owner.

    Raises:
        NotFound: There is none; somebody else's job looks the same.
    """
    return await seen(jobs, [owner], job_id)


async def seen(jobs: JobStore, owners: Collection[str] | None, job_id: str) -> Job:
    """Return a job of any of these owners (None: of everybody's).

    Raises:
        NotFound: There is none; somebody else's job looks the same.
    """
    job = await jobs.get(job_id) if is_id(job_id) else None
    if job is None or not is_seen(job, owners):
        raise no_job(job_id)
    return job


def is_seen(job: Job, owners: Collection[str] | None) -> bool:
    """Return whether a job is to be seen by whoever sees the jobs of these owners (None: of everybody)."""
    return (owners is None or job.owner in owners) and not job.removed


def no_job(job_id: str) -> NotFound:
    """Return the error for a job that this caller does not have."""
    return NotFound(f"no job {job_id[:80]}", details={"job_id": job_id[:80]})


async def prompt_job(jobs: JobStore, owner: str, prompt_id: str) -> Job | None:
    """Return an owner's job by what its client calls it, or by its own id; None if there is none.

    Of several with the same name, the newest.
    """
    if not is_prompt_id(prompt_id):
        return None
    job_id = await jobs.by_prompt(owner, prompt_id) or (prompt_id if is_id(prompt_id) else None)
    job = await jobs.get(job_id) if job_id is not None else None
    return job if job is not None and is_seen(job, [owner]) else None


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


async def settled(job: Job, *, jobs: JobStore, events: Events, estimator: Estimator, now: float) -> Job:
    """Return a job; wait up to 0.2 s if it is about to end.

    Clients poll with pauses, the official SDK with half a second at first. A client that asks just before the
    end gets the result now and not at its next poll.
    """
    if not await estimator.soon(job, now):
        return job
    with contextlib.suppress(TimeoutError):
        async with Timeout(MOMENT_S):
            return await until_ended(job.id, jobs=jobs, events=events) or job
    return await jobs.get(job.id) or job


async def until_ended(job_id: str, *, jobs: JobStore, events: Events) -> Job | None:
    """Wait for a job's end, however long that takes, and return it; None if it is gone.

    Events may be lost while the store is away, so the record is read now and then, too.
    """
    async with events.subscribe(job_id) as stream:
        heard = asyncio.ensure_future(_end_heard(stream))
        try:
            while True:
                with contextlib.suppress(StoreDown):
                    found = await jobs.get(job_id)
                    if found is None or found.status.terminal:
                        return found
                if heard.done():  # the record can't be read yet
                    await asyncio.sleep(_NOT_READ_S)
                else:
                    await asyncio.wait({heard}, timeout=_LOOK_AGAIN_S)
        finally:
            heard.cancel()
            await asyncio.gather(heard, return_exceptions=True)


async def _end_heard(stream: AsyncIterator[JobEvent]) -> None:
    async for event in stream:
        if event.type == "status" and event.data.get("status") in _ENDS:
            return
