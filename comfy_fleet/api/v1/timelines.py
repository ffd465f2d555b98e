"""REST: where a job's time went."""

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api import jobs, serialize
from comfy_fleet.api.answers import Time
from comfy_fleet.api.deps import deps
from comfy_fleet.api.json import json_response
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.jobs.timeline import Delivery, SpanName, timeline


class SpanAnswer(TypedDict):
    """A part of a job's time."""

    name: SpanName
    start_s: Annotated[float, Field(description="Seconds from the job's submit.")]
    seconds: Annotated[float, Field(description="How long it took, or has taken so far.")]
    lasting: Annotated[bool, Field(description="Whether it goes on.")]
    attempt: Annotated[int | None, Field(description="The attempt that it belongs to, from 1.")]
    node: Annotated[str | None, Field(description="That attempt's node.")]
    node_id: Annotated[str | None, Field(description="The node of the graph, of a `graph_node`.")]
    class_type: Annotated[str | None, Field(description="Its class.")]
    note: Annotated[str | None, Field(description="More about it, in words.")]


class TimelineAnswer(TypedDict):
    """Where a job's time went."""

    id: str
    status: JobStatus
    submitted_at: Time
    seconds: Annotated[float, Field(description="From the submit to the end of the last part, or until now.")]
    spans: Annotated[list[SpanAnswer], Field(description="In the order of their begins.")]
    unknown: Annotated[list[str], Field(description="What is not known of it, in words.")]


async def job_timeline(request: Request) -> Response:
    """Waits, attempts with their steps and their graphs' slowest nodes, stores, webhooks.

    Operators see everybody's.
    """
    job = await jobs.read_job(request, request.path_params["job_id"], by_operator=True)
    waiting_for = None if job.status.terminal else (await jobs.shown(request, job))["waiting_for"]
    return json_response(await timeline_of(request, job, waiting_for))


async def timeline_of(request: Request, job: Job, waiting_for: str | None) -> TimelineAnswer:
    """Return where a job's time went.

    Args:
        request: Asks for it.
        job: A job that the caller may read.
        waiting_for: What it waits for, in words.
    """
    d = deps(request)
    told = await d.webhooks.of_job(job.id) if job.webhook else []
    deliveries = [
        Delivery(
            type=one.type,
            at=one.at,
            tried_at=one.tried_at,
            state=one.state,
            attempts=one.attempts,
            status=one.status,
        )
        for one in told
    ]
    found = timeline(job, waiting_for=waiting_for, deliveries=deliveries, now=await d.store_time())
    return {
        "id": job.id,
        "status": job.status,
        "submitted_at": serialize.time(job.created_at),
        "seconds": round(max(0.0, found.until - job.created_at), 3),
        "spans": [
            {
                "name": span.name,
                "start_s": span.start_s,
                "seconds": span.seconds,
                "lasting": span.lasting,
                "attempt": span.attempt,
                "node": span.node,
                "node_id": span.node_id,
                "class_type": span.class_type,
                "note": span.note or None,
            }
            for span in found.spans
        ],
        "unknown": list(found.unknown),
    }
