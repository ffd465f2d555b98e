"""The server over Streamable HTTP: who may ask, and as whom."""

import hashlib
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import uvicorn
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from comfy_fleet.mcp.server import MOST_SESSIONS, FleetTools

PATH = "/mcp"
MOST_BODY = 8 * 1024 * 1024
_LOCAL = ("127.0.0.1", "localhost", "[::1]")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_of(request: HTTPConnection | None) -> str | None:
    """Return the key that a request shows, as the fleet itself takes it from headers."""
    if request is None:
        return None
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("x-api-key") or None


class KeyGate:
    """Lets requests with a key pass, and binds a session to the key that has opened it.

    Args:
        app: What is behind it.
        needed: Whether one without a key is refused.
    """

    def __init__(self, app: ASGIApp, *, needed: bool) -> None:
        self._app = app
        self._needed = needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it with 401."""
        if scope["type"] == "http":
            key = key_of(HTTPConnection(scope))
            if key is None and self._needed:
                words = "send a key of the fleet's: Authorization: Bearer KEY"
                refusal = JSONResponse(
                    {"error": {"code": "unauthorized", "message": words, "details": None}},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send)
                return
            if key is not None:
                who = hashlib.sha256(key.encode()).hexdigest()
                scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=who, scopes=[]))
        await self._app(scope, receive, send)


def app_of(
    tools: FleetTools, *, keys_needed: bool, names: Sequence[str] = (), origins: Sequence[str] = ()
) -> ASGIApp:
    """Return the application.

    Args:
        tools: What it serves.
        keys_needed: Whether each request has to show a key of its own.
        names: Names of this server beside those of this machine for itself: other ``Host`` headers are
            refused.
        origins: Pages of these origins may call it; requests that name another one are refused.
    """
    hosts = [*_LOCAL, *names]
    made = tools.server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=MOST_BODY,
        max_sessions=MOST_SESSIONS,
        transport_security=TransportSecuritySettings(
            allowed_hosts=[*hosts, *(f"{name}:*" for name in hosts)], allowed_origins=list(origins)
        ),
    )
    return KeyGate(made, needed=keys_needed)


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until the process is told to stop."""
    options: dict[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 5}
    await uvicorn.Server(uvicorn.Config(app, **options)).serve(sockets=[listener])
