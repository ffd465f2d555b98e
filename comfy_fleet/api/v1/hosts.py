"""REST: GPU hosts. Their agents report here and get orders; operators read the list."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.body import graph_limits
from comfy_fleet.api.deps import ApiDeps, deps, operator, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.host_names import is_loopback
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import MAX_URL, read
from comfy_fleet.api.v1.nodes import Labels, idle_by_pool
from comfy_fleet.domain.errors import BadInput, Conflict
from comfy_fleet.domain.networks import parse_networks
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.agent_token import AgentToken
from comfy_fleet.domain.nodes.host import (
    METRICS_HEADER,
    Cleanup,
    GpuAllocation,
    Heartbeat,
    Joining,
    NodeReport,
    read_written,
)
from comfy_fleet.domain.nodes.node import NAME, Node, check_name, parse_url, split_credentials
from comfy_fleet.domain.nodes.node_networks import why_not
from comfy_fleet.domain.nodes.orphans import MOST_SHOWN
from comfy_fleet.ports.scrape_targets import ScrapeTarget

NodeName = Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}$")]
PromptId = Annotated[str, StringConstraints(min_length=1, max_length=200)]

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[1-9][0-9]{0,4}")

MAX_PORT = 65535
MAX_FACTS_BYTES, MAX_FACTS_DEPTH = 16 * 1024, 16
"""Limit of an agent's free-form facts about a node or GPU, which are stored and shown unchanged."""


def _bounded(facts: dict[str, Any]) -> dict[str, Any]:
    if _depth(facts) > MAX_FACTS_DEPTH:
        raise ValueError(f"must not be nested deeper than {MAX_FACTS_DEPTH} levels")
    if len(orjson.dumps(facts)) > MAX_FACTS_BYTES:
        raise ValueError(f"must not be longer than {MAX_FACTS_BYTES} bytes")
    return facts


def _depth(value: object) -> int:
    """Return a value's depth, counted to one level more than is allowed."""
    depth, level = 0, [value]
    while level and depth <= MAX_FACTS_DEPTH + 1:
        inner: list[object] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        depth, level = depth + 1, inner
    return depth - 1


Facts = Annotated[dict[str, Any], AfterValidator(_bounded)]


class SeatBody(BaseModel):
    """Where a node computes. All in bytes."""

    model_config = ConfigDict(extra="forbid")

    gpu: str = Field(min_length=1, max_length=100, description="The GPU's UUID.")
    running: bool = True
    pids: tuple[int, ...] = Field((), max_length=1000, description="Its processes.")
    own: int | None = Field(None, ge=0, description="What it counts as its own.")
    used: int | None = Field(None, ge=0, description="What anybody used of the card then.")
    age_s: float = Field(0.0, ge=0, description="Seconds since that report.")


class ReportBody(BaseModel):
    """What an agent says of a node."""

    model_config = ConfigDict(extra="forbid")

    name: NodeName
    word: Readiness = Field(description="Its answer to HAProxy.")
    why: str = Field("", max_length=500, description="The reason in words.")
    weight: int = Field(0, ge=0, le=256)
    boot: str = Field("", max_length=80, description="Changes with every start of its process.")
    freed: str = Field("", max_length=80, description="Changes whenever its models were unloaded.")
    seat: SeatBody | None = Field(None, description="For other agents that have a node on its GPU.")
    facts: Facts = Field(default_factory=dict, description="Whatever else was seen.")
    address: str = Field("", max_length=300, description="HOST:PORT that was looked at.")
    runs: list[PromptId] = Field(
        default_factory=list, max_length=MOST_SHOWN, description="Runs that its queue has just held."
    )


class JoiningBody(BaseModel):
    """A node that belongs to the host."""

    model_config = ConfigDict(extra="forbid")

    name: NodeName
    url: str = Field(max_length=MAX_URL)
    agent: str = Field(max_length=300, description="HOST:PORT that answers agent-checks.")
    pool: NodeName | None = None
    weight: int | None = Field(None, ge=1, le=256)
    zone: str | None = Field(None, max_length=64)
    labels: Labels = Field(default_factory=dict)
    simulated: bool = False
    cleans: bool = False
    editor: bool | None = None


class HeartbeatBody(BaseModel):
    """What an agent sends every second."""

    model_config = ConfigDict(extra="forbid")

    instance: str = Field(max_length=64)
    central: bool = False
    version: str = Field("", max_length=64)
    agent: str = Field("", max_length=300)
    gpus: list[Facts] = Field(default_factory=list, max_length=256)
    gpus_why: str = Field("", max_length=500)
    nodes: list[ReportBody] = Field(default_factory=list, max_length=10_000)
    join: list[JoiningBody] = Field(default_factory=list, max_length=256)
    seen: list[PromptId] = Field(default_factory=list, max_length=10_000)
    leaving: list[NodeName] = Field(default_factory=list, max_length=256)
    deleted: list[str] = Field(default_factory=list, max_length=1000)


async def agent_of(request: Request) -> str:
    """Return the host that the path names, if the caller is its agent.

    Raises:
        BadInput: It is no host's name.
        HttpError: 403: the caller is somebody else.
    """
    _agents_only(request)
    host = check_name("host", request.path_params["host"])
    await _of_this_host(request, host)
    return host


async def heartbeat(request: Request) -> Response:
    """Keep what the agent saw, register its nodes, and answer with its orders. For agents only."""
    host = await agent_of(request)
    d = deps(request)
    body = await read(request, HeartbeatBody, graph_limits(d.settings))
    token: AgentToken | None = request.scope["agent_token"]
    if body.central and token is not None and not token.central:
        raise HttpError(
            403,
            "forbidden",
            f"the token of host {host} is not for the central agent: make one with --central",
            details={"field": "central"},
        )
    now = await d.store_time()
    if body.join:  # before this one moves another agent's nodes
        await d.hosts.admit(host, body.instance)
    refusals = await _join_all(d, host, body.join, now, local=is_local(request))
    refused = {node.name: why for node, why in zip(body.join, refusals, strict=True) if why}
    beat = Heartbeat(
        host=host,
        instance=body.instance,
        central=body.central,
        version=body.version,
        agent=body.agent,
        gpus=body.gpus,
        gpus_why=body.gpus_why,
        nodes=[_report(report) for report in body.nodes],
        seen=body.seen,
        leaving=body.leaving,
        deleted=[Cleanup.parse(line) for line in body.deleted],
    )
    orders = await d.hosts.beat(beat, now=now)
    await _note_metrics(request, host)
    idle = await idle_by_pool(d)
    fetches = [] if body.central else await d.model_fetching.orders(host, local=is_local(request))
    return json_response(
        {
            "nodes": [{**_node(node), "free_idle_s": idle.get(node.pool)} for node in orders.nodes],
            "joined": [node.name for node in body.join if node.name not in refused],
            "refused": refused,
            "explained": sorted(orders.explained),
            "clear": sorted(orders.clear),
            "delete": [str(cleanup) for cleanup in orders.delete],
            "restart": sorted(orders.restart),
            "neighbours": {name: asdict(allocation) for name, allocation in orders.neighbours.items()},
            "store": orders.store,
            "fetches": [asdict(order) for order in fetches],
        }
    )


async def _note_metrics(request: Request, host: str) -> None:
    """Have it remembered where the agent serves its metrics, if Prometheus may be sent there."""
    d, address = deps(request), request.headers.get(METRICS_HEADER, "")
    if not _ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) > MAX_PORT:
        return
    name, local = address.rpartition(":")[0].strip("[]"), is_local(request)
    if is_loopback(name) and not local:  # on another machine, which this name does not mean
        return
    if why_not(name, parse_networks(d.settings.node_networks), local=local):
        return
    only_on = d.machine if is_loopback(name) else ""
    await d.agent_targets.heard(ScrapeTarget(process="agent", host=host, address=address, only_on=only_on))


async def list_hosts(request: Request) -> Response:
    """All hosts whose agents reported lately, with GPUs and nodes as they saw them."""
    operator(request)
    d = deps(request)
    found = await d.hosts.hosts()
    return json_response(
        {
            "hosts": [
                {**state.record, "host": state.host, "seen_at": state.seen_at, "alive": state.alive}
                for state in found
            ]
        }
    )


async def _join_all(
    d: ApiDeps, host: str, joining: Sequence[JoiningBody], now: float, *, local: bool
) -> list[str]:
    """Register nodes, the first ones first; return for each an empty text or why it was refused.

    Raises:
        StoreDown: Redis was away. A repeated request completes it.
    """
    return [await _join(d, host, node, now, local=local) for node in joining]


async def _join(d: ApiDeps, host: str, node: JoiningBody, now: float, *, local: bool) -> str:
    """Register a node; return an empty text or why it was refused."""
    allowed = parse_networks(d.settings.node_networks)
    try:
        for url in (split_credentials(node.url)[0], f"http://{node.agent}"):
            if why := why_not(parse_url(url)[0], allowed, local=local):
                return why
        await d.hosts.join(
            host,
            Joining(**read_written(node.model_dump()) | d.split(node.url)),
            now=now,
            most_nodes=d.settings.host_nodes,
            most_pools=d.settings.host_pools,
        )
    except (BadInput, Conflict) as error:
        return str(error)
    return ""


def _report(body: ReportBody) -> NodeReport:
    allocation = None if body.seat is None else GpuAllocation(**body.seat.model_dump())
    return NodeReport(**{**read_written(body.model_dump()), "gpu_allocation": allocation})


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "url": node.url,
        "pool": node.pool,
        "weight": node.weight,
        "weight_by_gpu": node.weight_by_gpu,
        "speed": node.speed,
        "cordoned": node.cordoned,
        "cordon_reason": node.cordon_reason,
    }


async def _of_this_host(request: Request, host: str) -> None:
    """Admit only who may speak for the host.

    Raises:
        HttpError: 403: the token is another host's, or the host has one of its own and this is not it.
    """
    token: AgentToken | None = request.scope["agent_token"]
    if token is None:
        if await deps(request).agent_tokens.has(host):
            why = f"host {host} has a token of its own (`fleet host token ls`): its agent must show that one"
            raise HttpError(403, "forbidden", why, details={"field": "host"})
    elif token.host != host:
        why = f"this token speaks for host {token.host} only: start the agent with --host {token.host}"
        raise HttpError(403, "forbidden", why, details={"field": "host"})


def _agents_only(request: Request) -> None:
    """Admit callers with the agents' token; if none is configured, callers on this machine.

    Raises:
        HttpError: 403.
    """
    who = principal(request)
    if who.agent:
        return
    if deps(request).settings.agent_token is not None:
        raise HttpError(403, "forbidden", "this needs the agents' token: `Authorization: Bearer TOKEN`")
    if not (who.operator and is_local(request)):
        raise HttpError(
            403,
            "forbidden",
            "agents on other machines need a token: set FLEET_AGENT_TOKEN for the API and for them",
        )


def is_local(request: Request) -> bool:
    """Return whether a request comes from the fleet's own machine, through whatever proxies."""
    peers = [request.client.host if request.client else ""]
    peers += [part.strip() for part in request.headers.get("x-forwarded-for", "").split(",") if part.strip()]
    return all(is_loopback(peer) for peer in peers)
