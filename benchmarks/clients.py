"""Clients that submit one prompt and read its bytes, each in the fastest way that its server offers.

Beside them the official SDK, for what a user gets. All use httpx with connections kept open, so that what
differs is the server and not the client.
"""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import uuid4

import httpx
from comfy_sdk import AsyncComfy
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import InvalidStatus

from comfy_fleet.timeouts import Timeout

POLL_S = 0.002  # between two looks at a job, where a client polls
LEASE_AGAIN_S = 0.001
STREAM_S = 2.0  # an event stream that says nothing for this long is given up for polling
TRIP_S = 30.0
PNG = b"\x89PNG\r\n\x1a\n"


class TripFailed(Exception):
    """A prompt did not end with its picture; the message says why."""


def trivial_graph() -> dict[str, Any]:
    """Return the smallest graph that makes a file, never equal to an earlier one, so never cached."""
    colour = secrets.randbelow(1 << 24)
    picture = {"width": 64, "height": 64, "batch_size": 1, "color": colour}
    return {
        "1": {"class_type": "EmptyImage", "inputs": picture},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": f"bench/{uuid4().hex}"},
        },
    }


class Client(Protocol):
    """Makes trips: from submit to the picture's bytes."""

    detours: int
    """Trips in which the fastest way led nowhere and a slower one was taken."""

    async def trip(self) -> bytes:
        """Submit a trivial graph and return the picture's bytes."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Http:
    """An httpx client with a life of its own; ``path`` is a unix socket that all its calls go to."""

    def __init__(self, path: str | None = None) -> None:
        self.detours = 0
        transport = httpx.AsyncHTTPTransport(uds=path) if path else None
        self.http = httpx.AsyncClient(trust_env=False, timeout=TRIP_S, transport=transport)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.http)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def post(self, url: str, body: Any, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Post JSON and return the JSON that answers."""
        answer = await self.http.post(url, json=body, headers=headers)
        if answer.status_code not in (200, 201):
            raise TripFailed(f"POST {url} answered {answer.status_code}: {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found

    async def read(
        self, url: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Get a picture."""
        answer = await self.http.get(url, params=params, headers=headers)
        if answer.status_code != 200 or not answer.content.startswith(PNG):
            raise TripFailed(f"GET {url} answered {answer.status_code} and no picture")
        return answer.content


class BareClient(_Http):
    """ComfyUI's own way: a websocket for the prompt, ``POST /prompt``, ``GET /view``.

    Args:
        node: Base URL of the ComfyUI.
    """

    def __init__(self, node: str, path: str | None = None) -> None:
        super().__init__(path)
        self._node = node

    async def trip(self) -> bytes:
        """Submit a trivial graph and return the picture's bytes."""
        run = str(uuid4())
        url = f"{self._node.replace('http', 'ws', 1)}/ws?clientId={run}"
        async with connect(url, proxy=None, compression=None, max_size=None) as socket:
            return await self._run(socket, run, run, self._node, {})

    async def _run(
        self, socket: ClientConnection, client: str, run: str, base: str, headers: dict[str, str]
    ) -> bytes:
        await self.post(
            f"{base}/prompt",
            {"prompt": trivial_graph(), "client_id": client, "prompt_id": run},
            headers,
        )
        file = await self._ended(socket, run)
        if file is None:
            raise TripFailed("the prompt ended without a picture")
        return await self.read(f"{base}/view", file, headers)

    async def _ended(self, socket: ClientConnection, run: str) -> dict[str, str] | None:
        """Wait for a prompt's end; return the last picture that was told."""
        file: dict[str, str] | None = None
        async for message in socket:
            if isinstance(message, bytes):
                continue
            frame = json.loads(message)
            data = frame["data"]
            if data.get("prompt_id") != run:
                continue
            if frame["type"] == "executed":
                file = data["output"]["images"][0]
            elif frame["type"] == "execution_error":
                raise TripFailed(data["exception_message"])
            elif frame["type"] == "executing" and data["node"] is None:
                break
        return file


class NativeClient(BareClient):
    """The same as programs do it that stay: one websocket for all their prompts.

    Args:
        node: Base URL of a ComfyUI, or of a fleet.
        history: Ask ``GET /history/ID`` for the files, as ComfyUI's example script does; else take them from
            the websocket.
    """

    def __init__(self, node: str, *, history: bool) -> None:
        super().__init__(node)
        self._history = history
        self._id = str(uuid4())
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        url = f"{self._node.replace('http', 'ws', 1)}/ws?clientId={self._id}"
        opened = connect(url, proxy=None, compression=None, max_size=None)
        self._socket = await self._stack.enter_async_context(opened)
        return self

    async def trip(self) -> bytes:
        """Submit a trivial graph and return the picture's bytes."""
        assert self._socket is not None
        async with Timeout(TRIP_S):
            return await self._run(self._socket, self._id, str(uuid4()), self._node, {})

    async def _ended(self, socket: ClientConnection, run: str) -> dict[str, str] | None:
        file = await super()._ended(socket, run)
        if not self._history:
            return file
        answer = await self.http.get(f"{self._node}/history/{run}")
        if answer.status_code != 200 or run not in answer.json():
            raise TripFailed(f"the history answered {answer.status_code} {answer.text[:300]}")
        for output in answer.json()[run]["outputs"].values():
            for found in output.get("images", ()):
                file = found
        return file


class LeaseClient(BareClient):
    """The same through the fleet's HAProxy broker, which picks the node: no queue, no record.

    Args:
        lease: The socket of the lease frontend.
        direct: The socket of the pinned frontend.
        pool: The pool to take a node of.
    """

    def __init__(self, lease: str, direct: str, pool: str = "default") -> None:
        super().__init__("http://localhost", direct)
        self._lease = lease
        self._pool = pool

    async def trip(self) -> bytes:
        """Submit a trivial graph and return the picture's bytes."""
        run = str(uuid4())
        async with Timeout(TRIP_S), await self._open(run) as socket:
            assert socket.response is not None
            node = {"X-Fleet-Node": socket.response.headers["X-Fleet-Node"]}
            return await self._run(socket, run, run, self._node, node)

    async def _open(self, run: str) -> ClientConnection:
        """Ask until a lease is given."""
        url = f"ws://localhost/ws?clientId={run}"
        pool = {"X-Fleet-Pool": self._pool}
        while True:
            try:
                return await unix_connect(
                    self._lease, url, additional_headers=pool, compression=None, max_size=None
                )
            except InvalidStatus as refused:
                if refused.response.status_code != 503:
                    raise
            await asyncio.sleep(LEASE_AGAIN_S)


class V2Client(_Http):
    """A client of Comfy API v2: the fleet, or comfy-api-proxy.

    Args:
        base: Base URL.
        events: Follow the event stream; else poll the job.
    """

    def __init__(self, base: str, *, events: bool) -> None:
        super().__init__()
        self._base = base
        self._events = events

    async def trip(self) -> bytes:
        """Submit a trivial graph and return the picture's bytes."""
        async with Timeout(TRIP_S):
            job = await self.post(f"{self._base}/api/v2/jobs", {"workflow": trivial_graph()})
            url = None
            if self._events:
                url = await self._follow(job["urls"]["events"])
                self.detours += url is None
            if url is None:
                url = await self._poll(job["urls"]["self"])
            return await self.read(url)

    async def _follow(self, url: str) -> str | None:
        """Return the output's URL, or None if the stream ended or fell silent without it."""
        output: str | None = None
        status = ""
        try:
            async with self.http.stream("GET", url, timeout=STREAM_S) as answer:
                if answer.status_code != 200:
                    return None
                async for event, data in _events(answer):
                    if event == "output":
                        output = data["url"]
                    elif event == "status":
                        status = data["status"]
                # Both servers end the stream after the last status. Read to its end, the connection is
                # there for the next request; broken off, it would have to be opened anew.
        except httpx.TimeoutException:
            return None
        if status in ("failed", "canceled"):
            raise TripFailed(f"the job ended as {status}")
        return output if status == "succeeded" else None

    async def _poll(self, url: str) -> str:
        while True:
            answer = await self.http.get(url)
            job = answer.json()
            # comfy-api-proxy says `expired` of a job that ends between its two looks; it is not.
            if job.get("status") == "succeeded":
                found: str = job["outputs"][0]["url"]
                return found
            if answer.status_code != 200 or job["status"] in ("failed", "canceled"):
                raise TripFailed(f"{answer.status_code} {answer.text[:300]}")
            await asyncio.sleep(POLL_S)


class SdkClient:
    """What a user writes: the official SDK, unmodified.

    Args:
        base: Base URL of the fleet, or of comfy-api-proxy.
        events: Follow the job's events; else ``run()``, which looks, sleeps and looks again.
    """

    def __init__(self, base: str, *, events: bool) -> None:
        self.detours = 0
        os.environ["COMFY_BASE_URL"] = base  # the only way to tell it; read when it is made
        self._comfy = AsyncComfy()
        self._events = events

    async def __aenter__(self) -> Self:
        await self._comfy.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._comfy.__aexit__(kind, error, trace)

    async def trip(self) -> bytes:
        """Submit a trivial graph and return the picture's bytes."""
        workflow = self._comfy.workflows.from_json(trivial_graph())
        async with Timeout(TRIP_S):
            if self._events:
                job = await self._comfy.submit(workflow)
                async for _ in job.events():
                    pass
                await job.refresh()
            else:
                job = await self._comfy.run(workflow)
            (output,) = job.get_outputs("2")
            data = await output.to_bytes()
        if not data.startswith(PNG):
            raise TripFailed("no picture")
        return data


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])
