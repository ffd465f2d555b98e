"""Comfy API v2: jobs. Graphs in, states and outputs out."""

from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import events, job_options, jobs, serialize
from comfy_fleet.api.body import graph_limits, idempotency_key, read_object
from comfy_fleet.api.deps import deps, links, owner
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.waiting import SubmitWait
from comfy_fleet.domain.errors import FleetError, InvalidWorkflow, StoreDown, key_reused
from comfy_fleet.ports.jobs import Idempotency

_RESERVED = ("inputs",)


async def create_job(request: Request) -> Response:
    """Check a graph, write the job, and answer once it is durable."""
    key, waiting = idempotency_key(request), SubmitWait.of(request)
    once = Idempotency(scope=f"v2:{owner(request)}", key=key) if key is not None else None
    try:
        return await _create(request, once, waiting)
    except StoreDown:
        raise
    except FleetError:
        # The contract refuses any later request with a key that has made a job, even one with other errors.
        if once is not None and (job_id := await deps(request).jobs.made_by(once)):
            raise key_reused(job_id) from None
        raise


async def _create(request: Request, once: Idempotency | None, waiting: SubmitWait) -> Response:
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
        job_options.options(
            request,
            job_options.options_in(body),
            once,
            extra_data=_extra_data(body.get("extra_data"), d.settings.max_pnginfo_bytes),
        ),
    )
    position = done.position or await d.jobs.position(done.job)
    answer = json_response(
        serialize.job(done.job, links(request), queue_position=position, simulated=False), 201
    )
    show = partial(jobs.shown, request)
    then = waiting.then(usual=show, finished=show)
    return answer if then is None else then(answer, done.job)


async def list_jobs(request: Request) -> Response:
    """Newest first, page by page. `metadata[KEY]=VALUE` in the query asks for jobs with that label."""
    return json_response(await jobs.page(request))


async def get_job(request: Request) -> Response:
    """The job as it is now; waits for the end of one that should end within a moment."""
    job = await jobs.poll_job(request, request.path_params["job_id"])
    return json_response(await jobs.shown(request, job))


async def get_job_workflow(request: Request) -> Response:
    """The graph as submitted; never `extra_data`."""
    job = await jobs.read_job(request, request.path_params["job_id"])
    graph = await deps(request).jobs.graph(job)
    return json_response({"workflow": orjson.Fragment(graph), "format": "api"})


async def cancel_job(request: Request) -> Response:
    """Ask for the job to end; a finished job stays what it is. Safe to send again."""
    job = await jobs.cancel_job(request, request.path_params["job_id"])
    return json_response(await jobs.shown(request, job))


async def stream(request: Request) -> Response:
    """Server-Sent Events: `status`, `progress`, `preview`, `output`; ends after the last status."""
    return await events.open_stream(request, request.path_params["job_id"])


async def health(request: Request) -> Response:
    """Always 200 while the process serves requests."""
    return json_response({"status": "healthy"})


def _extra_data(value: object, most: int) -> dict[str, Any]:
    """Return the parts of ``extra_data`` that the node gets."""
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
