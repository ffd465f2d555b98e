"""What a request for a batch says: items as a JSON list, as JSON Lines or as CSV, and what they share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import orjson
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from comfy_fleet.api import job_options
from comfy_fleet.api.answers import ANYTHING
from comfy_fleet.api.body import (
    graph_limits,
    has_more_values,
    idempotency_key,
    json_taken,
    kind_of,
    not_json,
    read_body,
)
from comfy_fleet.api.deps import deps
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.job_options import JobOptionsBody, WebhookUrl, webhook_in
from comfy_fleet.api.typed_bodies import checked, read_query
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.jobs.batch_tables import SentItem, read_csv, read_json_lines
from comfy_fleet.domain.jobs.job import NewJob
from comfy_fleet.domain.jobs.job_batch import MOST_CUSTOM_ID, ItemError
from comfy_fleet.domain.schedule.waiting_job import BATCH
from comfy_fleet.domain.webhooks.webhook import MOST_URL, Webhook
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.services.batch_maker import PlannedItem
from comfy_fleet.services.submitter import JobOptions

CSV, JSON_LINES = "text/csv", "application/jsonl"
_KINDS = {
    "text/csv": CSV,
    "application/csv": CSV,
    "application/jsonl": JSON_LINES,
    "application/x-ndjson": JSON_LINES,
    "application/x-jsonlines": JSON_LINES,
    "application/json-lines": JSON_LINES,
}
_YIELDED = 50  # items that are read before others have their turn


class ItemBody(JobOptionsBody):
    """An item, or what all items have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)

    custom_id: str | None = Field(
        None,
        max_length=MOST_CUSTOM_ID,
        description="What you call the item, unlike all others of the batch. Left out, it is its number, "
        "from 1.",
    )


class WorkflowItemBody(ItemBody):
    """An item of a stored workflow."""

    params: dict[str, Any] = Field(
        default_factory=dict,
        description="Values by parameter name. A file is a URL, a `data:` URI, an asset's id, or `@NAME` "
        "from the zip in `files`.",
    )


class GraphItemBody(ItemBody):
    """An item with a graph of its own."""

    workflow: Annotated[Any, ANYTHING] = Field(None, description="The graph in API format.")


class BatchOptions(BaseModel):
    """What a batch says besides its items."""

    model_config = ConfigDict(extra="forbid", strict=True)

    partial: bool = Field(
        False, description="Whether the batch is made without the items that can't be taken."
    )
    webhook_url: WebhookUrl = Field(
        None,
        max_length=MOST_URL,
        json_schema_extra={"pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"},
        description="An http(s) URL that gets one message, `batch.completed`, when the last item has ended.",
    )
    files: str | None = Field(
        None,
        max_length=64,
        description="The id of an asset that is a zip: its files are `@NAME` in parameters.",
    )


class _ListedOptions(BatchOptions):
    """The same with its items, which are read one by one."""

    items: Annotated[Any, ANYTHING] = None
    defaults: Annotated[Any, ANYTHING] = None


class BatchQuery(BaseModel):
    """The same for a body of CSV or JSON Lines."""

    model_config = ConfigDict(extra="forbid")

    partial: bool = Field(False, description="With CSV or JSON Lines: as in a JSON body.")
    webhook_url: str | None = Field(None, description="With CSV or JSON Lines: as in a JSON body.")
    files: str | None = Field(None, description="With CSV or JSON Lines: as in a JSON body.")
    defaults: str | None = Field(
        None, max_length=16_384, description="With CSV or JSON Lines: as in a JSON body, as JSON."
    )


class WorkflowBatchBody(BatchOptions):
    """Many jobs of a stored workflow."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "defaults": {"params": {"width": 512}},
                "items": [
                    {"custom_id": "SKU-1", "params": {"prompt": "a red fox"}},
                    {"custom_id": "SKU-2", "params": {"prompt": "a blue jay"}},
                ],
            }
        },
    )

    items: list[WorkflowItemBody] = Field(min_length=1, description="The items.")
    defaults: WorkflowItemBody | None = Field(
        None, description="What items have that don't say otherwise; `params` and labels one by one."
    )


class GraphBatchBody(BatchOptions):
    """Many jobs with graphs of their own."""

    items: list[GraphItemBody] = Field(min_length=1, description="The items.")
    defaults: ItemBody | None = Field(None, description="What items have that don't say otherwise.")


@dataclass(frozen=True, kw_only=True)
class SentBatch:
    """A batch as it was sent.

    Attributes:
        fingerprint: What identifies equal requests.
    """

    items: Sequence[SentItem]
    options: BatchOptions
    fingerprint: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


def form_of(request: Request) -> str:
    """Return which form a body has: :data:`CSV`, :data:`JSON_LINES`, or nothing for JSON.

    Raises:
        HttpError: 415 for any other.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = _KINDS.get(kind, "")
    if not form and not json_taken(request):
        raise HttpError(
            415,
            "unsupported_media_type",
            "the items come as application/json, application/jsonl or text/csv: say which in Content-Type",
            details={"field": "Content-Type"},
        )
    return form


async def read_batch(request: Request, workflow: Workflow | None) -> SentBatch:
    """Read a body, whichever form it has.

    Args:
        request: The request.
        workflow: The stored workflow whose parameters the columns of a table are; None: items have graphs.

    Raises:
        HttpError: 400, 413, 415 or 422 for what concerns the whole of it.
    """
    settings = deps(request).settings
    limits = graph_limits(settings)
    form = form_of(request)
    body = await read_body(request, limits.size, name=limits.size_name)
    if form != CSV and has_more_values(body, limits.values):
        raise HttpError(
            413,
            "payload_too_large",
            f"the body has more than {limits.values} JSON values ({limits.values_name}): send fewer items "
            "at a time",
        )
    defaults: Mapping[str, Any] = {}
    if form:
        query = read_query(request, BatchQuery)
        options = checked(query.model_dump(exclude_none=True, exclude={"defaults"}), BatchOptions)
        if query.defaults is not None:
            defaults = _defaults({"defaults": _defaults_in(query.defaults)})
        print_ = blake3(body + b"\0" + (query.defaults or "").encode("utf-8", "replace"))
        most = settings.max_batch_items
        items = await asyncio.to_thread(lambda: list(_lines(form, body, workflow, most)))
    else:
        for name in request.query_params:
            if name in BatchQuery.model_fields:
                raise _wrong(name, f"{name}: with a JSON body, it goes into the body, beside `items`")
        found = await asyncio.to_thread(_object, body)
        said = checked(found, _ListedOptions)
        options = BatchOptions.model_construct(
            **{name: getattr(said, name) for name in BatchOptions.model_fields}
        )
        items, defaults = _listed(found), _defaults(found)
        print_ = blake3(orjson.dumps(found, option=orjson.OPT_SORT_KEYS))
    if not items:
        raise _wrong("items", "there are no items: send at least one")
    if len(items) > settings.max_batch_items:
        raise _wrong(
            "items",
            f"there are more than {settings.max_batch_items} items (FLEET_MAX_BATCH_ITEMS): send several "
            "batches",
        )
    print_.update(b"\0" + request.url.path.encode() + b"\0" + options.model_dump_json().encode())
    return SentBatch(items=items, options=options, defaults=defaults, fingerprint=print_.hexdigest())


def _lines(form: str, body: bytes, workflow: Workflow | None, most: int) -> Iterable[SentItem]:
    if form == CSV and workflow is None:
        raise HttpError(
            415,
            "unsupported_media_type",
            "graphs come as application/json or application/jsonl",
            details={"field": "Content-Type"},
        )
    try:
        rows = read_csv(body, workflow) if form == CSV and workflow is not None else read_json_lines(body)
        for count, row in enumerate(rows):
            yield row
            if count >= most:  # one too many is enough to know
                return
    except BadInput as error:
        raise HttpError(422, "invalid_request", error.message, details=error.details) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        wrong = not_json(body, error)
        raise HttpError(
            wrong.status,
            wrong.error_code,
            f"{wrong.message}. Send a table with `Content-Type: text/csv`, JSON Lines as `application/jsonl`",
            details={"field": "Content-Type"},
        ) from None
    if not isinstance(found, dict):
        raise HttpError(400, "invalid_request", f"the body must be a JSON object, not {kind_of(found)}")
    return found


def _listed(found: Mapping[str, Any]) -> list[SentItem]:
    rows = found.get("items")
    if not isinstance(rows, list):
        raise _wrong("items", "items must be a list of objects")
    return [
        SentItem(values=row) if isinstance(row, dict) else SentItem(fault="must be an object") for row in rows
    ]


def _defaults(found: Mapping[str, Any]) -> Mapping[str, Any]:
    defaults = found.get("defaults")
    if defaults is None:
        return {}
    if not isinstance(defaults, dict):
        raise _wrong("defaults", "defaults must be an object")
    if "custom_id" in defaults:
        raise _wrong("defaults.custom_id", "custom_id is each item's own: leave it out of defaults")
    for name in ("params", "output"):
        if defaults.get(name) is not None and not isinstance(defaults[name], dict):
            raise _wrong(f"defaults.{name}", f"defaults.{name} must be an object")
    return defaults


def _defaults_in(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _wrong("defaults", f"defaults is not JSON: {error}"[:300]) from None


def _wrong(name: str, message: str) -> HttpError:
    return HttpError(422, "invalid_request", message, details={"field": name})


def batch_webhook(request: Request, options: BatchOptions) -> Webhook | None:
    """Return who is told when the batch has completed."""
    return webhook_in(request, options.webhook_url, None)


def batch_key(request: Request, owner: str, fingerprint: str) -> Idempotency | None:
    """Return the request's ``Idempotency-Key`` as batches have it."""
    key = idempotency_key(request)
    if key is None:
        return None
    return Idempotency(scope=f"batch:{owner}", key=key, fingerprint=fingerprint, replay=True)


def check_defaults(request: Request, sent: SentBatch, model: type[ItemBody]) -> None:
    """Check what all items have: what is wrong there is told once, and not with each item.

    Raises:
        HttpError: 422, or what else the field is refused with.
    """
    try:
        if sent.defaults:
            job_options.options(request, checked(dict(sent.defaults), model), None)
    except HttpError as error:
        ((first, code, why), *_) = _faults(error)
        raise HttpError(
            error.status, code, f"defaults.{why}"[:500], details={"field": f"defaults.{first}"[:200]}
        ) from None


Makes = Callable[[Any, JobOptions], Awaitable[NewJob]]
"""Checks an item's body, with its options, and returns its job."""


async def planned(
    request: Request, sent: SentBatch, model: type[ItemBody], makes: Makes
) -> AsyncIterator[PlannedItem]:
    """Yield the items as they are to be checked."""
    names: set[str] = set()
    for number, item in enumerate(sent.items):
        if number % _YIELDED == 0:
            await asyncio.sleep(0)
        yield _planned(request, sent, model, makes, number, item, names)


def _planned(
    request: Request,
    sent: SentBatch,
    model: type[ItemBody],
    makes: Makes,
    number: int,
    item: SentItem,
    names: set[str],
) -> PlannedItem:
    given = item.values.get("custom_id")
    name = str(number + 1) if given is None else given if isinstance(given, str) else ""
    errors: list[tuple[str, str, str]] = []
    if item.fault:
        errors.append(("item", "invalid_request", item.fault))
        name = ""
    elif not name or not name.isprintable() or len(name) > MOST_CUSTOM_ID:
        what = f"custom_id must be a text of 1 to {MOST_CUSTOM_ID} printable characters"
        errors.append(("custom_id", "invalid_request", what))
        name = ""
    elif name in names:
        errors.append(
            ("custom_id", "duplicate_custom_id", f"custom_id {name[:80]!r} is another item's already")
        )
    names.add(name)
    make = None
    if not errors:
        try:
            body = checked(merged(sent.defaults, item.values), model)
            if body.webhook_url is not None or body.webhook_events is not None:
                raise _wrong(
                    "webhook_url", "webhook_url is the batch's: put it beside `items`, it gets one message"
                )
            options = replace(job_options.options(request, body, None), custom_id=name)
            if body.tier is None:
                options = replace(options, tier=BATCH)

            async def checked_job() -> NewJob:
                return await makes(body, options)

            make = checked_job
        except HttpError as error:
            errors = _faults(error)
    return PlannedItem(
        number=number,
        custom_id=name,
        line=item.line,
        make=make,
        errors=tuple(
            ItemError(
                item=number, custom_id=name, line=item.line, field=field_[:200], code=code, message=why[:500]
            )
            for field_, code, why in errors
        ),
    )


def _faults(error: HttpError) -> list[tuple[str, str, str]]:
    rows = error.details.get("errors")
    if isinstance(rows, list) and rows:
        return [(str(row["field"]), error.error_code, f"{row['field']}: {row['message']}") for row in rows]
    return [(str(error.details.get("field") or "item"), error.error_code, error.message)]


def merged(defaults: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item with what it does not say itself; parameters and labels are merged one by one."""
    found = {**defaults, **item}
    for name in ("params", "metadata", "output"):
        first, own = defaults.get(name), item.get(name)
        if isinstance(first, dict) and isinstance(own, dict):
            found[name] = {**first, **own}
        elif isinstance(first, dict) and own is None:
            found[name] = first
    return found
