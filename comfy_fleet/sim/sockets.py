"""The open websockets by client id, with ComfyUI's flaw.

A second socket with the same client id replaces the first; when the **first** is closed after that, the
entry is still removed, and the second gets nothing more.
"""

import json
import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from comfy_fleet.sim.faults import Faults
from comfy_fleet.sim.messages import encode
from comfy_fleet.sim.wire import Socket

PREVIEW, PREVIEW_WITH_METADATA = 1, 4
IMAGE_TYPES = {"JPEG": 1, "PNG": 2}


class Sockets:
    """The clients of one node.

    Args:
        faults: The fault switches, which may drop frames.
        hello: Returns the frames, as (type, data), that a client gets after its first ``status``.
        queue_info: Returns the data of a ``status`` frame.
        features: The node's features, for clients that send theirs.
    """

    def __init__(
        self,
        faults: Faults,
        hello: Callable[[str], list[tuple[str, dict[str, Any]]]],
        queue_info: Callable[[], dict[str, Any]],
        features: Mapping[str, Any],
    ) -> None:
        self._features = dict(features)
        self._faults = faults
        self._hello = hello
        self._queue_info = queue_info
        self._open: dict[str, Socket] = {}
        self._flags: dict[str, dict[str, Any]] = {}
        self._all: set[Socket] = set()
        self.muted = False

    def __len__(self) -> int:
        return len(self._all)

    def add(self, socket: Socket) -> None:
        """Greet a client."""
        client = socket.query.get("clientId", "") or uuid.uuid4().hex
        self._open.pop(client, None)
        self._open[client] = socket
        self._flags[client] = {}
        self._all.add(socket)
        first = True

        def on_text(text: str) -> None:
            nonlocal first
            try:
                message = json.loads(text)
            except ValueError:
                return
            if first and isinstance(message, dict) and message.get("type") == "feature_flags":
                self._flags[client] = message.get("data") or {}
                self.send("feature_flags", self._features, client)
            first = False

        def on_close() -> None:
            self._all.discard(socket)
            self._open.pop(client, None)
            self._flags.pop(client, None)

        socket.on_text = on_text
        socket.on_close = on_close
        self.send("status", {"status": self._queue_info(), "sid": client}, client)
        for kind, data in self._hello(client):
            self.send(kind, data, client)

    def send(self, kind: str, data: dict[str, Any], client: str | None = None) -> None:
        """Send a frame to one client, or to all."""
        if not self._open:
            return
        message = encode({"type": kind, "data": data})
        for name, socket in self._to(client):
            if not self.muted and not self._faults.drops(kind, name):
                socket.send_text(message)

    def send_status(self) -> None:
        """Send the queue's length to all clients."""
        self.send("status", {"status": self._queue_info()})

    def send_image(
        self, image: tuple[str, bytes], metadata: dict[str, Any], client: str | None, *, modern: bool
    ) -> None:
        """Send a picture in one of the two forms; each client understands one.

        Args:
            image: ``PNG`` or ``JPEG`` and the bytes.
            metadata: What the newer form says about it.
            client: The receiver; None means all.
            modern: Which form. It is sent only if the client asked for it, and the older one only if not.
        """
        kind, data = image
        if self._wants_metadata(client) != modern:
            return
        if modern:
            text = encode({**metadata, "image_type": f"image/{kind.lower()}"})
            message = struct.pack(">II", PREVIEW_WITH_METADATA, len(text)) + text + data
        else:
            message = struct.pack(">II", PREVIEW, IMAGE_TYPES[kind]) + data
        for name, socket in self._to(client):
            if not self.muted and not self._faults.drops("binary", name):
                socket.send_bytes(message)

    def abort(self) -> None:
        """Drop all of them."""
        for socket in list(self._all):
            socket.abort()

    def _to(self, client: str | None) -> list[tuple[str, Socket]]:
        if client is None:
            return list(self._open.items())
        socket = self._open.get(client)
        return [(client, socket)] if socket is not None else []

    def _wants_metadata(self, client: str | None) -> bool:
        return client is not None and self._flags.get(client, {}).get("supports_preview_metadata") is True
