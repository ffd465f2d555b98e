"""Error answers: one envelope, ``{"error": {"code", "message", "details"}}``."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from comfy_fleet.api.json import json_response
from comfy_fleet.domain.about import NOTHING_HERE, WHERE_INSTEAD
from comfy_fleet.domain.errors import (
    AssetInUse,
    BadInput,
    Busy,
    Conflict,
    FleetError,
    IdempotencyKeyReuse,
    InvalidBatch,
    InvalidManifest,
    InvalidOutput,
    InvalidParameter,
    InvalidWorkflow,
    LimitReached,
    MissingAsset,
    NodeError,
    NotAllowed,
    NotFound,
    NotInTime,
    NotReplicated,
    ObjectError,
    OutboundRefused,
    QueueFull,
    StoreDown,
    StoredTooMuch,
    StoreRefuses,
    UploadLocked,
    UploadTooLarge,
    WorkflowFormatUi,
)
from comfy_fleet.domain.moderation import ContentRefused
from comfy_fleet.domain.text import clip


class HttpError(FleetError):
    """An error that only HTTP has: its status and code are given where it is raised."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, details=details)
        self.status = status
        self.error_code = code
        self.headers = dict(headers or {})


class OperatorsOnly(HttpError):
    """403 for what is an operator's or an artist's to do: the attempt goes into the audit trail."""


logger = logging.getLogger(__name__)

MAX_MESSAGE, MAX_TEXT, MAX_DETAILS = 4096, 1000, 262_144
"""About how many characters an error's message, a text in its details, and all together may have."""

# The first class that fits decides.
_STATUS: tuple[tuple[type[FleetError], int], ...] = (
    (InvalidWorkflow, 422),
    (WorkflowFormatUi, 422),
    (MissingAsset, 422),
    (OutboundRefused, 422),
    (ContentRefused, 422),
    (InvalidParameter, 422),
    (InvalidManifest, 422),
    (InvalidBatch, 422),
    (UploadTooLarge, 413),
    (InvalidOutput, 422),
    (BadInput, 400),
    (NotFound, 404),
    (IdempotencyKeyReuse, 422),  # the contract's choice, although it is a conflict
    (Conflict, 409),
    (QueueFull, 429),
    (LimitReached, 429),
    (StoredTooMuch, 507),
    (NotAllowed, 403),
    (UploadLocked, 423),
    (Busy, 503),
    (NodeError, 502),
    (ObjectError, 502),
    (NotInTime, 504),
)

_STORE_DOWN = (
    "the fleet's store does not answer: try again later. What was asked may have been done: list before "
    "submitting again, or submit with the same Idempotency-Key"
)
_NOT_REPLICATED = (
    "it is done, but no replica of the fleet's store has confirmed it in time, so a failover could lose it. "
    "Repeat a submit with the same Idempotency-Key, which makes no second job; without a key, list first"
)
_STORE_REFUSES = "the fleet's store takes nothing now, and nothing was done: try again later"

_HTTP_CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "rate_limited",
}


def envelope(
    status: int,
    code: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the error envelope as a response; parts of the request in it are shortened."""
    error: dict[str, Any] = {
        "code": code,
        "message": clip(message, MAX_MESSAGE),
        "details": _bounded(details, [MAX_DETAILS]) if details else None,
    }
    return json_response({"error": error}, status, headers)


def _bounded(value: Any, room: list[int]) -> Any:
    """Return details with shortened texts, and without entries for which there is no room."""
    if isinstance(value, str):
        text = clip(value, MAX_TEXT)
        room[0] -= len(text)
        return text
    if isinstance(value, Mapping):
        pairs = ((_bounded(key, room), inner) for key, inner in value.items() if room[0] > 0)
        return {key: _bounded(inner, room) for key, inner in pairs}
    if isinstance(value, list | tuple):
        return [_bounded(inner, room) for inner in value if room[0] > 0]
    room[0] -= 8
    return value


def fleet_error(error: FleetError) -> Response:
    """Return the response for one of the project's errors."""
    if isinstance(error, HttpError):
        return envelope(error.status, error.error_code, error.message, error.details, error.headers)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        logger.error("request failed", extra={"code": error.code, "error": error.message})
        return unexpected()
    if isinstance(error, StoreDown):  # its text contains addresses and settings, so it only goes to the log
        logger.warning("request not served", extra={"code": error.code, "error": error.message})
        return envelope(
            status,
            error.code,
            _store_words(error),
            headers={"Retry-After": str(error.retry_after_s)},
        )
    if isinstance(error, AssetInUse):  # the contract: never say who holds it
        return envelope(409, error.code, "the asset is in use")
    headers = None
    if isinstance(error, Busy):
        headers = {"Retry-After": str(error.retry_after_s)}
    return envelope(status, error.code, error.message, error.details, headers)


def _store_words(error: StoreDown) -> str:
    if isinstance(error, NotReplicated):
        return _NOT_REPLICATED
    return _STORE_REFUSES if isinstance(error, StoreRefuses) else _STORE_DOWN


def unexpected() -> Response:
    """Return the answer for a defect of ours, without any details."""
    return envelope(500, "upstream_error", "the request could not be processed; try again later")


async def on_http_exception(request: Request, error: HTTPException) -> Response:
    """Handle the framework's errors: unknown routes, wrong methods, bodies that are too large."""
    code = _HTTP_CODES.get(
        error.status_code, "invalid_request" if error.status_code < 500 else "upstream_error"
    )
    path = request.url.path
    if error.status_code == 404 and not path.startswith(("/api/v1/", "/api/v2/", "/v1/")):
        return envelope(404, code, NOTHING_HERE, WHERE_INSTEAD)
    message = {
        404: f"there is nothing at {path[:200]}; see {WHERE_INSTEAD['docs']}",
        405: f"{request.method} is not possible at {path[:200]}",
    }.get(error.status_code, str(error.detail))
    headers = {"Allow": ", ".join(_methods(request))} if error.status_code == 405 else error.headers
    return envelope(error.status_code, code, message, headers=headers)


def _methods(request: Request) -> list[str]:
    """Return the methods that a path allows: several routes may share it.

    Those of a more general path that it fits, too, are not its own: ``assets/from-hash`` is no asset.
    """
    every = request.scope["router"].routes
    first = next((route for route in every if route.matches(request.scope)[0] is not Match.NONE), None)
    path = getattr(first, "path", None)
    routes = [route for route in every if path is None or getattr(route, "path", None) == path]
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
