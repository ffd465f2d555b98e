"""REST: warm idle nodes, for operators."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read_optional
from comfy_fleet.services.warming import WarmRequest

MOST_NAMES = 1000
LONGEST_WAIT_S = 86_400.0


class WarmBody(BaseModel):
    """Which nodes are warmed, and with what."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"pool": "big", "wait_s": 300}}
    )

    nodes: list[str] = Field(default_factory=list, max_length=MOST_NAMES, description="Names; empty: all.")
    workflows: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Stored workflows; empty: the most common ones of each pool's last jobs.",
    )
    pool: str | None = Field(None, max_length=63, description="Only nodes of this pool.")
    most: int = Field(8, ge=1, le=64, description="At most so many common workflows of a pool.")
    wait_s: float = Field(
        0.0,
        ge=0,
        le=LONGEST_WAIT_S,
        allow_inf_nan=False,
        description="Seconds for which nodes that are busy or not up are waited for; 0: none is.",
    )


class WarmedNodeAnswer(TypedDict):
    """What is done for a node."""

    node: str
    pool: str
    workflow: Annotated[str | None, Field(description="The stored workflow that it runs, or has loaded.")]
    models: Annotated[list[str], Field(description="The model files of that.")]
    job: Annotated[str | None, Field(description="The job that warms it.")]
    loaded: Annotated[bool, Field(description="Whether the models are on its card already.")]
    why: Annotated[str | None, Field(description="Why nothing is done for it.")]


class SkippedWorkflowAnswer(TypedDict):
    """A workflow that can't warm any node of a pool."""

    workflow: str
    pool: str
    why: str


class WarmAnswer(TypedDict):
    """What is done for each node."""

    nodes: list[WarmedNodeAnswer]
    skipped: list[SkippedWorkflowAnswer]


async def warm_nodes(request: Request) -> Response:
    """Have idle nodes load what most jobs need: one job of tier `warming` for each.

    Such a job runs only where no other one waits, keeps no outputs, and shares no results. ComfyUI keeps
    what the last prompt loaded, so each node gets one, by the workflows' parts of the last jobs' time.
    """
    who = operator(request).owner
    body = await read_optional(request, WarmBody)
    done = await deps(request).warming.warm(
        who,
        WarmRequest(
            nodes=frozenset(body.nodes),
            workflows=tuple(dict.fromkeys(body.workflows)),
            pool=body.pool,
            most=body.most,
            wait_s=body.wait_s,
        ),
    )
    nodes: list[WarmedNodeAnswer] = [
        {
            "node": one.node,
            "pool": one.pool,
            "workflow": one.workflow or None,
            "models": list(one.models),
            "job": one.job,
            "loaded": one.loaded,
            "why": one.why or None,
        }
        for one in done.nodes
    ]
    skipped: list[SkippedWorkflowAnswer] = [
        {"workflow": workflow, "pool": pool, "why": why} for (workflow, pool), why in done.skipped.items()
    ]
    await audit(request, "nodes.warmed", nodes=[one["node"] for one in nodes][:50])
    return json_response({"nodes": nodes, "skipped": skipped})
