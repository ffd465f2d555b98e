"""The table of the console's routes."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from comfy_fleet.api.console import live, nodes, static_files, versions, workflows
from comfy_fleet.api.deps import owner
from comfy_fleet.api.endpoint import ServedRoute


async def begin(request: Request) -> Response:
    """``GET /console``: the first page."""
    owner(request)
    return RedirectResponse("console/nodes", 303, {"Cache-Control": "no-store"})


def routes() -> list[ServedRoute]:
    """Return them."""
    return [
        ServedRoute("/console", begin, name="console", console=True),
        *live.routes,
        *nodes.routes,
        *workflows.routes,
        *versions.routes,
        *static_files.routes,
    ]
