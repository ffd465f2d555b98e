"""REST: drafts that the editor hands over, their checks, and publishing."""

import asyncio
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import serialize
from comfy_fleet.api.audit import audit
from comfy_fleet.api.body import graph_limits
from comfy_fleet.api.deps import artist, deps, links, owner, principal, workflow_alone
from comfy_fleet.api.json import json_response
from comfy_fleet.api.origins import console_base
from comfy_fleet.api.typed_bodies import read, read_optional
from comfy_fleet.domain.errors import BadInput, NotFound
from comfy_fleet.domain.graphs.editor_graph import (
    check_editor_graph,
    check_same_graph,
    opened_from,
    stamped,
)
from comfy_fleet.domain.graphs.graph import Graph, check
from comfy_fleet.domain.graphs.publish_check import PublishCheck
from comfy_fleet.domain.graphs.same_id_files import same_id_files
from comfy_fleet.domain.graphs.stored import MAX_NOTE, Draft, EditorGraph
from comfy_fleet.domain.graphs.workflow_names import MAX_EDITOR_NAME, NAME, WorkflowReference, slug
from comfy_fleet.services.draft_checks import TrialRun
from comfy_fleet.services.unrun_saves import unrun_message


class EditorDraftBody(BaseModel):
    """An open graph, in both formats."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="What the editor calls it.", min_length=1, max_length=MAX_EDITOR_NAME)
    graph: dict[str, Any] = Field(description="In API format.")
    ui: dict[str, Any] = Field(description="In the editor's format.")


class CheckBody(BaseModel):
    """How to test a draft."""

    model_config = ConfigDict(extra="forbid", strict=True)

    again: bool = Field(False, description="Run the test once more, although it has run.")
    params: dict[str, Any] = Field(
        default_factory=dict, description="Values of required parameters; all others have their defaults."
    )


class PublishDraftBody(BaseModel):
    """What is published, and over what."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"draft": "sha256:4f0c", "note": "softer light"}},
    )

    draft: str = Field(description="The seal that the check has returned.", max_length=80)
    over: str | None = Field(
        None,
        description="The version in production that you have seen and mean to replace: needed if somebody "
        "else has published since your draft was begun. Empty: there is none, also not any more.",
        max_length=80,
    )
    note: str = Field("", description="What has changed.", max_length=MAX_NOTE)
    breaking: bool = Field(False, description="Whether callers may break.")
    leave_out_unrun: bool = Field(
        False, description="Whether a file that was saved since the draft, and not run, may be left out."
    )
    leave_out_files: bool = Field(
        False, description="Whether other files of yours with the same id may be left out."
    )


def publish_url(request: Request, name: str) -> str:
    """Return the address of the page where a draft is checked and published."""
    return f"{console_base(request, deps(request).settings)}/publish/{name}"


async def save_editor_draft(request: Request) -> Response:
    """Keep the graph that is open in the editor as a draft, and say where it is checked and published."""
    who, d = owner(request), deps(request)
    body = await read(request, EditorDraftBody, graph_limits(d.settings))
    name = slug(body.name)
    if not NAME.fullmatch(name):
        raise BadInput("name: give the workflow a name with letters or digits", details={"field": "name"})
    graph, ui = await asyncio.to_thread(_both, body)
    workflow, version = opened_from(ui)
    base = version if workflow == name else ""
    await d.workflows.save_draft(
        who, name, Draft(graph=graph, ui=ui, base_version=base, editor_name=body.name.strip())
    )
    return json_response({"workflow": name, "publish_url": publish_url(request, name)}, 201)


def _both(body: EditorDraftBody) -> tuple[Graph, EditorGraph]:
    graph, ui = check(body.graph), check_editor_graph(body.ui)
    check_same_graph(graph, ui)
    return graph, ui


async def list_drafts(request: Request) -> Response:
    """The caller's drafts, the latest first; `unrun` has what was saved and must be run once to be one."""
    who, d = owner(request), deps(request)
    await d.drafts.ready(who)
    found = [
        {"workflow": name, "saved_at": serialize.time(at), "publish_url": publish_url(request, name)}
        for name, at in (await d.workflows.drafts(who)).items()
    ]
    unrun = [
        {
            "workflow": one.workflow,
            "file": one.file,
            "saved_at": serialize.time(one.saved_at),
            "message": await unrun_message(d.drafts, who, one),
        }
        for one in await d.drafts.all_unrun(who)
    ]
    return json_response(
        {
            "drafts": found,
            "unrun": unrun,
            "workflows_url": f"{console_base(request, d.settings)}/workflows",
        }
    )


async def editor_graph(request: Request) -> Response:
    """A stored workflow as the editor opens it; a draft of it knows which version it began with."""
    who, d = owner(request), deps(request)
    found = await d.catalog.find(request.path_params["workflow"], who)
    name, version = found.workflow.name, found.workflow.version
    ui, editor_name = found.ui, name
    if ui is None and not found.folder:
        kept = await d.workflows.version(WorkflowReference.parse(f"{name}@{version}"))
        record = await d.workflows.record(name)
        ui = kept.ui if kept else None
        editor_name = (record.editor_name if record else "") or name
    if ui is None:
        raise NotFound(
            f"{name} is stored without the editor's graph: open one of its pictures in the editor instead, "
            "and publish that",
            details={"field": "workflow", "workflow": name},
        )
    opened = ui if found.draft else stamped(ui, name, version)
    return json_response({"workflow": name, "version": version, "editor_name": editor_name, "ui": opened})


async def check_draft(request: Request) -> Response:
    """Check the caller's draft, and test it; ask again to learn how the test run goes."""
    who, d = artist(request), deps(request)
    body = await read_optional(request, CheckBody)
    run = TrialRun(again=body.again, params=body.params, quotas=principal(request).quotas)
    found = await d.publishing.check(who, workflow_alone(request), run)
    return json_response(await shown(request, found))


async def publish(request: Request) -> Response:
    """Publish the caller's draft, if it is exactly what was checked; the next job uses it."""
    who, d = artist(request), deps(request)
    body = await read(request, PublishDraftBody)
    name = workflow_alone(request)
    done = await d.publishing.publish(
        who,
        name,
        draft=body.draft,
        over=body.over,
        note=body.note,
        breaking=body.breaking,
        leave_out_unrun=body.leave_out_unrun,
        leave_out_files=body.leave_out_files,
    )
    await audit(request, "workflow.published", workflow=name, version=done.version, before=done.before)
    return json_response(
        {
            "workflow": name,
            "version": done.version,
            "before": done.before,
            "changed": done.changed,
            "published_at": serialize.time(done.at),
        }
    )


async def shown(request: Request, found: PublishCheck) -> dict[str, Any]:
    """Return a check for an answer."""
    job = await deps(request).jobs.get(found.job_id) if found.job_id else None
    made = serialize.outputs(job, links(request)) if job else []
    in_production = {
        "version": found.production,
        "changed_by": found.changed_by,
        "changed_at": serialize.time(found.changed_at),
    }
    return {
        "workflow": found.name,
        "draft": found.draft,
        "version": found.version,
        "editor_name": found.editor_name,
        "saved_at": serialize.time(found.saved_at),
        "ready": found.ready,
        "unchanged": found.unchanged,
        "steps": [
            {"name": one.name, "state": one.state, "message": one.message, "problems": list(one.problems)}
            for one in found.steps
        ],
        "test_run": {"job_id": found.job_id, "outputs": made} if found.job_id else None,
        "production": in_production if found.production else None,
        "base_version": found.base_version,
        "overtaken": found.overtaken,
        "removed": {
            "removed_by": found.changed_by or None,
            "removed_at": serialize.time(found.changed_at) if found.changed_at else None,
        }
        if found.removed
        else None,
        "theirs": [asdict(one) for one in found.theirs],
        "changes": [asdict(one) for one in found.changes],
        "breaking": [asdict(one) for one in found.breaking],
        "unrun": found.unrun,
        "files": list(found.files),
        "files_message": same_id_files(found.name, found.files) if found.files else "",
    }
