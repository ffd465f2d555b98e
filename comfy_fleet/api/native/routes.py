"""All routes of ComfyUI's own interface."""

from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp

from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.native import (
    editor,
    extension_routes,
    files,
    history,
    jobs_api,
    models,
    object_info,
    prompt,
    queue,
    socket,
    system,
    user_settings,
    userdata,
)

SOCKETS: Mapping[str, ASGIApp] = socket.SOCKETS
"""Who serves which path's websockets."""


def routes(opened: Iterable[str] = ()) -> list[ServedRoute]:
    """Return the routes, the most frequent ones first.

    Args:
        opened: Prefixes of extensions' own routes.
    """
    return [
        *prompt.TABLE,
        *files.TABLE,
        *jobs_api.TABLE,
        *history.TABLE,
        *queue.TABLE,
        *object_info.TABLE,
        *models.TABLE,
        *system.TABLE,
        *editor.TABLE,
        *socket.TABLE,
        *userdata.TABLE,
        *user_settings.TABLE,
        *extension_routes.routes(opened),
    ]
