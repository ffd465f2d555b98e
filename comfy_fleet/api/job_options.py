"""What every surface lets a request say about its job, besides its graph or parameters."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import Request

from comfy_fleet.api.answers import ANYTHING
from comfy_fleet.api.cache_control import cache_control_in
from comfy_fleet.api.deps import deps, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.links import Links
from comfy_fleet.api.typed_bodies import checked
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs import job_times
from comfy_fleet.domain.jobs.job import MAX_PRIORITY, MIN_PRIORITY, Metadata
from comfy_fleet.domain.jobs.trace_context import read_traceparent
from comfy_fleet.domain.limits import ScopedLimits, least
from comfy_fleet.domain.nodes.eligibility import PlacementRequest
from comfy_fleet.domain.nodes.node import check_name
from comfy_fleet.domain.principal import Principal
from comfy_fleet.domain.schedule.waiting_job import BATCH, SINGLE, TIER_NAMES
from comfy_fleet.domain.stores.object_key import DEFAULT_KEY, MOST_TEMPLATE
from comfy_fleet.domain.stores.output_plan import MAX_WIDTH, OutputAsk
from comfy_fleet.domain.webhooks.webhook import (
    EVENTS,
    MOST_URL,
    TOLD_USUALLY,
    Webhook,
    checked_events,
    checked_url,
)
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.services.result_cache import CacheControl
from comfy_fleet.services.submitter import JobOptions
from comfy_fleet.settings import Settings

T = TypeVar("T")

MAX_LABELS = 16
MAX_LABEL_VALUE = 256
MAX_METADATA_BYTES = 1024
_TIERS = {TIER_NAMES[tier]: tier for tier in (SINGLE, BATCH)}
LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ADDED_LATER = ("ttl_s", "timeout_s", "finish_by", "tier", "webhook_url", "webhook_events", "output")
"""Fields that versions before did not know, and did not count among what identifies a request."""


def _invalid(field: str, message: str) -> HttpError:
    return HttpError(422, "invalid_request", message, details={"field": field})


def _priority(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_PRIORITY <= value <= MAX_PRIORITY:
        raise _invalid("priority", f"priority must be a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}")
    return value


def _span(field: str, value: object) -> float | None:
    if value is None:
        return None
    try:
        return job_times.span_s(field, value)
    except BadInput as error:
        raise _invalid(field, error.message) from None


def _ttl_s(value: object) -> float | None:
    return _span("ttl_s", value)


def _deadline_s(value: object) -> float | None:
    return _span("deadline_s", value)


def _timeout_s(value: object) -> float | None:
    return _span("timeout_s", value)


def _finish_by(value: object) -> float | None:
    if value is None:
        return None
    try:
        return job_times.moment(value)
    except BadInput as error:
        raise _invalid("finish_by", error.message) from None


def _tier(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and value in _TIERS:
        return _TIERS[value]
    raise _invalid("tier", "tier must be single, or batch for one of many")


def _webhook_url(value: object) -> str | None:
    return None if value is None else _checked(checked_url, value)


def _webhook_events(value: object) -> tuple[str, ...] | None:
    return None if value is None else _checked(checked_events, value)


def _checked(check: Callable[[object], T], value: object) -> T:
    try:
        return check(value)
    except BadInput as error:
        raise _invalid(str(error.details["field"]), error.message) from None


WebhookUrl = Annotated[str | None, BeforeValidator(_webhook_url)]
WebhookEvents = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_webhook_events),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "enum": list(EVENTS)},
            "minItems": 1,
            "nullable": True,
        }
    ),
]


def _metadata(value: object) -> Metadata:
    """Check metadata: labels as the SDK sends them, or an opaque text as Comfy's own proxy accepts."""
    if value is None:
        return None
    if isinstance(value, str):
        if len(value.encode()) > MAX_METADATA_BYTES:
            raise _bad_metadata(f"metadata is longer than {MAX_METADATA_BYTES} bytes")
        return value
    if not isinstance(value, Mapping):
        raise _bad_metadata("metadata must be an object of strings, or a string")
    if len(value) > MAX_LABELS:
        raise _bad_metadata(f"metadata has {len(value)} labels; at most {MAX_LABELS} are taken")
    for key, text in value.items():
        if not LABEL.fullmatch(key):
            raise _bad_metadata(f"metadata key {key[:80]!r} must be 1 to 64 of A-Z a-z 0-9 _ . -", key)
        if not isinstance(text, str) or len(text) > MAX_LABEL_VALUE:
            raise _bad_metadata(
                f"metadata {key!r} must be a string of at most {MAX_LABEL_VALUE} characters", key
            )
    return dict(value)


def _bad_metadata(message: str, key: str | None = None) -> HttpError:
    details = {"field": "metadata"} | ({"key": key[:80]} if key is not None else {})
    return HttpError(422, "metadata_invalid", message, details=details)


class OutputBody(BaseModel):
    """Where a job's outputs are put, besides the fleet's own files."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {"store": "shop", "key": "products/{metadata.sku}/{index}.{ext}", "format": "webp"}
        },
    )

    store: str | None = Field(
        None, max_length=63, description="The store's name; your tenant's default store if left out."
    )
    key: str | None = Field(
        None,
        max_length=MOST_TEMPLATE,
        description="The name that each output gets there, of texts and placeholders: `{metadata.NAME}`, "
        "`{params.NAME}`, `{job_id}`, `{custom_id}`, `{workflow}`, `{date}`, `{index}`, `{name}`, `{stem}`, "
        f"`{{ext}}`, `{{node_id}}`. `{DEFAULT_KEY}` if left out.",
    )
    format: Literal["webp", "jpeg", "png"] | None = Field(
        None, description="Pictures are converted into it; that which the key's end names if left out."
    )
    quality: int | None = Field(None, ge=1, le=100, description="Of WebP and JPEG; 85 if left out.")
    width: int | None = Field(None, ge=1, le=MAX_WIDTH, description="Most pixels of a row.")
    metadata: Literal["keep", "strip"] | None = Field(
        None,
        description="Whether what ComfyUI writes into pictures stays; if left out, it does unless they are "
        "converted.",
    )
    on_conflict: Literal["replace", "fail"] = Field(
        "replace", description="What if there is another object of that name."
    )


def _output(value: object) -> object:
    if value is None or isinstance(value, OutputBody):
        return value
    if not isinstance(value, dict):
        raise _invalid("output", "output must be an object: store, key, format, on_conflict")
    try:
        return OutputBody.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(["output", *map(str, first["loc"])])
        what = first["msg"]
        if first["type"] == "extra_forbidden":
            what = f"there is no such field; there are {', '.join(OutputBody.model_fields)}"
        raise _invalid(field, f"{field}: {what}") from None


_SPAN: dict[str, Any] = {"minimum": 0, "exclusiveMinimum": True, "maximum": job_times.LONGEST_S}
"""Limits as OpenAPI 3.0 writes them."""


class JobOptionsBody(BaseModel):
    """The fields that every request for a job may have.

    The validators of single fields raise :class:`HttpError`, so that every surface refuses a wrong value with
    the same message.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: Annotated[int | None, BeforeValidator(_priority)] = Field(
        None,
        ge=MIN_PRIORITY,
        le=MAX_PRIORITY,
        description="Of your own jobs, higher goes first; 0 if left out. Above the operator's limit "
        "(usually 1,000) only with a key that has the role operator.",
    )
    metadata: Annotated[dict[str, str] | str | None, BeforeValidator(_metadata), ANYTHING] = Field(
        None,
        description=f"An object of up to {MAX_LABELS} labels, or a text of up to {MAX_METADATA_BYTES} bytes.",
    )
    ttl_s: Annotated[float | None, BeforeValidator(_ttl_s)] = Field(
        None,
        json_schema_extra=_SPAN,
        description="Seconds from now; a job that has not started by then expires. At most 30 days.",
    )
    deadline_s: Annotated[float | None, BeforeValidator(_deadline_s)] = Field(
        None, json_schema_extra=_SPAN, description="The same as `ttl_s`, by its earlier name."
    )
    timeout_s: Annotated[float | None, BeforeValidator(_timeout_s)] = Field(
        None,
        json_schema_extra={"minimum": job_times.LEAST_TIMEOUT_S, "maximum": job_times.LONGEST_S},
        description="Longest time of one run in seconds, 1 to 30 days; the operator's limit stays if it is "
        "smaller. A run that takes longer is interrupted, and the job fails with `run_timeout`.",
    )
    finish_by: Annotated[
        float | None,
        BeforeValidator(_finish_by),
        WithJsonSchema({"type": "string", "format": "date-time", "nullable": True}),
    ] = Field(
        None,
        description="When it should be done, at most 30 days from now; Unix seconds are taken, too. A wish "
        "for the order of your own jobs, with an hour to spare others go first; nothing is ended for it.",
    )
    tier: Annotated[
        int | None,
        BeforeValidator(_tier),
        WithJsonSchema({"type": "string", "enum": list(_TIERS), "nullable": True}),
    ] = Field(
        None,
        description="`batch`: one of many; your own jobs of tier `single`, the usual one, go before it, "
        "whatever their priorities.",
    )
    webhook_url: WebhookUrl = Field(
        None,
        max_length=MOST_URL,
        json_schema_extra={"pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"},
        description="An http(s) URL that is told what becomes of the job, in the form of Standard Webhooks.",
    )
    webhook_events: WebhookEvents = Field(
        None,
        description="What it is told of; each of the job's possible ends, and `job.stored`, if left out.",
    )
    output: Annotated[OutputBody | None, BeforeValidator(_output)] = Field(
        None, description="Where its outputs are put, besides the fleet's own files."
    )
    pool: str | None = Field(None, max_length=63, description="The pool that it must run in.")
    prefer_pool: str | None = Field(None, max_length=63, description="The pool that is asked first.")
    spill_to: list[str] = Field(
        default_factory=list, max_length=16, description="With `pool`: pools that are asked next."
    )
    zone: str = Field("", max_length=64, description="The zone that it must run in.")
    labels: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="Labels that the node must carry."
    )

    def identity(self) -> dict[str, Any]:
        """Return what identifies equal requests.

        A field that was added later must not change it for a body without: keys may be older.
        """
        content = self.model_dump()
        return {name: one for name, one in content.items() if one is not None or name not in _ADDED_LATER}


def options(
    request: Request,
    body: JobOptionsBody,
    idempotency: Idempotency | None,
    *,
    extra_data: Mapping[str, Any] | None = None,
) -> JobOptions:
    """Return the options in a body.

    Args:
        request: Who asks, and the trace that the job belongs to.
        body: The options as sent.
        idempotency: The request's key.
        extra_data: What the node gets in addition to the graph.

    Raises:
        HttpError: 422 if a pool's name is invalid, fields contradict each other, or a time is past; 403 for a
            priority that only operators may ask for.
    """
    return options_for(
        body,
        most_priority=most_priority(request),
        now=deps(request).clock(),
        idempotency=idempotency,
        extra_data=extra_data,
        traceparent=traceparent_in(request),
        cache_control=cache_control_in(request),
        webhook=webhook_in(request, body.webhook_url, body.webhook_events),
        quotas=principal(request).quotas,
    )


def options_for(
    body: JobOptionsBody,
    *,
    most_priority: int,
    now: float,
    idempotency: Idempotency | None = None,
    extra_data: Mapping[str, Any] | None = None,
    traceparent: str | None = None,
    cache_control: CacheControl | None = None,
    webhook: Webhook | None = None,
    quotas: tuple[ScopedLimits, ...] = (),
) -> JobOptions:
    """Return the options in a body of somebody with these limits.

    Args:
        body: The options as sent.
        most_priority: The highest priority that they may ask for.
        now: Unix seconds.
        idempotency: The request's key.
        extra_data: What the node gets in addition to the graph.
        traceparent: The trace that the job belongs to.
        cache_control: What is said about results of earlier jobs.
        webhook: Who is told what becomes of it.
        quotas: Their limits.

    Raises:
        HttpError: As :func:`options`.
    """
    most = most_priority
    priority = min(0, most) if body.priority is None else body.priority
    if priority > most:
        raise HttpError(
            403,
            "forbidden",
            f"priority {priority} is more than {most}, which FLEET_MAX_PRIORITY, or a limit 'priority' of "
            f"your role, key or tenant allows: send at most {most}, or use a key that has the role operator",
            details={"field": "priority", "limit": most},
        )
    if body.finish_by is not None:
        try:
            job_times.check_ahead(body.finish_by, now=now)
        except BadInput as error:
            raise _invalid("finish_by", error.message) from None
    return JobOptions(
        priority=priority,
        metadata=body.metadata,
        ttl_s=_time_to_live(body),
        timeout_s=body.timeout_s,
        finish_by=body.finish_by,
        tier=SINGLE if body.tier is None else body.tier,
        where=_placement(body),
        idempotency=idempotency,
        extra_data=extra_data or {},
        traceparent=traceparent,
        cache_control=cache_control or CacheControl(),
        webhook=webhook,
        quotas=quotas,
        output=output_ask(body.output),
    )


def output_ask(body: OutputBody | None) -> OutputAsk | None:
    """Return what a request says about where outputs are put."""
    return None if body is None else OutputAsk(**body.model_dump())


def webhook_in(request: Request, url: str | None, events: tuple[str, ...] | None) -> Webhook | None:
    """Return the webhook that a request for a job names.

    Raises:
        HttpError: 422 if it names events, and no URL.
    """
    settings = deps(request).settings
    return webhook_of(url, events, settings, lambda: Links.public(request, settings).base)


def webhook_of(
    url: str | None, events: tuple[str, ...] | None, settings: Settings, base: Callable[[], str]
) -> Webhook | None:
    """Return the webhook with this URL and events; ``base`` returns the base of its messages' URLs.

    Raises:
        HttpError: As :func:`webhook_in`.
    """
    if url is None:
        if events is not None:
            raise _invalid("webhook_events", "webhook_events needs webhook_url: where should they be told?")
        return None
    url = _checked(lambda value: checked_url(value, settings.webhook_allowed), url)
    return Webhook(url=url, events=events or TOLD_USUALLY, base=base())


def most_priority(request: Request) -> int:
    """Return the highest priority that the caller's jobs may have; without keys there is no limit."""
    d = deps(request)
    return priority_bound(principal(request), d.settings, needs_keys=not d.keys.open)


def priority_bound(who: Principal, settings: Settings, *, needs_keys: bool) -> int:
    """Return the highest priority that a principal's jobs may have."""
    most = MAX_PRIORITY if not needs_keys or who.operator else settings.max_priority
    narrowed = least(who.quotas, "priority")
    return most if narrowed is None else min(most, narrowed[0])


def traceparent_in(request: Request) -> str | None:
    """Return the request's trace; None if it has none."""
    return read_traceparent(request.headers.getlist("traceparent"))


_NO_OPTIONS = JobOptionsBody()


def options_in(body: Mapping[str, Any]) -> JobOptionsBody:
    """Return the options in a body that may have other fields, too.

    Raises:
        HttpError: 422 if a field is wrong.
    """
    given = {name: body[name] for name in JobOptionsBody.model_fields if body.get(name) is not None}
    return checked(given, JobOptionsBody) if given else _NO_OPTIONS


def _time_to_live(body: JobOptionsBody) -> float | None:
    ttl_s, alias = body.ttl_s, body.deadline_s
    if ttl_s is not None and alias is not None and ttl_s != alias:
        raise _invalid(
            "ttl_s", f"ttl_s {ttl_s:g} and deadline_s {alias:g} are two names for one time: send ttl_s alone"
        )
    return alias if ttl_s is None else ttl_s


def _placement(body: JobOptionsBody) -> PlacementRequest:
    if body.pool is not None:
        _check_pool("pool", body.pool)
    if body.prefer_pool is not None:
        _check_pool("prefer_pool", body.prefer_pool)
    for pool in body.spill_to:
        _check_pool("spill_to", pool)
    if body.pool is not None and body.prefer_pool is not None:
        raise _invalid("pool", "pool and prefer_pool exclude each other: name one")
    if body.spill_to and body.pool is None:
        raise _invalid("spill_to", "spill_to needs pool")
    return PlacementRequest(
        pool=body.pool,
        prefer=body.prefer_pool,
        spill_to=tuple(body.spill_to),
        zone=body.zone,
        labels=body.labels,
    )


def _check_pool(field: str, pool: str) -> None:
    try:
        check_name(field, pool)
    except BadInput as error:
        raise _invalid(field, error.message) from None
