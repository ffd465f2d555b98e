"""Bytes of an asset over HTTP: ranges, validators, and headers that stop browsers from running them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from comfy_fleet.api.errors import HttpError, envelope
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.assets import AssetStore

_AT_ONCE = 1024 * 1024  # smaller answers are sent in one piece
_RANGE = re.compile(r"bytes=([0-9]{0,99})-([0-9]{0,99})", re.IGNORECASE)
# Types that a browser shows without running them.
_INLINE = re.compile(r"(image/(png|jpeg|webp|gif|avif|bmp)|video/[\w.+-]+|audio/[\w.+-]+|text/plain)(;.*)?")


SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
"""What keeps a browser from running a user's file as a page of the fleet's."""


_ACTIVE = frozenset(
    {
        "text/html",
        "text/html-sandboxed",
        "application/xhtml+xml",
        "text/javascript",
        "application/javascript",
        "application/x-javascript",
        "application/ecmascript",
        "text/css",
        "message/rfc822",
    }
)


def may_run(kind: str) -> bool:
    """Return whether a browser may run files of a content type; everything that is XML counts."""
    plain = kind.partition(";")[0].strip().lower()
    return plain in _ACTIVE or plain.endswith(("/xml", "+xml"))


async def respond(
    request: Request, asset: Asset, assets: AssetStore, *, shown_as: Mapping[str, str] | None = None
) -> Response:
    """Return the asset's bytes: 200, 206, 304 or 416; or 302 to a URL of the store.

    One range is served; a request for several, or for one that can't be read, gets everything (RFC 9110,
    14.2).

    Args:
        request: Its range and its validators are heeded.
        asset: The asset.
        assets: Where its bytes are.
        shown_as: Headers in place of those that follow from the asset.

    Raises:
        HttpError: 404 if the bytes are gone.
    """
    etag = etag_of(asset)
    name = asset.file_path.rpartition("/")[2] or "file"
    headers = {**headers_of(etag, name, asset.content_type), **(shown_as or {})}
    if request.method != "POST" and is_known(request, etag):
        return Response(status_code=304, headers=headers)
    if (url := await assets.url(asset)) is not None:
        return RedirectResponse(url, 302, {"Cache-Control": "no-store"})
    part = part_of(request, asset.size_bytes, etag)
    if isinstance(part, Response):
        return part
    headers |= part.headers
    if request.method == "HEAD":
        return Response(status_code=part.status, headers=headers)
    start, size = part.start, part.end - part.start
    try:
        chunks = await assets.open(asset, start, size)
    except FileNotFoundError:
        raise HttpError(404, "not_found", f"the bytes of asset {asset.id} are gone") from None
    if size <= _AT_ONCE:
        data = b"".join([chunk async for chunk in chunks])
        return Response(data, part.status, headers)
    return StreamingResponse(chunks, part.status, headers=headers)


def headers_of(etag: str, name: str, content_type: str) -> dict[str, str]:
    """Return the headers of a file, by which no browser runs it.

    Args:
        etag: Equal for equal bytes, as a header has it.
        name: The file's name.
        content_type: Its type.
    """
    return {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=3600",
        **SAFE_HEADERS,
        "Content-Disposition": _disposition(name, content_type),
        "Content-Type": _media_type(content_type),
    }


@dataclass(frozen=True, kw_only=True)
class ContentPart:
    """The part of a content that a request gets: from ``start`` to before ``end``, with these headers."""

    start: int
    end: int
    status: int
    headers: dict[str, str]


def part_of(request: Request, size: int, etag: str) -> ContentPart | Response:
    """Return which part of a content of ``size`` bytes a request wants; 416 if there is none of it."""
    wanted = request.headers.get("range") if request.method == "GET" else None
    if wanted is not None and request.headers.get("if-range", etag) != etag:
        wanted = None
    start, end, status, headers = 0, size, 200, {}
    if wanted is not None and (match := _RANGE.fullmatch(wanted.strip())) and any(match.groups()):
        first, last = match.groups()
        if first:
            start, end = int(first), min(size, int(last) + 1) if last else size
            readable = not last or int(last) >= int(first)
        else:
            start, end = max(0, size - int(last)), size
            readable = True
        if readable:
            if start >= end:
                return envelope(
                    416,
                    "range_not_satisfiable",
                    f"the content has {size} bytes",
                    headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
                )
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        else:
            start, end = 0, size
    headers["Content-Length"] = str(end - start)
    return ContentPart(start=start, end=end, status=status, headers=headers)


def etag_of(asset: Asset) -> str:
    """Return what is equal for equal bytes, as a header has it."""
    return f'"{asset.hash}"'


def is_known(request: Request, etag: str) -> bool:
    """Return whether the caller has what this tag stands for."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    return header.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in header.split(","))


def is_expected(request: Request, etag: str) -> bool:
    """Return whether ``If-Match``, if there is one, allows what this tag stands for."""
    header = request.headers.get("if-match")
    return header is None or header.strip() == "*" or etag in map(str.strip, header.split(","))


def _media_type(kind: str) -> str:
    """Return a content type with the encoding of texts."""
    return f"{kind}; charset=utf-8" if kind.startswith("text/") and "charset=" not in kind.lower() else kind


def _disposition(name: str, content_type: str) -> str:
    kind = "inline" if _INLINE.fullmatch(content_type) else "attachment"
    return f"{kind}; filename*=UTF-8''{quote(name, safe='')}"
