"""REST: stored workflows, jobs from their parameters, and checks that live nodes can run them."""

import asyncio
from dataclasses import asdict
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import job_options
from comfy_fleet.api.deps import NodeFacts, deps, operator, owner, principal
from comfy_fleet.api.job_options import JobOptionsBody
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import Replay, read, read_query
from comfy_fleet.api.v1.jobs import shown
from comfy_fleet.api.waiting import SubmitWait
from comfy_fleet.domain.errors import NodeError, NotFound
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.graphs.graph_problems import Problem
from comfy_fleet.domain.graphs.workflow import Workflow, json_schema
from comfy_fleet.domain.limits import refused_workflow
from comfy_fleet.ports.jobs import Submitted
from comfy_fleet.services.workflow_check import check_workflow

_AT_ONCE = 8  # nodes that are asked at the same time: half a megabyte each


class NewJobBody(JobOptionsBody):
    """A job from a stored workflow."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"params": {"prompt": "a red fox"}, "metadata": {"order": "4711"}}},
    )

    params: dict[str, Any] = Field(default_factory=dict, description="Values by parameter name.")


async def list_workflows(request: Request) -> Response:
    """Every stored workflow with its parameters' names; `broken` says whose files can't be used, and why."""
    owner(request)
    catalog, quotas = deps(request).catalog, tuple(principal(request).quotas)
    found = [
        {
            "name": w.name,
            "title": w.title,
            "description": w.description,
            "version": w.version,
            "folder": w.folder or None,
            "parameters": [p.name for p in w.parameters],
            "allowed": refused_workflow(quotas, w.name) is None,
        }
        for w in await catalog.list()
    ]
    broken = {name: str(error) for name, error in (await catalog.errors()).items()}
    return json_response({"workflows": found, "broken": broken})


async def get_workflow(request: Request) -> Response:
    """JSON Schema of its parameters, what a node must have, and in `broken` why its files are not in use."""
    who, catalog = owner(request), deps(request).catalog
    found = await catalog.get(request.path_params["workflow"], who)
    broken = await catalog.error_of(found.name)
    return json_response({**_described(found), "broken": None if broken is None else str(broken)})


async def run_workflow(request: Request) -> Response:
    """Submit a job; `Idempotency-Key` makes it safe to send again."""
    d, who, name = deps(request), owner(request), request.path_params["workflow"]
    waiting = SubmitWait.of(request)
    body = await read(request, NewJobBody)
    replay = Replay(request, who, body.identity())

    async def submit() -> Submitted:
        return await d.submitter.stored(
            who,
            name,
            body.params,
            job_options.options(request, body, replay.idempotency),
        )

    show = partial(shown, request)
    return await replay.answer(201, submit, show, then=waiting.then(usual=show, finished=show))


class CheckQuery(BaseModel):
    """Which nodes."""

    node: str | None = Field(None, description="Only this node.")


async def check_workflow_on_nodes(request: Request) -> Response:
    """Ask each node for its classes and files, and list what keeps it from running the workflow."""
    who, d = operator(request).owner, deps(request)
    workflow = await d.catalog.get(request.path_params["workflow"], who)
    node = read_query(request, CheckQuery).node
    names = [known.name for known in await d.nodes.nodes() if node in (None, known.name)]
    if not names:
        raise NotFound(f"no node {node!r}" if node else "no node is known: add one with `fleet node add`")
    policy = FilePolicy.parse(d.settings.deny_classes, d.settings.free_paths, d.settings.allow_classes)
    limit = asyncio.Semaphore(_AT_ONCE)
    found = await asyncio.gather(*(_look(d.node_facts, limit, one, workflow, policy) for one in names))
    broken = await d.catalog.error_of(workflow.name)
    return json_response(
        {
            "workflow": workflow.name,
            "version": workflow.version,
            "broken": None if broken is None else str(broken),
            "nodes": found,
        }
    )


async def _look(
    facts: NodeFacts, limit: asyncio.Semaphore, node: str, workflow: Workflow, policy: FilePolicy
) -> dict[str, Any]:
    async with limit:
        try:
            stats, inventory = await asyncio.gather(facts.system_stats(node), facts.inventory(node))
        except NodeError as error:
            problem = {"kind": "unreachable", "message": str(error)}
            return {"node": node, "comfyui": "", "ok": False, "problems": [problem]}
        version = str((stats.get("system") or {}).get("comfyui_version") or "")
        problems = await asyncio.to_thread(check_workflow, workflow, inventory, version, policy=policy)
    ok = all(problem.only_with for problem in problems)  # an optional choice
    return {"node": node, "comfyui": version, "ok": ok, "problems": [_shown(one) for one in problems]}


def _shown(problem: Problem) -> dict[str, Any]:
    return {name: value for name, value in asdict(problem).items() if name != "doubtful"}


def _described(value: Workflow) -> dict[str, Any]:
    """Return a stored workflow with the schema of its parameters."""
    needs = value.requires
    return {
        "name": value.name,
        "title": value.title,
        "description": value.description,
        "version": value.version,
        "folder": value.folder or None,
        "parameters": json_schema(value),
        "requires": {
            "comfyui": needs.comfyui,
            "models": [
                {"file": m.file, "folder": m.folder, "source": m.source, "optional": m.optional}
                for m in needs.models
            ],
            "vram_gb": needs.vram_gb,
            "pool": needs.pool,
            "prefer_pool": needs.prefer_pool,
            "spill_to": list(needs.spill_to),
            "zone": needs.zone,
            "labels": dict(needs.labels),
            "note": needs.note,
        },
    }
