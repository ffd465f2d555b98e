"""Bodies that bring a stored workflow: JSON with a graph in it, or a file as ComfyUI writes it."""

import asyncio
import base64
import binascii
import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from comfy_fleet.api.body import (
    JsonLimits,
    graph_limits,
    has_more_values,
    not_json,
    read_body,
    refuse_type,
)
from comfy_fleet.api.deps import deps, let_others_in, owner
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.typed_bodies import checked
from comfy_fleet.domain.errors import BadInput, Busy
from comfy_fleet.domain.graphs.graph_file import read_graph_file
from comfy_fleet.domain.graphs.stored import MAX_NOTE, MAX_THUMBNAIL_BYTES
from comfy_fleet.domain.graphs.workflow_names import MAX_EDITOR_NAME, NAME, slug
from comfy_fleet.turns import NoTurn

MAX_PICTURE_BYTES = 64 * 1024 * 1024
"""Largest picture with a graph in it, if it comes with the Content-Type of one: a few are read at once."""
_PICTURES = (b"\x89PNG", b"RIFF", b"\xff\xd8\xff")
_BASE = (
    "The version it was made from: its digits, their beginning, or a label. Without it, the name must be new."
)


class BaseQuery(BaseModel):
    """What a change is based on."""

    base_version: str | None = Field(None, max_length=80, description=_BASE)
    note: str = Field("", max_length=MAX_NOTE, description="What has changed.")


class PublishQuery(BaseQuery):
    """For a body that is a file; a body with `graph` has these fields in itself."""

    force: bool = Field(False, description="Publish over whatever is in production.")
    dry_run: bool = Field(False, description="Only check it and say what would change.")
    editor_name: str = Field("", max_length=MAX_EDITOR_NAME, description="Its name in the editor.")


class DraftBody(BaseModel):
    """A draft: a graph, and what belongs to it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graph: dict[str, Any] = Field(description="In API format, as ComfyUI's Export (API) writes it.")
    ui: dict[str, Any] | None = Field(None, description="The same graph in the editor's own format.")
    manifest: dict[str, Any] | None = Field(
        None, description="As in `workflow.toml`. Without it, the one in production is kept."
    )
    base_version: str | None = Field(None, max_length=80, description=_BASE)
    editor_name: str = Field("", max_length=MAX_EDITOR_NAME, description="Its name in the editor.")


class PublishBody(DraftBody):
    """A version of a stored workflow."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "graph": {"1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}}},
                "note": "sharper",
            }
        },
    )

    note: str = Field("", max_length=MAX_NOTE, description="What has changed.")
    force: bool = Field(False, description="Publish over whatever is in production.")
    dry_run: bool = Field(False, description="Only check it and say what would change.")
    thumbnail: str | None = Field(
        None,
        max_length=MAX_THUMBNAIL_BYTES * 2,
        description="A WebP of what it makes, in base64, at most 64 KiB.",
    )


@dataclass(frozen=True, kw_only=True)
class UploadedGraph:
    """A graph as a request brought it; nothing is checked but its form.

    Attributes:
        graph: Perhaps in API format.
        ui: In the editor's.
        options: The other fields of the body, or of the query.
        size_bytes: Of the body.
    """

    graph: object
    ui: Mapping[str, Any] | None
    options: PublishBody
    size_bytes: int


async def read_upload(request: Request, query: PublishQuery) -> UploadedGraph:
    """Read a body that is an object with ``graph``, or a file: API format, or a picture made by ComfyUI.

    Raises:
        HttpError: 400, 413, 415 or 422: it can't be read, is too large, or a field is wrong.
        Busy: Other pictures are being read.
        BadInput: A file holds no graph; the message says how to export one.
    """
    d = deps(request)
    if not request.headers.get("content-type", "").strip().lower().startswith("image/"):
        limits = graph_limits(d.settings)
        why = f"{limits.size_name}; a picture may be larger, if Content-Type says that it is one"
        return await _read(request, query, limits.size, why)
    let_others_in(request)
    try:
        async with d.large_bodies.of(owner(request)):
            return await _read(request, query, min(MAX_PICTURE_BYTES, d.settings.max_body_bytes), "")
    except NoTurn:
        raise Busy("other pictures with graphs are being read: try again", retry_after_s=2) from None


async def _read(request: Request, query: PublishQuery, size: int, why: str) -> UploadedGraph:
    limits = graph_limits(deps(request).settings)
    content = await read_body(request, size, name=why)
    if not content:
        raise HttpError(400, "invalid_request", "the body is empty: send a graph in API format, or a picture")
    picture = content.startswith(_PICTURES)
    problem: orjson.JSONDecodeError | None = None
    if not picture:
        refuse_type(request)
        _check_size(content, limits)
        try:
            read = await asyncio.to_thread(orjson.loads, content.removeprefix(codecs.BOM_UTF8))
        except orjson.JSONDecodeError as error:  # files may hold NaN, or be in another encoding
            problem = error
        else:
            if _has_fields(read):
                return _of_body(read, len(content))
    try:
        found = await asyncio.to_thread(
            read_graph_file, content, check=lambda text: _check_size(text, limits)
        )
    except BadInput as error:
        raise HttpError(
            422, error.code, f"the file {error}", details={"field": "body", **error.details}
        ) from None
    if problem is not None and _has_fields(found.graph):
        raise not_json(content, problem)  # only files are read leniently
    options = PublishBody.model_construct(
        graph={}, ui=None, manifest=None, thumbnail=None, **query.model_dump()
    )
    return UploadedGraph(graph=found.graph, ui=found.ui, options=options, size_bytes=len(content))


def _check_size(text: bytes, limits: JsonLimits) -> None:
    for over, what, name in (
        (len(text) > limits.size, f"is larger than {limits.size} bytes", limits.size_name),
        (
            has_more_values(text, limits.values),
            f"has more than {limits.values} JSON values",
            limits.values_name,
        ),
    ):
        if over:
            raise HttpError(413, "payload_too_large", f"the graph {what} ({name})")


def _has_fields(read: object) -> bool:
    """Return whether JSON has a graph in a field, and is not a graph with a node of that id."""
    if not isinstance(read, dict) or "graph" not in read:
        return False
    return not (isinstance(read["graph"], dict) and "class_type" in read["graph"])


def _of_body(body: dict[str, Any], size_bytes: int) -> UploadedGraph:
    options = checked(body, PublishBody)
    return UploadedGraph(graph=options.graph, ui=options.ui, options=options, size_bytes=size_bytes)


def thumbnail_in(options: PublishBody) -> bytes | None:
    """Return the picture that a body brings.

    Raises:
        HttpError: 422: it is no WebP, or too large.
    """
    if options.thumbnail is None:
        return None
    try:
        data = base64.b64decode(options.thumbnail, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) > MAX_THUMBNAIL_BYTES:
        raise HttpError(
            422,
            "invalid_request",
            f"thumbnail: must be a WebP of at most {MAX_THUMBNAIL_BYTES} bytes, in base64",
            details={"field": "thumbnail"},
        )
    return data


def named(request: Request, editor_name: str = "") -> tuple[str, str]:
    """Return the id of the workflow that the path names, and its name in the editor, if that is another.

    Raises:
        HttpError: 422: no id can be made of it.
    """
    given: str = request.path_params["workflow"]
    if NAME.fullmatch(given):
        name = given
    else:
        name, editor_name = slug(given), editor_name or given
    if not NAME.fullmatch(name) or "@" in given or len(editor_name) > MAX_EDITOR_NAME:
        raise HttpError(
            422,
            "invalid_request",
            f"{given[:80]!r} can't be a workflow's name: use 1 to 63 of a-z 0-9 _ . -, without a version",
            details={"field": "workflow"},
        )
    if editor_name and slug(editor_name) != name:
        raise HttpError(
            422,
            "invalid_request",
            f"editor_name {editor_name[:80]!r} becomes {slug(editor_name)!r}, not {name!r}",
            details={"field": "editor_name"},
        )
    return name, "" if editor_name == name else editor_name
