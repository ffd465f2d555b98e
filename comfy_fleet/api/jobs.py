"""What every surface lets a request say about its job, and how jobs are found, listed and canceled."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import ANYTHING, JobAnswer, JobPageAnswer
from comfy_fleet.api.deps import deps, links, owner
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.typed_bodies import checked
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import MAX_PRIORITY, MIN_PRIORITY, Job, JobFilter, JobStatus, Metadata
from comfy_fleet.domain.jobs.trace_context import read_traceparent
from comfy_fleet.domain.nodes.eligibility import PlacementRequest
from comfy_fleet.domain.nodes.node import check_name
from comfy_fleet.domain.nodes.waiting_reason import for_results
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.services.job_queries import owned, settled
from comfy_fleet.services.submitter import JobOptions

logger = logging.getLogger(__name__)

MAX_LABELS = 16
MAX_LABEL_VALUE = 256
MAX_METADATA_BYTES = 1024
MAX_DEADLINE_S = 30 * 86400
_LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_STATUSES = frozenset(status.value for status in JobStatus)


# -- what a request may say --------------------------------------------------


def _invalid(field: str, message: str) -> HttpError:
    return HttpError(422, "invalid_request", message, details={"field": field})


def _priority(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_PRIORITY <= value <= MAX_PRIORITY:
        raise _invalid("priority", f"priority must be a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}")
    return value


def _deadline_s(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_DEADLINE_S:
        raise _invalid(
            "deadline_s", "deadline_s must be a number of seconds, more than 0 and at most 30 days"
        )
    return float(value)


def _metadata(value: object) -> Metadata:
    """Check metadata: labels as the SDK sends them, or an opaque text as Comfy's own proxy accepts."""
    if value is None:
        return None
    if isinstance(value, str):
        if len(value.encode()) > MAX_METADATA_BYTES:
            raise _bad_metadata(f"metadata is longer than {MAX_METADATA_BYTES} bytes")
        return value
    if not isinstance(value, Mapping):
        raise _bad_metadata("metadata must be an object of strings, or a string")
    if len(value) > MAX_LABELS:
        raise _bad_metadata(f"metadata has {len(value)} labels; at most {MAX_LABELS} are taken")
    for key, text in value.items():
        if not _LABEL.fullmatch(key):
            raise _bad_metadata(f"metadata key {key[:80]!r} must be 1 to 64 of A-Z a-z 0-9 _ . -", key)
        if not isinstance(text, str) or len(text) > MAX_LABEL_VALUE:
            raise _bad_metadata(
                f"metadata {key!r} must be a string of at most {MAX_LABEL_VALUE} characters", key
            )
    return dict(value)


def _bad_metadata(message: str, key: str | None = None) -> HttpError:
    details = {"field": "metadata"} | ({"key": key[:80]} if key is not None else {})
    return HttpError(422, "metadata_invalid", message, details=details)


class JobOptionsBody(BaseModel):
    """The fields that every request for a job may have.

    The validators of single fields raise :class:`HttpError`, so that every surface refuses a wrong value with
    the same message.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: Annotated[int | None, BeforeValidator(_priority)] = Field(
        None, ge=MIN_PRIORITY, le=MAX_PRIORITY, description="Higher goes first; 0 if left out."
    )
    metadata: Annotated[dict[str, str] | str | None, BeforeValidator(_metadata), ANYTHING] = Field(
        None,
        description=f"An object of up to {MAX_LABELS} labels, or a text of up to {MAX_METADATA_BYTES} bytes.",
    )
    deadline_s: Annotated[float | None, BeforeValidator(_deadline_s)] = Field(
        None, description="Seconds from now; a job that has not started by then expires. At most 30 days."
    )
    pool: str | None = Field(None, max_length=63, description="The pool that it must run in.")
    prefer_pool: str | None = Field(None, max_length=63, description="The pool that is asked first.")
    spill_to: list[str] = Field(
        default_factory=list, max_length=16, description="With `pool`: pools that are asked next."
    )
    zone: str = Field("", max_length=64, description="The zone that it must run in.")
    labels: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="Labels that the node must carry."
    )


def options(
    body: JobOptionsBody,
    idempotency: Idempotency | None,
    *,
    traceparent: str | None,
    extra_data: Mapping[str, Any] | None = None,
) -> JobOptions:
    """Return the options in a body.

    Args:
        traceparent: The request's trace, see :func:`traceparent_in`.
        extra_data: What the node gets in addition to the graph.

    Raises:
        HttpError: 422 if a pool's name is invalid, or pools contradict each other.
    """
    return JobOptions(
        priority=body.priority or 0,
        metadata=body.metadata,
        deadline_s=body.deadline_s,
        where=_placement(body),
        idempotency=idempotency,
        extra_data=extra_data or {},
        traceparent=traceparent,
    )


def traceparent_in(request: Request) -> str | None:
    """Return the request's trace; None if it has none."""
    return read_traceparent(request.headers.getlist("traceparent"))


_NO_OPTIONS = JobOptionsBody()


def options_in(body: Mapping[str, Any]) -> JobOptionsBody:
    """Return the options in a body that may have other fields, too.

    Raises:
        HttpError: 422 if a field is wrong.
    """
    given = {name: body[name] for name in JobOptionsBody.model_fields if body.get(name) is not None}
    return checked(given, JobOptionsBody) if given else _NO_OPTIONS


def _placement(body: JobOptionsBody) -> PlacementRequest:
    if body.pool is not None:
        _check_pool("pool", body.pool)
    if body.prefer_pool is not None:
        _check_pool("prefer_pool", body.prefer_pool)
    for pool in body.spill_to:
        _check_pool("spill_to", pool)
    if body.pool is not None and body.prefer_pool is not None:
        raise _invalid("pool", "pool and prefer_pool exclude each other: name one")
    if body.spill_to and body.pool is None:
        raise _invalid("spill_to", "spill_to needs pool")
    return PlacementRequest(
        pool=body.pool,
        prefer=body.prefer_pool,
        spill_to=tuple(body.spill_to),
        zone=body.zone,
        labels=body.labels,
    )


def _check_pool(field: str, pool: str) -> None:
    try:
        check_name(field, pool)
    except BadInput as error:
        raise _invalid(field, error.message) from None


# -- finding, showing and canceling ------------------------------------------


async def find_job(request: Request, job_id: str) -> Job:
    """Return the caller's job.

    Raises:
        NotFound: There is none of theirs.
    """
    return await owned(deps(request).jobs, owner(request), job_id)


async def poll_job(request: Request, job_id: str) -> Job:
    """Return the caller's job; wait up to 0.2 s if it is about to end.

    Raises:
        NotFound: There is none of theirs.
    """
    d = deps(request)
    job = await owned(d.jobs, owner(request), job_id)
    return await settled(job, jobs=d.jobs, events=d.events, estimator=d.estimator)


async def cancel_job(request: Request, job_id: str) -> Job:
    """Cancel the caller's job, and return its present state.

    Raises:
        NotFound: There is none of theirs.
    """
    job = await find_job(request, job_id)
    if job.status.terminal:
        return job
    now = await deps(request).jobs.request_cancel(job.id) or job
    logger.info("job cancel requested", extra={"job_id": job.id, "status": now.status.value})
    return now


async def shown(request: Request, job: Job) -> JobAnswer:
    """Return a job in the form of every surface, with its place in the queue."""
    d = deps(request)
    position = None
    if job.status is JobStatus.QUEUED:
        position = await d.jobs.position(job)
        why = await d.inventories.waiting_for(job)
        if why is None and (awaited := await d.jobs.awaited(job)) is not None:
            why = for_results(*awaited)
        job = replace(job, waiting_for=why)
    return serialize.job(job, links(request), queue_position=position, simulated=d.simulated(job.node))


# -- listing -----------------------------------------------------------------


class JobsQuery(BaseModel):
    """The documented query of a list of jobs; :func:`page` reads it.

    ``metadata[KEY]`` is left out: some generators write such a parameter as ``KEY``, which asks for all jobs.
    """

    status: str | None = Field(None, description="Statuses with commas between them, e.g. `queued,running`.")
    workflow: str | None = Field(None, description="Only jobs of this stored workflow.")
    kept: bool = Field(False, description="Only jobs that are exempt from retention.")
    limit: int = Field(50, ge=1, le=100, description="Jobs a page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


async def page(request: Request) -> JobPageAnswer:
    """Return the page of the caller's jobs for a query.

    Raises:
        HttpError: 400 ``invalid_cursor``, ``invalid_metadata_filter`` or ``invalid_request``.
    """
    query, d = _filter(request), deps(request)
    try:
        found = await d.jobs.find(query)
    except BadInput as error:
        if query.cursor is not None and error.details.get("field") == "cursor":
            raise HttpError(400, "invalid_cursor", error.message, details=error.details) from None
        raise
    places = await d.jobs.positions([job.id for job in found.jobs if job.status is JobStatus.QUEUED])
    to = links(request)
    return {
        "jobs": [
            serialize.list_item(job, to, queue_position=places.get(job.id), simulated=d.simulated(job.node))
            for job in found.jobs
        ],
        "next_cursor": found.next_cursor,
    }


def _filter(request: Request) -> JobFilter:
    """Read ``status``, ``metadata[KEY]``, ``workflow``, ``kept``, ``limit`` and ``cursor``, and no more."""
    labels: dict[str, str] = {}
    statuses: set[JobStatus] = set()
    limit, cursor, name, kept = 50, None, None, False
    for key, value in request.query_params.multi_items():
        if match := _FILTER.fullmatch(key):
            label = match[1]
            if not _LABEL.fullmatch(label) or len(value) > MAX_LABEL_VALUE:
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
