"""Debian's nginx and Caddy in front of a fleet, as the documentation ships their configurations."""

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from comfy_fleet.api import server
from comfy_fleet.api.websocket_protocol import PING_S
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.browser.evil_node import EvilNode
from tests.integration.api_kit import running
from tests.integration.proxy_kit import Front, proxy

pytestmark = pytest.mark.timeout(180)
CLIENT = "127.0.0.2"
"""The client's address: another than the proxy's, which is 127.0.0.1."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet with a simulated node, and one that has an editor's page."""
    folder = tmp_path_factory.mktemp("proxies")
    env = {"FLEET_TRUSTED_PROXIES": "127.0.0.1", "FLEET_LOG_FORMAT": "json"}
    with EvilNode() as node:
        up = start_fleet(
            folder / "data", "--nodes", "1", "--job-seconds", "1", "--node", f"page={node.url}", env=env
        )
        try:
            yield up
        finally:
            stop_fleet(up)


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def front(
    request: pytest.FixtureRequest, fleet: Up, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    ports = [int(url.rpartition(":")[2]) for url in (fleet.url, fleet.console)]
    folder = tmp_path_factory.mktemp(request.param)
    with proxy(request.param, folder, public=ports[0], console=ports[1]) as made:
        yield made


@dataclass(frozen=True)
class Place:
    """One of the two places of a front.

    Attributes:
        url: Without a ``/`` at the end.
        path: Its path, without a ``/`` at the end.
        front: The front.
    """

    url: str
    path: str
    front: Front

    def client(self, **more: Any) -> httpx.Client:
        transport = httpx.HTTPTransport(verify=self.front.trusts, local_address=CLIENT)
        return httpx.Client(base_url=self.url, transport=transport, timeout=60, **more)


@pytest.fixture(params=["/", "/comfy/"])
def place(request: pytest.FixtureRequest, front: Front) -> Place:
    return Place(front.root, "", front) if request.param == "/" else Place(front.below, "/comfy", front)


def submit(http: httpx.Client) -> str:
    answer = http.post("/api/v1/workflows/image_card/jobs", json={"params": {"prompt": "a red fox"}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_the_editors_page_and_its_assets(place: Place) -> None:
    with place.client() as http:
        page = http.get("/")
        assert (page.status_code, "<title>evil</title>" in page.text) == (200, True)
        cookie = page.headers["set-cookie"]
        assert "Secure" in cookie and f"Path={place.path or '/'};" in cookie
        asset = http.get("/assets/index.js")
        assert (asset.status_code, asset.text) == (200, "window.assets = true;")
        script = http.get("/extensions/evil/evil.js")
        assert script.status_code == 200 and "javascript" in script.headers["content-type"]
    without = place.client(follow_redirects=False)
    with without as http:
        assert http.get("/assets/index.js").status_code == 404


def test_the_path_without_its_slash_leads_there(front: Front) -> None:
    with Place(front.below, "", front).client() as http:
        answer = http.get(front.below)
    assert answer.status_code == 308
    assert answer.headers["location"].removeprefix(front.below.removesuffix("/comfy")) == "/comfy/"


def test_a_job_its_stream_and_a_part_of_its_picture(place: Place) -> None:
    with place.client() as http:
        job = submit(http)
        came: list[float] = []
        with http.stream("GET", f"/api/v2/jobs/{job}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            came.extend(time.monotonic() for line in stream.iter_lines() if line.startswith("event:"))
        assert came[-1] - came[0] > 0.4, "events came together at the end: something has kept them back"
        found = http.get(f"/api/v2/jobs/{job}").json()
        url = found["outputs"][0]["url"]
        assert url.startswith(f"{place.url}/api/v2/assets/")
        whole, part = http.get(url), http.get(url, headers={"Range": "bytes=10-19"})
        assert (whole.status_code, part.status_code) == (200, 206)
        assert part.content == whole.content[10:20]
        assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"


def test_a_name_with_a_slash_stays_as_it_is(place: Place) -> None:
    with place.client() as http:
        name = f"/userdata/workflows%2F{os.urandom(4).hex()}%20b.json"
        assert http.post(name, json={"a": 1}).status_code == 200
        assert http.get(name).json() == {"a": 1}
        for path in ("/..%2fmetrics", "/api/v1/%2e%2e/metrics", "/%2e%2e/queue"):
            answer = http.get(path)
            # What Caddy takes for another site's path, it answers itself, with nothing.
            assert answer.status_code in (400, 404) or not answer.content, path


def test_an_upload_of_90_megabytes(place: Place) -> None:
    block = os.urandom(1 << 20)
    digest = hashlib.sha256(block * 90).hexdigest()
    with place.client() as http:
        form = {"content_type": "application/octet-stream", "file_path": "large.bin"}
        answer = http.post("/api/v2/assets", data=form, files={"file": ("large.bin", block * 90)})
        assert answer.status_code == 201, answer.text
        asset = answer.json()["id"]
        taken = hashlib.sha256()
        with http.stream("GET", f"/api/v2/assets/{asset}/content") as stream:
            for data in stream.iter_bytes():
                taken.update(data)
        assert taken.hexdigest() == digest
        assert http.delete(f"/api/v2/assets/{asset}").status_code in (200, 204, 403)


def test_more_than_a_body_may_have_is_refused(place: Place) -> None:
    with place.client() as http, contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):
        answer = http.post("/upload/image", files={"image": ("x.png", bytes(108 << 20))})
        # A proxy that still sends when the edge has answered may say so in its own words.
        assert answer.status_code in (413, 502)


def test_the_clients_address_is_known(place: Place, fleet: Up) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Real-Ip": "203.0.113.9"}
    with place.client(headers=forged) as http:
        job = submit(http)

    def lines() -> list[dict[str, Any]]:
        text = (fleet.data / "logs" / "api.log").read_text()
        return [json.loads(line) for line in text.splitlines() if job in line and line.startswith("{")]

    deadline = time.monotonic() + 60
    while not (found := [one for one in lines() if one["msg"] == "job accepted"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found[0]["client"] == CLIENT
    assert found[0]["request_id"]


def test_the_console_shows_nothing_of_a_nodes(front: Front) -> None:
    with Place(front.console, "", front).client() as http:
        assert http.get("/api/v1/nodes").status_code == 200
        assert http.get("/assets/index.js").status_code == 404
        answer = http.post("/api/v1/nodes/none/drain", headers={"Origin": front.root})
        assert answer.status_code == 403, "the editor's pages are of another origin"


async def test_a_websocket_is_opened_and_goes_both_ways(place: Place) -> None:
    base = place.url.replace("https", "wss")
    async with connect(
        f"{base}/ws?clientId=c1", ssl=place.front.trusts, local_addr=(CLIENT, 0), proxy=None
    ) as socket:
        assert json.loads(await socket.recv())["type"] == "status"
        await socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        while json.loads(await socket.recv())["type"] != "feature_flags":
            pass  # of what others run at the moment
        await (await socket.ping())


# ---- what ten idle minutes need: a ping before a proxy's patience ends -------------------------------------


def test_pings_come_well_before_the_usual_sixty_seconds() -> None:
    assert PING_S <= 60 / 2


@pytest.mark.parametrize("pings", [True, False], ids=["with pings", "without"])
async def test_an_idle_websocket_outlives_a_proxys_patience(
    redis_port: int, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pings: bool
) -> None:
    monkeypatch.setattr(server, "PING_S", 0.5 if pings else 3600.0)
    async with running(redis_port, tmp_path) as api:
        port = int(api.url.rpartition(":")[2])
        patience = {"proxy_read_timeout 600s": "proxy_read_timeout 2s"}
        with proxy("nginx", tmp_path, public=port, console=port, changes=patience) as front:
            url = f"{front.root.replace('https', 'wss')}/ws?clientId=c1"
            async with connect(url, ssl=front.trusts, ping_interval=None, proxy=None) as socket:
                assert json.loads(await socket.recv())["type"] == "status"
                try:
                    async with asyncio.timeout(6):
                        await socket.recv()
                        pytest.fail("nothing was to come")
                except TimeoutError:
                    assert pings, "without pings, nginx should have cut it"
                    await socket.ping()
                except ConnectionClosed:
                    assert not pings
