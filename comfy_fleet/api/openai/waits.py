"""Requests that wait for the end of their jobs: they keep no place of other requests."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from comfy_fleet.api import jobs
from comfy_fleet.api.deps import ApiDeps, deps, let_others_in, links, owner, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.openai.bodies import PictureWaitQuery
from comfy_fleet.api.waiting import client_left
from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.services.job_queries import until_ended

logger = logging.getLogger(__name__)

_QUEUED_AT_ONCE = 20
_ROOM_S = 0.3


@contextmanager
def place(request: Request) -> Iterator[None]:
    """Count a request among those that wait, before it makes anything.

    Raises:
        HttpError: 429 if as many wait as may; 503 if none may at all.
    """
    d, who = deps(request), owner(request)
    if not d.settings.max_wait_s:
        raise HttpError(
            503,
            "no_waiting",
            "no request waits for pictures here (FLEET_MAX_WAIT_S is 0): send stream true, or use /api/v1",
        )
    most = principal(request).limits.streams
    if d.waits[who] >= most or d.waits.total() >= d.settings.max_waits:
        raise too_many(request)
    with counted(d, who):
        yield


@contextmanager
def counted(d: ApiDeps, who: str) -> Iterator[None]:
    """Count one more request of somebody's among those that wait."""
    d.waits[who] += 1
    try:
        yield
    finally:
        d.waits[who] -= 1
        if not d.waits[who]:
            del d.waits[who]


def too_many(request: Request) -> HttpError:
    """Return the refusal of a request while as many wait as may."""
    most, most_of_all = principal(request).limits.streams, deps(request).settings.max_waits
    return HttpError(
        429,
        "too_many_waits",
        f"as many requests wait for their pictures as may, {most} of yours (FLEET_MAX_STREAMS) or "
        f"{most_of_all} of all (FLEET_MAX_WAITS): try again",
        headers={"Retry-After": "5"},
    )


@dataclass(frozen=True, kw_only=True)
class MadeJobs:
    """The jobs that a request has made.

    Attributes:
        batch: The batch that they are; empty if it is one job.
    """

    ids: Sequence[str]
    batch: str = ""


async def queued(d: ApiDeps, made: MadeJobs) -> None:
    """Return once jobs have records: those of a batch wait for room in the queue before."""
    while made.batch:
        found = await d.batches.queue(made.batch, most=_QUEUED_AT_ONCE)
        if not found.left:
            return
        if found.full:
            await asyncio.sleep(_ROOM_S)


async def ended(request: Request, made: MadeJobs, query: PictureWaitQuery) -> list[Job]:
    """Wait for the end of jobs, and return them.

    Raises:
        HttpError: 504 if the time is over, 503 if this process stops, 401 if the caller's key was revoked,
            404 if a job was removed.
        ClientDisconnect: The client has hung up.
    """
    d = deps(request)
    let_others_in(request)
    request.scope["lasting"] = True
    there = asyncio.ensure_future(queued(d, made))

    async def end_of(job_id: str) -> Job | None:
        await asyncio.shield(there)
        return await until_ended(job_id, jobs=d.jobs, events=d.events)

    seconds = min(query.wait or d.settings.max_wait_s, d.settings.max_wait_s)
    with d.session_watch.follow(request.scope["session"], principal(request).key) as signed_out:
        ends = [asyncio.ensure_future(end_of(job_id)) for job_id in made.ids]
        all_ended = asyncio.ensure_future(asyncio.wait(ends))
        left = asyncio.ensure_future(client_left(request.receive))
        stopped = asyncio.ensure_future(d.closing.wait())
        revoked = asyncio.ensure_future(signed_out.wait())
        every = (all_ended, left, stopped, revoked)
        try:
            await asyncio.wait(every, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            whole = all(one.done() for one in ends)
            for task in (*ends, *every, there):
                task.cancel()
            await asyncio.gather(*ends, *every, there, return_exceptions=True)
    if whole:
        return [_there(one.result()) for one in ends]
    if not left.cancelled() and not d.closing.is_set():
        if query.cancel_on_disconnect:
            await cancel(request, made)
        raise ClientDisconnect
    if not revoked.cancelled():
        raise HttpError(401, "unauthorized", "the key was revoked while its pictures were made")
    if d.closing.is_set():
        raise HttpError(503, "stopping", f"this server stops. {_goes_on(request, made)}")
    raise HttpError(504, "timeout", f"not finished after {seconds:g} s. {_goes_on(request, made)}")


async def cancel(request: Request, made: MadeJobs) -> None:
    """Cancel jobs whose client has hung up."""
    try:
        if made.batch:
            await deps(request).batch_keeper.cancel(made.batch)
        for job_id in () if made.batch else made.ids:
            await jobs.cancel_job(request, job_id)
    except FleetError as error:
        logger.warning(
            "jobs not canceled although their client hung up",
            extra={"job_id": made.ids[0], "error": error.message},
        )


def _there(job: Job | None) -> Job:
    if job is None or job.removed:
        raise HttpError(404, "not_found", "the job was removed before its end")
    return job


def _goes_on(request: Request, made: MadeJobs) -> str:
    to = links(request)
    if made.batch:
        what = f"The jobs go on: fetch the results from {to.base}/api/v1/batches/{made.batch}"
    else:
        what = f"The job goes on: fetch the result from {to.job(made.ids[0])}"
    return f"{what}. With an Idempotency-Key, the same request waits again"
