"""A bare ComfyUI client that records what it sees, in the form of the recordings."""

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import Any, Self

import httpx
import websockets
from websockets.asyncio.client import ClientConnection

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # one of httpx's own reads all authorities first: 40 ms
Frame = dict[str, Any]  # {"type": ..., "data": {...}} or {"binary": bytes}


class NativeClient:
    """One websocket and plain HTTP calls to one server; without an id, the server draws one."""

    def __init__(self, url: str, client_id: str, flags: dict[str, Any] | None = None) -> None:
        self.client_id = client_id
        self.frames: list[Frame] = []
        self.url = url
        self._flags = flags
        self._changed = asyncio.Event()
        self.http = httpx.AsyncClient(base_url=url, timeout=30, verify=_NO_TLS)

    async def __aenter__(self) -> Self:
        address = self.url.replace("http", "ws", 1) + "/ws"
        if self.client_id:
            address += f"?clientId={self.client_id}"
        self.socket: ClientConnection = await websockets.connect(address)
        if self._flags is not None:
            await self.socket.send(json.dumps({"type": "feature_flags", "data": self._flags}))
        self._reader = asyncio.create_task(self._read())
        await self.until(lambda: self.kinds()[:1] == ["status"])
        self.client_id = self.client_id or self.frames[0]["data"]["sid"]
        if self._flags is not None:
            await self.until(lambda: "feature_flags" in self.kinds())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self.socket.close()
        await self.http.aclose()

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                self.frames.append({"binary": message} if isinstance(message, bytes) else json.loads(message))
                self._changed.set()
        except websockets.ConnectionClosed:
            pass

    def kinds(self) -> list[str]:
        """Return the types of the frames so far; ``binary`` for pictures."""
        return [frame.get("type", "binary") for frame in self.frames]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the data of the frames of one type."""
        return [frame["data"] for frame in self.frames if frame.get("type") == kind]

    async def until(self, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until something is true of the frames."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self._changed.clear()
            left = deadline - time.monotonic()
            assert left > 0, f"timed out after {timeout_s} s; frames so far: {self.kinds()}"
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                continue

    def finished(self, prompt_id: str) -> bool:
        """Tell whether the last frame of a prompt has come."""
        return any(
            data["node"] is None and data.get("prompt_id") == prompt_id for data in self.of("executing")
        )

    async def post(self, graph: dict[str, Any], prompt_id: str | None = None, **more: Any) -> httpx.Response:
        """Post a graph under this client's id."""
        body = {"prompt": graph, "client_id": self.client_id, **more}
        if prompt_id is not None:
            body["prompt_id"] = prompt_id
        return await self.http.post("/prompt", json=body)

    async def run(self, graph: dict[str, Any], prompt_id: str | None = None, **more: Any) -> dict[str, Any]:
        """Run a graph to its last frame and return its history entry."""
        answer = await self.post(graph, prompt_id, **more)
        assert answer.status_code == 200, answer.text
        prompt_id = str(answer.json()["prompt_id"])
        await self.until(lambda: self.finished(prompt_id))
        return dict((await self.http.get(f"/history/{prompt_id}")).json()[prompt_id])
