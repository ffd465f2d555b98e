"""ComfyUI's interface: ``/object_info``, what the nodes have together.

Lists of uploaded files hold the caller's own.
"""

import asyncio
import gzip
import json

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, let_others_in, owner
from comfy_fleet.api.endpoint import JSON, ServedRoute
from comfy_fleet.api.native.files import own_inputs
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.jobs.upload_choices import with_uploads
from comfy_fleet.services.object_info_answers import tag_of


async def object_info(request: Request) -> Response:
    """Every class that some node has."""
    d = deps(request)
    who = owner(request)
    classes, files = await d.object_info.classes(), await own_inputs(d, who)
    tag = tag_of(classes, files)
    headers = {
        "ETag": f'W/"{tag}"',
        "Cache-Control": "private, no-cache",
        "Vary": "Accept-Encoding, Authorization, Cookie, X-API-Key",
    }
    if _knows(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    let_others_in(request)
    packed = await d.object_info.answers.compressed(who, tag, classes, files)
    if _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=JSON)
    return Response(await asyncio.to_thread(gzip.decompress, packed), headers=headers, media_type=JSON)


async def object_info_class(request: Request) -> Response:
    """One class; an empty object if no node has it."""
    d, name = deps(request), request.path_params["node_class"]
    who = owner(request)
    classes = await d.object_info.classes()
    body = classes.bodies.get(name)
    if body is None:
        return Response(b"{}", media_type=JSON)
    if name in classes.uploads:
        body = with_uploads(name, body, await own_inputs(d, who))
    return Response(b"{%b:%b}" % (json.dumps(name).encode(), body), media_type=JSON)


def _knows(if_none_match: str, tag: str) -> bool:
    """Return whether a client has this answer already."""
    given = (part.strip().removeprefix("W/").strip('"') for part in if_none_match.split(","))
    return any(one in (tag, "*") for one in given)


def _takes_gzip(accept_encoding: str) -> bool:
    """Return whether a client takes gzip, by its ``Accept-Encoding``."""
    taken: dict[str, bool] = {}
    for part in accept_encoding.lower().split(","):
        name, *parameters = (one.strip() for one in part.split(";"))
        quality = next((one[2:].strip() for one in parameters if one.startswith("q=")), "1")
        taken[name] = quality.strip("0.") != ""
    return taken.get("gzip", taken.get("x-gzip", taken.get("*", False)))


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/object_info", object_info, "native_object_info"),
    *row("GET", "/object_info/{node_class:path}", object_info_class, "native_object_info_class"),
)
