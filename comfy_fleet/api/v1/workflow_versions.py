"""REST: publishing stored workflows, their versions, labels and history, and going back."""

import asyncio
import hashlib
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.asset_response import SAFE_HEADERS, is_known
from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import artist, deps, links, owner
from comfy_fleet.api.json import json_response
from comfy_fleet.api.serialize import time
from comfy_fleet.api.typed_bodies import read, read_optional, read_query
from comfy_fleet.api.v1.workflow_answers import (
    HistoryEntryAnswer,
    LabelAnswer,
    PublishedWorkflowAnswer,
    VersionFactsAnswer,
    WorkflowVersionAnswer,
)
from comfy_fleet.api.v1.workflow_bodies import PublishQuery, named, read_upload, thumbnail_in
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.graphs.stored import (
    MAX_NOTE,
    EditorGraph,
    HistoryEntry,
    Published,
    VersionFacts,
)
from comfy_fleet.domain.graphs.workflow_names import PRODUCTION, WorkflowReference, kept_in_folder
from comfy_fleet.ports.workflows import FoundWorkflow
from comfy_fleet.services.workflow_export import zipped
from comfy_fleet.services.workflow_publisher import Prepared, Publication


async def publish_workflow(request: Request) -> Response:
    """Make a graph the version in production. The next job uses it.

    The body is an object with `graph`, or a file as it is: a graph in API format, or a PNG or WebP that
    ComfyUI made; then the other fields are in the query. Without `manifest`, limits, choices and roles of the
    parameters are kept. If somebody published another version since `base_version`, the answer is 409: its
    details say who, when and what differs; `force` publishes all the same.
    """
    who, d = artist(request), deps(request)
    upload = await read_upload(request, read_query(request, PublishQuery))
    options = upload.options
    name, editor_name = named(request, options.editor_name)
    wanted = Publication(
        graph=upload.graph,
        author=who,
        ui=upload.ui,
        manifest=options.manifest,
        base_version=options.base_version,
        force=options.force,
        note=options.note,
        thumbnail=thumbnail_in(options),
        editor_name=editor_name,
        size_bytes=upload.size_bytes,
    )
    if options.dry_run:
        return json_response(published(name, await d.publisher.prepare(name, wanted), None))
    made, done = await d.publisher.publish(name, wanted)
    answer = published(name, made, done)
    await audit(request, "workflow.published", workflow=name, version=answer["version"])
    return json_response(answer)


async def remove_workflow(request: Request) -> Response:
    """Remove a stored workflow from the store, with all its versions. Its jobs go on, and drafts stay."""
    who = artist(request)
    d, (name, _) = deps(request), named(request)
    if await d.workflows.remove(name, author=who):
        await audit(request, "workflow.removed", workflow=name)
        return Response(status_code=204)
    if folder := d.catalog.folder_of(name):
        raise kept_in_folder(name, folder)
    raise _missing(name)


async def list_versions(request: Request) -> Response:
    """The versions that are kept, and the labels that name them."""
    who, d, (name, _) = owner(request), deps(request), named(request)
    record = await d.workflows.record(name)
    if record is None or d.catalog.folder_of(name):
        found = await d.catalog.find(name, who)
        return json_response(
            {
                "name": name,
                "folder": found.folder,
                "editor_name": "",
                "production": found.workflow.version,
                "changed_by": None,
                "changed_at": None,
                "labels": {PRODUCTION: found.workflow.version},
                "versions": [],
            }
        )
    return json_response(
        {
            "name": name,
            "folder": None,
            "editor_name": record.editor_name,
            "production": record.production,
            "changed_by": record.changed_by,
            "changed_at": time(record.changed_at),
            "labels": dict(record.labels),
            "versions": [_facts(request, name, one) for one in record.versions],
        }
    )


async def get_version(request: Request) -> Response:
    """A version, by its digits, the beginning of them, or a label; or `draft`, the caller's own."""
    found, facts, ui, thumbnail = await _whole(request)
    name = found.workflow.name
    answer: WorkflowVersionAnswer = {
        "name": name,
        "version": found.workflow.version,
        "draft": found.draft,
        "folder": found.folder or None,
        "author": facts.author if facts else None,
        "published_at": time(facts.published_at) if facts else None,
        "note": facts.note if facts else "",
        "graph": found.content.graph,
        "ui": None if ui is None else dict(ui),
        "manifest": dict(found.content.manifest),
        "thumbnail_url": _thumbnail_url(request, name, found.workflow.version) if thumbnail else None,
    }
    return json_response(answer)


async def get_thumbnail(request: Request) -> Response:
    """A small WebP of what the version makes, if its author brought one."""
    owner(request)
    name, which = request.path_params["workflow"], request.path_params["version"]
    found = await deps(request).workflows.version(WorkflowReference.parse(f"{name}@{which}"))
    if found is None or found.thumbnail is None:
        raise NotFound(f"there is no picture of {name}@{which}", details={"field": "version"})
    # A label moves, and a version that is published again may get another picture.
    tag = f'"{hashlib.sha256(found.thumbnail).hexdigest()[:32]}"'
    headers = {**SAFE_HEADERS, "ETag": tag, "Cache-Control": "private, no-cache"}
    if is_known(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(found.thumbnail, media_type="image/webp", headers=headers)


async def export_workflow(request: Request) -> Response:
    """A ZIP with the files of a folder of stored workflows: graph, manifest, and the editor's graph.

    The name in the path may have `@VERSION`, `@LABEL` or `@draft`.
    """
    found, _, ui, _ = await _whole(request)
    name = found.workflow.name
    data = await asyncio.to_thread(zipped, name, found.content, ui)
    headers = {**SAFE_HEADERS, "Content-Disposition": f'attachment; filename="{name}.zip"'}
    return Response(data, media_type="application/zip", headers=headers)


async def workflow_history(request: Request) -> Response:
    """Who published, rolled back and labelled what, and when; the latest first, at most 500."""
    who, d, (name, _) = owner(request), deps(request), named(request)
    history = await d.workflows.history(name)
    if not history:
        await d.catalog.find(name, who)  # it is in the folder, or there is none
    return json_response({"name": name, "history": [_entry(one) for one in history]})


class WorkflowDiffQuery(BaseModel):
    """Which versions; each by its digits, the beginning of them, a label, or `draft`."""

    a: str | None = Field(None, description="Default: what was in production before b.")
    b: str = Field(PRODUCTION, description="The later one.")


async def diff_workflow(request: Request) -> Response:
    """What differs in nodes, inputs and parameters, and what of it breaks callers."""
    who, d, (name, _) = owner(request), deps(request), named(request)
    query = read_query(request, WorkflowDiffQuery)
    before = query.a or await _before(request, name, query.b)
    old, new, found, breaking = await d.publisher.diff(name, before, query.b, owner=who)
    return json_response(
        {
            "name": name,
            "a": old.version,
            "b": new.version,
            "differences": [_plain(one) for one in found],
            "breaking_changes": [_plain(one) for one in breaking],
        }
    )


async def _before(request: Request, name: str, which: str) -> str:
    d = deps(request)
    reference = WorkflowReference.parse(f"{name}@{which}")
    if reference.draft:
        return PRODUCTION
    version = await d.workflows.find(reference)
    for one in await d.workflows.history(name):
        if one.version == version and one.label == PRODUCTION and one.before:
            return one.before
    raise NotFound(
        f"nothing was in production before {reference}: say what to compare it with, a=VERSION",
        details={"field": "a"},
    )


class RollbackBody(BaseModel):
    """Where to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: str | None = Field(
        None,
        max_length=80,
        description="Its digits, their beginning, or a label. Default: what was in production before.",
    )
    base_version: str | None = Field(
        None,
        max_length=80,
        description="What must be in production until now; else 409. Needed (digits) without version.",
    )
    note: str = Field("", max_length=MAX_NOTE, description="Why.")


async def roll_back_workflow(request: Request) -> Response:
    """Put an earlier version into production. The next job uses it.

    Without `version` it is the one that was in production before `base_version`: of two who go back from
    there, the second changes nothing, and so does a call that is repeated because its answer was lost.
    """
    who, d, (name, _) = artist(request), deps(request), named(request)
    body = await read_optional(request, RollbackBody)
    entry = await d.publisher.roll_back(
        name, body.version, author=who, base_version=body.base_version, note=body.note
    )
    await audit(request, "workflow.rolled_back", workflow=name, version=body.version, note=body.note)
    return json_response(_label(name, entry))


class LabelBody(BaseModel):
    """What a label is to name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: str = Field(
        PRODUCTION, max_length=80, description="Its digits, their beginning, or another label."
    )
    base_version: str | None = Field(
        None,
        max_length=80,
        description="What the label must name until now; null: nothing; else 409. Default: anything.",
    )
    note: str = Field("", max_length=MAX_NOTE, description="Why.")


async def put_label(request: Request) -> Response:
    """Make a label name a version; `production` is the one that a plain name means."""
    who, d, (name, _) = artist(request), deps(request), named(request)
    body = await read(request, LabelBody)
    entry = await d.publisher.label(
        name,
        request.path_params["label"],
        body.version,
        author=who,
        note=body.note,
        base_version=body.base_version,
        new=body.base_version is None and "base_version" in body.model_fields_set,
    )
    label = request.path_params["label"]
    await audit(request, "workflow.labeled", workflow=name, label=label, version=body.version)
    return json_response(_label(name, entry))


async def remove_label(request: Request) -> Response:
    """Remove a label; the version stays. `production` can only be moved."""
    who, d, (name, _) = artist(request), deps(request), named(request)
    label = request.path_params["label"]
    if not await d.workflows.unlabel(name, label, author=who):
        raise NotFound(f"no version of {name} has the label {label[:80]!r}", details={"field": "label"})
    await audit(request, "workflow.unlabeled", workflow=name, label=label)
    return Response(status_code=204)


# ----------------------------------------------------------------------------------------------------------


async def _whole(
    request: Request,
) -> tuple[FoundWorkflow, VersionFacts | None, EditorGraph | None, bytes | None]:
    """Return the version that a path means with all that belongs to it; its facts if it was published."""
    who, d = owner(request), deps(request)
    reference = request.path_params["workflow"]
    if (which := request.path_params.get("version")) is not None:
        reference = f"{reference}@{which}"
    found = await d.catalog.find(reference, who)
    if found.folder or found.draft:
        return found, None, found.ui, None
    version = WorkflowReference.parse(f"{found.workflow.name}@{found.workflow.version}")
    whole = await d.workflows.version(version)
    if whole is None:  # removed a moment ago
        raise _missing(found.workflow.name)
    return found, whole.facts, whole.ui, whole.thumbnail


def published(name: str, made: Prepared, done: Published | None) -> PublishedWorkflowAnswer:
    """Return the answer for a version that was published, or would be."""
    version = made.workflow.version
    current = made.current.version if made.current else None
    return {
        "name": name,
        "version": version,
        "before": current if done is None else done.before or None,
        "changed": current != version if done is None else done.changed,
        "dry_run": done is None,
        "published_at": None if done is None else time(done.at),
        "parameters": [one.name for one in made.workflow.parameters],
        "differences": [_plain(one) for one in made.differences],
        "breaking_changes": [_plain(one) for one in made.breaking],
    }


def _plain(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


def _facts(request: Request, name: str, one: VersionFacts) -> VersionFactsAnswer:
    return {
        "version": one.version,
        "author": one.author,
        "published_at": time(one.published_at),
        "note": one.note,
        "labels": list(one.labels),
        "has_ui": one.has_ui,
        "thumbnail_url": _thumbnail_url(request, name, one.version) if one.has_thumbnail else None,
        "size_bytes": one.size_bytes,
    }


def _thumbnail_url(request: Request, name: str, version: str) -> str:
    return f"{links(request).base}/api/v1/workflows/{name}/versions/{version}/thumbnail"


def _entry(one: HistoryEntry) -> HistoryEntryAnswer:
    return {
        "at": time(one.at),
        "author": one.author,
        "action": one.action,
        "version": one.version,
        "before": one.before or None,
        "label": one.label,
        "note": one.note,
    }


def _label(name: str, entry: HistoryEntry) -> LabelAnswer:
    return {
        "name": name,
        "label": entry.label,
        "version": entry.version,
        "before": entry.before or None,
        "changed": entry.before != entry.version,
    }


def _missing(name: str) -> NotFound:
    return NotFound(f"the fleet's store has no workflow {name}", details={"field": "workflow"})
