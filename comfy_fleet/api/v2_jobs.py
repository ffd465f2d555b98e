"""Comfy API v2: jobs. Graphs in, states and outputs out."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from comfy_fleet.api import wire
from comfy_fleet.api.body import graph_limits, idempotency_key, read_object
from comfy_fleet.api.deps import deps, links, owner
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.where import where_in
from comfy_fleet.domain.errors import BadInput, FleetError, InvalidWorkflow, StoreDown, key_reused
from comfy_fleet.domain.jobs.job import MAX_PRIORITY, MIN_PRIORITY, Job, JobFilter, JobStatus, Metadata
from comfy_fleet.ports import Idempotency
from comfy_fleet.services.job_queries import owned, settled
from comfy_fleet.services.submitter import JobOptions

logger = logging.getLogger(__name__)

MAX_LABELS = 16
MAX_LABEL_VALUE = 256
MAX_METADATA_BYTES = 1024
_LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_STATUSES = frozenset(status.value for status in JobStatus)
_RESERVED = ("webhook_url", "inputs")


async def create(request: Request) -> Response:
    """``POST /jobs``: check a graph, write the job, answer 201 once it is durable."""
    key = idempotency_key(request)
    once = Idempotency(scope=f"v2:{owner(request)}", key=key) if key is not None else None
    try:
        return await _create(request, once)
    except StoreDown:
        raise
    except FleetError:
        # The contract refuses any later request with a key that made a job, also one that is wrong itself.
        if once is not None and (job_id := await deps(request).jobs.made_by(once)):
            raise key_reused(job_id) from None
        raise


async def _create(request: Request, once: Idempotency | None) -> Response:
    d, who = deps(request), owner(request)
    body = await read_object(request, graph_limits(d.settings))
    if found := [name for name in _RESERVED if body.get(name) is not None]:
        raise InvalidWorkflow(
            f"{found[0]} is reserved and not taken yet: leave it out", details={"field": found[0]}
        )
    if "workflow" not in body:
        raise InvalidWorkflow(
            "workflow is missing: send the graph in API format",
            details={"field": "workflow", "node_errors": {}},
        )
    done = await d.submitter.graph(
        who,
        body["workflow"],
        JobOptions(
            priority=priority(body.get("priority")),
            metadata=metadata(body.get("metadata")),
            extra_data=_extra_data(body.get("extra_data"), d.settings.max_pnginfo_bytes),
            deadline_s=deadline_s(body.get("deadline_s")),
            where=where_in(body),
            idempotency=once,
        ),
    )
    position = done.position or await d.jobs.position(done.job)
    return json_response(wire.job(done.job, links(request), queue_position=position, simulated=False), 201)


async def find(request: Request) -> Response:
    """``GET /jobs``: newest first, filtered by status and labels, page by page."""
    d, who = deps(request), owner(request)
    return json_response(await listing(request, wanted(request, who), d.jobs.find))


async def listing(request: Request, query: JobFilter, find: Any) -> dict[str, Any]:
    """Return a page as both faces write it.

    Raises:
        HttpError: 400 ``invalid_cursor``.
    """
    try:
        page = await find(query)
    except BadInput as error:
        if query.cursor is not None and error.details.get("field") == "cursor":
            raise HttpError(400, "invalid_cursor", error.message, details=error.details) from None
        raise
    to, simulated = links(request), deps(request).simulated
    return {
        "jobs": [wire.list_item(job, to, simulated=simulated(job.node)) for job in page.jobs],
        "next_cursor": page.next_cursor,
    }


async def get(request: Request) -> Response:
    """``GET /jobs/{id}``; of a job that is just about to end, once it did."""
    return await answer(request, await looked_up(request, request.path_params["id"]))


async def looked_up(request: Request, job_id: str) -> Job:
    """Return the caller's job, for those who look again and again."""
    d = deps(request)
    job = await owned(d.jobs, owner(request), job_id)
    return await settled(job, jobs=d.jobs, events=d.events, estimator=d.estimator)


async def answer(request: Request, job: Job) -> Response:
    """Return a job as it is, with its place in the queue."""
    d = deps(request)
    position = await d.jobs.position(job) if job.status is JobStatus.QUEUED else None
    if job.status is JobStatus.QUEUED:
        job = replace(job, waiting_for=await d.inventories.waiting_for(job))
    body = wire.job(job, links(request), queue_position=position, simulated=d.simulated(job.node))
    return json_response(body)


async def workflow(request: Request) -> Response:
    """``GET /jobs/{id}/workflow``: the graph as submitted; never ``extra_data``."""
    d = deps(request)
    job = await owned(d.jobs, owner(request), request.path_params["id"])
    graph = await d.jobs.graph(job)
    return json_response({"workflow": orjson.Fragment(graph), "format": "api"})


async def cancel(request: Request) -> Response:
    """``POST /jobs/{id}/cancel``: idempotent; a finished job stays what it is."""
    d = deps(request)
    job = await owned(d.jobs, owner(request), request.path_params["id"])
    return await answer(request, await request_cancel(request, job))


async def request_cancel(request: Request, job: Job) -> Job:
    """Ask for a job's cancellation; returns it as it is now."""
    if job.status.terminal:
        return job
    now = await deps(request).jobs.request_cancel(job.id) or job
    logger.info("job cancel requested", extra={"job_id": job.id, "status": now.status.value})
    return now


async def health(request: Request) -> Response:
    """``GET /health``: this process answers."""
    return json_response({"status": "healthy"})


# -- what a client may say ---------------------------------------------------


def priority(value: object) -> int:
    """Check a priority.

    Raises:
        HttpError: 422.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_PRIORITY <= value <= MAX_PRIORITY:
        raise HttpError(
            422,
            "invalid_request",
            f"priority must be a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}",
            details={"field": "priority"},
        )
    return value


def deadline_s(value: object) -> float | None:
    """Check a deadline in seconds from now.

    Raises:
        HttpError: 422.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 30 * 86400:
        raise HttpError(
            422,
            "invalid_request",
            "deadline_s must be a number of seconds, more than 0 and at most 30 days",
            details={"field": "deadline_s"},
        )
    return float(value)


def metadata(value: object) -> Metadata:
    """Check metadata: labels as the SDK sends them, or an opaque text as the first-party proxy takes it.

    Raises:
        HttpError: 422 ``metadata_invalid``.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if len(value.encode()) > MAX_METADATA_BYTES:
            raise _metadata(f"metadata is longer than {MAX_METADATA_BYTES} bytes")
        return value
    if not isinstance(value, Mapping):
        raise _metadata("metadata must be an object of strings, or a string")
    if len(value) > MAX_LABELS:
        raise _metadata(f"metadata has {len(value)} labels; at most {MAX_LABELS} are taken")
    for key, text in value.items():
        if not _LABEL.fullmatch(key):
            raise _metadata(f"metadata key {key[:80]!r} must be 1 to 64 of A-Z a-z 0-9 _ . -", key)
        if not isinstance(text, str) or len(text) > MAX_LABEL_VALUE:
            raise _metadata(f"metadata {key!r} must be a string of at most {MAX_LABEL_VALUE} characters", key)
    return dict(value)


def _metadata(message: str, key: str | None = None) -> HttpError:
    details = {"field": "metadata"} | ({"key": key[:80]} if key is not None else {})
    return HttpError(422, "metadata_invalid", message, details=details)


def _extra_data(value: object, most: int) -> dict[str, Any]:
    """Return what of ``extra_data`` reaches the node."""
    given = {} if value is None else value
    if not isinstance(given, dict) or given.keys() - {"api_key_comfy_org", "extra_pnginfo"}:
        raise HttpError(
            422,
            "invalid_request",
            "extra_data must be an object with api_key_comfy_org, extra_pnginfo and nothing else",
            details={"field": "extra_data"},
        )
    key = given.get("api_key_comfy_org", "")
    if not isinstance(key, str) or len(key) > 4096:
        raise _extra("api_key_comfy_org", "must be a string")
    info = given.get("extra_pnginfo")
    if not isinstance(info, dict | None):
        raise _extra("extra_pnginfo", 'must be an object, such as {"workflow": ...} with the editor\'s graph')
    if info:
        try:
            size = len(orjson.dumps(info))
        except TypeError as error:
            raise _extra("extra_pnginfo", f"can't be written as JSON: {error}") from None
        if size > most:
            raise _extra(
                "extra_pnginfo", f"is larger than {most} bytes (FLEET_MAX_PNGINFO_BYTES)", limit=most
            )
    found = {"api_key_comfy_org": key, "extra_pnginfo": info}
    return {name: one for name, one in found.items() if one}


def _extra(name: str, what: str, **details: Any) -> HttpError:
    field = f"extra_data.{name}"
    return HttpError(422, "invalid_request", f"{field} {what}", details={"field": field, **details})


def wanted(request: Request, who: str) -> JobFilter:
    """Read a listing's query.

    Raises:
        HttpError: 400 ``invalid_metadata_filter`` or ``invalid_request``.
    """
    labels: dict[str, str] = {}
    statuses: set[JobStatus] = set()
    limit, cursor, name = 50, None, None
    for key, value in request.query_params.multi_items():
        if match := _FILTER.fullmatch(key):
            label = match[1]
            if not _LABEL.fullmatch(label) or len(value) > MAX_LABEL_VALUE:
                raise _filter(f"metadata[{label[:80]}] can't be a label's name and value", label)
            if labels.setdefault(label, value) != value:
                raise _filter(f"metadata[{label}] is asked for twice", label)
            if len(labels) > MAX_LABELS:
                raise _filter(f"at most {MAX_LABELS} labels can be asked for", label)
        elif key.startswith("metadata"):
            raise _filter("labels are asked for as metadata[KEY]=VALUE", key)
        elif key == "status":
            for word in filter(None, value.split(",")):
                if word not in _STATUSES:
                    raise _query("status", f"{word[:40]!r} is none of {', '.join(JobStatus)}")
                statuses.add(JobStatus(word))
        elif key == "limit":
            if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= 100:
                raise _query("limit", "must be a whole number from 1 to 100")
            limit = int(value)
        elif key == "cursor":
            cursor = value[:512]
        elif key == "workflow":
            name = value[:128]
    return JobFilter(
        owner=who, statuses=frozenset(statuses), metadata=labels, workflow=name, limit=limit, cursor=cursor
    )


def _filter(message: str, key: str) -> HttpError:
    return HttpError(400, "invalid_metadata_filter", message, details={"field": "metadata", "key": key[:80]})


def _query(field: str, message: str) -> HttpError:
    return HttpError(400, "invalid_request", f"{field} {message}", details={"field": field})


routes = [
    Route("/api/v2/jobs", create, methods=["POST"]),
    Route("/api/v2/jobs", find, methods=["GET"]),
    Route("/api/v2/jobs/{id}", get, methods=["GET"]),
    Route("/api/v2/jobs/{id}/workflow", workflow, methods=["GET"]),
    Route("/api/v2/jobs/{id}/cancel", cancel, methods=["POST"]),
    Route("/api/v2/health", health, methods=["GET"]),
    Route("/health", health, methods=["GET"]),
]
