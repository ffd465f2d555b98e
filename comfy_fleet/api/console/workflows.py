"""The console's pages about stored workflows: which there are, and a form to make a job of each.

The form's script submits as a program does, to ``/api/v1/workflows/NAME/jobs``, so that the same rules count.
"""

from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from comfy_fleet.api import job_options, jobs
from comfy_fleet.api.console.paging import Pages, number
from comfy_fleet.api.console.parameter_fields import fields_of
from comfy_fleet.api.console.rendering import is_part, page
from comfy_fleet.api.deps import deps, owner, principal
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference, short
from comfy_fleet.domain.jobs.job import MIN_PRIORITY, JobStatus, Output
from comfy_fleet.domain.jobs.media import is_picture
from comfy_fleet.domain.limits import refused_workflow
from comfy_fleet.services.unrun_saves import unrun_message

EACH = 50
MOST_PICTURES = 24
MOST_DRAFTS = 100
WIDTH = 768
"""Of a result's picture, in pixels."""


async def show_all(request: Request) -> Response:
    """``GET /console/workflows``: what is stored, and the caller's drafts. Query: ``q``, ``page``."""
    who, d, query = owner(request), deps(request), request.query_params
    part = query.get("q", "")[:64].strip()
    served = {one.name: one for one in await d.catalog.list()}
    errors = await d.catalog.errors()
    quotas = tuple(principal(request).quotas)
    names = sorted(
        name
        for name in served.keys() | errors.keys()
        if part.lower() in f"{name} {served[name].title if name in served else ''}".lower()
    )
    pages = Pages(total=len(names), each=EACH, number=number(query.get("page", "")))
    drafts = await d.workflows.drafts(who)
    rows = []
    for name in names[pages.first : pages.last]:
        workflow, error = served.get(name), errors.get(name)
        word = "usable" if error is None else "faulty" if workflow else "unusable"
        rows.append(
            {
                "name": name,
                "workflow": workflow,
                "word": word if refused_workflow(quotas, name) is None else "not allowed",
                "error": str(error) if error else "",
                "folder": d.catalog.folder_of(name),
                "version": short(workflow.version) if workflow else "",
            }
        )
    return page(
        request,
        "workflows.html",
        title="Workflows",
        here="workflows",
        rows=rows,
        all=len(served.keys() | errors.keys()),
        pages=pages,
        chosen=part,
        query=urlencode({"q": part} if part else {}),
        drafts=[(name, at, name in served) for name, at in list(drafts.items())[:MOST_DRAFTS]],
        unrun=[await unrun_message(d.drafts, who, one) for one in (await d.drafts.all_unrun(who))[:20]],
    )


async def show(request: Request) -> Response:
    """``GET /console/workflows/NAME``: its form. Query: ``from``, a job of the caller's, fills it in."""
    who, d = owner(request), deps(request)
    reference = request.path_params["workflow"]
    found = await d.catalog.find(reference, who)
    workflow, broken = found.workflow, await d.catalog.error_of(found.workflow.name)
    values: dict[str, Any] = {}
    if (earlier := request.query_params.get("from")) is not None:
        values = dict((await jobs.read_job(request, earlier)).params)
    return page(
        request,
        "workflow.html",
        title=workflow.title or workflow.name,
        here="workflows",
        reference=reference,
        draft=found.draft,
        workflow=workflow,
        version=short(workflow.version),
        broken=str(broken) if broken else "",
        refused=refused_workflow(tuple(principal(request).quotas), None if found.draft else workflow.name),
        fields=fields_of(workflow.parameters, values),
        priorities=(MIN_PRIORITY, job_options.most_priority(request)),
        plain=WorkflowReference.parse(reference).name == reference,
    )


async def made(request: Request) -> Response:
    """``GET /console/made/JOB``: the part of a workflow's page that shows a job of it, for its script."""
    job = await jobs.read_job(request, request.path_params["job_id"])
    if not is_part(request):
        return RedirectResponse(f"../jobs/{job.id}", 303, {"Cache-Control": "no-store"})
    d = deps(request)
    return page(
        request,
        "made.html",
        title=job.id,
        here="workflows",
        job=job,
        place=await d.jobs.position(job) if job.status is JobStatus.QUEUED else None,
        simulated=d.simulated(job.node),
        outputs=[_shown(one) for one in job.outputs[:MOST_PICTURES]],
        more=max(0, len(job.outputs) - MOST_PICTURES),
        mine=job.owner == principal(request).owner,
    )


def _shown(one: Output) -> dict[str, Any]:
    address = f"api/v2/assets/{one.asset_id}/content"
    seen = is_picture(one.content_type) and not one.withheld
    return {
        "name": one.name,
        "size": one.size_bytes,
        "withheld": one.withheld,
        "temporary": one.temporary,
        "address": address,
        "picture": f"{address}?format=webp&width={WIDTH}" if seen else None,
    }


routes = [
    ServedRoute("/console/workflows", show_all, name="console_workflows", console=True),
    ServedRoute("/console/workflows/{workflow}", show, name="console_workflow", console=True),
    ServedRoute("/console/made/{job_id}", made, name="console_made", console=True),
]
