"""User data and settings over HTTP: whose they are, what does not fit, and what browsers may do with them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

ANN, BOB = "ann-key-0123456789-0123456789", "bob-key-0123456789-0123456789"
AGENT = "agent-0123456789abc"
GRAPH = '{"nodes":[],"links":[],"version":0.4}'


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


@pytest.fixture
async def keyed(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, f"ann {ANN}\nbob {BOB}\n")
    async with running(
        redis_port, tmp_path, keys_file=keys, agent_token=AGENT, userdata_bytes=1000
    ) as started:
        yield started


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def everything(client: httpx.AsyncClient) -> list[object]:
    """Return what a person can see."""
    lists = ("/v2/userdata", "/userdata?dir=.&recurse=true", "/userdata/a.json")
    answers = [await client.get(path) for path in ("/settings", "/api/settings", "/users", *lists)]
    return [answer.json() if answer.content else answer.status_code for answer in answers]


async def test_two_people_see_nothing_of_each_other(keyed: Api) -> None:
    async with (
        httpx.AsyncClient(base_url=keyed.url, headers=bearer(ANN)) as ann,
        httpx.AsyncClient(base_url=keyed.url, headers={**bearer(BOB), "Comfy-User": "ann"}) as bob,
    ):
        before = await everything(bob)
        for path in ("a.json", "workflows%2Fa.json", "comfy.templates.json"):
            assert (await ann.post(f"/userdata/{path}", content=GRAPH)).status_code == 200
        await ann.post("/settings", json={"Comfy.Theme": "dark"})
        assert await everything(bob) == before
        for method, path in (
            ("POST", "/userdata/a.json/move/b.json"),
            ("DELETE", "/userdata/a.json"),
            ("GET", "/userdata/..%2Fann%2Fa.json"),
        ):
            assert (await bob.request(method, path)).status_code in (403, 404)
        await bob.post("/userdata/a.json", content="{}")
        await bob.post("/settings", json={"Comfy.Theme": "light"})
        assert (await ann.get("/userdata/a.json")).text == GRAPH
        assert (await ann.get("/settings/Comfy.Theme")).json() == "dark"
        assert (await bob.get("/userdata/a.json")).text == "{}"


ROUTES = (
    *(("GET", "/userdata?dir=."), ("GET", "/v2/userdata"), ("GET", "/userdata/a"), ("POST", "/userdata/a")),
    *(("DELETE", "/userdata/a"), ("POST", "/userdata/a/move/b"), ("GET", "/settings"), ("GET", "/users")),
    *(("POST", "/settings"), ("GET", "/settings/a"), ("POST", "/settings/a"), ("POST", "/users")),
)


@pytest.mark.parametrize(("key", "status"), [(AGENT, 403), ("", 401), ("wrong-key-0123456789", 401)])
async def test_agents_have_no_files_and_nobody_without_a_key_has(keyed: Api, key: str, status: int) -> None:
    for method, path in ROUTES:
        for form in ("", "/api"):
            headers = bearer(key) if key else {}
            answer = await keyed.client.request(method, form + path, headers=headers, content=b"{}")
            assert answer.status_code == status, (method, path, answer.text)


async def test_what_does_not_fit_is_refused_with_the_limit(keyed: Api) -> None:
    async with httpx.AsyncClient(base_url=keyed.url, headers=bearer(ANN)) as ann:
        assert (await ann.post("/userdata/a", content=b"x" * 900)).status_code == 200
        full = await ann.post("/userdata/b", content=b"x" * 101)
        assert full.status_code == 413
        assert full.headers["content-type"] == "text/plain; charset=utf-8"
        assert "FLEET_USERDATA_BYTES" in full.text
        assert (await ann.post("/settings", json={"a": "x" * 101})).status_code == 413
        large = await ann.post("/userdata/b", content=bytes(20 * 1024 * 1024 + 1))
        assert large.status_code == 413
        assert [file["size"] for file in (await ann.get("/v2/userdata")).json()] == [900]
    async with httpx.AsyncClient(base_url=keyed.url, headers=bearer(BOB)) as bob:
        assert (await bob.post("/userdata/b", content=b"x" * 1000)).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/userdata/", 404),
        ("/userdata/a/b", 404),
        ("/userdata/a/move/", 404),
        ("/userdata/a/move/b/c", 404),
        ("/userdata/a/b/c", 404),
        ("/settings/a/b", 404),
        ("/settings/", 404),
        ("/userdata/a%00b", 400),
        ("/userdata/a%0Ab", 404),
        ("/userdata/%ED%A0%80", 200),
        ("/userdata/" + "x" * 256, 400),
        ("/settings/" + "x" * 1001, 400),
    ],
)
async def test_odd_paths(api: Api, path: str, status: int) -> None:
    for form in ("", "/api"):
        assert (await api.client.post(form + path, content=b"{}")).status_code == status


async def test_a_file_is_not_sent_again_while_it_is_the_same(api: Api) -> None:
    await api.client.post("/userdata/a.json", content=GRAPH)
    first = await api.client.get("/userdata/a.json")
    tag = {"If-None-Match": first.headers["etag"]}
    assert first.headers["cache-control"] == "private, no-cache"
    assert (await api.client.get("/userdata/a.json", headers=tag)).status_code == 304
    await api.client.post("/userdata/a.json", content=GRAPH)
    assert (await api.client.get("/userdata/a.json", headers=tag)).status_code == 200


async def test_no_file_runs_in_a_browser(api: Api) -> None:
    for name in ("a.html", "a.svg", "a.js", "a.css", "a.xml", "sub%2Fuser.css"):
        await api.client.post(f"/userdata/{name}", content="<script>alert(1)</script>")
        sent = await api.client.get(f"/userdata/{name}")
        assert sent.headers["content-type"] == "application/octet-stream"
        assert sent.headers["content-disposition"] == "attachment"
        assert sent.headers["content-security-policy"].startswith("sandbox")


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_another_sites_page_changes_nothing(api: Api, origin: str) -> None:
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}
    for path in ("/userdata/a", "/settings", "/settings/a", "/userdata/a/move/b"):
        assert (await api.client.post(path, content="{}", headers=headers)).status_code == 403
    assert (await api.client.get("/v2/userdata")).json() == []


async def test_settings_that_come_at_once_are_all_kept_by_two_processes(
    api: Api, redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as other:
        processes = (api, other)
        posts = [processes[n % 2].client.post(f"/settings/s{n}", json=n) for n in range(40)]
        assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200}
        assert (await other.client.get("/settings")).json() == {f"s{n}": n for n in range(40)}


async def test_settings_refuse_what_is_no_object(api: Api) -> None:
    for content in (b"[]", b"1", b"{", b"", b'{"a": NaN}'):
        assert (await api.client.post("/settings", content=content)).status_code == 400
    assert (await api.client.post("/settings", content=b'{"%s": 1}' % (b"k" * 1001))).status_code == 400
    assert (await api.client.get("/settings")).json() == {}


async def test_nobody_adds_people_here(api: Api) -> None:
    answer = await api.client.post("/users", json={"username": "eve"})
    assert answer.status_code == 400
    assert "FLEET_KEYS_FILE" in answer.json()["error"]


async def test_a_setting_with_many_levels_is_refused_and_breaks_no_other(api: Api) -> None:
    deep = "[" * 300 + "]" * 300
    json = {"Content-Type": "application/json"}
    answer = await api.client.post("/settings/deep", content=deep, headers=json)
    assert answer.status_code == 400, answer.text
    await api.client.post("/userdata/comfy.settings.json", content=f'{{"a": {deep}}}')
    assert (await api.client.get("/settings")).json() == {}
    assert (await api.client.post("/settings/a", json=1)).status_code == 200
    assert (await api.client.get("/settings/a")).json() == 1
