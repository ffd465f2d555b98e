"""The two origins that browsers know a fleet by: the editor's, which is the public port, and the console's.

The editor's JavaScript comes from a node, and a node may be hostile. What it serves shares an origin with all
that is answered on the public port. So what only operators may do, and publishing, is done on the console's
origin, where no node's content is ever shown; or by a program that shows a key in a header, which no script
of the editor's has.
"""

import re
from enum import StrEnum
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.host_names import host_name
from comfy_fleet.settings import Settings

HEADER = "x-fleet-origin"
"""What the edge marks requests with. From outside it never comes: the edge removes it first."""


_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]{1,64}){1,8}/?")


class Origin(StrEnum):
    """The origin that a request came to."""

    EDITOR = "editor"
    CONSOLE = "console"


def marked(headers: Headers) -> Origin | None:
    """Return the origin that the edge has marked a request with; None if it came to the API's own port."""
    word = headers.get(HEADER)
    if word is None:
        return None
    return Origin.CONSOLE if word == Origin.CONSOLE else Origin.EDITOR


def origin_of(headers: Headers, *, editor: bool) -> Origin:
    """Return the origin by whose rules a request is answered.

    A request to the API's own port, which no browser gets past the site guard with, counts as the console's.

    Args:
        headers: The request's.
        editor: Whether the public port serves the editor. If not, nothing of a node's is served anywhere, and
            both ports are alike.
    """
    return Origin.EDITOR if editor and marked(headers) is Origin.EDITOR else Origin.CONSOLE


def editor_base(request: Request, settings: Settings) -> str:
    """Return the base URL of the editor's origin, as the client that asks can reach it, without a ``/``.

    Raises:
        HttpError: 400 if the request's host is malformed.
    """
    return _base(request, settings.public_url, settings.port)


def console_base(request: Request, settings: Settings) -> str:
    """Return the base URL of the console's origin, as the client that asks can reach it, without a ``/``.

    Raises:
        HttpError: 400 if the request's host is malformed.
    """
    return _base(request, settings.console_url, settings.console_port)


def page_origin(base: str) -> str:
    """Return the origin of a base URL, for a Content-Security-Policy."""
    parts = urlsplit(base)
    return f"{parts.scheme}://{parts.netloc}"


def forwarded_prefix(headers: Headers) -> str:
    """Return the path below which a trusted proxy serves the origin, without a ``/`` at its end."""
    found = headers.get("x-forwarded-prefix", "")
    return found.rstrip("/") if _PREFIX.fullmatch(found) else ""


def client_address(scope: Scope, headers: Headers) -> str:
    """Return the address of a request's client: as the edge knows it, else the connection's own."""
    told = headers.get("x-forwarded-for", "") if marked(headers) is not None else ""
    peer = scope.get("client")
    return told or (str(peer[0]) if peer else "")


def _base(request: Request, configured: str | None, port: int) -> str:
    if configured:
        return configured.rstrip("/")
    headers = request.headers
    name = host_name(headers.get("x-forwarded-host") or headers.get("host", ""))
    if name is None:
        raise HttpError(400, "invalid_request", "the Host header is not a host name")
    scheme = headers.get("x-forwarded-proto") or request.scope["scheme"]
    return f"{'https' if scheme == 'https' else 'http'}://{name}:{port}"
