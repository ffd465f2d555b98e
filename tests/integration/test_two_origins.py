"""The table of routes on both origins: who may ask for what where, whatever a browser adds by itself."""

import base64
import hashlib
import hmac
import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.api.app import Front
from comfy_fleet.api.endpoint import ServedRoute
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

ANN, OPS, AGENT = "ann-key-0123456789", "ops-key-0123456789", "agent-0123456789abc"
EDITOR, CONSOLE = {"X-Fleet-Origin": "editor"}, {"X-Fleet-Origin": "console"}
UUID = "5e1b5a7e-0000-4000-8000-000000000000"
_NEEDS_AN_OPERATOR = re.compile(
    r"\b(operator\(request\)|_agents_only\(request\)|\.operator\b|Role\.OPERATOR)"
)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    write_keys(path, f"ann {ANN} artist\nops {OPS} admin\n")
    return path


@pytest.fixture
async def keyed(redis_port: int, redis: Redis, tmp_path: Path, keys: Path) -> AsyncIterator[Api]:
    async with running(
        redis_port, tmp_path, keys_file=keys, agent_token=AGENT, extension_routes="/chooser"
    ) as api:
        yield api


@pytest.fixture
async def keyless(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, agent_token=AGENT, extension_routes="/chooser") as api:
        yield api


def table(api: Api) -> list[ServedRoute]:
    front = api.server.config.app
    assert isinstance(front, Front)
    found = [route for route in front.router.routes if isinstance(route, ServedRoute)]
    assert len(found) > 150
    return found


def asked(route: ServedRoute) -> tuple[str, str]:
    """Return a method and a path that lead to a route."""
    names = {"task_id": UUID, "job_id": UUID, "id": UUID, "asset_id": UUID, "folder": "input"}
    path = re.sub(r"{(\w+)(?::\w+)?}", lambda found: names.get(found[1], "x"), route.path)
    (method,) = (route.methods or {"GET"}) - {"HEAD"} or {"HEAD"}
    return method, path


def consoles(api: Api) -> list[ServedRoute]:
    # The stream has no end; it is refused where the others are, by the same rule.
    found = [route for route in table(api) if route.console and not route.streams]
    assert len(found) > 20
    return found


async def ask(
    api: Api, route: ServedRoute, origin: dict[str, str], headers: dict[str, str], front: str = ""
) -> httpx.Response:
    method, path = asked(route)
    body: dict[str, Any] = {} if method in ("GET", "HEAD", "DELETE") else {"json": {}}
    return await api.client.request(method, front + path, headers={**origin, **headers}, **body)


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


async def signed_in(api: Api, key: str) -> tuple[dict[str, str], dict[str, str]]:
    """Sign in at the console and go on to the editor's origin; return the cookies of both."""
    api.client.cookies.clear()
    shown = await api.client.get("/login", headers=EDITOR)
    nonce = {"Cookie": shown.headers["set-cookie"].partition(";")[0]}
    editor = httpx.URL(shown.headers["location"]).params["editor"]
    done = await api.client.post("/login", data={"key": key, "editor": editor}, headers=CONSOLE)
    assert done.status_code == 303, done.text
    console = {"Cookie": done.headers["set-cookie"].partition(";")[0]}
    entered = await api.client.get(
        f"/enter?{httpx.URL(done.headers['location']).query.decode()}", headers={**EDITOR, **nonce}
    )
    assert (entered.status_code, entered.headers["refresh"]) == (200, "0; url=./")
    session = next(one for one in entered.headers.get_list("set-cookie") if one.startswith("fleet_session="))
    api.client.cookies.clear()
    return console, {"Cookie": session.partition(";")[0]}


# -- the table ----------------------------------------------------------------------------------------------


async def test_a_route_that_needs_an_operator_is_the_consoles(keyless: Api) -> None:
    needing = {
        route.path
        for route in table(keyless)
        if _NEEDS_AN_OPERATOR.search(inspect.getsource(inspect.unwrap(route.endpoint)))
    }
    assert len(needing) > 10
    assert needing <= {route.path for route in consoles(keyless)}


async def test_nobody_is_an_operator_there_because_of_what_a_browser_adds(keyed: Api) -> None:
    await keyed.add_node("g1")
    console, editor = await signed_in(keyed, OPS)
    both = {"Cookie": f"{console['Cookie']}; {editor['Cookie']}"}
    as_if_it_were_the_editors = {"Cookie": console["Cookie"].replace("fleet_console", "fleet_session")}
    ways: list[tuple[str, dict[str, str]]] = [
        ("", editor),
        ("", both),
        ("", basic(OPS)),
        (f"/k/{OPS}", {}),
        (f"/k/{OPS}", {"Authorization": f"Bearer {OPS}"}),
        (f"/k/{AGENT}", {}),
    ]
    for route in consoles(keyed):
        for front, headers in ways:
            answer = await ask(keyed, route, EDITOR, headers, front)
            assert "console_only" in answer.text, (route.path, headers, answer.text)
            assert answer.status_code == 403
        for headers in ({}, as_if_it_were_the_editors, console):
            assert (await ask(keyed, route, EDITOR, headers)).status_code == 401, route.path
        by_key = await ask(keyed, route, EDITOR, {"Authorization": f"Bearer {OPS}"})
        assert by_key.status_code != 403 or "console_only" not in by_key.text, route.path
    assert [node.name for node in await keyed.stores.nodes.nodes()] == ["g1"]


async def test_no_script_of_an_editor_deletes_a_picture(keyed: Api) -> None:
    _, editor = await signed_in(keyed, ANN)
    by_key = {"Authorization": f"Bearer {ANN}"}
    made = await keyed.client.post(
        "/api/v2/assets", files={"file": ("a.png", b"a")}, headers={**EDITOR, **by_key}
    )
    path = f"/api/v2/assets/{made.json()['id']}"
    refused = await keyed.client.delete(path, headers={**EDITOR, **editor})
    assert code(refused) == (403, "console_only")
    assert (await keyed.client.get(path, headers={**EDITOR, **editor})).status_code == 200
    assert (await keyed.client.delete(path, headers={**EDITOR, **by_key})).status_code == 204


async def test_without_keys_a_made_up_key_makes_no_operator(keyless: Api) -> None:
    await keyless.add_node("g1")
    shown: list[dict[str, str]] = [
        *({}, {"Authorization": "Bearer x"}, {"X-API-Key": "x"}, {"Authorization": "x"}, basic("x")),
    ]
    for route in consoles(keyless):
        for headers in shown:
            answer = await ask(keyless, route, EDITOR, headers)
            assert (answer.status_code, "console_only" in answer.text) == (403, True), (route.path, headers)
        by_token = await ask(keyless, route, EDITOR, {"Authorization": f"Bearer {AGENT}"})
        assert by_token.status_code != 403 or "console_only" not in by_token.text, route.path
    assert [node.name for node in await keyless.stores.nodes.nodes()] == ["g1"]


async def test_the_refusal_names_the_console(keyless: Api, redis_port: int, tmp_path: Path) -> None:
    for host, base in (
        ("localhost:8188", "http://localhost:8189"),
        ("127.0.0.1", "http://127.0.0.1:8189"),
        ("[::1]:8188", "http://[::1]:8189"),
    ):
        answer = await keyless.client.get("/api/v1/nodes", headers={**EDITOR, "Host": host})
        assert code(answer) == (403, "console_only")
        assert base in answer.json()["error"]["message"]
        assert answer.json()["error"]["details"] == {"console": base}
    async with running(
        redis_port, tmp_path, console_url="https://console.example/", public_url="https://comfy.example"
    ) as api:
        answer = await api.client.get("/api/v1/nodes", headers=EDITOR)
        assert answer.json()["error"]["details"] == {"console": "https://console.example"}


async def test_the_console_and_the_apis_own_port_serve_operators_and_nothing_of_a_nodes(keyless: Api) -> None:
    await keyless.add_node("g1")
    for origin in (CONSOLE, {}):
        assert (await keyless.client.get("/api/v1/nodes", headers=origin)).status_code == 200
        of_nodes = [route for route in table(keyless) if route.editor]
        assert len(of_nodes) >= 17
        for route in of_nodes:
            assert (await ask(keyless, route, origin, {})).status_code == 404, route.path


async def test_without_the_editor_both_ports_are_alike(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, editor=False) as api:
        for origin in (EDITOR, CONSOLE, {}):
            assert (await api.client.get("/api/v1/nodes", headers=origin)).status_code == 200


async def test_each_origin_is_another_site_to_the_other(keyless: Api) -> None:
    place = keyless.url.removeprefix("http://")
    name = place.partition(":")[0]
    for origin, own, other in (
        (EDITOR, f"http://{name}:8188", f"http://{name}:8189"),
        (CONSOLE, f"http://{name}:8189", f"http://{name}:8188"),
        ({}, f"http://{place}", f"http://{name}:8188"),
    ):
        host = {"Host": own.removeprefix("http://")}
        for site, page in (("same-site", other), ("same-site", own), ("same-origin", other), ("none", other)):
            headers = {**origin, **host, "Origin": page, "Sec-Fetch-Site": site}
            refused = await keyless.client.post("/prompt", json={}, headers=headers)
            assert code(refused) == (403, "forbidden")
        headers = {**origin, **host, "Origin": own, "Sec-Fetch-Site": "same-origin"}
        assert (await keyless.client.post("/prompt", json={}, headers=headers)).status_code == 400
    looks = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}
    assert (await keyless.client.get("/queue", headers={**CONSOLE, **looks})).status_code == 403
    assert (await keyless.client.get("/queue", headers={**EDITOR, **looks})).status_code == 200


# -- signing in ---------------------------------------------------------------------------------------------


async def test_the_form_is_on_the_console_alone(keyed: Api) -> None:
    sent_on = await keyed.client.get("/login", headers=EDITOR)
    assert sent_on.status_code == 303
    assert re.fullmatch(r"http://127\.0\.0\.1:8189/login\?editor=[0-9a-f]{64}", sent_on.headers["location"])
    rules = {rule.lower() for rule in sent_on.headers["set-cookie"].split("; ")[1:]}
    assert rules == {"httponly", "max-age=600", "path=/", "samesite=lax"}
    refused = await keyed.client.post("/login", data={"key": ANN}, headers=EDITOR)
    assert code(refused) == (403, "console_only")
    assert "set-cookie" not in refused.headers
    page = await keyed.client.get("/login", headers=CONSOLE)
    assert "Your API key" in page.text
    policy = page.headers["content-security-policy"]
    assert "form-action 'self';" in policy and "frame-ancestors 'none'" in policy
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    handing = await keyed.client.get(f"/login?editor={'0' * 64}", headers=CONSOLE)
    assert "form-action 'self' http://127.0.0.1:8188;" in handing.headers["content-security-policy"]
    for forged in ("x", "0" * 63, "<script>", "0" * 64 + '"'):
        shown = await keyed.client.get("/login", params={"editor": forged}, headers=CONSOLE)
        assert 'name="editor"' not in shown.text


async def test_a_sign_in_gives_each_origin_a_session_of_its_own(keyed: Api) -> None:
    console, editor = await signed_in(keyed, OPS)
    assert console["Cookie"].startswith("fleet_console=") and editor["Cookie"].startswith("fleet_session=")

    async def works(origin: dict[str, str], cookie: dict[str, str]) -> int:
        return (await keyed.client.get("/api/v2/jobs", headers={**origin, **cookie})).status_code

    assert (await works(CONSOLE, console), await works(EDITOR, editor)) == (200, 200)
    assert (await works(EDITOR, console), await works(CONSOLE, editor)) == (401, 401)
    swapped = {"Cookie": editor["Cookie"].replace("fleet_session", "fleet_console")}
    assert await works(CONSOLE, swapped) == 401
    assert (await keyed.client.get("/api/v1/nodes", headers={**CONSOLE, **console})).status_code == 200


async def test_a_version_that_knows_no_origins_takes_no_session_for_its_own(keyed: Api, redis: Redis) -> None:
    """One that runs beside this one, behind an edge of this one, would see an operator in the editor's."""
    cookies = await signed_in(keyed, OPS)
    stored = {await redis.get(name) for name in await redis.keys("fleet:session:*")}
    assert len(stored) == 2
    digest = hashlib.sha256(OPS.encode()).digest()
    for cookie in cookies:
        token = cookie["Cookie"].partition("=")[2]
        earlier = hmac.new(token.encode(), digest, hashlib.sha256).hexdigest()
        assert earlier.encode() not in stored and earlier not in stored


@pytest.mark.parametrize("which", ["console", "editor"])
async def test_signing_out_on_either_origin_ends_both_sessions(keyed: Api, which: str) -> None:
    console, editor = await signed_in(keyed, ANN)
    others = await signed_in(keyed, ANN)
    here = (CONSOLE, console) if which == "console" else (EDITOR, editor)
    out = await keyed.client.post("/logout", headers={**here[0], **here[1]})
    assert out.status_code == 303 and "max-age=0" in out.headers["set-cookie"].lower()
    for origin, cookie in ((CONSOLE, console), (EDITOR, editor)):
        assert (await keyed.client.get("/api/v2/jobs", headers={**origin, **cookie})).status_code == 401
    for origin, cookie in zip((CONSOLE, EDITOR), others, strict=True):
        assert (await keyed.client.get("/api/v2/jobs", headers={**origin, **cookie})).status_code == 200


async def test_a_cookie_beside_the_fleets_own_makes_nobody_anybody(keyed: Api) -> None:
    """What ``document.cookie = "fleet_console=X; path=/publish"``, or with a domain, makes a browser send."""
    own_console, own_editor = await signed_in(keyed, OPS)
    bad_console, bad_editor = await signed_in(keyed, ANN)
    for origin, path, own, bad in (
        (CONSOLE, "/workflows", own_console["Cookie"], bad_console["Cookie"]),
        (CONSOLE, "/publish/x", own_console["Cookie"], "fleet_console=x"),
        (CONSOLE, "/api/v1/nodes", own_console["Cookie"], "fleet_console="),
        (EDITOR, "/api/v2/jobs", own_editor["Cookie"], bad_editor["Cookie"]),
    ):
        assert (await keyed.client.get(path, headers={**origin, "Cookie": own})).status_code != 401
        ways = ([f"{bad}; {own}"], [f"{own};{bad}"], [own, bad])
        for shown in ways:
            headers = [*origin.items(), *(("Cookie", one) for one in shown)]
            assert (await keyed.client.get(path, headers=headers)).status_code == 401, (path, shown)
    enter, nonce = await offered(keyed)
    tossed = await keyed.client.get(enter, headers={**EDITOR, "Cookie": f"fleet_enter=x; {nonce['Cookie']}"})
    assert (tossed.status_code, "set-cookie" in tossed.headers) == (403, False)
    both = f"{bad_console['Cookie']}; {own_console['Cookie']}"
    out = await keyed.client.post("/logout", headers={**CONSOLE, "Cookie": both})
    assert out.status_code == 303
    for ended in (own_console, bad_console):
        assert (await keyed.client.get("/api/v2/jobs", headers={**CONSOLE, **ended})).status_code == 401


async def offered(api: Api, key: str = ANN) -> tuple[str, dict[str, str]]:
    """Sign in at the console; return the path that enters the editor's origin, and the browser's nonce."""
    shown = await api.client.get("/login", headers=EDITOR)
    api.client.cookies.clear()
    editor = httpx.URL(shown.headers["location"]).params["editor"]
    done = await api.client.post("/login", data={"key": key, "editor": editor}, headers=CONSOLE)
    api.client.cookies.clear()
    nonce = shown.headers["set-cookie"].partition(";")[0]
    return f"/enter?{httpx.URL(done.headers['location']).query.decode()}", {"Cookie": nonce}


async def test_a_code_is_good_once_in_the_browser_that_it_was_made_for(keyed: Api, redis: Redis) -> None:
    enter, nonce = await offered(keyed)
    other_nonce = (await keyed.client.get("/login", headers=EDITOR)).headers["set-cookie"].partition(";")[0]
    keyed.client.cookies.clear()
    for headers, path in (
        ({}, (await offered(keyed))[0]),
        ({"Cookie": other_nonce}, (await offered(keyed))[0]),
        ({"Cookie": "fleet_enter=x"}, (await offered(keyed))[0]),
        (nonce, "/enter?code=x"),
        (nonce, "/enter"),
    ):
        refused = await keyed.client.get(path, headers={**EDITOR, **headers})
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
    assert (await keyed.client.get(enter, headers={**CONSOLE, **nonce})).status_code == 404
    seen_by_another, of_a_victim = await offered(keyed)
    for headers in ({}, of_a_victim):  # the first look has used it up, even without a nonce
        refused = await keyed.client.get(seen_by_another, headers={**EDITOR, **headers})
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
    first = await keyed.client.get(enter, headers={**EDITOR, **nonce})
    assert first.status_code == 200 and "signed in as <b>ann</b>" in first.text
    keyed.client.cookies.clear()
    again = await keyed.client.get(enter, headers={**EDITOR, **nonce})
    assert (again.status_code, "set-cookie" in again.headers) == (403, False)
    await offered(keyed)
    (name,) = [name async for name in redis.scan_iter("fleet:handover:*")]
    assert 0 < await redis.pttl(name) <= 60_000


async def test_who_is_signed_in_at_the_console_presses_a_button_for_the_editor(keyed: Api) -> None:
    console, _ = await signed_in(keyed, ANN)
    shown = await keyed.client.get("/login", headers=EDITOR)
    keyed.client.cookies.clear()
    editor = httpx.URL(shown.headers["location"]).params["editor"]
    page = await keyed.client.get(f"/login?editor={editor}", headers={**CONSOLE, **console})
    assert page.status_code == 200 and "Open the editor" in page.text
    pressed = await keyed.client.post("/login", data={"editor": editor}, headers={**CONSOLE, **console})
    assert pressed.headers["location"].startswith("http://127.0.0.1:8188/enter?code=")
    foreign = {"Origin": "http://127.0.0.1:8188", "Sec-Fetch-Site": "same-site"}
    scripted = await keyed.client.post(
        "/login", data={"editor": editor}, headers={**CONSOLE, **console, **foreign}
    )
    assert code(scripted) == (403, "forbidden")
    unknown = await keyed.client.post("/login", data={"editor": editor}, headers=CONSOLE)
    assert unknown.status_code == 401


async def test_the_workflow_to_open_survives_the_way_over_the_console(keyed: Api) -> None:
    await keyed.add_node("g1")
    start = await keyed.client.get("/?fleet_workflow=my_flow%40draft", headers=EDITOR)
    assert (start.status_code, start.headers["location"]) == (303, "login?fleet_workflow=my_flow%40draft")
    led = await keyed.client.get(f"/{start.headers['location']}", headers=EDITOR)
    nonce = {"Cookie": led.headers["set-cookie"].partition(";")[0]}
    keyed.client.cookies.clear()
    there = httpx.URL(led.headers["location"])
    shown = await keyed.client.get(f"/login?{there.query.decode()}", headers=CONSOLE)
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', shown.text))
    assert fields == {"editor": there.params["editor"], "fleet_workflow": "my_flow@draft"}
    mistyped = await keyed.client.post("/login", data={"key": "wrong", **fields}, headers=CONSOLE)
    assert mistyped.status_code == 401
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', mistyped.text))
    done = await keyed.client.post("/login", data={"key": ANN, **fields}, headers=CONSOLE)
    console = {"Cookie": done.headers["set-cookie"].partition(";")[0]}
    keyed.client.cookies.clear()
    enter = httpx.URL(done.headers["location"])
    entered = await keyed.client.get(f"/enter?{enter.query.decode()}", headers={**EDITOR, **nonce})
    assert entered.headers["refresh"] == "0; url=./?fleet_workflow=my_flow%40draft"
    button = await keyed.client.get(f"/login?{there.query.decode()}", headers={**CONSOLE, **console})
    assert 'name="fleet_workflow" value="my_flow@draft"' in button.text
    pressed = await keyed.client.post("/login", data=fields, headers={**CONSOLE, **console})
    assert httpx.URL(pressed.headers["location"]).params["fleet_workflow"] == "my_flow@draft"
    from_elsewhere = {**EDITOR, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    linked = await keyed.client.get("/?fleet_workflow=my_flow", headers=from_elsewhere)
    assert linked.headers["refresh"] == "0; url=./?fleet_workflow=my_flow"


@pytest.mark.parametrize("text", ["", "../x", "a b", "x;url=//evil.test", 'x"><script>', "x" * 64])
async def test_what_is_no_workflow_goes_nowhere(keyed: Api, text: str) -> None:
    await keyed.add_node("g1")
    start = await keyed.client.get("/", params={"fleet_workflow": text}, headers=EDITOR)
    assert start.headers["location"] == "login"
    led = await keyed.client.get("/login", params={"fleet_workflow": text}, headers=EDITOR)
    assert "fleet_workflow" not in led.headers["location"]
    shown = await keyed.client.get(
        "/login", params={"editor": "0" * 64, "fleet_workflow": text}, headers=CONSOLE
    )
    assert "fleet_workflow" not in shown.text and "evil" not in shown.text


async def test_what_is_stored_of_a_sign_in_opens_nothing(keyed: Api, redis: Redis) -> None:
    enter, nonce = await offered(keyed)
    told = enter.partition("code=")[2]
    (name,) = [name async for name in redis.scan_iter("fleet:handover:*")]
    stored = f"{name!r} {await redis.get(name)!r}"
    assert told not in stored and ANN not in stored and nonce["Cookie"].partition("=")[2] not in stored
    session = {"Cookie": f"fleet_session={told}"}
    assert (await keyed.client.get("/api/v2/jobs", headers={**EDITOR, **session})).status_code == 401


async def test_a_key_in_the_path_shows_no_editor(keyed: Api) -> None:
    await keyed.add_node("g1")
    page = await keyed.client.get(f"/k/{ANN}/", headers=EDITOR)
    assert page.status_code == 200
    assert "Many GPUs, one ComfyUI" in page.text and "<script" not in page.text
