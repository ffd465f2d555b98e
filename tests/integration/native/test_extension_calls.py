"""Extensions' own routes, opened by prefix: to which node a call goes, and what goes with it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.services import extension_calls
from tests.integration.api_kit import Api, running
from tests.integration.native.editor_kit import EDITOR, add_editor, answer, told
from tests.integration.native.prompts_kit import KEYS, claim_next, end, post
from tests.key_files import write_keys

PREFIXES = "/chooser,/api/etn/x.y"
SECRET = "secret-0123456789"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, "".join(f"{name} {key}\n" for name, key in KEYS.items()))
    async with running(redis_port, tmp_path, keys_file=keys, extension_routes=PREFIXES) as started:
        for name in ("g1", "g2"):
            await add_editor(started, name)
            for path in ("/chooser", "/chooser/a/b?x=1&y=%2F", "/api/chooser/a", "/etn/x.y/z"):
                started.info.raws[name][path] = told({"of": name, "path": path})
        yield started


async def call(
    api: Api, method: str, path: str, who: str = "ada", body: bytes = b"", **headers: str
) -> httpx.Response:
    api.client.cookies.clear()
    key = {"Authorization": f"Bearer {KEYS[who]}"}
    return await api.client.request(method, path, headers={**EDITOR, **key, **headers}, content=body)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/chooser", "/chooser/a/b?x=1&y=%2F", "/api/chooser/a", "/etn/x.y/z"])
async def test_a_call_goes_to_the_editor_node_while_nothing_runs(api: Api, method: str, path: str) -> None:
    found = await call(api, method, path)
    assert found.status_code == 200, found.text
    assert found.json() == {"of": "g1", "path": path}
    ticket = api.deps.editor_tickets.sign("g2", now=api.deps.clock())
    assert (await call(api, method, path, Cookie=f"fleet_editor={ticket}")).json()["of"] == "g2"


async def test_only_what_is_about_the_body_goes_along(api: Api) -> None:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Cookie": f"fleet_session={SECRET}",
        "X-API-Key": SECRET,
        "Comfy-User": SECRET,
        "Origin": api.url,
        "Referer": f"{api.url}/{SECRET}",
    }
    api.info.raws["g1"]["/chooser"] = answer(
        b"\x00\xff", "application/x-own", status=418, **{"cache-control": "no-store", "etag": '"x"'}
    )
    found = await call(api, "POST", "/chooser", body=b'{"a": "\xff"}', **headers)
    assert (found.status_code, found.content) == (418, b"\x00\xff")
    passed = [found.headers[name] for name in ("content-type", "cache-control", "etag")]
    assert passed == ["application/x-own", "no-store", '"x"']
    ((node, method, path, sent, body),) = [one for one in api.info.passed if one[2] == "/chooser"]
    assert (node, method, path, body) == ("g1", "POST", "/chooser", b'{"a": "\xff"}')
    assert sent == {"content-type": "application/json", "accept": "application/json"}


async def test_a_call_goes_to_the_node_that_runs_the_callers_prompt(api: Api) -> None:
    ada = httpx.AsyncClient(base_url=api.url, headers={"Authorization": f"Bearer {KEYS['ada']}"})
    async with ada:
        await post(ada, 1)
        claim = await claim_next(api, "g2")
        assert (await call(api, "POST", "/chooser")).json()["of"] == "g2"
        assert (await call(api, "POST", "/chooser", "bob")).json()["of"] == "g1"
        await end(api, claim)
        assert (await call(api, "POST", "/chooser")).json()["of"] == "g1"


async def test_two_running_prompts_are_a_conflict_unless_one_is_named(api: Api) -> None:
    ada = httpx.AsyncClient(base_url=api.url, headers={"Authorization": f"Bearer {KEYS['ada']}"})
    async with ada:
        prompts, claims = [], {}
        for number, node in enumerate(("g1", "g2")):
            prompts.append(await post(ada, number, prompt_id=str(uuid4())))
            claims[node] = await claim_next(api, node)
        refused = await call(api, "POST", "/chooser")
        assert refused.status_code == 409
        assert "2 of your prompts run on different nodes" in refused.json()["error"]["message"]
        assert api.info.passed == []

        run = claims["g2"].run
        api.info.raws["g2"][f"/chooser?prompt_id={run}"] = told({"of": "g2", "prompt": run})
        found = await call(api, "POST", f"/chooser?prompt_id={prompts[1]}")
        assert found.json() == {"of": "g2", "prompt": prompts[1]}  # and no word of the run
        found = await call(api, "POST", "/chooser", body=f'{{"id": "{prompts[0]}"}}'.encode())
        assert found.json()["of"] == "g1"
        assert api.info.passed[-1][4] == f'{{"id": "{claims["g1"].run}"}}'.encode()
        assert (await call(api, "POST", "/chooser", "bob", f'"{prompts[1]}"'.encode())).json()["of"] == "g1"

        # One whose outputs are only being fetched does not count.
        await api.stores.runs.left(claims["g1"], [])
        assert (await call(api, "POST", "/chooser")).json()["of"] == "g2"


async def test_what_can_not_be_passed_on_is_refused(api: Api) -> None:
    raws = api.info.raws["g1"]
    raws["/chooser/to"] = answer("", status=302, location="http://evil/")
    for path, status in (
        *(("/chooser/to", 502), ("/chooser/%2e%2e/internal/logs", 404), ("/chooser/..%2finternal/logs", 404)),
        *(("/chooserx", 404), ("/etn", 404), ("/internal/logs", 404), ("/api/api/chooser", 404)),
    ):
        assert (await call(api, "GET", path)).status_code == status, path
    assert (await call(api, "PATCH", "/chooser")).status_code == 405
    assert (await call(api, "POST", "/chooser", body=bytes(17 * 1024 * 1024))).status_code == 413
    assert [one[2] for one in api.info.passed] == ["/chooser/to"]
    del api.info.raws["g1"]
    assert (await call(api, "POST", "/chooser")).status_code == 502


async def test_a_call_that_never_ends_gives_its_turn_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension_calls, "CALL_S", 0.2)
    api.info.gates["g1"] = asyncio.Event()
    # More than have turns at once: those who wait get theirs when the first ones end.
    found = await asyncio.gather(*(call(api, "POST", "/chooser") for _ in range(40)))
    assert {one.status_code for one in found} == {502}
    assert "within 0.2 s" in found[0].json()["error"]["message"]
    api.info.gates["g1"].set()
    assert (await call(api, "POST", "/chooser")).status_code == 200


async def test_the_routes_are_the_editors_alone(api: Api) -> None:
    for other in ({}, {"X-Fleet-Origin": "console"}):
        headers = {"Authorization": f"Bearer {KEYS['ada']}", **other}
        assert (await api.client.post("/chooser", headers=headers)).status_code == 404
    assert (await api.client.post("/chooser", headers=EDITOR)).status_code == 401
    foreign = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert (await call(api, "POST", "/chooser", "ada", b"", **foreign)).status_code == 403
    assert api.info.passed == []


async def test_without_the_setting_there_are_none(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        await add_editor(api, "g1")
        assert (await api.client.post("/chooser", headers=EDITOR)).status_code == 404
