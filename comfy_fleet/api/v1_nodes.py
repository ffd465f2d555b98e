"""REST: nodes. What the CLI does, for operators; agents read the list with their own token."""

from typing import Any

import orjson
from blake3 import blake3
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import admin, caller, deps
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed import read, shown
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.job import DEFAULT_POOL
from comfy_fleet.domain.node import NAME, Node, NodeState

router = APIRouter(tags=["nodes"])


class NodeBody(BaseModel):
    """A ComfyUI server to register."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="Unique; a-z 0-9 _ . -")
    url: str = Field(description="http://HOST:PORT of the ComfyUI.")
    pool: str = Field(DEFAULT_POOL, description="The pool it stands in.")
    weight: int = Field(100, description="1 to 256; more gets more.")
    zone: str = Field("", max_length=64, description="Where it is.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=32, description="Anything you like.")
    simulated: bool = Field(False, description="It is the stand-in, not a real ComfyUI.")
    agent: str | None = Field(
        None, description="HOST:PORT that answers agent-checks; else the central agent."
    )


class DrainBody(BaseModel):
    """Why a node is drained."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field("drained by an operator", max_length=200)


@router.get("/nodes", summary="List nodes")
async def list_nodes(request: Request) -> Response:
    """All nodes with their state; has an ETag, so that asking often is cheap."""
    who = caller(request)
    if not who.agent:
        admin(request)
    body = orjson.dumps({"nodes": [state(s) for s in await deps(request).nodes.states()]})
    etag = f'"{blake3(body).hexdigest(16)}"'
    if etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers={"ETag": etag})
    return Response(body, headers={"ETag": etag, "Cache-Control": "no-cache"}, media_type="application/json")


@router.post("/nodes", summary="Add a node", status_code=201, openapi_extra=shown(NodeBody))
async def add_node(request: Request) -> Response:
    """It gets jobs as soon as HAProxy finds it healthy."""
    admin(request)
    d, body = deps(request), await read(request, NodeBody)
    node = await d.nodes.add(Node(**body.model_dump(), added_at=d.clock()))
    return json_response(state(NodeState(node=node)), 201)


@router.get("/nodes/{name}", summary="Show a node")
async def get_node(request: Request, name: str) -> Response:
    """One node with its state."""
    admin(request)
    return json_response(state(await _state(request, name)))


@router.post("/nodes/{name}/drain", summary="Drain a node", openapi_extra=shown(DrainBody))
async def drain_node(request: Request, name: str) -> Response:
    """No new jobs; the one that runs goes on."""
    admin(request)
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    body = await read(request, DrainBody) if has_body else DrainBody()
    await deps(request).nodes.cordon(_name(name), reason=body.reason)
    return json_response(state(await _state(request, name)))


@router.post("/nodes/{name}/resume", summary="Resume a node")
async def resume_node(request: Request, name: str) -> Response:
    """Jobs may come again."""
    admin(request)
    await deps(request).nodes.uncordon(_name(name))
    return json_response(state(await _state(request, name)))


@router.delete("/nodes/{name}", summary="Remove a node", status_code=204)
async def remove_node(request: Request, name: str, force: bool = False) -> Response:
    """Forget it; 409 while it works, unless `force` is set."""
    admin(request)
    await deps(request).nodes.remove(_name(name), force=force)
    return Response(status_code=204)


def state(value: NodeState) -> dict[str, Any]:
    """Return a node and its state."""
    node = value.node
    return {
        "name": node.name,
        "url": node.url,
        "pool": node.pool,
        "weight": node.weight,
        "zone": node.zone,
        "labels": dict(node.labels),
        "cordoned": node.cordoned,
        "cordon_reason": node.cordon_reason,
        "simulated": node.simulated,
        "agent": node.agent,
        "added_at": node.added_at,
        "verdict": value.verdict,
        "why": value.why,
        "run": value.run,
        "job": value.job,
        "done": value.done,
        "failed": value.failed,
    }


async def _state(request: Request, name: str) -> NodeState:
    wanted = _name(name)
    found = [s for s in await deps(request).nodes.states() if s.node.name == wanted]
    if not found:
        raise NotFound(f"no node {wanted!r}")
    return found[0]


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise HttpError(404, "not_found", f"no node {name[:80]!r}")
    return name
