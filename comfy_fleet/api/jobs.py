"""How every surface finds, shows, lists and cancels jobs."""

import logging
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import JobAnswer, JobPageAnswer
from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import deps, links, owner, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.job_options import LABEL, MAX_LABEL_VALUE, MAX_LABELS
from comfy_fleet.api.links import Links, Signing
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import Job, JobFilter, JobPage, JobStatus
from comfy_fleet.services.job_queries import owned, seen, settled
from comfy_fleet.services.signed_urls import LONGEST_S

logger = logging.getLogger(__name__)

_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
MOST_LISTED_OUTPUTS = 8
"""Of each job in a list."""
_STATUSES = frozenset(status.value for status in JobStatus)


# -- finding, showing and canceling ------------------------------------------


async def find_job(request: Request, job_id: str) -> Job:
    """Return the caller's job.

    Raises:
        NotFound: There is none of theirs.
    """
    return await owned(deps(request).jobs, owner(request), job_id)


def seen_owners(request: Request, *, by_operator: bool) -> Collection[str] | None:
    """Return whose records the caller may read: their own, or their shared tenant's. None: everybody's.

    Args:
        request: The request.
        by_operator: Whether an operator may read everybody's.
    """
    who = principal(request)
    return None if by_operator and who.operator else deps(request).keys.ring.seen_by(who)


async def read_job(request: Request, job_id: str, *, by_operator: bool = False) -> Job:
    """Return a job that the caller may read: theirs, or of somebody in their tenant, if that is shared.

    Args:
        request: The request.
        job_id: The job.
        by_operator: Whether an operator may read everybody's.

    Raises:
        NotFound: There is no such job.
    """
    owner(request)
    return await seen(deps(request).jobs, seen_owners(request, by_operator=by_operator), job_id)


async def poll_job(request: Request, job_id: str, *, by_operator: bool = False) -> Job:
    """Return a job as :func:`read_job` does; wait up to 0.2 s if it is about to end.

    Raises:
        NotFound: There is no such job.
    """
    d = deps(request)
    job = await read_job(request, job_id, by_operator=by_operator)
    return await settled(job, jobs=d.jobs, events=d.events, estimator=d.estimator, now=d.clock())


async def cancel_job(request: Request, job_id: str, *, by_operator: bool = False) -> Job:
    """Cancel the caller's job, and return its present state.

    Args:
        request: The request.
        job_id: The job.
        by_operator: Whether an operator may cancel everybody's.

    Raises:
        NotFound: There is none of theirs.
    """
    if by_operator and principal(request).operator:
        job = await read_job(request, job_id, by_operator=True)
    else:
        job = await find_job(request, job_id)
    if job.status.terminal:
        return job
    now = await deps(request).jobs.request_cancel(job.id) or job
    logger.info(
        "job cancel requested", extra={"job_id": job.id, "status": now.status.value, "by": owner(request)}
    )
    if now.owner != principal(request).owner:
        await audit(request, "job.canceled", job=now.id, user=now.owner, status=now.status.value)
    return now


async def shown(request: Request, job: Job) -> JobAnswer:
    """Return a job in the form of every surface, with its place in the queue and its probable end."""
    return await deps(request).job_views.shown(job, _links(request, job))


class SignedQuery(BaseModel):
    """Whether URLs need a key."""

    signed: int | None = Field(
        None,
        ge=1,
        le=LONGEST_S,
        description="For so many seconds, the answer's URLs of outputs and events can be read without a key: "
        "for `<img>` and `EventSource` of a page.",
    )


def _links(request: Request, job: Job) -> Links:
    """Return the links in an answer about a job, signed if the query asks for it.

    Raises:
        HttpError: 422 if the time is none; 403 for an operator who may read the job, and none of its files.
    """
    return signing_links(request)(job)


def signing_links(request: Request) -> Callable[[Job], Links]:
    """Return what makes the links in an answer about jobs, signed if the query asks for it.

    Raises:
        HttpError: 422 if the time is none. What is returned raises 403 for an operator who may read a job,
            and none of its files.
    """
    plain, d, seconds = links(request), deps(request), None
    if request.method == "GET" and "signed" in request.query_params:
        seconds = read_query(request, SignedQuery).signed
    if seconds is None:
        return lambda _: plain
    public, until = Links.public(request, d.settings), d.clock() + seconds
    seen_by = frozenset(d.keys.ring.seen_by(principal(request)))

    def signed(job: Job) -> Links:
        if job.owner not in seen_by:
            raise HttpError(
                403,
                "forbidden",
                "this job's files are not yours to read: its owner may ask for signed URLs",
                details={"field": "signed", "job_id": job.id},
            )
        expires_at = min(until, job.expires_at) if job.status.terminal else until
        return public.signed(Signing(urls=d.signed_urls, owner=job.owner, expires_at=expires_at))

    return signed


# -- listing -----------------------------------------------------------------


class JobsQuery(SignedQuery):
    """The documented query of a list of jobs; :func:`page` reads it.

    ``metadata[KEY]`` is left out: some generators write such a parameter as ``KEY``, which asks for all jobs.
    """

    status: str | None = Field(None, description="Statuses with commas between them, e.g. `queued,running`.")
    workflow: str | None = Field(None, description="Only jobs of this stored workflow.")
    kept: bool = Field(False, description="Only jobs that are exempt from retention.")
    limit: int = Field(50, ge=1, le=100, description="Jobs a page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")
    outputs: int = Field(
        0, ge=0, le=MOST_LISTED_OUTPUTS, description="So many of each job's first outputs, with thumbnails."
    )


class AllJobsQuery(JobsQuery):
    """The same, of more jobs than one's own."""

    all: bool = Field(
        False, description="All jobs that the caller may see: operators everybody's, others their tenant's."
    )
    user: str | None = Field(None, description="Only this user's, of those.")


async def page(request: Request, *, wide: bool = False) -> JobPageAnswer:
    """Return the page of jobs for a query.

    Args:
        request: The request.
        wide: Whether ``all`` and ``user`` are fields of the query; without them, the jobs are the caller's.

    Raises:
        HttpError: 400 ``invalid_cursor``, ``invalid_metadata_filter`` or ``invalid_request``.
    """
    query, d = _filter(request), deps(request)
    if wide:
        query = replace(query, **_whose(request))
    found = await listed(request, query, _listed_outputs(request))
    places = await d.jobs.positions([job.id for job in found.jobs if job.status is JobStatus.QUEUED])
    to = signing_links(request)
    return {
        "jobs": [
            serialize.list_item(
                job, to(job), queue_position=places.get(job.id), simulated=d.simulated(job.node)
            )
            for job in found.jobs
        ],
        "next_cursor": found.next_cursor,
    }


async def listed(request: Request, query: JobFilter, each: int) -> JobPage:
    """Return a page of jobs, each with its first outputs.

    Args:
        request: The request.
        query: Which jobs.
        each: How many outputs of each.

    Raises:
        HttpError: 400 ``invalid_cursor``.
    """
    d = deps(request)
    try:
        found = await d.jobs.find(query)
    except BadInput as error:
        if query.cursor is not None and error.details.get("field") == "cursor":
            raise HttpError(400, "invalid_cursor", error.message, details=error.details) from None
        raise
    if not each:
        return found
    first = await d.jobs.first_outputs([job.id for job in found.jobs if job.output_count], each)
    jobs = (replace(job, outputs=tuple(first.get(job.id, ()))) for job in found.jobs)
    return replace(found, jobs=tuple(jobs))


def _listed_outputs(request: Request) -> int:
    value = request.query_params.get("outputs", "0")
    if not re.fullmatch(r"[0-9]{1,3}", value) or int(value) > MOST_LISTED_OUTPUTS:
        raise _bad_query("outputs", f"must be a whole number from 0 to {MOST_LISTED_OUTPUTS}")
    return int(value)


def _whose(request: Request) -> dict[str, Any]:
    """Read ``all`` and ``user``."""
    params = request.query_params
    if params.get("all", "false") not in ("true", "false"):
        raise _bad_query("all", "must be true or false")
    return whose(request, user=params.get("user"), everybodys=params.get("all") == "true")


def whose(request: Request, *, user: str | None, everybodys: bool) -> dict[str, Any]:
    """Return the fields of a filter for somebody's jobs; by default, for the caller's own.

    Args:
        request: The request.
        user: Only this user's.
        everybodys: All that the caller may see: operators everybody's, others their tenant's.

    Raises:
        HttpError: 403 if the user's are not the caller's to see.
    """
    who = principal(request)
    seen_by = deps(request).keys.ring.seen_by(who)
    if user is not None:
        if user not in seen_by and not who.operator:
            raise HttpError(
                403, "forbidden", "this needs a key with the role operator", details={"field": "user"}
            )
        return {"owner": user}
    if not everybodys:
        return {}
    if who.operator:
        return {"owner": None}
    return {"owner": seen_by[0]} if len(seen_by) == 1 else {"owner": None, "owners": frozenset(seen_by)}


def _filter(request: Request) -> JobFilter:
    """Read ``status``, ``metadata[KEY]``, ``workflow``, ``kept``, ``limit`` and ``cursor``, and no more."""
    labels: dict[str, str] = {}
    statuses: set[JobStatus] = set()
    limit, cursor, name, kept = 50, None, None, False
    for key, value in request.query_params.multi_items():
        if match := _FILTER.fullmatch(key):
            label = match[1]
            if not LABEL.fullmatch(label) or len(value) > MAX_LABEL_VALUE:
                raise _bad_label(f"metadata[{label[:80]}] can't be a label's name and value", label)
            if labels.setdefault(label, value) != value:
                raise _bad_label(f"metadata[{label}] is asked for twice", label)
            if len(labels) > MAX_LABELS:
                raise _bad_label(f"at most {MAX_LABELS} labels can be asked for", label)
        elif key.startswith("metadata"):
            raise _bad_label("labels are asked for as metadata[KEY]=VALUE", key)
        elif key == "status":
            for word in filter(None, value.split(",")):
                if word not in _STATUSES:
                    raise _bad_query("status", f"{word[:40]!r} is none of {', '.join(JobStatus)}")
                statuses.add(JobStatus(word))
        elif key == "limit":
            if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= 100:
                raise _bad_query("limit", "must be a whole number from 1 to 100")
            limit = int(value)
        elif key == "cursor":
            cursor = value[:512]
        elif key == "workflow":
            name = value[:128]
        elif key == "kept":
            if value not in ("true", "false"):
                raise _bad_query("kept", "must be true or false")
            kept = value == "true"
    return JobFilter(
        owner=owner(request),
        statuses=frozenset(statuses),
        metadata=labels,
        workflow=name,
        kept=kept,
        limit=limit,
        cursor=cursor,
    )


def _bad_label(message: str, key: str) -> HttpError:
    return HttpError(400, "invalid_metadata_filter", message, details={"field": "metadata", "key": key[:80]})


def _bad_query(field: str, message: str) -> HttpError:
    return HttpError(400, "invalid_request", f"{field} {message}", details={"field": field})
