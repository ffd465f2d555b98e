"""The edge finds an API that came back at another address, as containers do."""

import asyncio
import contextlib
from pathlib import Path

import httpx
import pytest

from comfy_fleet.adapters.haproxy.config_apply import apply
from comfy_fleet.adapters.haproxy.config_render import files, render
from comfy_fleet.adapters.haproxy.follow_api_dns import follow_api
from comfy_fleet.adapters.haproxy.process import HAProxy
from tests.conftest import free_port
from tests.integration.haproxy_kit import TinyNode, client, eventually, make_settings

LARGE = b'{"prompt": "' + b"x" * 200_000 + b'"}'
CALLS = [
    ("GET", "/api/v1/health", b""),
    ("POST", "/prompt", LARGE),
    ("GET", "/api/v2/assets/x/content", b""),
]
"""One for each of the edge's backends that lead to the API: small requests, bodies, and what lasts."""


class Elsewhere(TinyNode):
    """Answers on an address that nothing else in the test has."""

    host = "127.0.0.2"


@pytest.mark.parametrize("known_at_first", ["127.0.0.1", "api.invalid"])
async def test_the_edge_follows_the_apis_name(tmp_path: Path, known_at_first: str) -> None:
    settings = make_settings(tmp_path, api_host=known_at_first, api_port=free_port())
    places = files(settings)
    apply(render(settings, (), {}), places, program="haproxy")
    edge = HAProxy("edge", "haproxy", places.edge, places.edge_socket, reloads=True, on_start=lambda: None)
    told: tuple[str, ...] = ()

    looked_up = 0

    async def resolve(host: str) -> tuple[str, ...]:
        nonlocal looked_up
        assert host == "api"
        looked_up += 1
        return told

    node = Elsewhere("api")
    node.port = settings.api_port
    await edge.start()
    following = asyncio.create_task(
        follow_api(edge.runtime, "api", settings.api_port, resolve=resolve, reload=edge.reload, pause_s=0.05)
    )
    try:
        async with node, client(base_url=f"http://127.0.0.1:{settings.port}") as http:
            assert (await http.get("/api/v1/health", timeout=10)).status_code == 503
            text = places.edge.read_text()  # the name service knows it now: to HAProxy's own look-ups, too
            places.edge.write_text(text.replace("api.invalid", "127.0.0.2"))
            told = ("127.0.0.2",)

            bases = [f"http://127.0.0.1:{port}" for port in (settings.port, settings.console_port)]

            async def answers() -> bool:
                with contextlib.suppress(httpx.TransportError):  # a worker that ends closes what it has open
                    answers = [
                        await http.request(method, f"{base}{path}", content=content, timeout=10)
                        for base in bases
                        for method, path, content in CALLS
                    ]
                    return all(answer.status_code == 200 for answer in answers)
                return False

            await eventually("the API is found", answers)
            told = ()  # the name service is away: what is known stays
            before = looked_up
            await eventually("it was looked up in vain", lambda: looked_up >= before + 3)
            assert await answers()
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await edge.stop()
