"""REST: nodes, for operators. The CLI uses it; agents read the list with their own token."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from blake3 import blake3
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import ApiDeps, deps, operator, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import MAX_URL, read, read_optional, read_query
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.jobs.job import DEFAULT_POOL
from comfy_fleet.domain.nodes.differences import Difference, by_pack, differences
from comfy_fleet.domain.nodes.node import NAME, Node, NodeState
from comfy_fleet.services.node_life import NodeLife

MAX_LABEL = 256


def _short(labels: dict[str, str]) -> dict[str, str]:
    if any(len(text) > MAX_LABEL for pair in labels.items() for text in pair):
        raise ValueError(f"a label's name or value has more than {MAX_LABEL} characters")
    return labels


Labels = Annotated[dict[str, str], Field(max_length=32), AfterValidator(_short)]
"""What operators and agents say of a node as they like."""


class NodeBody(BaseModel):
    """A ComfyUI server to register."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"name": "gpu-1", "url": "http://10.0.0.1:8188", "pool": "default"}},
    )

    name: str = Field(description="Unique; a-z 0-9 _ . -")
    url: str = Field(
        max_length=MAX_URL,
        description="http://HOST:PORT of the ComfyUI; behind a proxy also https://USER:PASSWORD@HOST/PREFIX. "
        "User and password are kept encrypted and never shown again.",
    )
    pool: str = Field(DEFAULT_POOL, description="The pool it is in.")
    weight: int | None = Field(
        None, ge=1, le=256, description="1 to 256; more gets more. Follows the GPU's model when left out."
    )
    zone: str = Field("", max_length=64, description="Where it is.")
    labels: Labels = Field(default_factory=dict, description="Anything you like.")
    simulated: bool = Field(False, description="It is simulated, not a real ComfyUI.")
    agent: str | None = Field(
        None, description="HOST:PORT that answers agent-checks; else the central agent."
    )
    editor: bool | None = Field(
        None,
        description="Whether it serves ComfyUI's editor: true: before others; false: never; left out: if no "
        "other node does.",
    )


class DrainBody(BaseModel):
    """Why a node is drained."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"reason": "new fans", "requeue": False}}
    )

    reason: str | None = Field(
        None, max_length=200, description="Shown to everybody; left out, an earlier one stays."
    )
    requeue: bool = Field(False, description="Give its jobs back to the queue at once.")


_UNTOLD: dict[str, Any] = {"run": None, "job": None, "work": []}
"""What agents are not told: who knows another node's run could claim that one of theirs has it, and so that
both are the same ComfyUI, of which one gets no jobs."""


class NodesQuery(BaseModel):
    """What the list shows."""

    sealed: bool = Field(False, description="Add the nodes' passwords as they are kept, encrypted.")


async def list_nodes(request: Request) -> Response:
    """All nodes with their state; has an ETag, so that asking often is cheap.

    Agents are not told what runs there. Query: `sealed=true` adds their passwords as they are kept,
    encrypted, for the central agent.
    """
    who = principal(request)
    if not who.agent:
        operator(request)
    sealed = read_query(request, NodesQuery).sealed
    token = request.scope["agent_token"]
    if sealed and token is not None and not token.central:
        raise HttpError(403, "forbidden", f"the token of host {token.host} is not the central agent's")
    states = await deps(request).nodes.states()
    idle = await idle_by_pool(deps(request))
    rows = [
        {
            **state(s),
            **({} if who.operator else _UNTOLD),
            **({"sealed": s.node.sealed} if sealed and s.node.sealed else {}),
            **({"free_idle_s": idle[s.node.pool]} if s.node.pool in idle else {}),
        }
        for s in states
    ]
    body = orjson.dumps({"nodes": rows})
    etag = f'"{blake3(body).hexdigest(16)}"'
    if etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers={"ETag": etag})
    return Response(body, headers={"ETag": etag, "Cache-Control": "no-cache"}, media_type="application/json")


async def add_node(request: Request) -> Response:
    """It gets jobs as soon as HAProxy finds it healthy."""
    operator(request)
    d, body = deps(request), await read(request, NodeBody)
    fields = body.model_dump(exclude_none=True) | d.split(body.url)
    node = Node(**fields, weight_by_gpu=body.weight is None, added_at=await d.store_time())
    await d.check_place(node, await d.nodes.nodes())
    node = await d.nodes.add(node)
    await audit(request, "node.added", node=node.name, url=node.url, pool=node.pool)
    return json_response(state(NodeState(node=node)), 201)


class DiffQuery(BaseModel):
    """Which nodes are compared."""

    names: str = Field("", description="Names with commas between them; all if left out.")


async def diff_nodes(request: Request) -> Response:
    """Versions, settings, node packs, classes and files in which nodes differ.

    Query: `names`, with commas; else all.
    """
    operator(request)
    wanted = frozenset(filter(None, read_query(request, DiffQuery).names.split(",")))
    states = {s.node.name: s for s in await deps(request).nodes.states()}
    if unknown := wanted - states.keys():
        raise NotFound(f"no node {min(unknown)[:80]!r}")
    chosen = {name: s for name, s in states.items() if not wanted or name in wanted}
    rows, unread = await compared(deps(request), chosen)
    return json_response(
        {
            "nodes": sorted(chosen),
            "unread": unread,
            "differences": [
                {"kind": r.kind, "what": r.what, "nodes": dict(r.nodes), "classes": list(r.classes)}
                for r in rows
            ],
        }
    )


async def compared(d: ApiDeps, chosen: Mapping[str, NodeState]) -> tuple[list[Difference], list[str]]:
    """Return what differs between nodes, and the names of those that were not read yet."""
    have = {
        name: candidate.inventory
        for name, candidate in (await d.inventories.by_node()).items()
        if candidate.inventory is not None and name in chosen
    }
    rows = await asyncio.to_thread(differences, chosen, have)
    classes = [row for row in rows if row.kind == "class"]
    having = {row.what: next(name for name, told in row.nodes.items() if told) for row in classes}
    return by_pack(rows, await d.object_info.packs(having)), sorted(chosen.keys() - have.keys())


async def get_node(request: Request) -> Response:
    """One node with its state, what works on it, its last errors, and what its agent saw."""
    operator(request)
    name = request.path_params["node"]
    return json_response(await detail(request, await named_state(request, name)))


async def drain_node(request: Request) -> Response:
    """No new jobs; the one that runs goes on, or back to the queue with `requeue`."""
    operator(request)
    name = request.path_params["node"]
    body = await read_optional(request, DrainBody)
    await drain(request, name, body)
    return json_response(state(await named_state(request, name)))


async def drain(request: Request, name: str, how: DrainBody) -> None:
    """Drain a node for an operator, and write that down.

    Raises:
        HttpError: 403 to others.
        NotFound: There is no such node.
    """
    operator(request)
    await _life(request).drain(_name(name), reason=how.reason, requeue=how.requeue)
    await audit(request, "node.drained", node=name, reason=how.reason, requeue=how.requeue)


async def resume_node(request: Request) -> Response:
    """Jobs may come again; ends a quarantine, too."""
    operator(request)
    name = request.path_params["node"]
    await resume(request, name)
    return json_response(state(await named_state(request, name)))


async def resume(request: Request, name: str) -> None:
    """Let a node have jobs again, for an operator, and write that down; raises as :func:`drain`."""
    operator(request)
    await _life(request).resume(_name(name))
    await audit(request, "node.resumed", node=name)


async def restart_node(request: Request) -> Response:
    """The agent that runs it restarts it once no job needs it; 409 if none does."""
    operator(request)
    name = request.path_params["node"]
    await _life(request).restart(_name(name))
    await audit(request, "node.restarted", node=name)
    return json_response(state(await named_state(request, name)), 202)


async def refresh_node(request: Request) -> Response:
    """Ask it for classes, files and versions now; 504 if it does not answer, 502 if it can't be read."""
    operator(request)
    name = request.path_params["node"]
    if not await _life(request).refresh(_name(name)):
        trouble = (await named_state(request, name)).reading.trouble
        if trouble:
            raise HttpError(502, "node_unreadable", f"node {name} can't be read: {trouble}")
        raise HttpError(504, "node_silent", f"node {name} did not answer: see `fleet node show {name}`")
    return json_response(await detail(request, await named_state(request, name)))


class RemoveQuery(BaseModel):
    """How a node is removed."""

    force: bool = Field(False, description="Also while it works: its jobs go back to the queue first.")


async def remove_node(request: Request) -> Response:
    """Forget it; 409 while it works. With `force` its jobs go back to the queue first."""
    operator(request)
    name = request.path_params["node"]
    force = read_query(request, RemoveQuery).force
    await _life(request).remove(_name(name), force=force)
    await audit(request, "node.removed", node=name, force=force)
    return Response(status_code=204)


def state(value: NodeState) -> dict[str, Any]:
    """Return a node and its state."""
    node = value.node
    return {
        "name": node.name,
        "url": node.url,
        "credentials": bool(node.sealed),
        "pool": node.pool,
        "weight": node.weight,
        "zone": node.zone,
        "labels": dict(node.labels),
        "cordoned": node.cordoned,
        "cordon_reason": node.cordon_reason,
        "simulated": value.simulated,
        "editor": node.editor,
        "agent": node.agent,
        "added_at": node.added_at,
        "verdict": value.verdict,
        "why": value.why,
        "run": value.run,
        "job": value.job,
        "done": value.done,
        "failed": value.failed,
        "work": [{"run": w.run, "job": w.job, "phase": w.phase} for w in value.work],
        "quarantined": value.quarantined,
        "weight_by_gpu": node.weight_by_gpu,
        "speed": node.speed,
        "gpu": value.reading.gpu,
        "vram_bytes": value.reading.vram_bytes,
        "comfyui": value.reading.comfyui,
        "inventory": value.reading.inventory,
        "starts": value.reading.starts,
        "trouble": value.reading.trouble,
    }


async def detail(request: Request, value: NodeState) -> dict[str, Any]:
    """Return everything that is known of a node."""
    d, reading = deps(request), value.reading
    work = []
    for item in value.work:
        job = await d.jobs.get(item.job)
        progress = job.progress if job else None
        work.append(
            {
                "run": item.run,
                "job": item.job,
                "phase": item.phase,
                "workflow": job.workflow if job else None,
                "progress": progress.value if progress else None,
                "message": progress.message if progress else None,
            }
        )
    return {
        **state(value),
        "work": work,
        "pytorch": reading.pytorch,
        "python": reading.python,
        "read_at": reading.read_at or None,
        "models": list(await d.nodes.models(value.node.name)),
        "errors": list(await d.nodes.errors(value.node.name)),
        "report": await d.hosts.report(value.node.name),
    }


async def idle_by_pool(d: ApiDeps) -> dict[str, float]:
    """Return, for pools that have it set, the idle seconds after which nodes unload their models."""
    return {pool.name: pool.free_idle_s for pool in await d.pools.pools() if pool.free_idle_s is not None}


async def named_state(request: Request, name: str) -> NodeState:
    """Return a node; raises NotFound."""
    return await _life(request).state(_name(name))


def _life(request: Request) -> NodeLife:
    d = deps(request)
    return NodeLife(d.nodes, d.hosts, d.inventories)


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise HttpError(404, "not_found", f"no node {name[:80]!r}")
    return name
