"""ComfyUI's interface: a person's settings in the editor, and who there is.

People are those with a key; the editor knows one, whose files are all that it sees.
"""

from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, owner
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.native.body import read_any, read_params
from comfy_fleet.api.native.row import row
from comfy_fleet.api.native.userdata import refused

MOST_ID = 1000
"""Characters of a setting's id."""


async def get_settings(request: Request) -> Response:
    """All settings."""
    return json_response(await deps(request).editor_settings.all(owner(request)))


async def get_setting(request: Request) -> Response:
    """One setting; null if it is not set."""
    settings = await deps(request).editor_settings.all(owner(request))
    return json_response(settings.get(_id(request)))


async def post_settings(request: Request) -> Response:
    """Set those settings that the body has."""
    who = owner(request)
    changes: dict[str, Any] = await read_params(request)
    if any(len(name) > MOST_ID for name in changes):
        raise _too_long()
    await deps(request).editor_settings.change(who, changes)
    return Response()


async def post_setting(request: Request) -> Response:
    """Set one setting."""
    who = owner(request)
    name, value = _id(request), await read_any(request)
    await deps(request).editor_settings.change(who, {name: value})
    return Response()


async def get_users(request: Request) -> Response:
    """What makes an editor keep settings here, and ask nobody who they are."""
    return json_response(
        {"storage": "server", "migrated": await deps(request).user_files.has_any(owner(request))}
    )


async def post_users(request: Request) -> Response:
    """Refuse: people get a key from an operator."""
    owner(request)
    body = await read_params(request)
    name = body.get("username")
    if not isinstance(name, str) or not name.strip():
        return json_response({"error": "username not provided"}, 400)
    return json_response({"error": "an operator adds people: a line for each in FLEET_KEYS_FILE"}, 400)


def _id(request: Request) -> str:
    raw: str = request.scope["raw_path"].decode("latin-1")
    name = raw.partition("/settings/")[2]
    if not name or "/" in name:
        raise HttpError(404, "not_found", "write the slashes of a setting's id as %2F")
    if len(found := unquote(name)) > MOST_ID:
        raise _too_long()
    return found


def _too_long() -> HttpError:
    return HttpError(
        400, "invalid_request", f"a setting's id has at most {MOST_ID} characters", details={"field": "id"}
    )


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/settings", get_settings, "settings_list", refusal=refused),
    *row("POST", "/settings", post_settings, "settings_set_all", refusal=refused),
    *row("GET", "/settings/{id:path}", get_setting, "settings_get", refusal=refused),
    *row("POST", "/settings/{id:path}", post_setting, "settings_set", refusal=refused),
    *row("GET", "/users", get_users, "users", refusal=refused),
    *row("POST", "/users", post_users, "users_add", refusal=refused),
)
