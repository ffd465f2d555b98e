"""ComfyUI's interface: what its editor asks its server for: extensions, translations, templates, blueprints.

The answers are those of the node whose editor the caller has (:mod:`comfy_fleet.services.editor_nodes`). With
``FLEET_EDITOR=0`` there are none.
"""

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import ApiDeps, deps, let_others_in, owner
from comfy_fleet.api.editor_cookie import editor_node
from comfy_fleet.api.endpoint import JSON, ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.native.own_scripts import OwnScripts
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.about import NOTHING_HERE, WHERE_INSTEAD
from comfy_fleet.domain.node_paths import plain

SCRIPT = "text/javascript; charset=utf-8"
_OWN = OwnScripts()


async def extensions(request: Request) -> Response:
    """Scripts of extensions: the editor node's, those of packages that only others have, and the fleet's."""
    owner(request)
    found = await _with_editor(request).editors.scripts(editor_node(request))
    return json_response([*found, *_OWN.paths])


async def extension_file(request: Request) -> Response:
    """A file of an extension, from a node that has its package."""
    who, d = owner(request), _with_editor(request)
    path = request.scope["raw_path"].decode("latin-1")
    if (own := _OWN.read(path)) is not None:
        return _file(request, own.body, SCRIPT, own.tag)
    if not plain(path):
        return Response(status_code=404)
    let_others_in(request)
    found = await d.editors.file(who, path, editor_node(request))
    if found is None:
        return Response(status_code=404)
    return _file(request, found.body, found.content_type, found.tag)


async def translations(request: Request) -> Response:
    """The custom nodes' translations."""
    return await _answer(request, "/i18n")


async def workflow_templates(request: Request) -> Response:
    """The custom nodes' example workflows, by package."""
    return await _answer(request, "/workflow_templates")


async def blueprints(request: Request) -> Response:
    """The subgraphs that come with ComfyUI and its custom nodes; 0.3.64 has none."""
    return await _answer(request, "/global_subgraphs")


async def blueprint(request: Request) -> Response:
    """One of them, by an id that differs between installs."""
    return await _answer(request, f"/global_subgraphs/{quote(request.path_params['id'], safe='')}")


async def _answer(request: Request, path: str) -> Response:
    who, d = owner(request), _with_editor(request)
    if not plain(path):
        return Response(status_code=404)
    let_others_in(request)
    found = await d.editors.answer(who, path, editor_node(request))
    if found is None:
        return Response(status_code=404)
    return Response(found.body, media_type=JSON)


def _with_editor(request: Request) -> ApiDeps:
    """Return the dependencies, if this fleet serves the editor.

    Raises:
        HttpError: 404.
    """
    d = deps(request)
    if not d.settings.editor:
        raise HttpError(404, "not_found", NOTHING_HERE, details=WHERE_INSTEAD)
    return d


def _file(request: Request, body: bytes, content_type: str, tag: str) -> Response:
    # Asked for anew each time it is used, as of ComfyUI: a package may have been updated.
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    asked = request.headers.get("if-none-match", "")
    if f'"{tag}"' in (one.strip().removeprefix("W/") for one in asked.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(body, headers={**headers, "Content-Type": content_type})


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/extensions", extensions, "native_extensions"),
    *row(
        "GET",
        "/extensions/{package}/{file:path}",
        extension_file,
        "native_extension_file",
        plain_only=True,
        editor=True,
    ),
    *row("GET", "/i18n", translations, "native_i18n"),
    *row("GET", "/workflow_templates", workflow_templates, "native_workflow_templates"),
    *row("GET", "/global_subgraphs", blueprints, "native_blueprints"),
    *row("GET", "/global_subgraphs/{id}", blueprint, "native_blueprint"),
)
