"""Who asks: every way of unmodified clients to show a key, and what other sites' pages can't do with it."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.roles import Role
from tests.factories import picture
from tests.integration.api_kit import Api, code, running
from tests.key_files import keys_of, write_keys

ANN, BOB = "ann-key/0123+456=789", "bob-key-0123456789"
OPS, AGENT = "ops-key-0123456789", "agent-0123456789abc"
ANN_IN_PATH = "ann-key%2F0123+456=789"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    write_keys(path, f"ann {ANN} artist\nbob {BOB}\nops {OPS} admin\n")
    return path


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path, keys: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=AGENT) as started:
        yield started


@pytest.fixture
async def keyless(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


@pytest.fixture(params=[True, False], ids=["keys", "keyless"])
async def either(
    request: pytest.FixtureRequest, redis_port: int, redis: Redis, tmp_path: Path, keys: Path
) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, keys_file=keys if request.param else None) as started:
        yield started


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "bearer": ("", {"Authorization": f"Bearer {ANN}"}),
    "bare": ("", {"Authorization": ANN}),
    "x-api-key": ("", {"X-API-Key": ANN}),
    "password": ("", basic("me", ANN)),
    "password alone": ("", basic("", ANN)),
    "user": ("", basic(ANN, "")),
    "path": (f"/k/{ANN_IN_PATH}", {}),
}
WRONG: dict[str, tuple[str, dict[str, str]]] = {
    "nothing": ("", {}),
    "bearer": ("", {"Authorization": f"Bearer {ANN}x"}),
    "password": ("", basic("me", ANN[:-1])),
    "user and password": ("", basic(ANN[:4], ANN[4:])),
    "not base64": ("", {"Authorization": f"Basic {ANN}"}),
    "path": ("/k/no-key-0123456789", {}),
    "path, decoded twice": (f"/k/{ANN_IN_PATH.replace('%', '%25')}", {}),
    "cookie": ("", {"Cookie": "fleet_console=0123456789"}),
    "a key as cookie": ("", {"Cookie": f"fleet_console={BOB}"}),
    "a wrong path before a right header": ("/k/no-key-0123456789", {"X-API-Key": BOB}),
    "a wrong header before a right password": ("", {"X-API-Key": "no", **basic("me", BOB)}),
}


async def whose(api: Api, front: str = "", headers: dict[str, str] | None = None) -> str | int:
    """Return the owner that a request acts for; or the status that refuses it."""
    at = f"{front}/api/v2/assets"
    answer = await api.client.post(
        at, files={"file": ("a", b"x", "text/plain")}, data={"file_path": "a"}, headers=headers
    )
    if not answer.is_success:
        return answer.status_code
    found = await api.assets.get(answer.json()["id"])
    assert found is not None
    return found.owner


async def opens(api: Api, front: str = "", headers: dict[str, str] | None = None) -> int:
    """Return the status that answers a websocket's handshake."""
    url = api.url.replace("http", "ws") + front + "/ws?clientId=c1"
    try:
        async with connect(url, additional_headers=headers, proxy=None):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


async def signed_in(api: Api, key: str = ANN) -> dict[str, str]:
    answer = await api.client.post("/login", data={"key": key})
    assert answer.status_code == 303, answer.text
    api.client.cookies.clear()
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_to_show_a_key_works_for_requests_and_websockets(api: Api, way: str) -> None:
    assert await whose(api, *WAYS[way]) == "ann"
    assert await opens(api, *WAYS[way]) == 101


@pytest.mark.parametrize("way", WRONG)
async def test_a_wrong_key_is_401_in_every_way(api: Api, way: str) -> None:
    front, headers = WRONG[way]
    answer = await api.client.get(f"{front}/api/v2/jobs", headers=headers)
    assert code(answer) == (401, "unauthorized")
    assert ANN not in answer.text and "no-key" not in answer.text
    assert await opens(api, front, headers) == 401


async def test_a_wrong_key_in_the_path_opens_no_page_either(api: Api) -> None:
    for path in ("/", "/health", "/login"):
        assert code(await api.client.get(f"/k/no-key-0123456789{path}"))[0] == 401
        assert (await api.client.get(f"/k/{BOB}{path}")).status_code == 200
    assert (await api.client.get(f"/k/{BOB}")).status_code == 200


async def test_which_of_several_counts(api: Api) -> None:
    session = await signed_in(api, OPS)
    assert await whose(api, f"/k/{BOB}", {"X-API-Key": ANN}) == "bob"
    assert await whose(api, "", {"Authorization": f"Bearer {BOB}", "X-API-Key": ANN}) == "bob"
    assert await whose(api, "", {"X-API-Key": BOB, **basic("me", ANN)}) == "bob"
    assert await whose(api, "", {**basic("me", BOB), **session}) == "bob"
    assert await whose(api, "", {**basic(ANN, BOB)}) == "bob"
    assert await whose(api, "", {**basic("of", "a proxy"), **session}) == "ops"
    assert await whose(api, "", session) == "ops"


async def test_urls_with_a_key_work_in_the_clients_that_read_them(api: Api) -> None:
    place = api.url.removeprefix("http://")
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://me:{BOB}@{place}/api/v2/jobs")
        assert answer.status_code == 200
    async with connect(f"ws://me:{BOB}@{place}/ws", proxy=None) as client_socket:
        assert client_socket.response is not None


async def test_agents_have_no_websocket_and_no_session(api: Api) -> None:
    assert await opens(api, "", {"Authorization": f"Bearer {AGENT}"}) == 403
    assert (await api.client.post("/login", data={"key": AGENT})).status_code == 401


async def test_an_artist_may_do_what_everybody_may(api: Api, keys: Path) -> None:
    known = keys_of(keys)
    roles = [found.roles for key in (ANN, BOB, OPS) if (found := known.find(key))]
    assert roles == [{Role.ARTIST}, set(), {Role.OPERATOR}]
    headers = {"Authorization": f"Bearer {ANN}"}
    assert (await api.client.get("/api/v2/jobs", headers=headers)).status_code == 200
    assert (await api.client.get("/api/v1/nodes", headers=headers)).status_code == 403


# -- signing in ----------------------------------------------------------------


async def test_a_session_begins_with_a_key_and_ends_for_everybody(api: Api) -> None:
    wrong = await api.client.post("/login", data={"key": "no-key-0123456789"})
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    assert "not one of the keys" in wrong.text
    answer = await api.client.post("/login", data={"key": f" {ANN} "})
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie, *rules = answer.headers["set-cookie"].split("; ")
    assert {rule.lower() for rule in rules} == {"httponly", "max-age=1209600", "path=/", "samesite=strict"}
    assert ANN not in cookie and len(cookie) > 40
    api.client.cookies.clear()
    session = {"Cookie": cookie}
    assert await whose(api, "", session) == "ann"
    assert await opens(api, "", session) == 101
    assert "signed in as <b>ann</b>" in (await api.client.get("/login", headers=session)).text
    out = await api.client.post("/logout", headers=session)
    assert out.status_code == 303 and "max-age=0" in out.headers["set-cookie"].lower()
    assert await whose(api, "", session) == 401
    assert "Your API key" in (await api.client.get("/login", headers=session)).text


async def test_a_session_holds_in_every_process_and_over_restarts(
    api: Api, redis_port: int, tmp_path: Path, keys: Path
) -> None:
    session = await signed_in(api)
    async with running(redis_port, tmp_path, keys_file=keys) as other:
        assert await whose(other, "", session) == "ann"


async def test_a_session_ends_with_its_key(api: Api, redis_port: int, tmp_path: Path, keys: Path) -> None:
    session = await signed_in(api)
    write_keys((changed := tmp_path / "changed"), f"bob {BOB}\nann another-key-0123456789\n")
    async with running(redis_port, tmp_path, keys_file=changed) as other:
        assert await whose(other, "", session) == 401


async def closes(client: ClientConnection) -> tuple[int, str]:
    """Read until the websocket is closed; return code and reason."""
    await asyncio.wait_for(client.wait_closed(), 60)
    assert client.close_code is not None and client.close_reason is not None
    return client.close_code, client.close_reason


@asynccontextmanager
async def connected(api: Api, headers: dict[str, str]) -> AsyncIterator[ClientConnection]:
    url = api.url.replace("http", "ws") + f"/ws?clientId={uuid4().hex}"
    async with connect(url, additional_headers=headers, proxy=None) as client:
        await client.recv()
        yield client


async def test_signing_out_closes_the_sessions_websockets_at_every_process(
    api: Api, redis_port: int, tmp_path: Path, keys: Path
) -> None:
    session, other_session = await signed_in(api), await signed_in(api)
    async with (
        running(redis_port, tmp_path, keys_file=keys) as other,
        connected(api, session) as here,
        connected(other, session) as there,
        connected(other, session) as second,
        connected(api, other_session) as same_owner,
        connected(api, {"X-API-Key": ANN}) as by_key,
        connected(api, {**basic("me", ANN), **session}) as by_password,
    ):
        await other.client.post("/logout", headers=session)
        for client in (here, there, second):
            assert await closes(client) == (1008, "signed out")
        for client in (same_owner, by_key, by_password):
            await asyncio.wait_for(await client.ping(), 60)
        assert await opens(api, "", session) == 401


async def test_a_session_that_has_ended_by_its_age_closes_its_websockets(api: Api, redis: Redis) -> None:
    session = await signed_in(api)
    async with connected(api, session) as client:
        (name,) = [name async for name in redis.scan_iter("fleet:session:*")]
        await redis.pexpire(name, 1)
        assert await closes(client) == (1008, "signed out")
    assert not api.deps.sockets


@pytest.mark.parametrize("path", ["/api/v2/jobs/{id}/events", "/api/v1/jobs/{id}/events"])
async def test_signing_out_ends_the_sessions_event_streams(api: Api, path: str) -> None:
    session = await signed_in(api)
    await api.add_node("gpu1")
    job = await api.client.post("/api/v2/jobs", json={"workflow": picture(1)}, headers=session)
    url = path.format(id=job.json()["id"])
    key = {"X-API-Key": ANN}
    async with (
        api.client.stream("GET", url, headers=session) as stream,
        api.client.stream("GET", url, headers=key) as by_key,
    ):
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: status"
        await api.client.post("/logout", headers=session)
        rest = [line async for line in lines]
        assert ": signed out" in rest
        assert await anext(by_key.aiter_lines()) == "event: status"
        assert api.deps.streams == {"ann": 1}
    assert (await api.client.get(url, headers=session)).status_code == 401


async def test_sessions_are_looked_at_again_once_redis_is_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await signed_in(api)
    over, tries = api.deps.sessions.over, 0

    async def away(tokens: Sequence[str]) -> Sequence[str]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreDown("away")
        return await over(tokens)

    monkeypatch.setattr(api.deps.sessions, "over", away)
    async with connected(api, session) as client:
        await api.client.post("/logout", headers=session)
        assert await closes(client) == (1008, "signed out")
    assert tries >= 2


async def test_what_is_stored_of_a_session_opens_nothing(api: Api, redis: Redis) -> None:
    session = await signed_in(api)
    token = session["Cookie"].partition("=")[2]
    names = [name async for name in redis.scan_iter("fleet:session:*")]
    assert len(names) == 1
    name, proof = names[0], await redis.get(names[0])
    stored = f"{name!r} {proof!r}"
    assert token not in stored and ANN not in stored
    assert 0 < await redis.ttl(name) <= 1209600
    for forged in (stored.partition(":session:")[2][:32], str(proof)):
        assert await whose(api, "", {"Cookie": f"fleet_console={forged}"}) == 401


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"console_url": "https://comfy.example/fleet"}, {"X-Fleet-Origin": "console"}),
        ({}, {"X-Forwarded-Proto": "https"}),
    ],
)
async def test_over_https_the_cookie_stays_there(
    redis_port: int,
    redis: Redis,
    tmp_path: Path,
    keys: Path,
    settings: dict[str, Any],
    headers: dict[str, str],
) -> None:
    async with running(redis_port, tmp_path, keys_file=keys, **settings) as api:
        answer = await api.client.post("/login", data={"key": BOB}, headers=headers)
    rules = answer.headers["set-cookie"].lower().split("; ")
    assert "secure" in rules
    assert ("path=/fleet" if settings else "path=/") in rules


@pytest.mark.parametrize("body", [b"", b"key", b"key=", b"\xff\xfe", b"key=%ff", b"x=1&" * 900])
async def test_a_broken_form_is_a_wrong_key(api: Api, body: bytes) -> None:
    assert (await api.client.post("/login", content=body)).status_code == 401
    assert (await api.client.post("/login", content=b"key=" + b"x" * 5000)).status_code == 413


async def test_without_keys_there_is_nothing_to_sign_in_to(keyless: Api) -> None:
    assert "needs no key" in (await keyless.client.get("/login")).text
    answer = await keyless.client.post("/login", data={"key": "x"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (303, False)
    for front, headers in (*WAYS.values(), *WRONG.values()):
        assert await whose(keyless, front, headers) == "local"
        assert await opens(keyless, front, headers) == 101


async def test_pages_run_nothing_load_nothing_and_say_nothing_about_the_fleet(api: Api, keyless: Api) -> None:
    for one in (api, keyless):
        for path in ("/", "/login"):
            page = await one.client.get(path)
            assert page.status_code == 200
            assert not re.search(r"<script|\bsrc=|@import|url\(", page.text)
            assert page.headers["content-security-policy"].startswith("default-src 'none'; ")
            assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert ('href="login"' in (await api.client.get("/")).text) is True
    assert ('href="login"' in (await keyless.client.get("/")).text) is False


async def test_the_front_page_names_the_address_that_was_asked(api: Api) -> None:
    assert api.url in (await api.client.get("/")).text
    assert (await api.client.get("/", headers={"Host": "<script>"})).status_code == 400


# -- other sites ---------------------------------------------------------------


FOREIGN: list[dict[str, str]] = [
    {"Origin": "https://evil.test"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost"},
    {"Origin": "file://"},
    {"Origin": "x"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "anything"},
    {"Origin": "OWN", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.test", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
]
OWN: list[dict[str, str]] = [
    {},
    {"Origin": "OWN"},
    {"Origin": ""},
    {"Origin": "OWN", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Mode": "cors"},  # fetch in Node
    {"Sec-Fetch-Site": "none"},
]


def of(api: Api, headers: dict[str, str]) -> dict[str, str]:
    return {name: api.url if value == "OWN" else value for name, value in headers.items()}


async def every_way(api: Api) -> dict[str, tuple[str, dict[str, str]]]:
    return {**WAYS, "session": ("", await signed_in(api))} if not api.deps.keys.open else {"none": ("", {})}


async def test_another_sites_page_changes_nothing_whatever_it_shows(either: Api) -> None:
    api = either
    for front, shown in (await every_way(api)).values():
        for foreign in FOREIGN:
            headers = {**shown, **of(api, foreign)}
            assert await whose(api, front, headers) == 403, headers
            assert await opens(api, front, headers) == 403, headers
        for own in OWN:
            headers = {**shown, **of(api, own)}
            assert await whose(api, front, headers) in ("ann", "local"), headers
            assert await opens(api, front, headers) == 101, headers


async def test_nobody_is_signed_in_or_out_by_another_sites_page(api: Api) -> None:
    session = await signed_in(api)
    for foreign in FOREIGN:
        headers = of(api, foreign)
        assert code(await api.client.post("/login", data={"key": BOB}, headers=headers))[0] == 403
        assert code(await api.client.post("/logout", headers={**session, **headers}))[0] == 403
    assert await whose(api, "", session) == "ann"


async def test_another_sites_page_shows_nothing_but_links_to_here_work(api: Api) -> None:
    for front, shown in (await every_way(api)).values():
        for mode, dest, status in (
            ("no-cors", "image", 403),
            ("cors", "empty", 403),
            ("navigate", "iframe", 403),
            ("navigate", "document", 200),
        ):
            headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
            answer = await api.client.get(f"{front}/api/v2/jobs", headers={**shown, **headers})
            assert answer.status_code == status, headers


async def test_a_rebound_name_opens_no_websocket(keyless: Api) -> None:
    assert await opens(keyless, "", {"Host": "evil.test", "Origin": "http://evil.test"}) in (400, 403)


async def test_a_proxy_may_change_the_host_if_the_public_address_is_known(
    redis_port: int, redis: Redis, tmp_path: Path, keys: Path
) -> None:
    shown = {"X-API-Key": BOB, "Origin": "https://comfy.example"}
    async with running(
        redis_port, tmp_path, keys_file=keys, console_url="https://comfy.example:443/x"
    ) as api:
        assert await whose(api, "", shown) == "bob"
        assert await whose(api, "", {**shown, "Origin": "https://evil.test"}) == 403
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        assert await whose(api, "", shown) == 403
        assert await whose(api, "", {**shown, "X-Forwarded-Host": "comfy.example:443"}) == "bob"


async def test_every_answer_keeps_where_it_was_to_itself(api: Api) -> None:
    for path, status in (("/", 200), ("/login", 200), ("/api/v2/jobs", 401), ("/nothing", 401), ("/ws", 401)):
        answer = await api.client.get(path)
        assert (answer.status_code, answer.headers["referrer-policy"]) == (status, "no-referrer")
    with pytest.raises(InvalidStatus) as caught:
        await connect(api.url.replace("http", "ws") + "/ws", proxy=None)
    assert caught.value.response.headers["referrer-policy"] == "no-referrer"


CLIENTS = ("httpx", "websockets.client")


async def test_no_log_and_no_metric_shows_a_key_in_the_path(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG")

    async def breaks(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api.deps.jobs, "get", breaks)
    assert await opens(api, f"/k/{BOB}") == 101
    broken = await api.client.get(f"/k/{BOB}/api/v2/jobs/{uuid4()}")
    assert broken.status_code == 500
    missing = await api.client.get(f"/k/{BOB}/api/v2/nothing")
    assert missing.status_code == 404
    wrong = await api.client.delete(f"/k/{BOB}/api/v2/jobs")
    assert wrong.status_code == 405
    metrics = (await api.client.get("/metrics")).text
    log = str([(one.getMessage(), vars(one)) for one in caplog.records if one.name not in CLIENTS])
    assert "request failed" in log
    for text in (log, metrics, broken.text, missing.text, wrong.text):
        assert BOB not in text


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt"])
async def test_a_graph_comes_under_any_type_but_from_a_browser_as_json_alone(api: Api, path: str) -> None:
    shown = {"X-API-Key": BOB}
    for kind in (None, "application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "x"):
        headers = {**shown, "Content-Type": kind} if kind else shown
        for node in ({}, {"Sec-Fetch-Mode": "cors"}):  # which is all that fetch in Node adds
            answer = await api.client.post(path, content=b"{}", headers={**headers, **node})
            assert answer.status_code == 400
        for more in (
            {"Origin": api.url},
            {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
            {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "same-origin"},
            {"Cookie": "a=b"},
            await signed_in(api, BOB),
        ):
            answer = await api.client.post(path, content=b"{}", headers={**headers, **more})
            assert (answer.status_code, answer.json()["error"]["type"]) == (415, "unsupported_media_type")
            for json in ("application/json", "Application/JSON; charset=utf-8"):
                said = {**headers, **more, "Content-Type": json}
                answer = await api.client.post(path, content=b"{}", headers=said)
                assert answer.json()["error"]["type"] == "no_prompt"
