"""ComfyUI's interface: POST and GET /prompt, and /interrupt."""

import math
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.body import graph_limits, kind_of, read_json, refuse_type
from comfy_fleet.api.cache_control import cache_control_in
from comfy_fleet.api.deps import deps, owner, principal
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.job_options import (
    JobOptionsBody,
    most_priority,
    output_ask,
    traceparent_in,
    webhook_in,
)
from comfy_fleet.api.json import json_response
from comfy_fleet.api.native.body import read_any
from comfy_fleet.api.native.refusals import BAD_PROMPT_ID, PromptRefusal
from comfy_fleet.api.native.row import row
from comfy_fleet.api.typed_bodies import checked
from comfy_fleet.domain.jobs.job import DEFAULT_POOL, Job, PromptFields
from comfy_fleet.domain.jobs.prompt_entries import ListedState, shown_number
from comfy_fleet.domain.nodes.eligibility import PlacementRequest
from comfy_fleet.domain.stores.output_plan import OutputAsk
from comfy_fleet.domain.webhooks.webhook import Webhook
from comfy_fleet.ports.prompts import PromptFilter
from comfy_fleet.services.job_queries import is_prompt_id, prompt_job
from comfy_fleet.services.submitter import JobOptions

MOST_CLIENT_ID = 256
ON_ALL = PlacementRequest(prefer=DEFAULT_POOL)
"""A client of ComfyUI's knows no pools: what /object_info offers it may use, in whichever pool that is."""
_MOST_TARGETS = 10_000
_MOST_NUMBER = 2.0**53


async def post_prompt(request: Request) -> Response:
    """Check a graph, write the job, and answer with its prompt id once it is durable.

    Outputs that can't run are left out and explained, as long as there are others.
    """
    d = deps(request)
    refuse_type(request)
    body = await read_json(request, graph_limits(d.settings))
    if not isinstance(body, dict | list | str):
        raise PromptRefusal("invalid_prompt", f"the body must be a JSON object, not {kind_of(body)}")
    prompt = body.get("prompt") if isinstance(body, dict) else None
    if not isinstance(body, dict) or prompt is None:
        raise PromptRefusal("no_prompt", "No prompt provided", "No prompt provided")
    if not isinstance(prompt, dict):
        raise PromptRefusal(
            "invalid_prompt", f"prompt must be an object of nodes by id, not {kind_of(prompt)}"
        )
    fields = _fields(body)
    extra_data = _extra_data(request, body, d.settings.max_pnginfo_bytes)
    webhook, output = _fleets(request, extra_data.pop("fleet", None))
    options = JobOptions(
        extra_data=extra_data,
        webhook=webhook,
        output=output,
        traceparent=traceparent_in(request),
        prompt=fields,
        priority=min(0, most_priority(request)),
        where=ON_ALL,
        quotas=principal(request).quotas,
        cache_control=cache_control_in(request),
    )
    taken = await d.prompt_submitter.submit(owner(request), prompt, options)
    d.drafts.ran(owner(request), taken.job.id, options.extra_data)
    return json_response(
        {
            "prompt_id": taken.job.prompt_id,
            "number": shown_number(taken.job.number),
            "node_errors": taken.node_errors,
        }
    )


async def get_prompt(request: Request) -> Response:
    """Return how many of the caller's jobs run or wait."""
    count = await deps(request).jobs.live_count(owner(request))
    return json_response({"exec_info": {"queue_remaining": count}})


async def interrupt(request: Request) -> Response:
    """Interrupt a prompt of the caller's if it runs: the named one, or the one that is shown to them."""
    d, who = deps(request), owner(request)
    try:
        body = await read_any(request)
    except HttpError as error:
        if error.status != 400:
            raise
        body = {}  # nothing was sent: as ComfyUI reads it
    if not isinstance(body, dict):
        raise PromptRefusal("invalid_request", f"the body must be a JSON object, not {kind_of(body)}")
    name = body.get("prompt_id")
    if name:
        job = await prompt_job(d.jobs, who, name) if isinstance(name, str) else None
    else:
        job = await shown_job(request)
    if job is not None and not job.status.terminal:
        await d.jobs.request_cancel(job.id, running_only=True)
    return Response()


async def shown_job(request: Request) -> Job | None:
    """Return the job that ``/interrupt`` without an id means.

    It is the one that the caller's newest websocket shows; without a websocket, the only one that runs.
    """
    d, who = deps(request), owner(request)
    if (newest := await d.clients.newest(who)) is not None:
        return await d.jobs.get(newest.shown) if newest.shown is not None else None
    running = frozenset({ListedState.IN_PROGRESS})
    page = await d.prompts.page(PromptFilter(owner=who, states=running, limit=2))
    return await d.jobs.get(page.rows[0][0]) if len(page.rows) == 1 else None


# -- what a request says beside the graph ------------------------------------------------------------------


def _fields(body: dict[str, Any]) -> PromptFields:
    prompt_id = body.get("prompt_id")
    if prompt_id is not None and not is_prompt_id(prompt_id):
        raise PromptRefusal("invalid_prompt_id", "prompt_id must be a valid UUID", BAD_PROMPT_ID)
    return PromptFields(
        prompt_id=prompt_id or "",
        client_id=_client_id(body),
        number=_number(body["number"]) if "number" in body else None,
        front=bool(body.get("front")),
        targets=_targets(body.get("partial_execution_targets")),
    )


def _client_id(body: dict[str, Any]) -> str | None:
    extra = body.get("extra_data")
    place = body if "client_id" in body or not isinstance(extra, dict) else extra
    value = place.get("client_id")
    if value is None:
        return None
    if isinstance(value, int | float):
        value = orjson.dumps(value).decode()
    if not isinstance(value, str) or len(value) > MOST_CLIENT_ID:
        raise PromptRefusal(
            "invalid_client_id", f"client_id must be a text of at most {MOST_CLIENT_ID} characters"
        )
    return value


def _number(value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _MOST_NUMBER:
        raise PromptRefusal("invalid_number", "number must be a number of at most 53 bits")
    return number


def _targets(value: object) -> tuple[str, ...]:
    """Return the nodes that are to run; which of them the graph has is checked with it."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MOST_TARGETS:
        raise PromptRefusal(
            "invalid_request",
            f"partial_execution_targets must be a list of at most {_MOST_TARGETS} node ids",
        )
    found = tuple(dict.fromkeys(one for one in value if isinstance(one, str)))
    if not found:
        raise no_outputs()
    return found


def no_outputs() -> PromptRefusal:
    """Return the refusal of a graph that would run nothing."""
    return PromptRefusal("prompt_no_outputs", "Prompt has no outputs")


def _extra_data(request: Request, body: dict[str, Any], most: int) -> dict[str, Any]:
    given = body.get("extra_data")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise PromptRefusal("invalid_request", f"extra_data must be an object, not {kind_of(given)}")
    # The job's record has these two.
    extra = {name: value for name, value in given.items() if name not in ("client_id", "create_time")}
    if "comfy_usage_source" not in extra and (source := request.headers.get("comfy-usage-source")):
        extra["comfy_usage_source"] = source
    if len(orjson.dumps(extra)) > most:
        raise PromptRefusal(
            "invalid_request",
            f"extra_data is larger than {most} bytes (FLEET_MAX_PNGINFO_BYTES)",
            status=413,
        )
    return extra


def _fleets(request: Request, fleet: object) -> tuple[Webhook | None, OutputAsk | None]:
    """Return webhook and output in ``extra_data.fleet``, which no node gets."""
    if fleet is None:
        return None, None
    known = ("webhook_url", "webhook_events", "output")
    if not isinstance(fleet, dict) or fleet.keys() - {*known}:
        raise PromptRefusal(
            "invalid_request", f"extra_data.fleet must be an object of {', '.join(known)} and nothing else"
        )
    try:
        given = checked({name: one for name, one in fleet.items() if one is not None}, JobOptionsBody)
        webhook = webhook_in(request, given.webhook_url, given.webhook_events)
    except HttpError as error:
        raise PromptRefusal("invalid_request", f"extra_data.fleet: {error.message}") from None
    return webhook, output_ask(given.output)


TABLE: tuple[ServedRoute, ...] = (
    *row("POST", "/prompt", post_prompt, "native_prompt"),
    *row("GET", "/prompt", get_prompt, "native_queue_length"),
    *row("POST", "/interrupt", interrupt, "native_interrupt", at_once=True),
)
