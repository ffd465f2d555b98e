"""The console's page about what differs between nodes, as ``fleet node diff`` shows it."""

import asyncio
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.console.paging import Pages, number
from comfy_fleet.api.console.rendering import page
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.v1.nodes import compared
from comfy_fleet.domain.nodes.differences import alike
from comfy_fleet.domain.text import natural

EACH = 100
MOST_GROUPS = 8
"""Groups of equal nodes that one page has columns for."""
MOST_NAMED = 3
"""Nodes that a line names."""


async def show(request: Request) -> Response:
    """``GET /console/models/unequal``: what differs. Query: ``pool``, ``group`` (of columns), ``page``."""
    operator(request)
    d, query = deps(request), request.query_params
    states = {one.node.name: one for one in await d.nodes.states()}
    pools = sorted({one.node.pool for one in states.values()})
    pool = query.get("pool", "")
    chosen = {name: one for name, one in states.items() if pool in ("", one.node.pool)}
    rows, unread = await compared(d, chosen)
    groups = await asyncio.to_thread(alike, sorted(chosen, key=natural), rows)
    parts = Pages(total=len(groups), each=MOST_GROUPS, number=number(query.get("group", "")))
    pages = Pages(total=len(rows), each=EACH, number=number(query.get("page", "")))
    asked = {"pool": pool} if pool else {}
    shown = groups[parts.first : parts.last]
    return page(
        request,
        "unequal.html",
        title="What differs between nodes",
        here="models",
        rows=[
            {
                "kind": row.kind,
                "what": row.what,
                "classes": row.classes,
                "nodes": [row.nodes.get(group[0]) for group in shown],
            }
            for row in rows[pages.first : pages.last]
        ],
        groups=[{"names": group[:MOST_NAMED], "more": len(group) - MOST_NAMED} for group in shown],
        nodes=len(chosen),
        all_groups=len(groups),
        unread=sorted(unread, key=natural)[:MOST_NAMED],
        unread_more=max(0, len(unread) - MOST_NAMED),
        pool=pool,
        pools=pools,
        pages=pages,
        parts_of_groups=parts,
        query=urlencode(asked),
        page_query=urlencode(asked | ({"group": str(parts.shown)} if parts.shown > 1 else {})),
    )


routes = [ServedRoute("/console/models/unequal", show, name="console_unequal", console=True)]
