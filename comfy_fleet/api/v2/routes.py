"""The table of Comfy API v2, and its OpenAPI document."""

from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import endpoint, openapi
from comfy_fleet.api import jobs as every_jobs
from comfy_fleet.api.answers import (
    JOB_EVENTS,
    AssetAnswer,
    HealthAnswer,
    JobAnswer,
    JobPageAnswer,
    JobWorkflowAnswer,
)
from comfy_fleet.api.batch_requests import BatchQuery, GraphBatchBody
from comfy_fleet.api.deps import links, owner
from comfy_fleet.api.endpoint import BINARY, EVENTS, JSON, Endpoint, ServedRoute
from comfy_fleet.api.output_response import ContentQuery
from comfy_fleet.api.v1.batch_answers import MadeBatchAnswer
from comfy_fleet.api.v1.batch_routes import IDEMPOTENCY_KEY as BATCH_KEY
from comfy_fleet.api.v1.batches import create_graph_batch
from comfy_fleet.api.v2 import assets, bodies, jobs
from comfy_fleet.api.waiting import PREFER, WaitQuery

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "For 24 h, a key that has made something is refused.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}

TABLE = (
    Endpoint(
        method="POST",
        path="/api/v2/jobs",
        operation="create_job",
        handler=jobs.create_job,
        summary="Submit a graph",
        tag="jobs",
        query=WaitQuery,
        waits=True,
        parameters=(IDEMPOTENCY_KEY, PREFER),
        body=bodies.GraphJobBody,
        answers={201: JobAnswer, 200: JobAnswer},
    ),
    Endpoint(
        method="POST",
        path="/api/v2/batches",
        operation="create_graph_batch",
        handler=create_graph_batch,
        summary="Submit many graphs",
        tag="jobs",
        parameters=(BATCH_KEY,),
        query=BatchQuery,
        body=GraphBatchBody,
        answers={201: MadeBatchAnswer},
        errors=(409,),
    ),
    Endpoint(
        method="GET",
        path="/api/v2/jobs",
        operation="list_jobs",
        handler=jobs.list_jobs,
        summary="List jobs",
        tag="jobs",
        query=every_jobs.JobsQuery,
        answers={200: JobPageAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v2/jobs/{job_id}",
        operation="get_job",
        handler=jobs.get_job,
        summary="Show a job",
        tag="jobs",
        query=every_jobs.SignedQuery,
        answers={200: JobAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v2/jobs/{job_id}/workflow",
        operation="get_job_workflow",
        handler=jobs.get_job_workflow,
        summary="Show a job's graph",
        tag="jobs",
        answers={200: JobWorkflowAnswer},
    ),
    Endpoint(
        method="POST",
        path="/api/v2/jobs/{job_id}/cancel",
        operation="cancel_job",
        handler=jobs.cancel_job,
        summary="Cancel a job",
        tag="jobs",
        answers={200: JobAnswer},
        at_once=True,
    ),
    Endpoint(
        method="GET",
        path="/api/v2/jobs/{job_id}/events",
        operation="stream",
        handler=jobs.stream,
        summary="Follow a job",
        tag="jobs",
        answers={200: None},
        kind=EVENTS,
        events=JOB_EVENTS,
    ),
    Endpoint(
        method="POST",
        path="/api/v2/assets",
        operation="create_asset",
        handler=assets.create_asset,
        summary="Upload a file",
        tag="assets",
        parameters=(IDEMPOTENCY_KEY,),
        body=bodies.UploadBody,
        body_kind="multipart/form-data",
        answers={201: AssetAnswer, 200: AssetAnswer},
        errors=(409,),
        at_once=True,
    ),
    Endpoint(
        method="POST",
        path="/api/v2/assets/from-hash",
        operation="create_asset_from_hash",
        handler=assets.create_asset_from_hash,
        summary="Make an asset over bytes that are there",
        tag="assets",
        body=bodies.FromHashBody,
        answers={201: AssetAnswer, 200: AssetAnswer},
        errors=(404,),
    ),
    Endpoint(
        method="HEAD",
        path="/api/v2/assets/by-hash/{hash}",
        operation="head_asset_by_hash",
        handler=assets.head_asset_by_hash,
        summary="Are these bytes there?",
        tag="assets",
        answers={200: None},
    ),
    Endpoint(
        method="GET",
        path="/api/v2/assets/{asset_id}/content",
        operation="get_asset_content",
        handler=assets.get_asset_content,
        summary="Download a file",
        tag="assets",
        query=ContentQuery,
        answers={200: None, 206: None, 302: None, 304: None},
        kind=BINARY,
        errors=(416,),
    ),
    Endpoint(
        method="GET",
        path="/api/v2/assets/{asset_id}",
        operation="get_asset",
        handler=assets.get_asset,
        summary="Show an asset",
        tag="assets",
        answers={200: AssetAnswer},
    ),
    Endpoint(
        method="DELETE",
        path="/api/v2/assets/{asset_id}",
        operation="delete_asset",
        handler=assets.delete_asset,
        summary="Delete an asset",
        tag="assets",
        answers={204: None},
        errors=(409,),
        console=True,  # pictures are not a hostile editor node's to delete
    ),
    Endpoint(
        method="GET",
        path="/api/v2/health",
        operation="health",
        handler=jobs.health,
        summary="Does the API answer?",
        tag="health",
        answers={200: HealthAnswer},
        open=True,
    ),
)

_TAGS = {
    "jobs": "Graphs in; states, events and outputs out.",
    "assets": "Files: uploads, and outputs of jobs.",
    "health": "Whether the API answers.",
}
_PATH_NAMES = {
    "job_id": "The job's id.",
    "asset_id": "The asset's id.",
    "hash": "`blake3:` and 64 hexadecimal digits.",
}


async def document(request: Request) -> Response:
    """``GET /api/v2/openapi.json``."""
    owner(request)
    return Response(openapi.dumped(_document(), links(request).base), media_type=JSON)


@lru_cache(1)
def _document() -> dict[str, Any]:
    return openapi.document(
        TABLE,
        title="Comfy API v2, as comfy_fleet serves it",
        description="Graphs in; jobs, events and files out. The contract of the official SDKs, with what "
        "this fleet adds to it. Jobs from stored workflows are submitted at `/api/v1` and shown here, too.",
        tags=_TAGS,
        paths=_PATH_NAMES,
    )


def routes() -> list[ServedRoute]:
    """Return the routes, with the document that describes them."""
    return [
        *endpoint.routes(TABLE),
        ServedRoute("/health", jobs.health, name="health", open=True),
        ServedRoute("/api/v2/openapi.json", document, name="document"),
    ]
