"""ComfyUI's interface: /view, uploads, and lists of one's own files.

A file is known by folder (``input``, ``output``, ``temp``), subfolder and name. Everybody has three folders
of their own. ComfyUI refuses here with a status and no body; the reason is in a header. What it answers to
``/internal/logs`` and ``/internal/folder_paths`` is about its machine, and not served.
"""

import mimetypes
import posixpath
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import asset_response, output_response
from comfy_fleet.api.asset_response import SAFE_HEADERS, may_run
from comfy_fleet.api.deps import ApiDeps, deps, let_others_in, owner, principal
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.held_response import HeldResponse
from comfy_fleet.api.json import json_response
from comfy_fleet.api.multipart import UploadedForm
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.graphs.folders import Folder, annotated, below, storable
from comfy_fleet.domain.jobs.asset import Asset, listed_name
from comfy_fleet.domain.jobs.media import UNKNOWN_TYPE, content_type_of
from comfy_fleet.services.picture_forms import NoSuchForm, PictureForm

REASON = "X-Fleet-Reason"
"""The header that says why a request was refused."""


class _Refused(Exception):
    """A request that gets a status and no body."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why

    @property
    def response(self) -> Response:
        headers = {REASON: quote(self.why, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")}
        return Response(status_code=self.status, headers=headers, media_type=UNKNOWN_TYPE)


async def own_inputs(d: ApiDeps, who: str) -> list[str]:
    """Return the names of a caller's uploads with their subfolders, the newest first."""
    return await d.files.names(who, Folder.INPUT)


# -- files out -------------------------------------------------------------------------------------------


async def view(request: Request) -> Response:
    """A file by its name, or a picture in another form."""
    d, who = deps(request), owner(request)
    query = _first_values(request)
    try:
        asset, name, kind = await _viewed(d, who, query)
        form = PictureForm.read(query)
        if form is not None:
            try:
                return await _formed(request, d, asset, name, form)
            except NoSuchForm as error:
                if not form.preview:
                    raise _Refused(400, str(error)) from None
        _check_expected(request, asset)
        # Never by a store's own option, of which ComfyUI's clients know nothing.
        known = asset_response.is_known(request, asset_response.etag_of(asset))
        wanted = query.get("redirect") == "true" and not known
        if wanted and (sent := await output_response.redirected(request, asset, asked=True)) is not None:
            return sent
        shown_as = _shown_as(name, kind, request.headers.get("sec-fetch-dest"))
        response = await asset_response.respond(request, asset, d.assets, shown_as=shown_as)
    except _Refused as refused:
        return refused.response
    except FileNotFoundError:
        return _Refused(404, "the bytes of this file are gone").response
    if response.status_code == 416:
        return Response(status_code=416, headers={"Content-Range": response.headers["Content-Range"]})
    return response


def _check_expected(request: Request, asset: Asset) -> None:
    if not asset_response.is_expected(request, asset_response.etag_of(asset)):
        raise _Refused(412, "the file is not what If-Match names")


async def _viewed(d: ApiDeps, who: str, query: dict[str, str]) -> tuple[Asset, str, str]:
    """Return what a query names, its file name and its type; the checks and their order are ComfyUI's."""
    if (filename := query.get("filename")) is None:
        raise _Refused(404, "filename is missing")
    if filename.startswith("blake3:"):
        found = await d.assets.by_hash(owner=who, hash_=filename)
        if found is None:
            raise _Refused(404, "you have no file with this hash")
        return found, posixpath.basename(found.file_path), found.content_type
    found, name = await _named(d, who, filename, query.get("type"), query.get("subfolder"))
    if found is None:
        raise _Refused(404, f"you have no such file: {name[:200]}")
    return found, name, mimetypes.guess_type(name)[0] or content_type_of(name)


async def _named(
    d: ApiDeps, who: str, filename: str, kind: str | None, subfolder: str | None, *, deep: bool = False
) -> tuple[Asset | None, str]:
    """Return the caller's file and its name; with ``deep`` the name may have subfolders of its own."""
    name, folder = annotated(filename)
    if not name:
        raise _Refused(400, "filename is empty")
    if name.startswith("/") or ".." in name:
        raise _Refused(400, "filename must be a file's name, without '..'")
    folder = folder or _folder(Folder.OUTPUT if kind is None else kind)
    inside = below(subfolder or "")
    if inside is None:
        raise _Refused(403, "subfolder must be below the folder of its type")
    if not deep:
        name = name.rpartition("/")[2]
    path = below(inside, name)
    return (await d.files.find(who, folder, path) if path and name else None), name


def _folder(kind: str) -> Folder:
    try:
        return Folder(kind)
    except ValueError:
        raise _Refused(400, "type must be one of input, output and temp") from None


async def _formed(request: Request, d: ApiDeps, asset: Asset, name: str, form: PictureForm) -> Response:
    etag = f'"{asset.hash}-{form.tag}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Type": form.content_type,
        "Content-Disposition": f"filename={_quoted(name)}",
        **SAFE_HEADERS,
    }
    if asset_response.is_known(request, etag):
        return Response(status_code=304, headers=headers)
    let_others_in(request)
    held = await d.pictures.formed(asset, form)
    return HeldResponse(held.data, 200, headers, held.done)


def _shown_as(name: str, kind: str, destination: str | None) -> dict[str, str]:
    """Return the headers for a file: what a browser may run is sent as a download.

    Args:
        name: The file's name.
        kind: Its type.
        destination: What the browser wants it for; an SVG in an ``<img>`` runs nothing.
    """
    if not may_run(kind):
        return {
            "Content-Type": kind,
            "Content-Disposition": f"filename={_quoted(name)}",
            "Cache-Control": "private, no-cache",
        }
    plain = kind.partition(";")[0].strip().lower()
    inline = plain == "image/svg+xml" and destination == "image"
    return {
        "Content-Type": kind if inline else UNKNOWN_TYPE,
        "Content-Disposition": f"{'' if inline else 'attachment; '}filename={_quoted(name)}",
        "Cache-Control": "no-store",
        "Vary": "Sec-Fetch-Dest",
    }


def _quoted(name: str) -> str:
    """Return a name for a header, in UTF-8 as ComfyUI sends it."""
    shown = "".join(c if c.isprintable() else "_" for c in name)
    escaped = shown.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.encode("utf-8", "replace").decode("latin-1")  # the framework encodes in Latin-1


def _first_values(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        found.setdefault(name, value)
    return found


# -- files in --------------------------------------------------------------------------------------------


async def upload_image(request: Request) -> Response:
    """Take a file of any kind."""
    d, who = deps(request), owner(request)
    try:
        form = UploadedForm(request, d.settings.max_body_bytes, part="image")
        async with d.assets.receive(form.file()) as received:
            place = _Place(form)
            asset, _ = await d.assets.keep(
                received, **place.record(who, form.file_type), quotas=principal(request).quotas
            )
    except HttpError as error:
        return _form_refused(error)
    except _Refused as refused:
        return refused.response
    return place.answer(asset)


async def upload_mask(request: Request) -> Response:
    """Take a picture whose transparency is put onto one that the caller has."""
    d, who = deps(request), owner(request)
    try:
        form = UploadedForm(request, min(d.settings.max_body_bytes, d.pictures.most_bytes), part="image")
        async with d.assets.receive(form.file()) as mask:
            place = _Place(form)
            original = await _original(d, who, form)
            joined = await d.pictures.masked(original, mask, place.path)
        async with d.assets.receive(_once(joined)) as received:
            asset, _ = await d.assets.keep(
                received, **place.record(who, None), quotas=principal(request).quotas
            )
    except HttpError as error:
        return _form_refused(error)
    except _Refused as refused:
        return refused.response
    except NoSuchForm as error:
        return _Refused(400, str(error)).response
    except FileNotFoundError:
        return _Refused(404, "the bytes of the original are gone").response
    return place.answer(asset)


async def _original(d: ApiDeps, who: str, form: UploadedForm) -> Asset:
    text = _field(form, "original_ref")
    try:
        ref = orjson.loads(text or "")
    except orjson.JSONDecodeError:
        ref = None
    if not isinstance(ref, dict) or not isinstance(ref.get("filename"), str):
        raise _Refused(400, "original_ref must be JSON with the filename of a picture")
    kind, subfolder = ref.get("type"), ref.get("subfolder")
    if not isinstance(kind, str | None) or not isinstance(subfolder, str | None):
        raise _Refused(400, "original_ref: type and subfolder must be texts")
    found, name = await _named(d, who, ref["filename"], kind, subfolder, deep=True)
    if found is None:
        raise _Refused(400, f"original_ref: you have no such file: {name[:200]}")
    return found


class _Place:
    """Where an upload goes, as its form says it.

    Attributes:
        path: Subfolder and name.
    """

    def __init__(self, form: UploadedForm) -> None:
        self._name = form.sent_name
        self._subfolder = _field(form, "subfolder") or ""
        self._folder = _folder(kind) if (kind := _field(form, "type")) is not None else Folder.INPUT
        self._replaces = _field(form, "overwrite") in ("true", "1")
        if not self._name:
            raise _Refused(400, "the file has no name")
        path = below(posixpath.normpath(self._subfolder), self._name)
        if not path:
            raise _Refused(400, "the file's name must stay in the folder of its type")
        if not storable(path):
            raise _Refused(400, "the file's name is too long, or has characters that no name may have")
        self.path = path

    def record(self, who: str, kind: str | None) -> dict[str, Any]:
        """Return what the asset store has to know."""
        return {
            "owner": who,
            "content_type": mimetypes.guess_type(self.path)[0] or _usable(kind) or UNKNOWN_TYPE,
            "file_path": self.path,
            "folder": self._folder,
            "numbered": not self._replaces,
        }

    def answer(self, asset: Asset) -> Response:
        """Return ComfyUI's answer, with the number that the name may have got."""
        stem, suffix = posixpath.splitext(listed_name(self.path))
        number = asset.file_path[len(stem) : len(asset.file_path) - len(suffix)]
        name, extension = posixpath.splitext(self._name)
        return json_response(
            {
                "name": f"{name}{number}{extension}" if number and not self._replaces else self._name,
                "subfolder": self._subfolder,
                "type": self._folder,
            }
        )


def _usable(kind: str | None) -> str | None:
    """Return a content type that can be sent again as a header."""
    fits = kind is not None and len(kind) < 128 and kind.isascii() and kind.isprintable() and "/" in kind
    return kind if fits else None


def _field(form: UploadedForm, name: str) -> str | None:
    values = form.many(name)
    return values[0] if values else None


def _form_refused(error: HttpError) -> Response:
    if error.status != 422:
        raise error
    return _Refused(400, error.message).response


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


# -- lists -----------------------------------------------------------------------------------------------


async def list_files(request: Request) -> Response:
    """The caller's files of one folder that are in no subfolder, the newest first."""
    d, who = deps(request), owner(request)
    try:
        folder = Folder(request.path_params["folder"])
    except ValueError:
        return json_response({"error": "Invalid directory type"}, 400)
    names = await d.files.names(who, folder)
    return json_response([f"{n} [{folder}]" for n in names if "/" not in n and not n.startswith(".")])


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/view", view, "view"),
    *row("POST", "/upload/image", upload_image, "upload_image", at_once=True),
    *row("POST", "/upload/mask", upload_mask, "upload_mask", at_once=True),
    *row("GET", "/internal/files/{folder}", list_files, "internal_files", plain_only=True),
)
