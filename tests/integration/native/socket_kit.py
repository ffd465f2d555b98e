"""ComfyUI's websocket clients, played, and a fleet with APIs for them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from websockets.asyncio.client import ClientConnection, connect

from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.domain.jobs.frames import parse_binary
from tests.fleet import Fleet, fleet_of
from tests.integration.api_kit import Api, running

ENDS = frozenset({"execution_success", "execution_error", "execution_interrupted"})


@dataclass
class Client:
    """A client of ComfyUI's: one websocket, one HTTP connection, one id.

    Attributes:
        seen: All messages: ``(type, data)``; a binary one has the type ``binary``.
    """

    url: str
    client_id: str
    http: httpx.AsyncClient
    socket: ClientConnection
    seen: list[tuple[str, Any]] = field(default_factory=list)

    async def post(self, graph: dict[str, Any], **more: Any) -> str:
        """Submit a graph and return the prompt's id."""
        body = {"prompt": graph, "client_id": self.client_id, **more}
        answer = await self.http.post("/prompt", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["prompt_id"])

    async def next(self) -> tuple[str, Any]:
        """Return the next message."""
        async with asyncio.timeout(30):
            raw = await self.socket.recv()
        if isinstance(raw, bytes):
            one: tuple[str, Any] = ("binary", raw)
        else:
            told = json.loads(raw)
            one = (told["type"], told["data"])
        self.seen.append(one)
        return one

    async def until(self, wanted: Callable[[str, Any], bool]) -> list[tuple[str, Any]]:
        """Read up to a message; return what came, that one included."""
        got = []
        while True:
            got.append(await self.next())
            if wanted(*got[-1]):
                return got

    async def ended(self, prompt: str) -> list[tuple[str, Any]]:
        """Read up to ComfyUI's last message about a prompt."""
        return await self.until(lambda type_, data: last(type_, data) == prompt)

    def of(self, prompt: str) -> list[str]:
        """Return what was told of a prompt: types, and nodes where there are any."""
        return shapes([one for one in self.seen if one[0] == "binary" or one[1].get("prompt_id") == prompt])


def last(type_: str, data: Any) -> str | None:
    """Return the prompt of ComfyUI's last message about one."""
    return data["prompt_id"] if type_ == "executing" and data["node"] is None else None


def shapes(messages: list[tuple[str, Any]]) -> list[str]:
    """Return types and nodes, without progress, which comes as often as it likes."""
    out = []
    for type_, data in messages:
        if type_ == "binary":
            out.append(type(parse_binary(data)).__name__)
        elif type_ not in ("progress", "progress_state", "status", "feature_flags"):
            out.append(f"{type_} {data['node']}" if "node" in data else type_)
    return out


@asynccontextmanager
async def client_of(
    url: str, client_id: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Client]:
    """Open a websocket as a client does; without an id, as the server calls it."""
    query = f"?clientId={client_id}" if client_id else ""
    async with (
        httpx.AsyncClient(base_url=url, timeout=30, headers=dict(headers or {})) as http,
        connect(
            url.replace("http", "ws") + "/ws" + query,
            proxy=None,
            max_size=None,
            additional_headers=dict(headers or {}),
        ) as socket,
    ):
        client = Client(url, client_id, http, socket)
        type_, data = await client.next()
        assert type_ == "status"
        client.client_id = data["sid"]
        yield client


@dataclass
class Faced:
    """A fleet with APIs."""

    fleet: Fleet
    apis: list[Api]

    @property
    def url(self) -> str:
        return self.apis[0].url

    async def client(
        self, api: int = 0, client_id: str = "", headers: Mapping[str, str] | None = None
    ) -> Client:
        """Open a client, which stays until the fleet ends."""
        opened = client_of(self.apis[api].url, client_id or uuid4().hex, headers=headers)
        return await self.fleet.stack.enter_async_context(opened)


@asynccontextmanager
async def faced(
    redis_port: int, *names: str, apis: int = 1, keys_file: Path | None = None, **options: Any
) -> AsyncIterator[Faced]:
    """Start a fleet of simulated nodes with several APIs, which share nothing but Redis and the files."""
    async with (
        fleet_of(redis_port, *names, **options) as fleet,
        facing(fleet, redis_port, apis=apis, keys_file=keys_file) as world,
    ):
        yield world


@asynccontextmanager
async def facing(
    fleet: Fleet, redis_port: int, *, apis: int = 1, keys_file: Path | None = None
) -> AsyncIterator[Faced]:
    """Start the APIs of a fleet that is there."""
    async with AsyncExitStack() as stack:
        ask = await stack.enter_async_context(NodeClient(fleet.settings.direct_url))
        started = [
            await stack.enter_async_context(
                running(
                    redis_port,
                    fleet.settings.data,
                    info=ask,
                    keys_file=keys_file,
                    extension_routes=fleet.settings.extension_routes,
                )
            )
            for _ in range(apis)
        ]
        yield Faced(fleet, started)
