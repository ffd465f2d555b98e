"""OpenAI's form of errors: ``{"error": {"message", "type", "param", "code"}}``.

Its client chooses the exception by the status, and sends again whatever may be sent again: what would be done
twice, or fail again, says that it is not to be repeated.
"""

from typing import Any, NotRequired

import orjson
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api import errors
from comfy_fleet.api.json import json_response
from comfy_fleet.domain.errors import FleetError

PREFIX = "/v1/"
INVALID = "invalid_request_error"
_CODES = {
    "unauthorized": "invalid_api_key",
    "content_refused": "moderation_blocked",
    "rate_limited": "rate_limit_exceeded",
}
_MAYBE_DONE = frozenset({"store_unavailable", "not_replicated"})
"""After these, the job may be there: the same again without a key would make another one."""
_NOT_AGAIN = {"x-should-retry": "false"}
_KEPT_HEADERS = ("retry-after", "allow", "www-authenticate", "accept-encoding")


class PictureErrorAnswer(TypedDict):
    """Why a request failed."""

    message: str
    type: str
    param: str | None
    code: str | None


class PictureErrorEnvelope(TypedDict):
    """OpenAI's form of every error; an event's has a ``type``, too."""

    type: NotRequired[str]
    error: PictureErrorAnswer


def is_asked(path: str) -> bool:
    """Return whether a path is one of this interface's."""
    return path.startswith(PREFIX)


def refusal(error: FleetError) -> Response:
    """Return the response for one of the project's errors."""
    return reshaped(errors.fleet_error(error))


def reshaped(answer: Response) -> Response:
    """Return an error of the other interfaces' form in OpenAI's."""
    told = orjson.loads(bytes(answer.body))["error"]
    status = 400 if answer.status_code == 422 else answer.status_code
    headers = {name: answer.headers[name] for name in _KEPT_HEADERS if name in answer.headers}
    again = "retry-after" in headers and told["code"] not in _MAYBE_DONE
    if (status in (409, 429) or status >= 500) and not again:
        headers |= _NOT_AGAIN
    details = told.get("details") or {}
    return json_response({"error": shaped(status, told["code"], told["message"], details)}, status, headers)


def shaped(status: int, code: str, message: str, details: dict[str, Any]) -> PictureErrorAnswer:
    """Return an error's fields."""
    field = details.get("field") or details.get("parameter")
    param = field.removeprefix("params.").partition(".")[0] if isinstance(field, str) else None
    kind = INVALID
    if code == "content_refused":
        kind = "image_generation_user_error"
    elif status == 429:
        kind = "rate_limit_error"
    elif status >= 500:
        kind = "server_error"
    return {"message": message, "type": kind, "param": param, "code": _CODES.get(code, code)}
