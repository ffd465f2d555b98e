"""JSON bodies of ComfyUI's own interface. What makes ComfyUI answer 500 gets a clear 400 here."""

from typing import Any

from starlette.requests import Request

from comfy_fleet.api.body import params_limits, read_json, read_object
from comfy_fleet.api.deps import deps
from comfy_fleet.api.native.refusals import PromptRefusal


async def read_params(request: Request) -> dict[str, Any]:
    """Read a small JSON object. Raises HttpError 400, 413 or 415."""
    # The editor names no type in some of its requests.
    return await read_object(request, params_limits(deps(request).settings), any_type=True)


async def read_any(request: Request) -> Any:
    """Read a small JSON value. Raises HttpError 400, 413 or 415."""
    return await read_json(request, params_limits(deps(request).settings))


def ids_in(body: dict[str, Any], name: str) -> list[str]:
    """Return a list of prompts' ids; whatever is no text in it is ignored, as no prompt is called so.

    Raises:
        PromptRefusal: 400 if it is no list.
    """
    found = body.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise PromptRefusal("invalid_request", f"{name} must be a list of prompt ids")
    return [one for one in found if isinstance(one, str)]
