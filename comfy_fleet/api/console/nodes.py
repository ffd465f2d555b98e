"""The console's pages about nodes: all of them at a glance, and each with what runs there and why not."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.console.paging import Pages, number
from comfy_fleet.api.console.rendering import changing, done, page, share
from comfy_fleet.api.console_page import form_of
from comfy_fleet.api.deps import ApiDeps, deps, operator
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.v1 import nodes
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.nodes.differences import bare_gpu
from comfy_fleet.domain.nodes.host import HOST_LABEL
from comfy_fleet.domain.nodes.measures import Measures, measured
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.text import natural

EACH = 50
"""Nodes that one page lists; the map above shows all."""
MOST_MAPPED = 2000
STATES = ("working", "idle", "drained", "quarantined", "drain", "down", "new")
"""What a node is, in a word: that of ``NodeState.state``, and in place of ``up``, if it works or could."""
_NOTHING = Measures()


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """A node in the list.

    Attributes:
        state: It.
        word: One of :data:`STATES`.
        why: Why it is not at work, in words; empty if there is no more to say.
        measures: What its agent measured.
        work: The jobs that need it, each with what it is doing there.
    """

    state: NodeState
    word: str
    why: str
    measures: Measures = _NOTHING
    work: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def gpu(self) -> str:
        """The GPU's name."""
        return bare_gpu(self.state.reading.gpu)

    @property
    def host(self) -> str:
        """The host whose agent has registered it; else empty."""
        return self.state.node.labels.get(HOST_LABEL, "")

    @property
    def memory(self) -> float | None:
        """The card's memory in bytes, as the agent or ComfyUI says."""
        return self.measures.memory_total or self.state.reading.vram_bytes or None

    @property
    def shares(self) -> tuple[int, int] | None:
        """How much of that nodes of the fleet hold, and others, in percent; None if nobody has measured."""
        whole, own = self.memory, self.measures.memory_fleet
        if not whole or own is None:
            return None
        held = share(own, whole)
        return held, min(100 - held, share(self.measures.memory_foreign or 0, whole))


async def show_all(request: Request) -> Response:
    """``GET /console/nodes``: all nodes. Query: ``pool``, ``state``, ``q`` (part of a name), ``page``."""
    operator(request)
    d, query = deps(request), request.query_params
    states = sorted(await d.nodes.states(), key=lambda one: natural(one.node.name))
    pool, wanted, part = query.get("pool", ""), query.get("state", ""), query.get("q", "")[:64].strip()
    words = {one.node.name: word_of(one) for one in states}
    pools = sorted({one.node.pool for one in states})
    of_pool = [one for one in states if not pool or one.node.pool == pool]
    found = [
        one
        for one in of_pool
        if (not wanted or words[one.node.name] == wanted) and part.lower() in one.node.name.lower()
    ]
    pages = Pages(total=len(found), each=EACH, number=number(query.get("page", "")))
    asked = {name: text for name, text in (("pool", pool), ("state", wanted), ("q", part)) if text}
    return page(
        request,
        "nodes.html",
        title="Nodes",
        here="nodes",
        rows=await _rows(d, found[pages.first : pages.last]),
        mapped=[(one.node.name, words[one.node.name]) for one in found[:MOST_MAPPED]],
        counts=Counter(words[one.node.name] for one in of_pool),
        all=len(states),
        pools=pools,
        chosen={"pool": pool, "state": wanted, "q": part},
        states=STATES,
        unequal=_unequal(of_pool),
        pages=pages,
        query=urlencode(asked),
    )


def _unequal(states: Sequence[NodeState]) -> list[str]:
    """Return the pools whose nodes have not all the same classes and model files."""
    kinds: dict[str, set[str]] = {}
    for one in states:
        if one.reading.inventory:
            kinds.setdefault(one.node.pool, set()).add(one.reading.inventory)
    return sorted(pool for pool, some in kinds.items() if len(some) > 1)


async def show(request: Request) -> Response:
    """``GET /console/nodes/NODE``: one node with all that is known of it."""
    operator(request)
    d, name = deps(request), request.path_params["node"]
    state = await nodes.named_state(request, name)
    facts = await nodes.detail(request, state)
    (row,) = await _rows(d, [state])
    return page(request, "node.html", title=name, here="nodes", row=row, facts=facts)


async def drain(request: Request) -> Response:
    """``POST /console/nodes/NODE/drain`` with ``reason`` and ``requeue``."""
    changing(request)
    operator(request)
    name, form = request.path_params["node"], await form_of(request)
    try:
        how = nodes.DrainBody(reason=form.get("reason", "").strip() or None, requeue="requeue" in form)
    except ValidationError:
        raise BadInput("a reason has at most 200 characters", details={"field": "reason"}) from None
    await nodes.drain(request, name, how)
    return done(f"{name} is drained")


async def resume(request: Request) -> Response:
    """``POST /console/nodes/NODE/resume``."""
    changing(request)
    operator(request)
    name = request.path_params["node"]
    await nodes.resume(request, name)
    return done(f"{name} may have jobs again")


def word_of(state: NodeState) -> str:
    """Return what a node is, one of :data:`STATES`."""
    if state.state != "up":
        return state.state
    return "working" if state.work else "idle"


async def _rows(d: ApiDeps, states: Sequence[NodeState]) -> list[NodeRow]:
    """Return nodes as rows: two trips to Redis, however many they are."""
    ids = list({work.job for one in states for work in one.work})
    jobs, hosts = await asyncio.gather(d.jobs.briefs(ids), d.hosts.hosts())
    by_id = {job.id: job for job in jobs if job is not None}
    found = measured(hosts, [one.node.name for one in states])
    return [
        NodeRow(
            state=one,
            word=word_of(one),
            why=_why(one),
            measures=found.get(one.node.name, _NOTHING),
            work=[_work(work.job, work.phase, by_id.get(work.job)) for work in one.work],
        )
        for one in states
    ]


def _why(state: NodeState) -> str:
    if state.node.cordoned:
        reason = state.node.cordon_reason or "by hand"
        return f"{reason}; its job goes on" if state.work else reason
    return state.why or (f"can't be read: {state.reading.trouble}" if state.reading.trouble else "")


def _work(job_id: str, phase: str, job: Job | None) -> Mapping[str, Any]:
    progress = job.progress if job else None
    return {
        "job": job_id,
        "workflow": (job.workflow if job else None) or "graph",
        "message": "outputs are being fetched" if phase == "left" else progress.message if progress else "",
        "value": progress.value if progress and phase != "left" else None,
        "since": job.started_at if job else None,
    }


routes = [
    ServedRoute("/console/nodes", show_all, name="console_nodes", console=True),
    ServedRoute("/console/nodes/{node}", show, name="console_node", console=True),
    ServedRoute("/console/nodes/{node}/drain", drain, name="console_node_drain", method="POST", console=True),
    ServedRoute(
        "/console/nodes/{node}/resume", resume, name="console_node_resume", method="POST", console=True
    ),
]
