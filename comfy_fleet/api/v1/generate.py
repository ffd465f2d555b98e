"""REST in its simplest form: a prompt in, a task to ask about, a picture's URL out.

Three families of clients wait for different status words, so each pair of routes has its vocabulary
(:mod:`comfy_fleet.api.v1.task_words`); ``job_status`` is the job's own status.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import job_options, jobs, serialize
from comfy_fleet.api.deps import deps, links, owner, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.job_options import JobOptionsBody
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import Replay, read, read_query
from comfy_fleet.api.v1 import task_words
from comfy_fleet.api.v1.task_words import TaskWords
from comfy_fleet.api.waiting import SubmitWait
from comfy_fleet.domain.errors import InvalidParameter
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference
from comfy_fleet.domain.jobs.job import Job, OutputKind
from comfy_fleet.domain.limits import check_workflow_allowed
from comfy_fleet.ports.jobs import Submitted

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class GenerateBody(JobOptionsBody):
    """A picture from a prompt. Further fields are parameters of the workflow."""

    model_config = ConfigDict(
        extra="allow", strict=True, json_schema_extra={"example": {"prompt": "a red fox", "size": "512x512"}}
    )

    prompt: str = Field("", description="What to draw; must not be empty.")
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, e.g. 512x512.")
    style: str | None = Field(None, description="One of the workflow's styles.")
    negative_prompt: str | None = Field(None, description="What not to draw.")
    seed: Annotated[int | float | None, WithJsonSchema({"type": "integer", "nullable": True})] = Field(
        None, description="-1 or nothing draws one."
    )  # JSON numbers too large for an integer come as floats: the workflow has its own limits
    workflow: str | None = Field(
        None,
        description="Stored workflow, perhaps with `@VERSION`, `@LABEL` or `@draft`; the operator's choice "
        "when left out.",
    )


async def generate(request: Request) -> Response:
    """Submit a prompt; answers 202 with `task_id` and `status_url` at once."""
    return await _submit(request, "queued", links(request).status, task_words.COMPLETED)


async def submit_task(request: Request) -> Response:
    """The same as generate, for clients that wait for `done`: the answer's `status` is `submitted`."""
    return await _submit(request, "submitted", links(request).short_status, task_words.DONE)


async def _submit(
    request: Request, accepted: str, status_url: Callable[[str], str], words: TaskWords
) -> Response:
    """Make a job from the body.

    Args:
        accepted: The word for an accepted job.
        status_url: Returns the URL for its status.
        words: Those of the answer about a job that has ended.
    """
    d, who, waiting = deps(request), owner(request), SubmitWait.of(request)
    body = await read(request, GenerateBody)
    if not body.prompt.strip():
        raise HttpError(400, "invalid_request", "prompt must not be empty", details={"field": "prompt"})
    replay = Replay(request, who, _fingerprinted(body))

    async def submit() -> Submitted:
        name = body.workflow or d.settings.generate_workflow
        if WorkflowReference.parse(name).draft:  # it is whatever its owner has drawn
            check_workflow_allowed(principal(request).quotas, None)
        workflow = await d.catalog.get(name, who)
        options = job_options.options(request, body, replay.idempotency)
        try:
            return await d.submitter.workflow(who, workflow, _params(body, workflow), options)
        except InvalidParameter as error:
            raise await _with_style_elsewhere(error, body, workflow, d.catalog.list) from None

    async def describe(job: Job) -> dict[str, Any]:
        return {
            "task_id": job.id,
            "status": accepted,
            "estimated_wait_time_sec": await d.estimator.whole_seconds(job),
            "status_url": status_url(job.id),
        }

    async def finished(job: Job) -> dict[str, Any]:
        return await _described(request, job, words)

    return await replay.answer(202, submit, describe, then=waiting.then(usual=describe, finished=finished))


class TaskQuery(BaseModel):
    """Which task."""

    task_id: str = Field(description="What generate or submit answered.")


async def status(request: Request) -> Response:
    """How far it is, with the pictures once they are there.

    `status` is `queued`, `processing`, `completed` or `failed`.
    """
    return await _task(request, request.path_params["task_id"], task_words.COMPLETED)


async def result(request: Request) -> Response:
    """As status, with the id in the query; `status` is `queued`, `processing`, `success` or `failed`."""
    return await _task(request, read_query(request, TaskQuery).task_id, task_words.SUCCESS)


async def short_status(request: Request) -> Response:
    """How far it is: `pending`, or `done` once it has ended; `job_status` says whether it went well."""
    return await _task(request, read_query(request, TaskQuery).task_id, task_words.DONE)


async def short_status_of(request: Request) -> Response:
    """The same with the id in the path."""
    return await _task(request, request.path_params["task_id"], task_words.DONE)


async def _task(request: Request, task_id: str, words: TaskWords) -> Response:
    return json_response(await _described(request, await jobs.poll_job(request, task_id), words))


async def _described(request: Request, job: Job, words: TaskWords) -> dict[str, Any]:
    d = deps(request)
    job = await d.job_views.signed(job)
    return {
        "task_id": job.id,
        "status": words.of(job.status),
        "job_status": job.status.value,
        **_images(request, job),
        "error": {"code": job.error.code, "message": job.error.message} if job.error else None,
        "queue_position": await d.jobs.position(job),
        "progress": job.progress.value if job.progress else None,
        "estimated_wait_time_sec": await d.estimator.whole_seconds(job),
        "node": job.node,
        "simulated": d.simulated(job.node),
    }


def _fingerprinted(body: GenerateBody) -> dict[str, Any]:
    """Return what identifies equal requests.

    A field that was added later must not change the fingerprint of a body without it: keys may be older.
    """
    content = body.identity()
    if body.deadline_s is None:
        del content["deadline_s"]
    return content


def _images(request: Request, job: Job) -> dict[str, Any]:
    to = links(request)
    images = [o for o in job.outputs if o.kind is OutputKind.IMAGE]
    kept = [o for o in images if not o.temporary] or images
    found = [
        {
            "url": to.asset(o.asset_id),
            "id": o.asset_id,
            "name": o.name,
            "content_type": o.content_type,
            "size_bytes": o.size_bytes,
            "stored": serialize.stored(there) if (there := job.stored_of(o)) else None,
        }
        for o in kept
    ]
    return {"image_url": found[0]["url"] if found else None, "images": found}


async def _with_style_elsewhere(
    error: InvalidParameter,
    body: GenerateBody,
    workflow: Workflow,
    stored: Callable[[], Awaitable[Sequence[Workflow]]],
) -> InvalidParameter:
    """Return the error; if this workflow lacks the wanted style, name those that have it."""
    lacking = workflow.name_for("style")
    wrong = {fault.get("parameter") for fault in error.details.get("errors", ())}
    if body.style is None or lacking not in wrong:
        return error
    have = [one.name for one in await stored() if body.style in one.choices_for("style")]
    if not have:
        return error
    way_out = f'send "workflow": "{have[0]}"'
    if body.workflow is None:
        way_out += ", or have the operator name it in FLEET_GENERATE_WORKFLOW"
    return InvalidParameter(
        f"{error.message}; style {body.style!r} is one of workflow {' and '.join(have)}: {way_out}",
        details={**error.details, "field": "style", "workflows": have},
    )


def _params(body: GenerateBody, workflow: Workflow) -> dict[str, Any]:
    """Return the workflow's parameters; a size becomes ``size`` or ``width`` and ``height``.

    Raises:
        InvalidParameter: The size is malformed, or the workflow has no such parameter.
    """
    params: dict[str, Any] = dict(body.model_extra or {})
    for name in ("prompt", "style", "negative_prompt", "seed"):
        if (value := getattr(body, name)) is not None:
            params[workflow.name_for(name)] = value
    if body.size is not None:
        match = _SIZE.fullmatch(body.size)
        if match is None:
            raise InvalidParameter(
                f"size {body.size[:40]!r} must look like 512x512",
                details={"parameter": "size", "value": body.size[:40], "limit": "WIDTHxHEIGHT"},
            )
        if workflow.parameter("size") is not None:
            params["size"] = body.size
        else:
            sides = {"width": int(match[1]), "height": int(match[2])}
            for name, value in sides.items():
                if params.get(name, value) != value:
                    raise InvalidParameter(
                        f"size {body.size} contradicts {name} {str(params[name])[:40]}: send one of them",
                        details={"parameter": name, "value": str(params[name])[:40], "limit": value},
                    )
            params |= sides
    return params
