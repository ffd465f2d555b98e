"""ComfyUI's interface: a person's own files, as its editor reads and writes them.

Refusals have a status and ComfyUI's text, or none. Where ComfyUI answers 500, the text says what is wrong.
"""

import mimetypes
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from comfy_fleet.api.asset_response import SAFE_HEADERS, is_known, may_run
from comfy_fleet.api.body import read_body
from comfy_fleet.api.deps import deps, owner
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.native import refusals
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.errors import FleetError, NotFound
from comfy_fleet.domain.jobs.media import UNKNOWN_TYPE
from comfy_fleet.domain.user_data import (
    MOST_FILE_BYTES,
    BadUserPath,
    UserDataFull,
    UserFile,
    UserFileExists,
    UserTree,
    user_path,
)

STYLES = "user.css"
"""The one file that browsers use as it is: the person's own styles for the editor."""


def refused(error: FleetError) -> Response:
    """Return the response for an error here, as ComfyUI's: a text, or nothing."""
    statuses = {UserFileExists: 409, UserDataFull: 413, BadUserPath: 400}
    if (status := statuses.get(type(error))) is not None:
        return PlainTextResponse(error.message, status)
    if type(error) is NotFound or isinstance(error, _Outside):
        return Response(status_code=404 if type(error) is NotFound else 403)
    return refusals.answer(error)


class _Outside(FleetError):
    """The path leads out of the person's own files."""


# -- lists -------------------------------------------------------------------------------------------------


async def list_files(request: Request) -> Response:
    """The files of a folder, without hidden ones."""
    who = owner(request)
    directory = _first(request, "dir")
    if not directory:
        return PlainTextResponse("Directory not provided", 400)
    if (folder := user_path(directory)) is None:
        return PlainTextResponse("Invalid directory", 403)
    tree = await deps(request).user_files.tree(who)
    if folder and folder not in tree.folders and folder not in tree.files:
        return PlainTextResponse("Directory not found", 404)
    recurse, full, split = (
        _first(request, name).lower() == "true" for name in ("recurse", "full_info", "split")
    )
    found: list[Any] = []
    for name, file in tree.below(folder).items():
        parts = name.split("/")
        if (len(parts) > 1 and not recurse) or any(part.startswith(".") for part in parts):
            continue
        found.append(_info(file, name) if full else [name, *parts] if split else name)
    return json_response(found)


async def list_all(request: Request) -> Response:
    """All files and folders below a folder."""
    who = owner(request)
    folder = user_path(unquote(_first(request, "path")))
    if folder is None:
        return PlainTextResponse("Invalid path requested", 400)
    tree = await deps(request).user_files.tree(who)
    if folder in tree.files:
        return PlainTextResponse("Requested path is not a directory", 400)
    if folder and folder not in tree.folders:
        return PlainTextResponse("Requested path not found", 404)
    return json_response(_entries(tree, folder))


def _entries(tree: UserTree, folder: str) -> list[dict[str, Any]]:
    """Return what is below a folder, folders first."""
    prefix = f"{folder}/" if folder else ""
    entries: list[dict[str, Any]] = [
        {"name": path.rpartition("/")[2], "path": path, "type": "directory"}
        for path in sorted(tree.folders)
        if path.startswith(prefix)
    ]
    entries += (
        {
            "name": file.path.rpartition("/")[2],
            "path": file.path,
            "type": "file",
            "size": file.size_bytes,
            "modified": file.modified,
        }
        for file in tree.below(folder).values()
    )
    return sorted(entries, key=lambda entry: (entry["type"] != "directory", entry["name"].lower()))


# -- files -------------------------------------------------------------------------------------------------


async def get_file(request: Request) -> Response:
    """A file's content, which no browser shows or runs."""
    who = owner(request)
    path = _path(_name(request))
    found = await deps(request).user_files.read(who, path) if path else None
    if found is None:
        return Response(status_code=404)
    file, content = found
    etag = f'"{file.version}"'
    kind = mimetypes.guess_type(path)[0] or UNKNOWN_TYPE
    own_styles = path == STYLES
    headers = {
        "ETag": etag,
        "Last-Modified": formatdate(file.modified, usegmt=True),
        "Cache-Control": "private, no-cache",
        **SAFE_HEADERS,
        "Content-Type": "text/css" if own_styles else UNKNOWN_TYPE if may_run(kind) else kind,
        "Content-Disposition": "inline" if own_styles else "attachment",
    }
    if is_known(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)


async def save_file(request: Request) -> Response:
    """Write a file: the body as it comes."""
    d, who = deps(request), owner(request)
    path = _path(_name(request))
    content = await read_body(request, min(MOST_FILE_BYTES, d.settings.max_body_bytes))
    overwrite = _first(request, "overwrite") != "false"
    file = await d.user_files.save(who, path, content, overwrite=overwrite)
    return _written(request, file, path)


async def delete_file(request: Request) -> Response:
    """Delete a file, or a folder that is empty."""
    d, who = deps(request), owner(request)
    path = _path(_name(request))
    if not path:
        return PlainTextResponse("this is your own folder: delete what is in it", 400)
    return Response(status_code=204 if await d.user_files.delete(who, path) else 404)


async def move_file(request: Request) -> Response:
    """Give a file or a folder another path."""
    d, who = deps(request), owner(request)
    source, dest = (_path(name) for name in _moved(request))
    overwrite = _first(request, "overwrite") != "false"
    moved = await d.user_files.move(who, source, dest, overwrite=overwrite)
    return _written(request, moved.file, dest)


async def post_file(request: Request) -> Response:
    """Write a file whose name, once it is decoded, may look like a move."""
    return await (save_file if len(_sent(request)) == 1 else move_file)(request)


def _written(request: Request, file: UserFile | None, path: str) -> Response:
    if file is None or _first(request, "full_info").lower() != "true":
        return json_response(path)
    return json_response(_info(file, file.path))


def _info(file: UserFile, path: str) -> dict[str, Any]:
    """Return a file as ComfyUI 0.33 tells it, with times in milliseconds; to editors of 0.3.64, which
    had seconds, they are only numbers to compare."""
    return {
        "path": path,
        "size": file.size_bytes,
        "modified": int(file.modified * 1000),
        "created": int(file.created * 1000),
    }


# -- names -------------------------------------------------------------------------------------------------


def _sent(request: Request) -> list[str]:
    """Return the parts of the path behind ``/userdata/``, decoded; a part may hold slashes."""
    raw: str = request.scope["raw_path"].decode("latin-1")
    return [unquote(part) for part in raw.partition("/userdata/")[2].split("/")]


def _name(request: Request) -> str:
    parts = _sent(request)
    if len(parts) != 1 or not parts[0]:
        raise _nothing_here()
    return parts[0]


def _moved(request: Request) -> tuple[str, str]:
    parts = _sent(request)
    if len(parts) != 3 or parts[1] != "move" or not parts[0] or not parts[2]:
        raise _nothing_here()
    return parts[0], parts[2]


def _path(name: str) -> str:
    """Return the path that a name means. Raises _Outside."""
    if (path := user_path(name)) is None:
        raise _Outside("the path leads out of your own files")
    return path


def _nothing_here() -> HttpError:
    return HttpError(404, "not_found", "write the slashes of a file's name as %2F")


def _first(request: Request, name: str) -> str:
    """Return the first value of a name in the query, as ComfyUI reads it; empty if there is none."""
    return next(iter(request.query_params.getlist(name)), "")


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/userdata", list_files, "userdata_list", refusal=refused),
    *row("GET", "/v2/userdata", list_all, "userdata_list_all", refusal=refused),
    *row("GET", "/userdata/{file:path}", get_file, "userdata_get", refusal=refused),
    *row("POST", "/userdata/{file:path}/move/{dest:path}", post_file, "userdata_move", refusal=refused),
    *row("POST", "/userdata/{file:path}", save_file, "userdata_save", refusal=refused),
    *row("DELETE", "/userdata/{file:path}", delete_file, "userdata_delete", refusal=refused),
)
