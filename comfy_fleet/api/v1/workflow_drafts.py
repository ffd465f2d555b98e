"""REST: people's drafts of stored workflows, and the manifests of those that are published."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.body import params_limits, read_object
from comfy_fleet.api.deps import artist, deps, owner
from comfy_fleet.api.json import json_response
from comfy_fleet.api.serialize import time
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.api.v1.workflow_answers import DraftAnswer, ManifestAnswer, ParameterAnswer
from comfy_fleet.api.v1.workflow_bodies import BaseQuery, PublishQuery, named, read_upload
from comfy_fleet.api.v1.workflow_versions import published
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.graphs.stored import Draft
from comfy_fleet.domain.graphs.workflow import Parameter
from comfy_fleet.services.large_graphs import LARGE_BYTES, worked
from comfy_fleet.services.unrun_saves import unrun_message


async def get_draft(request: Request) -> Response:
    """The caller's own draft: what a save in the editor and a run of it have made, or a PUT."""
    who, d, (name, _) = owner(request), deps(request), named(request)
    await d.drafts.ready(who)
    draft = await d.workflows.draft(who, name)
    if draft is None:
        raise await _no_draft(request, name)
    return json_response(_draft(name, draft))


async def put_draft(request: Request) -> Response:
    """Replace the caller's own draft. `NAME@draft` runs it, and nobody else sees it.

    The body is the same as for publishing, or a file; fields that only publishing needs don't matter.
    Each person has at most 100 drafts and 64 MiB of them (compressed); those saved longest ago make room.
    """
    who, d = owner(request), deps(request)
    upload = await read_upload(request, read_query(request, PublishQuery))
    name, editor_name = named(request, upload.options.editor_name)
    graph = await worked(upload.size_bytes > LARGE_BYTES, lambda: check(upload.graph))
    base = await d.publisher.base(name, upload.options.base_version)
    draft = Draft(
        graph=graph,
        ui=upload.ui,
        manifest=upload.options.manifest,
        base_version=base or "",
        editor_name=editor_name,
    )
    return json_response(_draft(name, await d.workflows.save_draft(who, name, draft)))


async def drop_draft(request: Request) -> Response:
    """Forget the caller's own draft; the file in the editor stays."""
    who, d, (name, _) = owner(request), deps(request), named(request)
    if not await d.workflows.drop_draft(who, name):
        raise await _no_draft(request, name)
    return Response(status_code=204)


async def get_manifest(request: Request) -> Response:
    """The manifest, and each parameter with its limits, choices and role as they are in use.

    The name in the path may have `@VERSION`, `@LABEL` or `@draft`.
    """
    found = await deps(request).catalog.find(request.path_params["workflow"], owner(request))
    answer: ManifestAnswer = {
        "name": found.workflow.name,
        "version": found.workflow.version,
        "folder": found.folder or None,
        "manifest": dict(found.content.manifest),
        "parameters": [_parameter(one) for one in found.workflow.parameters],
    }
    return json_response(answer)


class ManifestPatchBody(BaseModel):
    """What changes: objects go into objects, null removes a key, everything else replaces (RFC 7396)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"parameters": {"steps": {"min": 1, "max": 50, "description": "More takes longer."}}}
        },
    )

    title: str | None = None
    description: str | None = None
    parameters: dict[str, dict[str, Any] | None] | None = Field(
        None,
        description="By name: `type`, `min`, `max`, `choices`, `role` and the rest of `workflow.toml`.",
    )
    requires: dict[str, Any] | None = None


async def patch_manifest(request: Request) -> Response:
    """Change limits, choices, roles or requirements. That is a new version with the same graph."""
    who, d, (name, _) = artist(request), deps(request), named(request)
    query = read_query(request, BaseQuery)
    patch = await read_object(request, params_limits(d.settings))
    made, done = await d.publisher.change_manifest(
        name, patch, author=who, base_version=query.base_version, note=query.note
    )
    return json_response(published(name, made, done))


def _draft(name: str, draft: Draft) -> DraftAnswer:
    return {
        "name": name,
        "editor_name": draft.editor_name,
        "saved_at": time(draft.saved_at),
        "base_version": draft.base_version or None,
        "job_id": draft.job_id or None,
        "graph": draft.graph,
        "ui": None if draft.ui is None else dict(draft.ui),
        "manifest": None if draft.manifest is None else dict(draft.manifest),
    }


async def _no_draft(request: Request, name: str) -> NotFound:
    who, drafts = owner(request), deps(request).drafts
    unrun = await drafts.unrun(who, name)
    if unrun is not None:
        message = await unrun_message(drafts, who, unrun)
        return NotFound(message, details={"field": "workflow", "file": unrun.file})
    return NotFound(
        f"you have no draft of {name}: save it in the editor and run it once to make a draft, or PUT one "
        "here",
        details={"field": "workflow"},
    )


def _parameter(one: Parameter) -> ParameterAnswer:
    return {
        "name": one.name,
        "type": one.type,
        "title": one.title,
        "description": one.description,
        "default": one.default,
        "required": one.required,
        "min": one.minimum,
        "max": one.maximum,
        "multiple_of": one.multiple_of,
        "min_length": one.min_length,
        "max_length": one.max_length,
        "format": one.format,
        "choices": [
            {"name": choice.name, "label": choice.label, "value": choice.value} for choice in one.choices
        ],
        "accept": list(one.accept),
        "max_bytes": one.max_bytes,
        "role": one.role or None,
        "targets": [
            {"node_id": target.node_id, "input": target.input, "form": target.form.value}
            for target in one.targets
        ],
    }
