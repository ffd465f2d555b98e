"""REST: remove a job, submit it again, exempt it from retention."""

import logging
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import jobs
from comfy_fleet.api.deps import deps, owner, principal
from comfy_fleet.api.job_options import (
    WebhookEvents,
    WebhookUrl,
    most_priority,
    traceparent_in,
    webhook_in,
)
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import Replay, read_optional, read_query
from comfy_fleet.api.v1.jobs import shown
from comfy_fleet.api.waiting import SubmitWait
from comfy_fleet.domain.errors import Conflict, NotFound
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.webhooks.webhook import MOST_URL, Webhook
from comfy_fleet.ports.jobs import Idempotency, Submitted
from comfy_fleet.services.retrying import Retry

logger = logging.getLogger(__name__)


class RemoveJobQuery(BaseModel):
    """What happens to a job that is not over."""

    cancel: bool = Field(False, description="Cancel it first, if it waits or runs.")


async def remove_job(request: Request) -> Response:
    """The job is gone at once, for every list and question; its files go as those of jobs past retention.

    A job that waits or runs is refused, unless `cancel` is set. One that runs goes at its end.
    """
    d, who = deps(request), owner(request)
    cancel = read_query(request, RemoveJobQuery).cancel
    job = await jobs.find_job(request, request.path_params["job_id"])
    if cancel and job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        job = await jobs.cancel_job(request, job.id)
    await d.jobs.remove(who, job.id)
    if job.status.terminal:  # else, and if a job that runs needs one of them, dispatchers do it later
        await d.assets.forget_job(job.id)
    logger.info("job removed", extra={"job_id": job.id, "status": job.status.value})
    return Response(status_code=204)


class RetryBody(BaseModel):
    """How a job is submitted again."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {"new_seed": True}})

    new_seed: bool = Field(False, description="Draw its seeds anew. Refused if it has none.")
    extra_data: dict[str, Any] | None = Field(
        None,
        description="In place of what was sent as `extra_data`. Needed if keys were in it, which are erased "
        "when a job ends; an empty object goes without.",
    )
    webhook_url: WebhookUrl = Field(
        None,
        max_length=MOST_URL,
        description="Is told what becomes of it, in place of the first job's webhook; null: nobody is.",
    )
    webhook_events: WebhookEvents = Field(
        None,
        description="What is told; if left out, as for the first job, or each possible end for another URL.",
    )

    def webhook(self, request: Request, first: Webhook | None) -> Webhook | None:
        """Return the new job's webhook.

        Raises:
            HttpError: 422 if there are events, and nobody to tell them.
        """
        if "webhook_url" not in self.model_fields_set and first is not None:
            return webhook_in(request, first.url, self.webhook_events or first.events)
        return webhook_in(request, self.webhook_url, self.webhook_events)


async def retry_job(request: Request) -> Response:
    """A new job with the same graph, parameters, files, labels, placement and webhook.

    Its workflow's version is the same, too.
    """
    who, waiting = owner(request), SubmitWait.of(request)
    body = await read_optional(request, RetryBody)
    replay = Replay(request, who, body.model_dump())

    async def submit() -> Submitted:
        return await submit_again(request, body, replay.idempotency)

    show = partial(shown, request)
    return await replay.answer(201, submit, show, then=waiting.then(usual=show, finished=show))


async def submit_again(request: Request, how: RetryBody, idempotency: Idempotency | None) -> Submitted:
    """Submit the caller's job that the path names once more.

    Raises:
        NotFound: There is none of theirs.
    """
    job = await jobs.find_job(request, request.path_params["job_id"])
    retry = Retry(
        new_seed=how.new_seed,
        extra_data=how.extra_data,
        idempotency=idempotency,
        traceparent=traceparent_in(request),
        most_priority=most_priority(request),
        webhook=how.webhook(request, job.webhook),
        quotas=principal(request).quotas,
    )
    return await deps(request).retrying.retry(job, retry)


async def keep_job(request: Request) -> Response:
    """The job, its files and the uploads that it uses stay until it is removed, or no longer kept."""
    return await _keep(request, keep=True)


async def unkeep_job(request: Request) -> Response:
    """Its retention begins anew."""
    return await _keep(request, keep=False)


async def store_job(request: Request) -> Response:
    """The outputs that their store did not take are put there once more; those that wait, wait on.

    409 if there is nothing of the kind.
    """
    d, who = deps(request), owner(request)
    job = await jobs.find_job(request, request.path_params["job_id"])
    outcome = await d.transfers.retry(job.id, who)
    if outcome == "none":
        raise NotFound(f"no job {job.id}", details={"job_id": job.id})
    if outcome == "nothing":
        raise Conflict(
            "none of its outputs was given up: its store has them, or none was asked for",
            details={"job_id": job.id},
        )
    return json_response(await shown(request, await jobs.find_job(request, job.id)))


async def _keep(request: Request, *, keep: bool) -> Response:
    d, who = deps(request), owner(request)
    job = await jobs.find_job(request, request.path_params["job_id"])
    await d.jobs.keep(who, job.id, keep=keep, most=d.settings.max_kept_jobs)
    return json_response(await shown(request, await jobs.find_job(request, job.id)))
