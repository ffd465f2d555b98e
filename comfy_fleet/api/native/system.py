"""ComfyUI's interface: what it says about itself, and small routes."""

import asyncio
import logging
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import deps, operator, owner
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.json import json_response
from comfy_fleet.api.native.body import read_params
from comfy_fleet.api.native.features import features
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.nodes import model_lists
from comfy_fleet.domain.nodes.fleet_stats import fleet_stats
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_STATS_FRESH_S = 2.0
_FREE_AT_ONCE, _FREE_S = 32, 10.0
_ASSETS_OFF = {
    "error": {
        "code": "SERVICE_DISABLED",
        "message": "Assets system is disabled. Start the server with --enable-assets to use this feature.",
        "details": {},
    }
}


async def system_stats(request: Request) -> Response:
    """Every GPU as a device, and the versions of the newest ComfyUI."""
    owner(request)
    d = deps(request)
    states = await d.answers.states()
    told = await d.answers.together("/system_stats", dict, fresh_s=_STATS_FRESH_S, need=0)
    return json_response(fleet_stats(states, told.items()))


async def shown_features(request: Request) -> Response:
    """The flags of this server."""
    return json_response(features(deps(request).settings))


async def node_replacements(request: Request) -> Response:
    """Successors of removed classes, as any node names them."""
    owner(request)
    return json_response(await deps(request).answers.together("/node_replacements", model_lists.replacements))


async def free(request: Request) -> Response:
    """Have all nodes unload their models: a node at work does so behind its job, as ComfyUI does."""
    operator(request)
    d = deps(request)
    body = await read_params(request)
    orders = {name: bool(body.get(name)) for name in ("unload_models", "free_memory")}
    if not any(orders.values()):
        return Response(status_code=200)
    nodes = [state.node.name for state in await d.answers.states() if state.verdict != "down"]
    await audit(request, "nodes.freed", **orders)
    limit = asyncio.Semaphore(_FREE_AT_ONCE)

    async def tell(node: str) -> str:
        try:
            async with limit, Timeout(_FREE_S):
                await d.node_facts.free(node, **orders)
            await d.nodes.freed(node)
        except NodeError as error:
            return error.message
        except TimeoutError:
            return f"node {node} does not answer"
        return ""

    failed = [why for why in await asyncio.gather(*map(tell, nodes)) if why]
    if failed:
        logger.warning("nodes not freed", extra={"count": len(failed), "reason": failed[0]})
    if len(failed) == len(nodes):
        raise NodeError("no node could be told: " + (failed[0] if failed else "all of them are down"))
    return Response(status_code=200)


async def assets_off(request: Request) -> Response:
    """What a ComfyUI without ``--enable-assets`` says."""
    owner(request)
    return json_response(_ASSETS_OFF, 503)


_asset = partial(row, handler=assets_off, operation="native_assets_off", api_only=True)

TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/system_stats", system_stats, "native_system_stats"),
    *row("GET", "/features", shown_features, "native_features"),
    *row("GET", "/node_replacements", node_replacements, "native_node_replacements"),
    *row("POST", "/free", free, "native_free", console=True),
    *_asset("GET", "/assets"),
    *_asset("POST", "/assets"),
    *_asset("POST", "/assets/from-hash"),
    *_asset("HEAD", "/assets/hash/{hash}"),
    *_asset("GET", "/assets/tags/refine"),
    *_asset("GET", "/assets/{id:uuid}"),
    *_asset("PUT", "/assets/{id:uuid}"),
    *_asset("DELETE", "/assets/{id:uuid}"),
    *_asset("GET", "/assets/{id:uuid}/content"),
    *_asset("POST", "/assets/{id:uuid}/tags"),
    *_asset("DELETE", "/assets/{id:uuid}/tags"),
    *_asset("GET", "/tags"),
)
