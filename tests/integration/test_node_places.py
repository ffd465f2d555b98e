"""Where a node's URL leads, and what the listing says of one that leads to no ComfyUI."""

import asyncio
import contextlib
import functools
import http.server
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui import node_address
from comfy_fleet.domain.nodes.node import Node
from tests.conftest import free_port
from tests.integration.api_kit import Api, running
from tests.integration.haproxy_kit import why_held
from tests.key_files import write_keys


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as api:
        yield api


async def add(api: Api, name: str, url: str) -> tuple[int, str]:
    answer = await api.client.post("/api/v1/nodes", json={"name": name, "url": url})
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1", "localhost"),
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "127.1"),
        ("[::1]", "[0:0:0:0:0:0:0:1]"),
        ("LOCALHOST", "localhost"),
    ],
)
async def test_one_address_under_two_names_is_one_node(api: Api, first: str, second: str) -> None:
    port = free_port()
    assert (await add(api, "g8", f"http://{first}:{port}"))[0] == 201
    status, said = await add(api, "g9", f"http://{second}:{port}")
    assert status == 409, said
    assert "node g8 already" in said and "one ComfyUI is one node" in said
    assert [node.name for node in await api.stores.nodes.nodes()] == ["g8"]


async def test_another_port_or_address_is_another_node(api: Api) -> None:
    port = free_port()
    for name, url in (
        ("a", f"127.0.0.1:{port}"),
        ("b", f"127.0.0.9:{port}"),
        ("c", f"localhost:{free_port()}"),
        ("d", f"no-such-host.invalid:{port}"),
        ("e", f"no-such-host-either.invalid:{port}"),
    ):
        assert (await add(api, name, f"http://{url}"))[0] == 201


async def test_a_resolver_that_does_not_answer_holds_nobody_up(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    assert (await add(api, "a", f"http://127.0.0.1:{port}"))[0] == 201
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        return await asyncio.shield(never)

    monkeypatch.setattr(node_address, "RESOLVE_S", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert (await add(api, "b", f"http://localhost:{port}"))[0] == 201
    never.cancel()


@pytest.mark.parametrize("keys", [False, True])
async def test_the_fleet_itself_is_no_node(redis: Redis, redis_port: int, tmp_path: Path, keys: bool) -> None:
    path = tmp_path / "keys"
    write_keys(path, "root root-0123456789abcdef admin\n")
    async with running(redis_port, tmp_path, keys_file=path if keys else None) as api:
        headers = {"X-API-Key": "root-0123456789abcdef"} if keys else {}
        body = {"name": "g9", "url": api.url}
        answer = await api.client.post("/api/v1/nodes", json=body, headers=headers)
        assert answer.status_code == 400, answer.text
        assert "is the fleet itself, not a ComfyUI" in answer.json()["error"]["message"]
        assert await _why(api.url) == f"has not answered yet: that is the fleet itself, no ComfyUI: {api.url}"


async def _why(url: str) -> str:
    return await why_held(Node(name="g9", url=url))


@contextlib.contextmanager
def files(folder: Path) -> Iterator[str]:
    """A web server that has nothing but files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_what_is_there_instead_of_a_comfyui_is_said_in_words(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    assert await _why(nobody) == f"has not answered yet: nothing listens at {nobody}: connection refused"
    with files(tmp_path) as url:
        assert await _why(url) == "has not answered yet: that is not a ComfyUI: 404 at /system_stats"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert await _why(url) == f"has not answered yet: no answer from {url} within 2 s"
