"""Comfy API v2: the table of what it answers, and its OpenAPI document."""

from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from comfy_fleet.api import endpoint, openapi
from comfy_fleet.api import jobs as every_jobs
from comfy_fleet.api.answers import (
    AssetAnswer,
    HealthAnswer,
    JobAnswer,
    JobPageAnswer,
    JobWorkflowAnswer,
)
from comfy_fleet.api.deps import links, owner
from comfy_fleet.api.endpoint import BINARY, EVENTS, JSON, Endpoint
from comfy_fleet.api.v2 import assets, bodies, jobs

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
        handler=jobs.create_job,
        summary="Submit a graph",
        tag="jobs",
        parameters=(IDEMPOTENCY_KEY,),
        body=bodies.GraphJobBody,
        answers={201: JobAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v2/jobs",
        handler=jobs.list_jobs,
        summary="List jobs",
        tag="jobs",
        query=every_jobs.JobsQuery,
        answers={200: JobPageAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v2/jobs/{job_id}",
        handler=jobs.get_job,
        summary="Show a job",
        tag="jobs",
        answers={200: JobAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v2/jobs/{job_id}/workflow",
        handler=jobs.get_job_workflow,
        summary="Show a job's graph",
        tag="jobs",
        answers={200: JobWorkflowAnswer},
    ),
    Endpoint(
        method="POST",
        path="/api/v2/jobs/{job_id}/cancel",
        handler=jobs.cancel_job,
        summary="Cancel a job",
        tag="jobs",
        answers={200: JobAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v2/jobs/{job_id}/events",
        handler=jobs.stream,
        summary="Follow a job",
        tag="jobs",
        answers={200: None},
        kind=EVENTS,
    ),
    Endpoint(
        method="POST",
        path="/api/v2/assets",
        handler=assets.create_asset,
        summary="Upload a file",
        tag="assets",
        parameters=(IDEMPOTENCY_KEY,),
        body=bodies.UploadBody,
        body_kind="multipart/form-data",
        answers={201: AssetAnswer, 200: AssetAnswer},
        errors=(409,),
    ),
    Endpoint(
        method="POST",
        path="/api/v2/assets/from-hash",
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
        handler=assets.head_asset_by_hash,
        summary="Are these bytes there?",
        tag="assets",
        answers={200: None},
    ),
    Endpoint(
        method="GET",
        path="/api/v2/assets/{asset_id}/content",
        handler=assets.get_asset_content,
        summary="Download a file",
        tag="assets",
        answers={200: None, 206: None, 304: None},
        kind=BINARY,
        errors=(416,),
    ),
    Endpoint(
        method="GET",
        path="/api/v2/assets/{asset_id}",
        handler=assets.get_asset,
        summary="Show an asset",
        tag="assets",
        answers={200: AssetAnswer},
    ),
    Endpoint(
        method="DELETE",
        path="/api/v2/assets/{asset_id}",
        handler=assets.delete_asset,
        summary="Delete an asset",
        tag="assets",
        answers={204: None},
        errors=(409,),
    ),
    Endpoint(
        method="GET",
        path="/api/v2/health",
        handler=jobs.health,
        summary="Does the API answer?",
        tag="health",
        answers={200: HealthAnswer},
        open=True,
    ),
)

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
        summary="Graphs in, jobs, events and files out.",
        description="The contract of the official SDKs, with what this fleet adds to it. Jobs from stored "
        "workflows are submitted at `/api/v1`, and are shown here, too.",
        paths=_PATH_NAMES,
    )


def routes() -> list[Route]:
    """Return the routes, with the document that describes them."""
    return [
        *endpoint.routes(TABLE),
        Route("/health", jobs.health, methods=["GET"]),
        Route("/api/v2/openapi.json", document, methods=["GET"]),
    ]
