"""ComfyUI's interface: ``/ws``, on which clients follow their prompts."""

from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.native.row import row


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one websocket: the entrance has identified and counted it.

    ``scope`` has ``deps`` and ``principal``, as a request's has. The connection is closed by force a few
    seconds after this returns; see :mod:`comfy_fleet.api.websocket_protocol`.
    """
    socket = WebSocket(scope, receive, send)
    await socket.accept()
    sid = socket.query_params.get("clientId") or uuid4().hex
    status = {"exec_info": {"queue_remaining": 0}}
    await socket.send_json({"type": "status", "data": {"status": status, "sid": sid}})
    try:
        while True:
            await socket.receive()
    except (WebSocketDisconnect, RuntimeError):
        return


async def no_upgrade(request: Request) -> Response:
    """Refuse ``GET /ws`` as a request.

    Raises:
        HttpError: 426.
    """
    raise HttpError(
        426,
        "upgrade_required",
        "this is a websocket: ask with `Connection: Upgrade` and `Upgrade: websocket`, and let proxies pass "
        "both on",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )


TABLE = tuple(row("GET", "/ws", no_upgrade, "native_ws"))

SOCKETS = {"/ws": serve, "/api/ws": serve}
