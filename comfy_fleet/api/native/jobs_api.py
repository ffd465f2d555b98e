"""ComfyUI's interface: /api/jobs, which today's editor asks instead of queue and history."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, owner
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.native.body import read_any
from comfy_fleet.api.native.refusals import PromptRefusal, plain_answer
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.jobs.prompt_entries import (
    ListedState,
    final_item,
    job_details,
    listed_state,
    live_item,
    shown_extra_data,
)
from comfy_fleet.domain.jobs.shown_ui import whole_ui
from comfy_fleet.ports.prompts import PromptFilter
from comfy_fleet.services.job_queries import is_id, prompt_job
from comfy_fleet.services.prompt_items import graph_of

MOST = 1000
"""Jobs that a page has at most, whatever ``limit`` says."""
_MOST_OFFSET = 2**31
_STATES = {state.value: state for state in ListedState}


async def list_jobs(request: Request) -> Response:
    """Return a page of the caller's jobs, the newest first unless the query says otherwise."""
    d = deps(request)
    wanted, limit = _filter(request.query_params, owner(request))
    page = await d.prompts.page(wanted)
    items = await d.prompt_items.of(page.rows)
    pagination = {
        "offset": wanted.offset,
        "limit": limit,
        "total": page.total,
        "has_more": bool(page.rows) and wanted.offset + len(page.rows) < page.total,
    }
    text = b'{"jobs":[' + b",".join(items) + b'],"pagination":' + orjson.dumps(pagination) + b"}"
    return Response(text, media_type="application/json")


async def get_job(request: Request) -> Response:
    """Return a job; of one that is over, also its outputs and the graph as submitted."""
    d = deps(request)
    job = await prompt_job(d.jobs, owner(request), request.path_params["job_id"])
    state = None if job is None else listed_state(job)
    if job is None or state is None:
        raise PromptRefusal("not_found", "Job not found", status=404)
    if not state.final:
        return json_response(_live(job, state))
    content = (await d.prompts.contents([job], 0))[0]
    ui = whole_ui(content.ui, job.outputs)
    extra = shown_extra_data(content.extra_data, client_id=job.client_id, created_at=job.created_at)
    details = job_details(job, graph=graph_of(content), extra_data=extra, ui=ui)
    return json_response({**final_item(job, state, ui), **details})


async def cancel_job(request: Request) -> Response:
    """Cancel a job that waits or runs; the answer says whether there was one."""
    return json_response({"cancelled": await _cancel(request, request.path_params["job_id"])})


async def cancel_jobs(request: Request) -> Response:
    """Cancel several jobs; the answer says whether there was one that waited or ran."""
    try:
        body = await read_any(request)
    except HttpError as error:
        if error.status != 400:
            raise
        raise PromptRefusal("invalid_request", "Request body must be valid JSON") from None
    ids = body.get("job_ids") if isinstance(body, dict) else None
    if not isinstance(ids, list):
        raise PromptRefusal("invalid_request", "job_ids must be a list")
    if bad := [one if isinstance(one, str) else repr(one) for one in ids if not _is_uuid(one)]:
        return json_response({"error": "job_ids contains invalid id(s)", "invalid_ids": bad}, 400)
    return json_response({"cancelled": any([await _cancel(request, one) for one in ids])})


async def _cancel(request: Request, name: str) -> bool:
    d = deps(request)
    job = await prompt_job(d.jobs, owner(request), name)
    if job is None or job.status.terminal:
        return False
    now = await d.jobs.request_cancel(job.id)
    return now is not None and now.status in (JobStatus.CANCELING, JobStatus.CANCELED)


def _live(job: Job, state: ListedState) -> dict[str, Any]:
    return live_item(
        prompt_id=job.prompt_id,
        state=state,
        number=job.number,
        created_at=job.created_at,
        workflow_id=job.workflow_id,
    )


def _is_uuid(value: object) -> bool:
    return isinstance(value, str) and is_id(value)


# -- the query: the messages are ComfyUI's, which clients may show ----------------------------------------


def _filter(query: Mapping[str, str], who: str) -> tuple[PromptFilter, int | None]:
    """Read the query; return also the limit to be shown, which is None if there was none."""
    asked = [one.strip().lower() for one in query.get("status", "").split(",") if one.strip()]
    if bad := [one for one in asked if one not in _STATES]:
        valid = ", ".join(_STATES)
        raise _bad(f"Invalid status value(s): {', '.join(bad)[:200]}. Valid values: {valid}")
    sort_by = query.get("sort_by", "created_at").lower()
    if sort_by not in ("created_at", "execution_duration"):
        raise _bad("sort_by must be 'created_at' or 'execution_duration'")
    order = query.get("sort_order", "desc").lower()
    if order not in ("asc", "desc"):
        raise _bad("sort_order must be 'asc' or 'desc'")
    limit = _whole(query, "limit")
    if limit is not None and limit <= 0:
        raise _bad("limit must be a positive integer")
    states = [_STATES[one] for one in asked] if query.get("status") else _STATES.values()
    wanted = PromptFilter(
        owner=who,
        states=frozenset(states),
        workflow_id=query.get("workflow_id") or None,
        by_duration=sort_by == "execution_duration",
        oldest_first=order == "asc",
        offset=min(max(0, _whole(query, "offset") or 0), _MOST_OFFSET),
        limit=MOST if limit is None else min(limit, MOST),
    )
    return wanted, None if limit is None else wanted.limit


def _whole(query: Mapping[str, str], name: str) -> int | None:
    if (text := query.get(name)) is None:
        return None
    try:
        return int(text[:40])
    except ValueError:
        raise _bad(f"{name} must be an integer") from None


def _bad(message: str) -> PromptRefusal:
    return PromptRefusal("invalid_request", message)


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/jobs", list_jobs, "native_jobs", api_only=True, refusal=plain_answer),
    *row(
        *("POST", "/jobs/cancel", cancel_jobs, "native_jobs_cancel"),
        api_only=True,
        at_once=True,
        refusal=plain_answer,
    ),
    *row("GET", "/jobs/{job_id}", get_job, "native_job", api_only=True, refusal=plain_answer),
    *row(
        *("POST", "/jobs/{job_id}/cancel", cancel_job, "native_job_cancel"),
        api_only=True,
        at_once=True,
        refusal=plain_answer,
    ),
)
