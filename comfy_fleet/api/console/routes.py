"""The table of the console's routes."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from comfy_fleet.api.console import (
    jobs,
    live,
    models,
    nodes,
    overview,
    people,
    queue,
    static_files,
    unequal,
    usage,
    versions,
    workflows,
)
from comfy_fleet.api.deps import owner, principal
from comfy_fleet.api.endpoint import ServedRoute


async def begin(request: Request) -> Response:
    """``GET /console``: the first page."""
    owner(request)
    first = "overview" if principal(request).operator else "jobs"
    return RedirectResponse(f"console/{first}", 303, {"Cache-Control": "no-store"})


def routes() -> list[ServedRoute]:
    """Return them."""
    return [
        ServedRoute("/console", begin, name="console", console=True),
        *live.routes,
        *overview.routes,
        *nodes.routes,
        *queue.routes,
        *jobs.routes,
        *workflows.routes,
        *versions.routes,
        *models.routes,
        *unequal.routes,
        *usage.routes,
        *people.routes,
        *static_files.routes,
    ]
