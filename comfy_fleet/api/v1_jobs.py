"""REST: stored workflows, and jobs made from their parameters."""

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query
from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import events, v2_jobs, wire
from comfy_fleet.api.deps import deps, links, owner
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed import Replay, read, shown
from comfy_fleet.api.where import WhereBody, where
from comfy_fleet.domain.graphs.workflow import Workflow, json_schema
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.ports import Submitted
from comfy_fleet.services.job_queries import owned
from comfy_fleet.services.submitter import JobOptions

router = APIRouter(tags=["jobs"])
JobId = Annotated[str, Path(description="The job's id.")]


class NewJobBody(WhereBody):
    """A job from a stored workflow."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"params": {"prompt": "a red fox"}, "metadata": {"order": "4711"}}},
    )

    params: dict[str, Any] = Field(default_factory=dict, description="Values by parameter name.")
    priority: int | None = Field(None, description="-1,000,000 to 1,000,000; higher goes first.")
    metadata: dict[str, str] | str | None = Field(None, description="Up to 16 labels, or a text of 1 KiB.")
    deadline_s: float | None = Field(None, description="It must start within this many seconds, or expires.")


@router.get("/workflows", summary="List stored workflows")
async def list_workflows(request: Request) -> Response:
    """Every stored workflow with its parameters' names; `broken` says whose files can't be used, and why."""
    owner(request)
    catalog = deps(request).catalog
    found = [
        {
            "name": w.name,
            "title": w.title,
            "description": w.description,
            "version": w.version,
            "parameters": [p.name for p in w.parameters],
        }
        for w in catalog.list()
    ]
    broken = {name: str(error) for name, error in catalog.errors().items()}
    return json_response({"workflows": found, "broken": broken})


@router.get("/workflows/{name}", summary="Show a stored workflow")
async def get_workflow(request: Request, name: str) -> Response:
    """JSON Schema of its parameters, what a node must have, and in `broken` why its files are not in use."""
    owner(request)
    catalog = deps(request).catalog
    found = catalog.get(name)
    broken = catalog.errors().get(name)
    return json_response({**workflow(found), "broken": None if broken is None else str(broken)})


@router.post(
    "/workflows/{name}/jobs",
    summary="Run a stored workflow",
    status_code=201,
    openapi_extra=shown(NewJobBody),
)
async def run_workflow(request: Request, name: str) -> Response:
    """Submit a job; `Idempotency-Key` makes it safe to send again."""
    d, who = deps(request), owner(request)
    body = await read(request, NewJobBody)
    replay = Replay(request, who, body)

    async def submit() -> Submitted:
        return await d.submitter.stored(
            who,
            name,
            body.params,
            JobOptions(
                priority=v2_jobs.priority(body.priority),
                metadata=v2_jobs.metadata(body.metadata),
                deadline_s=v2_jobs.deadline_s(body.deadline_s),
                where=where(body),
                idempotency=replay.idempotency,
            ),
        )

    return await replay.answer(201, submit, partial(job, request))


@router.get("/jobs", summary="List jobs")
async def list_jobs(request: Request) -> Response:
    """Newest first. Query: `status` (commas), `workflow`, `metadata[KEY]=VALUE`, `limit`, `cursor`."""
    query = v2_jobs.wanted(request, owner(request))
    return json_response(await v2_jobs.listing(request, query, deps(request).jobs.find))


@router.get("/job-ids", summary="Complete an abbreviated job id")
async def job_ids(
    request: Request, prefix: Annotated[str, Query(pattern="^[0-9a-f-]{1,36}$", description="How it begins.")]
) -> Response:
    """The ids that begin so, of the newest 10,000 jobs; at most 20."""
    return json_response({"ids": (await deps(request).jobs.ids(owner(request), prefix))[:20]})


@router.get("/jobs/{job_id}", summary="Show a job")
async def get_job(request: Request, job_id: JobId) -> Response:
    """The same job as in Comfy API v2, with its parameters and an estimate."""
    return json_response(await job(request, await v2_jobs.looked_up(request, job_id)))


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job")
async def cancel_job(request: Request, job_id: JobId) -> Response:
    """Queued jobs end at once, running ones at the next step; a finished job stays what it is."""
    d = deps(request)
    found = await owned(d.jobs, owner(request), job_id)
    return json_response(await job(request, await v2_jobs.request_cancel(request, found)))


@router.get("/jobs/{job_id}/outputs", summary="List a job's outputs")
async def job_outputs(request: Request, job_id: JobId) -> Response:
    """What it has made so far."""
    found = await owned(deps(request).jobs, owner(request), job_id)
    to = links(request)
    outputs = [wire.output(o, found.id, found.expires_at, to) for o in found.outputs]
    return json_response({"status": found.status.value, "outputs": outputs})


@router.get("/jobs/{job_id}/workflow", summary="Show a job's graph")
async def job_workflow(request: Request, job_id: JobId) -> Response:
    """The graph in API format, as submitted."""
    d = deps(request)
    graph = await d.jobs.graph(await owned(d.jobs, owner(request), job_id))
    return json_response({"workflow": orjson.Fragment(graph), "format": "api"})


@router.get("/jobs/{job_id}/events", summary="Follow a job")
async def job_events(request: Request, job_id: JobId) -> Response:
    """Server-Sent Events: `status`, `progress`, `preview`, `output`; ends after the last status."""
    return await events.open_stream(request, job_id)


async def job(request: Request, value: Job) -> dict[str, Any]:
    """Return a job as REST writes it: v2's fields and a few more."""
    d = deps(request)
    return {
        **wire.job(
            replace(value, waiting_for=await d.inventories.waiting_for(value)),
            links(request),
            queue_position=await d.jobs.position(value),
            simulated=d.simulated(value.node),
        ),
        "workflow_version": value.workflow_version,
        "params": dict(value.params),
        "estimated_wait_time_sec": await d.estimator.whole_seconds(value),
    }


def workflow(value: Workflow) -> dict[str, Any]:
    """Return a stored workflow with the schema of its parameters."""
    needs = value.requires
    return {
        "name": value.name,
        "title": value.title,
        "description": value.description,
        "version": value.version,
        "parameters": json_schema(value),
        "requires": {
            "comfyui": needs.comfyui,
            "models": [
                {"file": m.file, "folder": m.folder, "source": m.source, "optional": m.optional}
                for m in needs.models
            ],
            "vram_gb": needs.vram_gb,
            "pool": needs.pool,
            "prefer_pool": needs.prefer_pool,
            "spill_to": list(needs.spill_to),
            "zone": needs.zone,
            "labels": dict(needs.labels),
            "note": needs.note,
        },
    }
