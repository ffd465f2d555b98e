"""Somebody who edits a graph: one websocket, and the same graph again with another last node."""

import asyncio
import io
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.clients import TripFailed
from comfy_fleet.timeouts import Timeout

SLEEP = "3"
"""The node that takes long, in :func:`edited_graph`."""
RUN_S = 60.0


def noise(side: int = 512) -> bytes:
    """Return a picture that is like no other, as PNG."""
    data = io.BytesIO()
    Image.frombytes("RGB", (side, side), secrets.token_bytes(3 * side * side)).save(data, "PNG")
    return data.getvalue()


def edited_graph(seconds: float, last: str, *, picture: str | None = None) -> dict[str, Any]:
    """Return a graph whose middle takes long.

    Args:
        seconds: How long; a value of its own is another graph from there on.
        last: What its last node has for a parameter.
        picture: The name of an upload to begin with; None: a made one.
    """
    size = {"width": 512, "height": 512, "batch_size": 1, "color": 255}
    first = ("LoadImage", {"image": picture}) if picture else ("EmptyImage", size)
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": first,
        SLEEP: ("TestSleep", {"value": ["1", 0], "seconds": seconds}),
        "4": ("SaveImage", {"images": [SLEEP, 0], "filename_prefix": last}),
    }
    return {id_: {"class_type": name, "inputs": inputs} for id_, (name, inputs) in nodes.items()}


@dataclass(frozen=True, kw_only=True)
class EditorRun:
    """One press of Run.

    Attributes:
        seconds: From the request until the picture's bytes were read.
        cached: The nodes that came from the cache.
    """

    seconds: float
    cached: frozenset[str]


@dataclass(kw_only=True)
class Editor:
    """One browser's editor, on a ComfyUI or on a fleet; made by :func:`editor`."""

    url: str
    http: httpx.AsyncClient
    socket: ClientConnection
    client_id: str
    headers: Mapping[str, str] = field(default_factory=dict)

    async def upload(self, data: bytes) -> str:
        """Upload a picture; return its name."""
        answer = await self.http.post(
            "/upload/image", files={"image": (f"{uuid4().hex}.png", data, "image/png")}
        )
        answer.raise_for_status()
        return str(answer.json()["name"])

    async def post(self, graph: dict[str, Any]) -> str:
        """Press Run; return the prompt's id."""
        sent = {
            "prompt": graph,
            "client_id": self.client_id,
            "extra_data": {"extra_pnginfo": {"workflow": {"id": self.client_id, "nodes": [], "links": []}}},
        }
        answer = await self.http.post("/prompt", json=sent)
        if answer.status_code != 200:
            raise TripFailed(f"POST /prompt answered {answer.status_code}: {answer.text[:300]}")
        return str(answer.json()["prompt_id"])

    async def run(self, graph: dict[str, Any]) -> EditorRun:
        """Press Run and wait for the picture."""
        began = time.perf_counter()
        return await self.ended(await self.post(graph), began)

    async def ended(self, prompt_id: str, began: float) -> EditorRun:
        """Wait for a prompt's picture."""
        cached: set[str] = set()
        file: dict[str, str] = {}
        async with Timeout(RUN_S):
            async for message in self.socket:
                frame = json.loads(message) if isinstance(message, str) else {}
                data = frame.get("data", {})
                if data.get("prompt_id") != prompt_id:
                    continue
                match frame["type"]:
                    case "execution_cached":
                        cached |= set(data["nodes"])
                    case "executed":
                        file = data["output"]["images"][0]
                    case "execution_error" | "execution_interrupted":
                        raise TripFailed(f"{frame['type']}: {data.get('exception_message')}")
                    case "execution_success":
                        break
        answer = await self.http.get("/view", params=file)
        answer.raise_for_status()
        return EditorRun(seconds=time.perf_counter() - began, cached=frozenset(cached))


@asynccontextmanager
async def editor(url: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[Editor]:
    """Open an editor on a ComfyUI or on a fleet."""
    client_id = uuid4().hex
    address = f"{url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=RUN_S, headers=headers) as http,
        connect(address, proxy=None, max_size=None, additional_headers=headers) as socket,
    ):
        yield Editor(url=url, http=http, socket=socket, client_id=client_id)


async def strange_jobs(url: str, *, seconds: float) -> None:
    """Be somebody else, who always has one job at work, until cancelled."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=RUN_S) as http:
        while True:
            graph = edited_graph(seconds + secrets.randbelow(1000) / 100_000, "strange")
            answer = await http.post("/api/v2/jobs", json={"workflow": graph})
            answer.raise_for_status()
            job = answer.json()
            while job["status"] in ("queued", "running"):
                await asyncio.sleep(0.02)
                job = (await http.get(f"/api/v2/jobs/{job['id']}")).json()
