"""The same requests for user data and settings to a real ComfyUI and to the fleet: the same answers.

Where they differ on purpose, the test says how: ComfyUI's 500 is a 400 with the reason, and times of 0.3.64
are in seconds.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from redis.asyncio import Redis

from tests.comfyui_server import ANSWER_S, ComfyServer
from tests.integration.api_kit import Api, running

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(180)]

TIMES = ("modified", "created")
HEADERS = ("content-type", "content-disposition", "x-content-type-options", "content-length")
GRAPH = '{"id":"14b4c46c","nodes":[{"id":1,"type":"EmptyImage"}],"version":0.4}'


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


@pytest.fixture
def top(request: pytest.FixtureRequest) -> str:
    """What this test writes lies in a folder of its own: the server is shared."""
    return str(request.node.name.translate({ord(c): "_" for c in "[]-/%. "}))


class Both:
    """Sends each request to both."""

    def __init__(self, api: Api, server: ComfyServer) -> None:
        self._fleet = api.client
        self._bare = httpx.AsyncClient(base_url=server.url, timeout=ANSWER_S)

    async def close(self) -> None:
        await self._bare.aclose()

    async def ask(self, method: str, path: str, **more: Any) -> tuple[httpx.Response, httpx.Response]:
        """Return the fleet's and ComfyUI's answers, whose statuses are equal."""
        ours, theirs = [await client.request(method, path, **more) for client in (self._fleet, self._bare)]
        expected = (400, 403) if theirs.status_code == 500 else (theirs.status_code,)
        assert ours.status_code in expected, (method, path, ours.status_code, ours.text, theirs.text)
        return ours, theirs

    async def same(self, method: str, path: str, **more: Any) -> Any:
        """Return what both answer: JSON in the same words, or the same text."""
        ours, theirs = await self.ask(method, path, **more)
        if theirs.status_code >= 500:
            assert ours.text
            return None
        kinds = [one.headers.get("content-type") for one in (ours, theirs) if one.content]
        if not kinds:
            return None
        if theirs.headers["content-type"].startswith("application/json"):
            assert kinds == ["application/json; charset=utf-8"] * 2 or kinds[0] == "application/json"
            assert told(ours.json()) == told(theirs.json()), (method, path)
            return ours.json()
        assert (ours.text, len(kinds), len(set(kinds))) == (theirs.text, 2, 1), (method, path)
        return ours.text


@pytest.fixture
async def both(api: Api, comfyui_server: ComfyServer) -> AsyncIterator[Both]:
    made = Both(api, comfyui_server)
    yield made
    await made.close()


def told(value: Any) -> Any:
    """Return an answer with its times checked and left out, and lists of files in one order."""
    if isinstance(value, dict):
        return {key: is_now(key, one) if key in TIMES else told(one) for key, one in value.items()}
    if isinstance(value, list):
        items = [told(one) for one in value]
        # ComfyUI lists in the order of the disk; names are not in it, but in that of their letters.
        return sorted(items, key=str) if items and "name" not in items[0] else items
    return value


def is_now(key: str, value: float) -> str:
    seconds = value / 1000 if value > 1e11 else value
    assert abs(time() - seconds) < 120, (key, value)
    return "now"


@pytest.mark.parametrize("form", ["", "/api"])
@pytest.mark.parametrize(
    "name",
    [
        "cat.json",
        "sub/folder/cat.json",
        "my cat (2).json",
        "ünïcode-猫-🐈.json",
        ".index.json",
        ".hidden/a.json",
        "no-suffix",
        "a%20b.json",
        "a%2Fb.json",
        "100%.json",
        "a+b&c=d?e#f.json",
        "[glob]*.json",
        "move/a/move.json",
        "dots...json",
        "a/./b/../c.json",
        "'quotes\".json",
        "back\\slash.json",
        "x" * 200 + ".json",
        "styles.css",
        "page.html",
        "picture.png",
        "script.js",
        "drawing.svg",
        "notes.txt",
    ],
)
async def test_a_file_of_any_name_is_written_read_listed_moved_and_deleted(
    both: Both, top: str, name: str, form: str
) -> None:
    whole = f"{top}/{name}"
    path = f"{form}/userdata/{quote(whole, safe='')}"
    await both.same("GET", path)
    await both.same("POST", f"{path}?overwrite=false", content=GRAPH)
    await both.same("POST", f"{path}?overwrite=false", content="other")
    await both.same("POST", f"{path}?overwrite=true&full_info=undefined", content=GRAPH)
    await both.same("POST", f"{path}?full_info=true", content=GRAPH + " ")
    ours, theirs = await both.ask("GET", path)
    assert ours.text == theirs.text == GRAPH + " "
    assert ours.headers["content-type"] == safe_type(theirs.headers)
    for header in HEADERS[1:]:
        assert ours.headers[header] == theirs.headers.get(header, ours.headers[header])
    await both.ask("HEAD", path)
    for query in QUERIES:
        await both.same("GET", f"{form}/userdata?dir={quote(top)}{query}")
    await both.same("GET", f"{form}/v2/userdata?path={quote(top)}")
    moved = f"{path}/move/{quote(whole + '.moved', safe='')}"
    await both.same("POST", f"{moved}?overwrite=false")
    await both.same("GET", path)
    await both.same("POST", f"{moved}?overwrite=false")
    await both.same("POST", path, content="new")
    await both.same("POST", f"{moved}?overwrite=false&full_info=true")
    await both.same("POST", f"{moved}?overwrite=true&full_info=true")
    await both.same("GET", f"{form}/v2/userdata?path={quote(top)}")
    await both.same("DELETE", path)
    await both.same("DELETE", f"{form}/userdata/{quote(whole + '.moved', safe='')}")
    await both.same("GET", f"{form}/v2/userdata?path={quote(top)}")
    await both.same("GET", f"{form}/userdata?dir={quote(top)}&recurse=true")


QUERIES = (
    *("", "&recurse=true", "&recurse=TRUE", "&recurse=1", "&split=true", "&recurse=true&split=true"),
    *("&full_info=true", "&full_info=True&recurse=true", "&full_info=true&split=true&recurse=true"),
    *("&recurse=false&recurse=true", "&split=false&full_info=false"),
)


def safe_type(headers: Any) -> str:
    """Return the type that 0.33 sends; 0.3.64 lets browsers run what people upload."""
    kind = str(headers["content-type"])
    active = ("text/html", "text/css", "text/javascript", "image/svg+xml", "application/javascript")
    return "application/octet-stream" if kind.startswith(active) else kind


async def test_folders(both: Both, top: str) -> None:
    inside = [f"{top}/a/one.json", f"{top}/a/b/two.json", f"{top}/c/Three.json", f"{top}/zero.json"]
    for name in inside:
        await both.same("POST", f"/userdata/{quote(name, safe='')}?full_info=true", content=name)
    places = [top, f"{top}/", f"/{top}", f"{top}/a", f"{top}/a/..", f"{top}//a/", f"{top}/a/one.json"]
    for place in (*places, f"{top}/none", "..", "../..", "/", f"{top}/../../x", quote(f"{top}/a")):
        for query in QUERIES:
            await both.same("GET", f"/userdata?dir={quote(place, safe='')}{query}")
        await both.same("GET", f"/v2/userdata?path={quote(place, safe='')}")
    await both.same("GET", "/userdata")
    await both.same("GET", "/userdata?dir=")
    below_a_file = (f"{top}/zero.json/x.json", f"{top}/zero.json/x/y.json")
    for name in (f"{top}/a", *below_a_file, "..", "../x.json", "/x.json"):
        path = f"/userdata/{quote(name, safe='')}"
        for query in ("", "?overwrite=false"):
            await both.ask("POST", path + query, content="x")
        if name.endswith("x.json"):
            await both.same("GET", path)
            await both.same("DELETE", path)
    await both.same("POST", move(f"{top}/a", f"{top}/d/e"))
    await both.same("GET", f"/v2/userdata?path={quote(top)}")
    await both.same("POST", move(f"{top}/zero.json", f"{top}/c"))
    await both.same("GET", f"/v2/userdata?path={quote(top)}")
    for source, dest in (("none.json", "x.json"), ("d", "d/inside"), ("c/zero.json", "../../../x")):
        await both.ask("POST", move(f"{top}/{source}", f"{top}/{dest}"))
    await both.ask("POST", move(f"{top}/c/zero.json", f"{top}/c/zero.json/y"))


def move(source: str, dest: str) -> str:
    return f"/userdata/{quote(source, safe='')}/move/{quote(dest, safe='')}"


async def test_settings(both: Both) -> None:
    await both.same("GET", "/settings")
    await both.same("GET", "/settings/Comfy.ColorPalette")
    await both.same(
        "POST", "/settings", json={"Comfy.ColorPalette": "dark", "a": {"b": [1, 2.5, None, True]}}
    )
    for name, value in {
        "one": 1,
        "text": "ünï",
        "null": None,
        "pack/with slash": [],
        "Comfy.Keybinding": [{}],
    }.items():
        await both.same("POST", f"/api/settings/{quote(name, safe='')}", json=value)
    await both.same("POST", "/api/settings", json={"a": 2, "new": {"x": "y"}})
    for name in ("one", "text", "null", "pack/with slash", "Comfy.Keybinding", "a", "none", "ONE"):
        await both.same("GET", f"/settings/{quote(name, safe='')}")
        await both.same("GET", f"/api/settings/{quote(name, safe='')}")
    await both.same("GET", "/api/settings")
    ours, theirs = await both.ask("GET", "/userdata/comfy.settings.json")
    assert ours.json() == theirs.json()
    await both.ask("POST", "/settings", content="{broken")
    await both.ask("POST", "/settings/x", content="{broken")
    await both.ask("POST", "/settings", json=[1])
    await both.same("POST", "/userdata/comfy.settings.json", content='{"replaced": true}')
    await both.same("GET", "/settings")
    await both.same("POST", "/userdata/comfy.settings.json", content="no JSON")
    await both.same("GET", "/settings")
    await both.same("GET", "/users")
    await both.same("DELETE", "/userdata/comfy.settings.json")
    await both.same("GET", "/settings")


async def test_a_persons_styles_are_used_as_they_are(both: Both) -> None:
    await both.same("POST", "/userdata/user.css", content="a {}")
    ours, theirs = await both.ask("GET", "/api/userdata/user.css")
    assert ours.headers["content-type"].partition(";")[0] == theirs.headers["content-type"].partition(";")[0]
    assert ours.headers["content-disposition"] == theirs.headers.get("content-disposition", "inline")
    await both.same("DELETE", "/userdata/user.css")


async def test_sizes(both: Both, top: str) -> None:
    for size in (0, 1, 1024 * 1024 + 3):
        path = f"/userdata/{quote(f'{top}/{size}', safe='')}"
        await both.same(
            "POST", f"{path}?full_info=true", content=b"\xff\x00" * (size // 2) + b"x" * (size % 2)
        )
        ours, theirs = await both.ask("GET", path)
        assert ours.content == theirs.content
        assert len(ours.content) == size
