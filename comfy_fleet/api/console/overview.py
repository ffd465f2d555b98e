"""The console's first page: what waits, what runs, what has ended, and whether a job could run."""

from collections import Counter

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.console.nodes import STATES, word_of
from comfy_fleet.api.console.queue import pools_of
from comfy_fleet.api.console.rendering import page
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.v1.health import not_ready


async def show(request: Request) -> Response:
    """``GET /console/overview``."""
    operator(request)
    d = deps(request)
    seen = await d.fleet_overview.look(kept_s=0.0)
    return page(
        request,
        "overview.html",
        title="Overview",
        here="overview",
        counts=Counter(word_of(one) for one in seen.nodes),
        states=STATES,
        queued=sum(one.waiting for one in seen.store.queues),
        oldest_s=max((one.oldest_s for one in seen.store.queues), default=0.0),
        running=sum(one.run is not None for one in seen.nodes),
        hot=[name for name, one in seen.measures.items() if one.faulty or (one.temperature_c or 0) >= 85][
            :20
        ],
        pools=pools_of(seen),
        ended=seen.ended,
        reasons=await not_ready(d),
        notes=await d.notes(),
        at=seen.at,
    )


routes = [ServedRoute("/console/overview", show, name="console_overview", console=True)]
