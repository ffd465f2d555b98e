"""ComfyUI's interface: model files by folder, with previews and metadata.

Every node that has answered counts. The fleet tells no machine's paths: ``folders`` holds names that mean
nothing outside, and a ``pathIndex`` only counts among them. A file that ComfyUI does not find is 404 without
a body here, too.
"""

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, let_others_in, owner
from comfy_fleet.api.endpoint import JSON, ServedRoute
from comfy_fleet.api.json import json_response
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.nodes.model_lists import leaves

_KEPT_BY_CLIENTS = {"Cache-Control": "private, max-age=60"}


async def folders(request: Request) -> Response:
    """The folders that some node has."""
    owner(request)
    return json_response(await deps(request).models.folders())


async def files(request: Request) -> Response:
    """The files of one folder."""
    owner(request)
    found = await deps(request).models.names(request.path_params["folder"])
    return _nothing() if found is None else json_response(found)


async def embeddings(request: Request) -> Response:
    """The names of embeddings, without extensions."""
    owner(request)
    return json_response(await deps(request).models.embeddings())


async def folder_infos(request: Request) -> Response:
    """The folders, with the extensions of the files that are looked for in them."""
    owner(request)
    return json_response(await deps(request).models.folder_infos())


async def file_infos(request: Request) -> Response:
    """The files of one folder, with sizes and times."""
    owner(request)
    found = await deps(request).models.files(request.path_params["folder"])
    return _nothing() if found is None else json_response(found.listed)


async def preview(request: Request) -> Response:
    """A model's preview picture."""
    who = owner(request)
    name, index = request.path_params["filename"], request.path_params["path_index"]
    if not name or not (index.isascii() and index.isdecimal()):
        return _nothing(400)
    if leaves(name):
        return _nothing(403)
    let_others_in(request)
    found = await deps(request).models.preview(who, request.path_params["folder"], int(index[:9]), name)
    return _nothing() if found is None else Response(found, headers=_KEPT_BY_CLIENTS, media_type="image/webp")


async def metadata(request: Request) -> Response:
    """What a ``.safetensors`` file says about itself."""
    who = owner(request)
    name = request.query_params.get("filename", "")
    if not name or leaves(name):
        return _nothing()
    let_others_in(request)
    found = await deps(request).models.metadata(who, request.path_params["folder"], name)
    return _nothing() if found is None else Response(found, headers=_KEPT_BY_CLIENTS, media_type=JSON)


def _nothing(status: int = 404) -> Response:
    return Response(status_code=status)


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/models", folders, "native_model_folders"),
    *row("GET", "/models/{folder}", files, "native_model_files"),
    *row("GET", "/embeddings", embeddings, "native_embeddings"),
    *row("GET", "/experiment/models", folder_infos, "native_model_folder_infos"),
    *row("GET", "/experiment/models/{folder}", file_infos, "native_model_file_infos"),
    *row(
        "GET",
        "/experiment/models/preview/{folder}/{path_index}/{filename:path}",
        preview,
        "native_model_preview",
    ),
    *row("GET", "/view_metadata/{folder}", metadata, "native_model_metadata"),
)
