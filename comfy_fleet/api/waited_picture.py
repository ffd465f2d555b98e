"""The first picture of a job that has ended, as the answer to its submit."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import output_response
from comfy_fleet.api.accepts import Accepts
from comfy_fleet.api.deps import deps, links
from comfy_fleet.api.errors import envelope
from comfy_fleet.domain.errors import Busy, StoreDown
from comfy_fleet.domain.jobs.job import Job, JobStatus, Output, OutputKind

_JSON = "application/json"
STATUS = {
    **dict.fromkeys(("node_execution_error", "invalid_workflow", "missing_asset", "content_refused"), 422),
    **dict.fromkeys(("input_not_fetched", "output_limit", "frame_too_large", "out_of_memory"), 422),
    "moderation_unavailable": 503,
    "run_timeout": 504,
    "deadline_exceeded": 504,
}
"""Of the errors of jobs; that of all others is 502."""


def is_wanted(request: Request) -> bool:
    """Return whether a submit wants a picture: it names a type of pictures, and not JSON as gladly."""
    accepts = Accepts.read(request.headers.getlist("accept"))
    most = max((weight for kind, weight in accepts.ranges.items() if kind.startswith("image/")), default=0.0)
    json = accepts.weight(_JSON)
    # Generated clients name each type that a document has, all with the same weight, and read JSON.
    return most > json or (0 < most == json and not accepts.names(_JSON))


async def answer(request: Request, job: Job) -> Response:
    """Return a job's first picture in the form that the request wants, or why there is none.

    Raises:
        HttpError: 404 if its bytes are gone; 422 if it can't be had in this form.
    """
    about: dict[str, Any] = {"job_id": job.id, "status": job.status.value}
    if job.status is JobStatus.CANCELED:
        return envelope(409, "canceled", "the job was canceled: there is no picture", about)
    if job.status is not JobStatus.SUCCEEDED:
        code = job.error.code if job.error else "internal_error"
        message = job.error.message if job.error else "the job has failed"
        if job.error is not None and job.error.node_id is not None:
            about |= {"node_id": job.error.node_id, "class_type": job.error.class_type}
        return envelope(STATUS.get(code, 502), code, message, about)
    found = _first(job)
    if found is None:
        kinds = sorted({one.content_type for one in job.outputs})[:20]
        return envelope(
            406,
            "no_picture",
            "the job has succeeded, and has no picture among its outputs: ask for it with Accept: "
            "application/json, or at the address in Location",
            {**about, "content_types": kinds},
        )
    asset = await deps(request).assets.get(found.asset_id)
    if asset is None:
        return envelope(404, "not_found", "the picture was deleted", about)
    shown_as = {
        "Cache-Control": "no-store",
        "Content-Location": links(request).asset(asset.id),
        "X-Fleet-Asset": asset.id,
    }
    try:
        return await output_response.respond(request, asset, shown_as=shown_as)
    except StoreDown:
        raise
    except Busy as error:  # the submit must not be sent again for that
        message = f"the job has succeeded: ask for its picture at Content-Location; {error.message}"
        headers = {**shown_as, "Retry-After": str(error.retry_after_s)}
        return envelope(503, error.code, message, about, headers=headers)


def _first(job: Job) -> Output | None:
    images = [one for one in job.outputs if one.kind is OutputKind.IMAGE]
    return next((one for one in images if not one.temporary), images[0] if images else None)
