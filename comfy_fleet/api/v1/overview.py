"""REST: the fleet at one glance, for operators."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import Time
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.api.v1.answers import ReasonAnswer
from comfy_fleet.api.v1.health import not_ready
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.nodes.differences import bare_gpu
from comfy_fleet.domain.nodes.host import HOST_LABEL
from comfy_fleet.domain.nodes.measures import Measures
from comfy_fleet.domain.nodes.node import NodeState, check_name
from comfy_fleet.domain.text import natural
from comfy_fleet.ports.figures import PoolQueue
from comfy_fleet.services.fleet_overview import Overview

MOST_NODES = 5000
MOST_POOLS = 200
_MOST_TEXT = 300
_NOTHING = Measures()


class OverviewQuery(BaseModel):
    """What is shown."""

    pool: str = Field("", description="Only this pool.")
    nodes: int = Field(
        1000,
        ge=0,
        le=MOST_NODES,
        description="So many nodes at most: those with trouble first, idle ones last.",
    )


class WorkingJobAnswer(TypedDict):
    """A job that a node works on."""

    id: str
    workflow: str | None
    user: str
    started_at: Time | None
    progress: Annotated[float | None, Field(description="0 to 1.")]
    message: Annotated[str | None, Field(description="What it does now, e.g. `KSampler 21/50`.")]
    phase: Annotated[str, Field(description="`left`: its outputs are being fetched.")]


class SeenNodeAnswer(TypedDict):
    """A node. What its agent did not measure is null."""

    name: str
    pool: str
    host: Annotated[str, Field(description="The host whose agent has registered it; else empty.")]
    state: Annotated[str, Field(description="`up`, `drain`, `down`, `new`, `drained` or `quarantined`.")]
    why: Annotated[str, Field(description="Why it gets no jobs; empty if it does.")]
    simulated: bool
    gpu: str
    memory_bytes: Annotated[int | None, Field(description="The GPU's memory.")]
    memory_used_bytes: Annotated[int | None, Field(description="What anybody holds of it.")]
    temperature_c: float | None
    utilization: Annotated[float | None, Field(description="Share of the time in which it computed, 0 to 1.")]
    done: int
    failed: int
    jobs: Annotated[list[WorkingJobAnswer], Field(description="What it works on; empty: it is idle.")]


class SeenPoolAnswer(TypedDict):
    """A pool."""

    name: str
    waiting: Annotated[int, Field(description="Jobs that wait, by the pool that is tried first.")]
    oldest_s: Annotated[float, Field(description="For how many seconds the oldest of them has waited.")]
    nodes: int
    up: Annotated[int, Field(description="Those that may get jobs.")]
    busy: Annotated[int, Field(description="Those that run one.")]


class WaitingJobAnswer(TypedDict):
    """A job that waits."""

    id: str
    workflow: str | None
    user: str
    pool: str
    created_at: Time
    waiting_for: str | None


class EndedJobAnswer(TypedDict):
    """A job that has ended."""

    id: str
    status: JobStatus
    workflow: str | None
    user: str
    node: str | None
    started_at: Time | None
    completed_at: Time | None
    error: Annotated[str | None, Field(description="Code and message.")]


class OverviewAnswer(TypedDict):
    """The fleet at one glance."""

    at: Annotated[Time, Field(description="The fleet's time.")]
    ready: Annotated[bool, Field(description="Whether a job could run.")]
    reasons: Annotated[list[ReasonAnswer], Field(description="Why not.")]
    notes: Annotated[list[str], Field(description="What else an operator should know.")]
    queued: Annotated[int, Field(description="Jobs that wait.")]
    batch_items: Annotated[int, Field(description="Items of batches that wait until the queue has room.")]
    dispatchers: int
    states: Annotated[dict[str, int], Field(description="How many nodes are in each state.")]
    pools: list[SeenPoolAnswer]
    nodes: list[SeenNodeAnswer]
    more_nodes: Annotated[int, Field(description="Nodes that are not listed.")]
    waiting: Annotated[list[WaitingJobAnswer], Field(description="The first ten.")]
    ended: Annotated[list[EndedJobAnswer], Field(description="The last twenty, the latest first.")]


async def overview(request: Request) -> Response:
    """Nodes with their GPUs and what they run, the queue by pool, and the jobs that ended last."""
    operator(request)
    query, d = read_query(request, OverviewQuery), deps(request)
    pool = check_name("pool", query.pool) if query.pool else ""
    seen = await d.fleet_overview.look(pool)
    reasons = await not_ready(d)
    nodes = sorted(seen.nodes, key=_weight)
    listed = sorted(nodes[: query.nodes], key=lambda one: natural(one.node.name))
    answer: OverviewAnswer = {
        "at": serialize.time(seen.at),
        "ready": not reasons,
        "reasons": [{"part": one["part"], "why": one["why"]} for one in reasons],
        "notes": await d.notes(),
        "queued": sum(one.waiting for one in seen.store.queues),
        "batch_items": seen.store.batch_items,
        "dispatchers": seen.store.dispatchers,
        "states": dict(Counter(one.state for one in nodes)),
        "pools": _pools(seen),
        "nodes": [_node(one, seen) for one in listed],
        "more_nodes": len(nodes) - len(listed),
        "waiting": [
            {
                "id": job.id,
                "workflow": job.workflow,
                "user": job.owner,
                "pool": job.placement.pool,
                "created_at": serialize.time(job.created_at),
                "waiting_for": job.waiting_for,
            }
            for job in seen.waiting
        ],
        "ended": [_ended(job) for job in seen.ended],
    }
    return json_response(answer)


def _weight(one: NodeState) -> tuple[int, list[object]]:
    return (0 if one.state != "up" else 1 if one.work else 2), [*natural(one.node.name)]


def _pools(seen: Overview) -> list[SeenPoolAnswer]:
    waits = {one.pool: one for one in seen.store.queues}
    nodes: dict[str, list[NodeState]] = {}
    for one in seen.nodes:
        nodes.setdefault(one.node.pool, []).append(one)
    names = list(dict.fromkeys([*sorted(nodes), *(name for name, one in waits.items() if one.waiting)]))
    return [_pool(name, waits.get(name), nodes.get(name, ())) for name in names[:MOST_POOLS]]


def _pool(name: str, queue: PoolQueue | None, nodes: Sequence[NodeState]) -> SeenPoolAnswer:
    return {
        "name": name,
        "waiting": queue.waiting if queue else 0,
        "oldest_s": round(max(0.0, queue.oldest_s), 1) if queue else 0.0,
        "nodes": len(nodes),
        "up": sum(one.state == "up" for one in nodes),
        "busy": sum(one.run is not None for one in nodes),
    }


def _node(one: NodeState, seen: Overview) -> SeenNodeAnswer:
    known, node = seen.measures.get(one.node.name, _NOTHING), one.node
    total = known.memory_total or one.reading.vram_bytes
    return {
        "name": node.name,
        "pool": node.pool,
        "host": node.labels.get(HOST_LABEL, ""),
        "state": one.state,
        "why": (node.cordon_reason if node.cordoned else one.why or one.reading.trouble)[:_MOST_TEXT],
        "simulated": one.simulated,
        "gpu": bare_gpu(one.reading.gpu)[:80],
        "memory_bytes": int(total) if total else None,
        "memory_used_bytes": _used(known),
        "temperature_c": known.temperature_c,
        "utilization": known.utilization,
        "done": one.done,
        "failed": one.failed,
        "jobs": [_working(seen.running.get(work.job), work.job, work.phase) for work in one.work],
    }


def _used(known: Measures) -> int | None:
    if known.memory_fleet is None:
        return None
    return int(known.memory_fleet + (known.memory_foreign or 0))


def _working(job: Job | None, job_id: str, phase: str) -> WorkingJobAnswer:
    progress = job.progress if job is not None else None
    return {
        "id": job_id,
        "workflow": job.workflow if job is not None else None,
        "user": job.owner if job is not None else "",
        "started_at": serialize.time(job.started_at) if job is not None and job.started_at else None,
        "progress": progress.value if progress is not None else None,
        "message": progress.message if progress is not None else None,
        "phase": phase,
    }


def _ended(job: Job) -> EndedJobAnswer:
    return {
        "id": job.id,
        "status": job.status,
        "workflow": job.workflow,
        "user": job.owner,
        "node": job.node,
        "started_at": serialize.time(job.started_at) if job.started_at else None,
        "completed_at": serialize.time(job.completed_at) if job.completed_at else None,
        "error": f"{job.error.code}: {job.error.message}"[:_MOST_TEXT] if job.error is not None else None,
    }
