"""The console's scripts and styles. Their addresses change with their content, so that browsers keep them."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import owner
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError

_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
_FOLDERS = ("static", "static/vendor")


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """A file.

    Attributes:
        address: Its name, with a part of its content's hash in it.
        kind: Its content type.
        content: It.
        packed: The same by gzip.
        etag: Its ``ETag``.
    """

    address: str
    kind: str
    content: bytes
    packed: bytes
    etag: str


@cache
def static_files() -> dict[str, StaticFile]:
    """Return all files by their names."""
    found = {}
    for folder in _FOLDERS:
        for one in files(__package__).joinpath(folder).iterdir():
            stem, _, ending = one.name.rpartition(".")
            if ending in _KINDS:
                content = one.read_bytes()
                digest = hashlib.sha256(content).hexdigest()[:16]
                found[one.name] = StaticFile(
                    address=f"{stem}-{digest}.{ending}",
                    kind=_KINDS[ending],
                    content=content,
                    packed=gzip.compress(content, 9, mtime=0),
                    etag=f'"{digest}"',
                )
    return found


@cache
def _by_address() -> dict[str, StaticFile]:
    return {one.address: one for one in static_files().values()}


async def static(request: Request) -> Response:
    """``GET /console/static/NAME``: one of them.

    Raises:
        HttpError: 404.
    """
    owner(request)
    one = _by_address().get(request.path_params["name"])
    if one is None:
        raise HttpError(404, "not_found", "there is no such file; load the page again")
    headers = {**_KEPT, "ETag": one.etag}
    if one.etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(one.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=one.kind)
    return Response(one.content, headers=headers, media_type=one.kind)


routes = [ServedRoute("/console/static/{name}", static, name="console_static")]
