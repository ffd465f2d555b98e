"""ComfyUI's interface: ``/ws``, on which clients follow their prompts."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import uuid4

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from comfy_fleet.api.deps import ApiDeps
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.native.features import features
from comfy_fleet.api.native.outgoing import Outgoing
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.errors import NoRoom
from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.domain.principal import Principal
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

SIGNED_OUT = 1008
"""Close code ``Policy Violation``: the handshake of who comes again is refused with 401."""
TOO_SLOW = 1013
"""Close code ``Try Again Later``."""
_GOODBYES = frozenset({1000, 1001, 1005})
"""Close codes of clients that have nothing against us: Normal Closure, Going Away, none."""
GOODBYE_S = 1.0
"""How long a client that may be reading too slowly has to be told why it is let go."""


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one websocket: the entrance has identified and counted it.

    ``scope`` has ``deps`` and ``principal``, as a request's has. The connection is closed by force a few
    seconds after this returns; see :mod:`comfy_fleet.api.websocket_protocol`.

    Raises:
        StoreDown: Redis is away.
    """
    socket = WebSocket(scope, receive, send)
    d: ApiDeps = scope["deps"]
    who: Principal = scope["principal"]
    # Of several, the first counts, as in ComfyUI.
    client_id = next(iter(socket.query_params.getlist("clientId")), "") or uuid4().hex
    outgoing = Outgoing(d.settings.socket_bytes)
    with d.session_watch.follow(scope["session"], who.key) as signed_out:
        detach = await d.clients.attach(who.owner, client_id, outgoing)
        try:
            await socket.accept()
            await _talk(socket, send, outgoing, signed_out, d)
        finally:
            detach()


async def _talk(
    socket: WebSocket, send: Send, outgoing: Outgoing, signed_out: asyncio.Event, d: ApiDeps
) -> None:
    """Send and read until the client goes, or has to."""
    tasks = [
        asyncio.create_task(_tell(send, outgoing, d)),
        asyncio.create_task(_hear(socket, outgoing, d)),
        asyncio.create_task(outgoing.full.wait()),
        asyncio.create_task(signed_out.wait()),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    if signed_out.is_set():
        await _goodbye(socket, SIGNED_OUT, "signed out")
    elif outgoing.full.is_set():
        await _goodbye(socket, TOO_SLOW, "reads too slowly (FLEET_SOCKET_BYTES)")
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, OSError):  # the client is gone
            raise result


async def _goodbye(socket: WebSocket, code: int, why: str) -> None:
    # It may wait behind what is not read, and the client may have gone.
    with contextlib.suppress(TimeoutError, OSError, WebSocketDisconnect):
        async with Timeout(GOODBYE_S):
            await socket.close(code, why)


async def _tell(send: Send, outgoing: Outgoing, d: ApiDeps) -> None:
    """Send what there is to send."""
    while True:
        one = await outgoing.next()
        more = {"on_read": partial(outgoing.told, one.ends)} if one.ends else {}
        if one.text:
            await send({"type": "websocket.send", "text": one.data.decode(), **more})
        elif not one.asset:
            await send({"type": "websocket.send", "bytes": one.data})
        elif (data := await _with_asset(one, d)) is not None:
            await send({"type": "websocket.send", "bytes": data})


async def _with_asset(one: ClientMessage, d: ApiDeps) -> bytes | None:
    """Return a message with the bytes of its asset; None if they are gone, or can't be read.

    Without them, the client is told the rest: else it would be told the same again each time it comes back.
    """
    asset = await d.assets.get(one.asset)
    if asset is None:
        return None
    try:
        async with contextlib.aclosing(await d.assets.open(asset)) as chunks:
            return b"".join([one.data, *[chunk async for chunk in chunks]])
    except (OSError, NoRoom) as error:
        logger.warning("a websocket's client gets no picture %s, which can't be read: %s", asset.id, error)
        return None


async def _hear(socket: WebSocket, outgoing: Outgoing, d: ApiDeps) -> None:
    """Read what the client says: as in ComfyUI, its first message may tell its features."""
    first = True
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        text = message.get("text")
        flags = _flags(text) if first and text is not None else None
        first = first and text is None
        if flags is not None:
            outgoing.metadata = flags.get("supports_preview_metadata") is True
            outgoing.send([client_messages.message("feature_flags", features(d.settings))])
    if "reason" in message and message["code"] in _GOODBYES:  # the client's own words: it was not cut off
        outgoing.all_told()


def _flags(text: str) -> Mapping[str, Any] | None:
    try:
        told = orjson.loads(text)
    except ValueError:
        return None
    if not isinstance(told, dict) or told.get("type") != "feature_flags":
        return None
    flags = told.get("data")
    return flags if isinstance(flags, dict) else {}


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
