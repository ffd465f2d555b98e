"""REST: many jobs at once."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from comfy_fleet.api import serialize
from comfy_fleet.api.asset_response import SAFE_HEADERS
from comfy_fleet.api.batch_events import BatchStream
from comfy_fleet.api.batch_requests import (
    GraphItemBody,
    ItemBody,
    Makes,
    SentBatch,
    WorkflowItemBody,
    batch_key,
    batch_webhook,
    check_defaults,
    form_of,
    planned,
    read_batch,
)
from comfy_fleet.api.batch_zip import zipped
from comfy_fleet.api.deps import deps, let_others_in, links, owner, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.events import HEADERS
from comfy_fleet.api.job_options import most_priority, traceparent_in
from comfy_fleet.api.jobs import SignedQuery, seen_owners, signing_links
from comfy_fleet.api.json import json_response
from comfy_fleet.api.links import Links
from comfy_fleet.api.typed_bodies import read_optional, read_query
from comfy_fleet.api.v1.batch_answers import BatchAnswer, BatchItemAnswer, MadeBatchAnswer
from comfy_fleet.domain.errors import BadInput, Busy, FleetError, MissingAsset, NotFound, StoreDown
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.jobs.job import Job, NewJob
from comfy_fleet.domain.jobs.job_batch import RETRIED, BatchItem, BatchStatus, ItemState, JobBatch
from comfy_fleet.domain.limits import check_workflow_allowed
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.services.batch_files import BatchFiles
from comfy_fleet.services.batch_maker import AskedBatch, MadeBatch
from comfy_fleet.services.job_queries import is_id
from comfy_fleet.services.retrying import Retry
from comfy_fleet.services.submitter import JobOptions
from comfy_fleet.turns import NoTurn

logger = logging.getLogger(__name__)

_BUSY = "other batches are being checked already: try again"


# -- making ------------------------------------------------------------------


async def create_batch(request: Request) -> Response:
    """Submit many jobs of a stored workflow: all of them, or, with what is wrong with each, none.

    As JSON, as JSON Lines (`application/jsonl`: an item a line) or as CSV (`text/csv`: a column for each
    parameter).
    """
    d, who = deps(request), owner(request)
    form_of(request)
    workflow = await d.submitter.named(who, request.path_params["workflow"], principal(request).quotas)
    return await _made(
        request, workflow, WorkflowItemBody, lambda files: _of_workflow(request, workflow, files)
    )


def _of_workflow(request: Request, workflow: Workflow, files: BatchFiles) -> Makes:
    d, who = deps(request), owner(request)

    async def make(body: WorkflowItemBody, options: JobOptions) -> NewJob:
        params = await files.resolved(body.params, workflow)
        return await d.submitter.workflow_job(who, workflow, params, options)

    return make


async def create_graph_batch(request: Request) -> Response:
    """Submit many graphs: all of them, or, with what is wrong with each, none. As JSON or JSON Lines.

    What becomes of the batch is at `/api/v1/batches`.
    """
    d, who = deps(request), owner(request)
    form_of(request)
    check_workflow_allowed(principal(request).quotas, None)

    async def make(body: GraphItemBody, options: JobOptions) -> NewJob:
        if body.workflow is None:
            raise BadInput("workflow is missing: send the graph in API format", details={"field": "workflow"})
        return await d.submitter.graph_job(who, body.workflow, options)

    return await _made(request, None, GraphItemBody, lambda _: make)


async def _made(
    request: Request, workflow: Workflow | None, model: type[ItemBody], makes: Callable[[BatchFiles], Makes]
) -> Response:
    d, who, caller = deps(request), owner(request), principal(request)
    sent = await read_batch(request, workflow)
    check_defaults(request, sent, model)
    once = batch_key(request, who, sent.fingerprint)
    if once is not None and (earlier := await _replayed(request, once)) is not None:
        return earlier
    let_others_in(request)  # it takes as long as its items
    try:
        async with d.batch_checks.of(who), await _files(request, sent) as files:
            made = await d.batch_maker.make(
                who,
                planned(request, sent, model, makes(files)),
                AskedBatch(
                    partial=sent.options.partial,
                    webhook=batch_webhook(request, sent.options),
                    idempotency=once,
                    quotas=caller.quotas,
                    workflow=workflow,
                ),
            )
    except NoTurn:
        raise Busy(_BUSY, retry_after_s=5) from None
    except StoreDown:
        raise
    except FleetError:  # what would prevent a new one does not prevent the answer about the first
        if once is not None and (earlier := await _replayed(request, once)) is not None:
            return earlier
        raise
    logger.info("batch accepted", extra={"batch_id": made.id, "owner": who, "jobs": made.jobs})
    return await _answer(request, made, once, 201)


async def _answer(
    request: Request, made: MadeBatch, once: Idempotency | None, status: int, **more: Any
) -> Response:
    d = deps(request)
    batch = await d.batches.get(made.id)
    if batch is None:
        raise _no_batch(made.id)
    errors: list[Any] = [one.shown() for one in made.errors]
    answer: MadeBatchAnswer = {
        **shown(batch, links(request)),
        "errors": errors,
        "more_errors": made.more,
    }
    body = orjson.dumps({**answer, **more})
    if once is not None:
        with contextlib.suppress(StoreDown):  # the batch's record has the key
            await d.replays.end(once.scope, once.key, answer=(once.fingerprint, body))
    return _json(body, status, replayed=made.replayed)


async def _replayed(request: Request, once: Idempotency) -> Response | None:
    """Return the answer that this key has got before, or makes from what it has made."""
    d = deps(request)
    made = await d.batches.made_by(once)
    if made is None:
        return None
    of_retry: str | None = request.path_params.get("batch")
    kept = await d.replays.recall(once.scope, once.key)
    if kept is not None and kept[0] == once.fingerprint:
        return _json(kept[1], 201 if of_retry is None else 200, replayed=True)
    if of_retry is not None:
        return await _answer(request, MadeBatch(id=of_retry, replayed=True), once, 200, retried=0)
    return await _answer(request, MadeBatch(id=made, replayed=True), once, 201)


def _json(body: bytes, status: int, *, replayed: bool) -> Response:
    headers = {"Idempotency-Replayed": "true"} if replayed else None
    return Response(body, status, headers, media_type="application/json")


async def _files(request: Request, sent: SentBatch) -> BatchFiles:
    d, who, wanted, found = deps(request), owner(request), sent.options.files, None
    if wanted is not None:
        found = await d.assets.get(wanted) if is_id(wanted) else None
        if found is None or found.owner != who:
            raise MissingAsset(
                f"files: there is no asset {wanted[:80]!r}: upload the zip first, POST /api/v2/assets",
                details={"field": "files", "id": wanted[:80]},
            )
    return BatchFiles(
        d.assets,
        found,
        owner=who,
        quotas=principal(request).quotas,
        most_bytes=d.settings.fetch_bytes,
        folder=d.settings.files_dir,
    )


# -- reading -----------------------------------------------------------------


class BatchesQuery(BaseModel):
    """A page of batches."""

    limit: int = Field(20, ge=1, le=100, description="Batches a page.")
    cursor: str | None = Field(None, max_length=512, description="`next_cursor` of the page before.")
    all: bool = Field(
        False,
        description="All batches that the caller may see: operators everybody's, others their tenant's.",
    )


async def list_batches(request: Request) -> Response:
    """Newest first, page by page."""
    d, who = deps(request), owner(request)
    query = read_query(request, BatchesQuery)
    page = await d.batches.find(
        seen_owners(request, by_operator=True) if query.all else [who], limit=query.limit, cursor=query.cursor
    )
    to = links(request)
    return json_response({"batches": [shown(one, to) for one in page.batches], "next_cursor": page.cursor})


class BatchItemsQuery(SignedQuery):
    """Which items."""

    status: str | None = Field(
        None, max_length=200, description="Only items in these states, e.g. `failed,canceled`."
    )
    limit: int = Field(50, ge=0, le=100, description="Items a page; 0: none.")
    cursor: str | None = Field(None, max_length=64, description="`next_cursor` of the page before.")


async def get_batch(request: Request) -> Response:
    """How many items are in each state, when the last one will have ended, and a page of items by state."""
    d = deps(request)
    query = read_query(request, BatchItemsQuery)
    states = _states(query.status)
    after = _after(query.cursor)
    batch = await _read(request)
    items = await d.batches.items(batch.id, states, after=after, limit=query.limit) if query.limit else ()
    found = await d.jobs.load([one.job_id for one in items if one.job_id])
    jobs = {one.id: await d.job_views.signed(one) for one in found if one is not None}
    to, signed = links(request), signing_links(request)
    last = items[-1] if items and len(items) == query.limit else None
    return json_response(
        {
            **shown(batch, to),
            "estimate": await _estimate(request, batch),
            "items": [_item(one, jobs.get(one.job_id), to, signed) for one in items],
            "next_cursor": None if last is None else f"{last.state.value}.{last.number}",
        }
    )


def _states(text: str | None) -> frozenset[ItemState]:
    found = frozenset(filter(None, (text or "").split(",")))
    if strange := found - frozenset(ItemState):
        raise HttpError(
            400,
            "invalid_request",
            f"status {min(strange)[:40]!r} is none of {', '.join(ItemState)}",
            details={"field": "status"},
        )
    return frozenset(ItemState(one) for one in found)


def _after(cursor: str | None) -> BatchItem | None:
    if cursor is None:
        return None
    state, _, number = cursor.partition(".")
    if state not in frozenset(ItemState) or not (number.isascii() and number.isdecimal() and len(number) < 8):
        raise HttpError(
            400,
            "invalid_cursor",
            "cursor is not one that this server gave out: list from the start without it",
            details={"field": "cursor"},
        )
    return BatchItem(number=int(number), custom_id="", state=ItemState(state))


async def _estimate(request: Request, batch: JobBatch) -> Any:
    """Return when the last item should have ended: of those that wait, the last one goes last.

    Items that are in no queue yet follow those that are, and take as long as these.
    """
    d = deps(request)
    if batch.status is BatchStatus.COMPLETED:
        return None
    ahead = batch.counts.get(ItemState.QUEUED, 0) + batch.counts.get(ItemState.RUNNING, 0)
    for state in (ItemState.QUEUED, ItemState.RUNNING):
        if batch.counts.get(state, 0):
            last = await d.batches.last(batch.id, state)
            job = await d.jobs.get(last) if last else None
            end = None if job is None else (await d.estimator.outlook(job)).end
            if end is None:
                return None
            more = 1 + batch.waiting / ahead
            return serialize.estimate(replace(end, p50_s=end.p50_s * more, p90_s=end.p90_s * more))
    return None


def shown(batch: JobBatch, to: Links) -> BatchAnswer:
    """Return a batch in REST's form."""
    url = f"{to.base}/api/v1/batches/{batch.id}"
    return {
        "id": batch.id,
        "owner": batch.owner,
        "status": batch.status,
        "workflow": batch.workflow or None,
        "workflow_version": batch.version or None,
        "created_at": serialize.time(batch.created_at),
        "completed_at": None if batch.completed_at is None else serialize.time(batch.completed_at),
        "total": batch.total,
        "counts": {state.value: batch.counts.get(state, 0) for state in ItemState},
        "waiting": batch.waiting,
        "round": batch.round,
        "storing": batch.storing,
        "not_stored": batch.not_stored,
        "urls": {
            "self": url,
            "events": f"{url}/events",
            "outputs": f"{url}/outputs.zip",
            "cancel": f"{url}/cancel",
            "retry": f"{url}/retry",
        },
    }


def _item(item: BatchItem, job: Job | None, to: Links, signed: Callable[[Job], Links]) -> BatchItemAnswer:
    there = job is not None and not job.removed
    return {
        "item": item.number,
        "custom_id": item.custom_id,
        "status": item.state,
        "job_id": item.job_id if there else None,
        "job_url": to.job(item.job_id) if there else None,
        "error": serialize.error(job.error) if job is not None and job.error is not None else None,
        "errors": [dict(one) for one in item.errors],
        "outputs": serialize.outputs(job, signed(job)) if job is not None and there else [],
    }


def _no_batch(batch_id: str) -> NotFound:
    return NotFound(f"no batch {batch_id[:80]}", details={"batch_id": batch_id[:80]})


async def _read(request: Request, *, by_operator: bool = True) -> JobBatch:
    """Return a batch that the caller may read: as with jobs."""
    owner(request)
    d, batch_id = deps(request), request.path_params["batch"]
    owners = seen_owners(request, by_operator=by_operator)
    batch = await d.batches.get(batch_id) if is_id(batch_id) else None
    if batch is None or (owners is not None and batch.owner not in owners):
        raise _no_batch(batch_id)
    return batch


async def own_batch(request: Request, *, by_operator: bool = False) -> JobBatch:
    """Return a batch that the caller may change."""
    batch = await _read(request, by_operator=by_operator)
    if batch.owner != owner(request) and not (by_operator and principal(request).operator):
        raise _no_batch(batch.id)
    return batch


async def batch_events(request: Request) -> Response:
    """Server-Sent Events: `batch` (how many items are in each state) and `item` (its new state).

    The first event is the batch as it is; the stream ends when its last item has ended.
    """
    d, who, caller = deps(request), owner(request), principal(request)
    batch = await _read(request, by_operator=False)
    if request.method == "HEAD":
        answer = Response()
        answer.raw_headers = [*HEADERS]
        return answer
    if d.streams[who] >= caller.limits.streams:
        raise HttpError(
            429,
            "too_many_streams",
            f"{caller.limits.streams} event streams are open already: close one, or poll the batch",
            headers={"Retry-After": "5"},
        )
    to = links(request)
    async with contextlib.AsyncExitStack() as subscription:
        events = await subscription.enter_async_context(d.batches.events(batch.id))
        now = await d.batches.get(batch.id)
        if now is None:
            raise _no_batch(batch.id)
        return BatchStream(
            d,
            who,
            subscription.pop_all(),
            now=now,
            events=events,
            shown=lambda one: dict(shown(one, to)),
            session=request.scope["session"],
            key=caller.key,
            seen=lambda: now.owner in d.keys.ring.seen_by(caller),
        )


async def batch_outputs(request: Request) -> Response:
    """A zip: a file for each output that there is, named by `custom_id`, and manifest.csv with all items."""
    d = deps(request)
    batch = await _read(request, by_operator=False)
    headers = {
        **SAFE_HEADERS,
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="batch-{batch.id[:8]}.zip"',
        "X-Accel-Buffering": "no",
    }
    if request.method == "HEAD":
        return Response(headers=headers, media_type="application/zip")
    body = zipped(batch, store=d.batches, jobs=d.jobs, assets=d.assets)
    return StreamingResponse(body, headers=headers, media_type="application/zip")


# -- changing ----------------------------------------------------------------


class RetryBatchBody(BaseModel):
    """Which items run again, and how."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {}})

    statuses: list[str] = Field(
        default_factory=lambda: [ItemState.FAILED.value],
        max_length=3,
        description="Items in these states: some of `failed`, `canceled` and `expired`.",
    )
    new_seed: bool = Field(False, description="Draw their seeds anew.")
    partial: bool = Field(False, description="Leave out those that can't run again.")


async def retry_batch(request: Request) -> Response:
    """Run items again that have failed; if asked for, those that were canceled or have expired, too.

    Each keeps its `custom_id`. If none is in such a state, nothing happens.
    """
    d, who, caller = deps(request), owner(request), principal(request)
    body = await read_optional(request, RetryBatchBody)
    if not body.statuses or any(one not in RETRIED for one in body.statuses):
        raise HttpError(
            422,
            "invalid_request",
            f"statuses must be some of {', '.join(RETRIED)}",
            details={"field": "statuses"},
        )
    print_ = blake3(request.url.path.encode() + b"\0" + body.model_dump_json().encode()).hexdigest()
    once = batch_key(request, who, print_)
    if once is not None and (earlier := await _replayed(request, once)) is not None:
        return earlier
    batch = await own_batch(request)
    most, trace = most_priority(request), traceparent_in(request)

    def how(_: Job) -> Retry:
        return Retry(new_seed=body.new_seed, traceparent=trace, most_priority=most, quotas=caller.quotas)

    states = frozenset(ItemState(one) for one in body.statuses)
    asked = AskedBatch(partial=body.partial, idempotency=once, quotas=caller.quotas)
    let_others_in(request)
    try:
        async with d.batch_checks.of(who):
            made = await d.batch_maker.retry(batch, states, how, asked)
    except NoTurn:
        raise Busy(_BUSY, retry_after_s=5) from None
    if made.replayed and once is not None and (earlier := await _replayed(request, once)) is not None:
        return earlier
    return await _answer(request, made, once, 200, retried=made.jobs)
