"""Refusals in ComfyUI's own shapes."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from comfy_fleet.api.errors import fleet_error
from comfy_fleet.api.json import json_response
from comfy_fleet.domain.errors import FleetError
from comfy_fleet.services.prompt_submitter import InvalidPrompt

BAD_PROMPT_ID = (
    "prompt_id must be 1 to 128 printable characters without slashes, and not dots alone, because it is part "
    "of paths: a UUID, for example; omit it to let the server generate one"
)


class PromptRefusal(FleetError):
    """A request is refused as ComfyUI refuses it.

    Attributes:
        status: The HTTP status.
        type: ComfyUI's word for it.
        hint: Its ``details``, which are a text.
        extra_info: Facts about it.
        node_errors: What is wrong with which nodes, in ComfyUI's form.
    """

    code = "invalid_prompt"

    def __init__(
        self,
        type_: str,
        message: str,
        hint: str = "",
        *,
        status: int = 400,
        extra_info: Mapping[str, Any] | None = None,
        node_errors: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type_
        self.hint = hint
        self.extra_info = dict(extra_info or {})
        self.node_errors = dict(node_errors or {})


def answer(error: FleetError) -> Response:
    """Return the response for an error on a route of ComfyUI's."""
    if isinstance(error, PromptRefusal):
        return shaped(
            error.status, error.type, error.message, error.hint, error.extra_info, error.node_errors
        )
    if isinstance(error, InvalidPrompt):
        return json_response({"error": error.error, "node_errors": error.node_errors}, 400)
    status, headers, told = _envelope(error)
    if status == 422:  # which ComfyUI does not know
        status, told["code"] = 400, "invalid_prompt"
    return shaped(status, told["code"], told["message"], headers=headers)


def plain_answer(error: FleetError) -> Response:
    """Return the response for an error on a route of ComfyUI's jobs API."""
    if isinstance(error, PromptRefusal):
        return json_response({"error": error.message}, error.status)
    status, headers, told = _envelope(error)
    return json_response({"error": told["message"]}, status, headers)


def shaped(
    status: int,
    type_: str,
    message: str,
    details: str = "",
    extra_info: Mapping[str, Any] | None = None,
    node_errors: Mapping[str, Any] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error in the form of ``POST /prompt``."""
    error = {"type": type_, "message": message, "details": details, "extra_info": dict(extra_info or {})}
    return json_response({"error": error, "node_errors": dict(node_errors or {})}, status, headers)


def _envelope(error: FleetError) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return status, headers and words of the answer that other surfaces give."""
    made = fleet_error(error)
    headers = {
        name: value for name, value in made.headers.items() if name not in ("content-length", "content-type")
    }
    told: dict[str, Any] = orjson.loads(bytes(made.body))["error"]
    return made.status_code, headers, told
