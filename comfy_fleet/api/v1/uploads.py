"""Uploads that may be resumed, as tus 1.0.0 says (https://tus.io/protocols/resumable-upload).

A whole upload is an asset with the upload's id.
"""

import mimetypes
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from email.utils import formatdate

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import asset_fields, serialize
from comfy_fleet.api.answers import UploadAnswer
from comfy_fleet.api.body import refuse_encoding
from comfy_fleet.api.deps import deps, links, owner, principal
from comfy_fleet.api.errors import HttpError, fleet_error
from comfy_fleet.api.json import json_response
from comfy_fleet.domain.errors import FleetError, WrongOffset
from comfy_fleet.domain.jobs.resumable_upload import ResumableUpload, read_metadata
from comfy_fleet.domain.limits import least

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,termination"
PART = "application/offset+octet-stream"
_NUMBER = re.compile(r"[0-9]{1,15}")
_LENGTH = re.compile(r"[0-9]{1,30}")  # longer than any upload may be, which the refusal says
_ALWAYS = {"Tus-Resumable": VERSION, "Cache-Control": "no-store"}


def refusal(error: FleetError) -> Response:
    """Answer an error to a client of tus."""
    answer = fleet_error(error)
    answer.headers.update(_ALWAYS)
    if isinstance(error, WrongOffset):
        answer.headers["Upload-Offset"] = str(error.details["offset"])
    return answer


async def upload_options(request: Request) -> Response:
    """What of tus is spoken here, and how large a file may be."""
    owner(request)
    own = least(principal(request).quotas, "body")
    most = deps(request).uploads.limits.most_bytes
    return _answer(
        204,
        {
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(most if own is None else min(most, own[0])),
        },
    )


async def begin_upload(request: Request) -> Response:
    """Announce a file; `Location` says where its bytes are to be sent. The first ones may come along."""
    d, who = deps(request), owner(request)
    _check_version(request)
    refuse_encoding(request)
    if "upload-defer-length" in request.headers:
        raise HttpError(
            400,
            "invalid_request",
            "Upload-Defer-Length is not taken: say Upload-Length at once",
            details={"field": "Upload-Defer-Length"},
        )
    length = _number(request, "Upload-Length", _LENGTH)
    metadata = request.headers.get("upload-metadata", "")
    said = read_metadata(metadata)
    name = said.get("filename") or said.get("name") or ""
    kind = said.get("filetype") or said.get("type") or mimetypes.guess_type(name)[0]
    with_bytes = _kind(request) == PART
    if not with_bytes and request.headers.get("content-length", "0") != "0":
        raise _not_a_part()
    upload = await d.uploads.begin(
        who,
        length=length,
        metadata=metadata,
        file_path=asset_fields.file_path(name, field="Upload-Metadata: filename") if name else "",
        content_type=asset_fields.content_type(
            kind or "application/octet-stream", field="Upload-Metadata: filetype"
        ),
        quotas=principal(request).quotas,
    )
    if with_bytes and length:
        try:
            upload = await _append(request, who, upload.id, 0)
        except BaseException:  # its client has not learned where it is
            await d.uploads.remove(who, upload.id)
            raise
    path = f"uploads/{upload.id}"
    # A key in the path must be in the next one, too.
    where = path if request.scope["key_in_path"] else f"{links(request).base}/api/v1/{path}"
    return _answer(201, {"Location": where, **_state(upload)})


async def look_at_upload(request: Request) -> Response:
    """How many bytes of an upload are here."""
    who = owner(request)
    _check_version(request)
    upload = await deps(request).uploads.look(who, request.path_params["upload"])
    more = {"Upload-Metadata": upload.metadata} if upload.metadata else {}
    return _answer(200, {"Upload-Length": str(upload.length), **more, **_state(upload)})


async def get_upload(request: Request) -> Response:
    """How many bytes of an upload are here, and the asset that it became."""
    d, who = deps(request), owner(request)
    upload = await d.uploads.look(who, request.path_params["upload"])
    asset = await d.assets.get(upload.asset_id) if upload.asset_id else None
    answer: UploadAnswer = {
        "id": upload.id,
        "length": upload.length,
        "offset": upload.offset,
        "file_path": upload.file_path,
        "content_type": upload.content_type,
        "created_at": serialize.time(upload.created_at),
        "expires_at": serialize.time(upload.expires_at),
        "asset": None if asset is None else serialize.asset(asset, links(request), now=d.clock()),
    }
    return json_response(answer, headers=_ALWAYS)


async def append_to_upload(request: Request) -> Response:
    """The next bytes of an upload. If they break off, those that came stay: ask with `HEAD`, and go on."""
    who = owner(request)
    _check_version(request)
    refuse_encoding(request)
    if _kind(request) != PART:
        raise _not_a_part()
    upload = await _append(request, who, request.path_params["upload"], _number(request, "Upload-Offset"))
    return _answer(204, _state(upload))


async def remove_upload(request: Request) -> Response:
    """Give an upload up; an asset that it became stays."""
    who = owner(request)
    _check_version(request)
    await deps(request).uploads.remove(who, request.path_params["upload"])
    return _answer(204, {})


async def overridden(request: Request) -> Response:
    """The same as `PATCH` or `DELETE`, as `X-HTTP-Method-Override` says, where a proxy knows neither."""
    owner(request)
    method = request.headers.get("x-http-method-override", "").upper()
    if method == "PATCH":
        return await append_to_upload(request)
    if method == "DELETE":
        return await remove_upload(request)
    raise HttpError(
        405,
        "method_not_allowed",
        "send PATCH, or POST with X-HTTP-Method-Override: PATCH",
        details={"field": "X-HTTP-Method-Override"},
        headers={"Allow": "DELETE, GET, HEAD, OPTIONS, PATCH, POST"},
    )


async def _append(request: Request, who: str, upload_id: str, offset: int) -> ResumableUpload:
    async with aclosing(_body(request)) as chunks:
        return await deps(request).uploads.append(who, upload_id, offset=offset, chunks=chunks)


async def _body(request: Request) -> AsyncGenerator[bytes, None]:
    async for chunk in request.stream():
        yield chunk


def _state(upload: ResumableUpload) -> Mapping[str, str]:
    told = {
        "Upload-Offset": str(upload.offset),
        "Upload-Expires": formatdate(upload.expires_at, usegmt=True),
    }
    return told | ({"X-Fleet-Asset": upload.asset_id} if upload.asset_id else {})


def _answer(status: int, headers: Mapping[str, str]) -> Response:
    return Response(status_code=status, headers={**_ALWAYS, **headers})


def _check_version(request: Request) -> None:
    if request.headers.get("tus-resumable") != VERSION:
        raise HttpError(
            412,
            "unsupported_version",
            f"this needs `Tus-Resumable: {VERSION}`",
            details={"field": "Tus-Resumable"},
            headers={"Tus-Version": VERSION},
        )


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _not_a_part() -> HttpError:
    return HttpError(
        415,
        "unsupported_media_type",
        f"the bytes of an upload are sent as `Content-Type: {PART}`",
        details={"field": "Content-Type"},
    )


def _number(request: Request, name: str, form: re.Pattern[str] = _NUMBER) -> int:
    text = request.headers.get(name, "")
    if not form.fullmatch(text):
        raise HttpError(
            400, "invalid_request", f"{name} must be a whole number of bytes", details={"field": name}
        )
    return int(text)
