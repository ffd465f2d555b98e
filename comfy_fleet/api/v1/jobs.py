"""REST: jobs."""

import logging
import math
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api import events, jobs, serialize
from comfy_fleet.api.deps import deps, links, owner, principal
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read_optional, read_query
from comfy_fleet.api.v1.answers import JobDetailAnswer
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.services.job_cancels import cancel_all

logger = logging.getLogger(__name__)


async def list_jobs(request: Request) -> Response:
    """Newest first, page by page. `metadata[KEY]=VALUE` in the query asks for jobs with that label."""
    return json_response(await jobs.page(request, wide=True))


async def queue(request: Request) -> Response:
    """All callers' jobs together."""
    return json_response({"queued": await deps(request).jobs.depth()})


class JobIdsQuery(BaseModel):
    """How the ids begin."""

    prefix: str = Field(pattern="^[0-9a-f-]{1,36}$", description="How it begins.")


async def job_ids(request: Request) -> Response:
    """The ids that begin so, of the newest 10,000 jobs; at most 20. To operators, of everybody's."""
    prefix = read_query(request, JobIdsQuery).prefix
    whose = None if principal(request).operator else owner(request)
    return json_response({"ids": (await deps(request).jobs.ids(whose, prefix))[:20]})


async def get_job(request: Request) -> Response:
    """The same job as in Comfy API v2, with its parameters and an estimate. Operators see everybody's."""
    job = await jobs.poll_job(request, request.path_params["job_id"], by_operator=True)
    return json_response(await shown(request, job))


async def cancel_job(request: Request) -> Response:
    """Queued jobs end at once, running ones at the next step; a finished job stays what it is.

    Operators cancel everybody's.
    """
    job = await jobs.cancel_job(request, request.path_params["job_id"], by_operator=True)
    return json_response(await shown(request, job))


class CancelAllBody(BaseModel):
    """Which of the caller's jobs."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {}})

    waiting_only: bool = Field(False, description="Only those that wait; those that run go on.")


class CanceledJobsAnswer(TypedDict):
    """What became of them."""

    ended: Annotated[int, Field(description="How many are canceled.")]
    ending: Annotated[int, Field(description="How many ran, and end at their next step.")]


async def cancel_all_jobs(request: Request) -> Response:
    """All of the caller's own that wait or run; nobody else's, also for operators. Safe to send again."""
    body = await read_optional(request, CancelAllBody)
    who = owner(request)
    done = await cancel_all(deps(request).jobs, who, waiting_only=body.waiting_only)
    logger.info("all jobs canceled", extra={"owner": who, "ended": done.ended, "ending": done.ending})
    return json_response({"ended": done.ended, "ending": done.ending})


async def job_outputs(request: Request) -> Response:
    """What it has made so far."""
    found = await jobs.read_job(request, request.path_params["job_id"])
    found = await deps(request).job_views.signed(found)
    outputs = serialize.outputs(found, links(request))
    return json_response({"status": found.status.value, "outputs": outputs})


async def job_workflow(request: Request) -> Response:
    """The graph in API format, as submitted."""
    graph = await deps(request).jobs.graph(await jobs.read_job(request, request.path_params["job_id"]))
    return json_response({"workflow": orjson.Fragment(graph), "format": "api"})


async def job_events(request: Request) -> Response:
    """Server-Sent Events: `status`, `progress`, `preview`, `output`; ends after the last status."""
    return await events.open_stream(request, request.path_params["job_id"])


async def shown(request: Request, job: Job) -> JobDetailAnswer:
    """Return a job in REST's form: that of every surface, and a few more fields."""
    found = await jobs.shown(request, job)
    estimate = found["estimate"]
    return {
        **found,
        "workflow_version": job.workflow_version,
        "params": dict(job.params),
        "estimated_wait_time_sec": 0
        if job.status.terminal
        else None
        if estimate is None
        else math.ceil(estimate["p50_s"]),
    }
