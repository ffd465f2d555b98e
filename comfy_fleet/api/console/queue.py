"""The console's page about what waits: by pool, with the oldest, and why nothing runs."""

from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.console.rendering import page
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.v1.health import not_ready
from comfy_fleet.domain.nodes.node import check_name
from comfy_fleet.services.fleet_overview import Overview

MOST_POOLS = 200


async def show(request: Request) -> Response:
    """``GET /console/queue``: the queue by pool, and its front. Query: ``pool``."""
    operator(request)
    d, pool = deps(request), request.query_params.get("pool", "")
    seen = await d.fleet_overview.look(check_name("pool", pool) if pool else "", kept_s=0.0)
    return page(
        request,
        "queue.html",
        title="Queue",
        here="queue",
        pools=pools_of(seen),
        pool=pool,
        waiting=seen.waiting,
        queued=sum(one.waiting for one in seen.store.queues),
        batch_items=seen.store.batch_items,
        dispatchers=seen.store.dispatchers,
        reasons=await not_ready(d),
        at=seen.at,
    )


def pools_of(seen: Overview) -> list[dict[str, Any]]:
    """Return pools with what waits for them, and how many of their nodes could run it."""
    queues = {one.pool: one for one in seen.store.queues}
    nodes = Counter(one.node.pool for one in seen.nodes)
    up = Counter(one.node.pool for one in seen.nodes if one.state == "up")
    busy = Counter(one.node.pool for one in seen.nodes if one.run is not None)
    names = dict.fromkeys([*sorted(nodes), *(name for name, one in queues.items() if one.waiting)])
    return [
        {
            "name": name,
            "waiting": queues[name].waiting if name in queues else 0,
            "oldest_s": max(0.0, queues[name].oldest_s) if name in queues else 0.0,
            "nodes": nodes[name],
            "up": up[name],
            "busy": busy[name],
        }
        for name in list(names)[:MOST_POOLS]
    ]


routes = [ServedRoute("/console/queue", show, name="console_queue", console=True)]
