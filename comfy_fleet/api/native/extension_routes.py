"""ComfyUI's interface: extensions' own routes, as far as ``FLEET_EXTENSION_ROUTES`` has opened them."""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.body import read_body
from comfy_fleet.api.deps import deps, let_others_in, owner
from comfy_fleet.api.editor_cookie import editor_node
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.extension_routes import METHODS
from comfy_fleet.domain.node_paths import plain
from comfy_fleet.services.extension_calls import ExtensionCall

_MOST_QUERY = 8000
_PASSED = ("content-type", "accept", "if-none-match", "if-modified-since")
"""Nothing that says who asks, and nothing that a proxy would read."""


def routes(prefixes: Iterable[str]) -> list[ServedRoute]:
    """Return the routes below these prefixes, with and without ``/api`` in front."""
    return [
        route
        for prefix in prefixes
        for path in (prefix, f"{prefix}/{{rest:path}}")
        for method in METHODS
        for route in row(method, path, call, "native_extension_route", editor=True)
    ]


async def call(request: Request) -> Response:
    """Pass a call on to the node that runs the caller's prompt, or to its editor node."""
    d, who = deps(request), owner(request)
    path = request.scope["raw_path"].decode("latin-1")
    if not plain(path):
        return Response(status_code=404)
    query = request.scope["query_string"].decode("latin-1")
    if len(query) > _MOST_QUERY or not query.isascii():
        raise HttpError(400, "invalid_request", f"the query must be at most {_MOST_QUERY} ASCII characters")
    body = await read_body(request, d.settings.max_json_bytes, name="FLEET_MAX_JSON_BYTES")
    let_others_in(request)
    answer = await d.extension_calls.call(
        ExtensionCall(
            owner=who,
            editor=editor_node(request),
            method="GET" if request.method == "HEAD" else request.method,
            path=f"{path}?{query}" if query else path,
            headers={name: value for name in _PASSED if (value := request.headers.get(name))},
            body=body,
        )
    )
    # Kept nowhere: with another node, or another job, it is another answer.
    headers = {name.lower(): value for name, value in answer.headers.items()} | {"cache-control": "no-store"}
    return Response(answer.body, answer.status, headers=headers)
