"""REST for operators: how full the queue is, and whether live nodes can run a stored workflow."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import NodeFacts, admin, deps
from comfy_fleet.api.json import json_response
from comfy_fleet.domain.errors import NodeError, NotFound
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.graphs.inventory import Problem
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.services.workflow_check import check_workflow

router = APIRouter(tags=["operators"])
_AT_ONCE = 8  # nodes that are asked side by side: half a megabyte each


@router.get("/queue", summary="How many jobs wait")
async def queue(request: Request) -> Response:
    """All callers' jobs together."""
    return json_response({"queued": await deps(request).jobs.depth()})


@router.get("/workflows/{name}/check", summary="Can live nodes run a workflow?")
async def check(
    request: Request, name: str, node: Annotated[str | None, Query(description="Only this node.")] = None
) -> Response:
    """Ask each node for its classes and files, and list what keeps it from running the workflow."""
    admin(request)
    d = deps(request)
    workflow = d.catalog.get(name)
    names = [known.name for known in await d.nodes.nodes() if node in (None, known.name)]
    if not names:
        raise NotFound(f"no node {node!r}" if node else "no node is known: add one with `fleet node add`")
    policy = FilePolicy.parse(d.settings.deny_classes, d.settings.free_paths)
    limit = asyncio.Semaphore(_AT_ONCE)
    found = await asyncio.gather(*(_look(d.node_facts, limit, one, workflow, policy) for one in names))
    broken = d.catalog.errors().get(name)
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
    ok = all(problem.only_with for problem in problems)  # a choice that nobody has to make
    return {"node": node, "comfyui": version, "ok": ok, "problems": [_shown(one) for one in problems]}


def _shown(problem: Problem) -> dict[str, Any]:
    return {name: value for name, value in asdict(problem).items() if name != "doubtful"}
