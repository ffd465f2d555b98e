"""Every route that the API has, asked by whoever must get nothing of it.

The routes are those of the running app: a new one is tried at once, and is in a list here if it is open.
"""

import itertools
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from comfy_fleet.api.app import Front
from comfy_fleet.api.credentials import Credentials
from comfy_fleet.api.endpoint import JSON, ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.openai import errors as openai_errors
from comfy_fleet.api.openai import routes as openai
from comfy_fleet.api.origins import Origin
from comfy_fleet.api.v1 import routes as v1
from comfy_fleet.api.v2 import routes as v2
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

ANN, OPS, AGENT = "ann-key-0123456789", "ops-key-0123456789", "agent-0123456789abc"
UUID = "5e1b5a7e-0000-4000-8000-000000000000"
OPEN = {
    *("GET /health", "GET /api/v1/health", "GET /api/v2/health", "GET /api/v1/ready", "GET /metrics"),
    *("GET /metrics/fleet", "GET /", "GET /login", "POST /login", "POST /logout", "GET /enter"),
}
"""What is answered without a key."""
SAFE = ("GET", "HEAD", "OPTIONS")
TELLING = {"GET /metrics", "GET /metrics/fleet", "GET /api/v1/ready"}
"""What of it names nodes."""
AGENTS = {
    "POST /api/v1/agents/{host}/models",
    *("POST /api/v1/agents/{host}/heartbeat", "GET /api/v1/nodes", "GET /api/v1/me", "GET /api/v1/queue"),
    *("GET /features", "GET /api/features"),
}
"""What an agent's token is good for."""
QUERIES = {
    **dict.fromkeys(("GET /api/v1/result", "GET /api/status"), f"?task_id={UUID}"),
    "GET /api/v1/job-ids": f"?prefix={UUID}",
}
BODIES = {
    **{prompt: {"prompt": GRAPH} for prompt in ("POST /prompt", "POST /api/prompt")},
    "POST /api/jobs/cancel": {"job_ids": [UUID]},
}
"""What is asked for before it matters who asks."""
NOTHING = {
    "HEAD /api/v2/assets/by-hash/{hash}": 404,
    "GET /openapi.json": 307,
    "GET /extensions/{package}/{file:path}": 404,
    **dict.fromkeys(("GET /ws", "GET /api/ws"), 426),
}
"""What an agent's token gets where the answer tells nothing, whoever asks."""
OWN = {
    *("DELETE /api/v2/assets/{asset_id}", "DELETE /api/v1/jobs/{job_id}"),
    "DELETE /api/v1/batches/{batch}",
    *("GET /api/v1/webhooks", "POST /api/v1/webhooks/{message_id}/redeliver", "POST /api/v1/webhooks/test"),
    *("GET /api/v1/webhooks/secret", "POST /api/v1/webhooks/secret/rotate"),
    *("GET /workflows", "GET /workflows/{workflow}"),
    *("GET /console", "GET /console/live", "GET /console/workflows", "GET /console/workflows/{workflow}"),
    *("GET /console/usage", "GET /console/usage.csv"),
    *("GET /console/made/{job_id}", "GET /console/workflows/{workflow}/versions"),
    *("GET /console/jobs", "GET /console/jobs/{job_id}"),
    *("POST /console/jobs/{job_id}/cancel", "POST /console/jobs/{job_id}/again"),
}
"""What is the console's for other reasons: anybody may do it there with what is their own, or look."""
ENDLESS = "/console/live"
"""A stream to everybody who may use the fleet; ``test_console.py`` has what it tells to whom."""
ARTISTS = "POST /api/v1/workflows/{workflow}/check"
"""What needs a role, and may be done in the editor."""
WRONG: list[dict[str, str]] = [
    {"Authorization": "Bearer"},
    {"Authorization": f"Bearer {ANN[:-1]}"},
    {"Authorization": f"Bearer {ANN}0"},
    {"Authorization": f"Bearer {ANN.upper()}"},
    {"Authorization": f"Basic {ANN}"},
    {"Authorization": f"{ANN} {ANN}"},
    {"X-API-Key": ANN[:-1]},
    {"Cookie": f"api_key={ANN}; fleet_console={ANN}"},
    {"Authorization": "Bearer " + "x" * 8000},
]
FOREIGN: list[dict[str, str]] = [
    {"Origin": "https://evil.test"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
]
SHOWN_ELSEWHERE = [
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    for mode, dest in (("no-cors", "image"), ("no-cors", "script"), ("cors", "empty"), ("navigate", "iframe"))
]
"""What browsers say of pictures, scripts, event streams and frames of another site's page."""
KINDS = ("text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b")
"""Types that a page of another site may send without asking first."""


@pytest.fixture
async def api(
    redis_port: int, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    write_keys(tmp_path / "keys", f"ann {ANN}\nops {OPS} operator\n")
    async with running(redis_port, tmp_path, keys_file=tmp_path / "keys", agent_token=AGENT) as started:
        # Wrong keys come here by the thousand: a second lies between two of them.
        seconds = itertools.count()
        monkeypatch.setattr(started.deps.wrong_keys, "_monotonic", lambda: float(next(seconds)))
        yield started


@pytest.fixture
async def keyless(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


def routes(api: Api) -> Iterator[tuple[ServedRoute, str, str]]:
    """Yield each route with its method, and its path with names filled in."""
    front = api.server.config.app
    assert isinstance(front, Front)
    for route in front.router.routes:
        assert isinstance(route, ServedRoute), route
        for method in (route.methods or set()) - {"HEAD"} or {"HEAD"}:
            yield route, method, re.sub(r"{[^}]*}", UUID, route.path)


def named(route: ServedRoute, method: str) -> str:
    return f"{method} {route.path}"


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


async def test_without_a_key_every_route_but_the_open_ones_is_closed(api: Api) -> None:
    assert len(list(routes(api))) > 150
    bodies: set[bytes] = set()
    others = itertools.cycle(WRONG)
    found = {named(route, method) for route, method, _ in routes(api) if route.open}
    assert found == OPEN
    for route, method, path in routes(api):
        if route.open:
            continue
        for wrong in ({}, next(others), next(others)):
            answer = await api.client.request(method, f"{path}?api_key={ANN}", headers=raw(wrong))
            assert answer.headers.get("location", "").startswith("/login") or answer.status_code == 401
            assert b"ann" not in answer.content
            if openai_errors.is_asked(path):
                assert answer.json()["error"]["code"] == "invalid_api_key"
            elif answer.headers.get("content-type") == JSON and method != "HEAD":
                assert code(answer) == (401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
                bodies.add(answer.content)
    assert len(bodies) == 1


async def test_a_credential_that_comes_twice_is_none(api: Api) -> None:
    for name, one in (("Authorization", f"Bearer {ANN}"), ("X-API-Key", ANN)):
        for more in ("Bearer x", "", OPS):
            for both in ([one, more], [more, one]):
                headers = [(name, value) for value in both]
                answer = await api.client.get("/api/v2/jobs", headers=headers)
                assert code(answer) == (400, "invalid_request")
        assert (await api.client.get("/api/v2/jobs", headers=[(name, one), (name, one)])).status_code == 200
    # What is shown in several ways counts in the order that is documented, and nothing behind the first one.
    for headers in ([("Authorization", "Bearer x"), ("X-API-Key", ANN)],
                    [("X-API-Key", "x"), ("Authorization", ANN)]):  # fmt: skip
        assert (await api.client.get("/api/v2/jobs", headers=headers)).status_code == 401


class OnlyHashed(str):
    """A text that may be hashed as a whole, and neither compared nor looked up as it is."""

    __slots__ = ()

    def _refuse(self, *_: object) -> Any:
        raise AssertionError("how long this takes tells how much of it is right")

    def partition(self, mark: str, /) -> tuple[str, str, str]:
        return self.encode().decode().partition(mark)  # by what kinds of tokens begin, which everybody knows

    __eq__ = __ne__ = __lt__ = __gt__ = __contains__ = __getitem__ = __hash__ = startswith = find = _refuse


@pytest.mark.parametrize("key", [ANN, AGENT, ANN[:-1], AGENT[:-1], "x" * len(ANN)])
async def test_how_long_a_look_at_a_key_takes_says_nothing_of_its_beginning(api: Api, key: str) -> None:
    shown = Credentials(key=OnlyHashed(key), in_header=True)
    looked = api.deps.keys.identify(shown, api.deps.sessions, Origin.CONSOLE)
    if key in (ANN, AGENT):
        assert (await looked).principal.owner == {ANN: "ann", AGENT: "agent"}[key]
    else:
        with pytest.raises(HttpError, match="valid API key"):
            await looked


async def test_an_agents_token_is_good_for_nothing_else(api: Api) -> None:
    await api.add_node()
    for route, method, path in routes(api):
        name = named(route, method)
        if route.open or name in AGENTS:
            continue
        body = orjson.dumps(BODIES.get(name, {}))
        url = path + QUERIES.get(name, "")
        answer = await api.client.request(method, url, headers={"X-API-Key": AGENT}, content=body)
        assert answer.status_code == NOTHING.get(name, 403), (name, answer.text)
    url = f"{api.url.replace('http', 'ws')}/ws"
    with pytest.raises(InvalidStatus, match="403"):
        await connect(url, additional_headers={"X-API-Key": AGENT}, proxy=None)
    assert await api.stores.jobs.depth() == 0


async def test_a_users_key_does_nothing_of_an_operators(api: Api) -> None:
    for route, method, path in routes(api):
        if path == ENDLESS:
            continue
        headers = {"X-API-Key": ANN, "HX-Request": "true"}  # as the console's own pages send it
        answer = await api.client.request(method, path, headers=headers, content=b"{}")
        closed = (route.console and named(route, method) not in OWN) or named(route, method) == ARTISTS
        assert closed == (answer.status_code == 403), (named(route, method), answer.text)


async def test_another_sites_page_changes_nothing_by_any_route(api: Api, keyless: Api) -> None:
    pages, kinds = itertools.cycle(FOREIGN), itertools.cycle(KINDS)
    for one in (api, keyless):
        for route, method, path in routes(one):
            if method in SAFE:
                continue
            for foreign in (next(pages), next(pages)):
                kind = {"Content-Type": next(kinds), "X-API-Key": OPS}
                answer = await one.client.request(method, path, headers={**foreign, **kind}, content=b"{}")
                assert answer.status_code == 403, named(route, method)


async def test_another_sites_page_reads_nothing_by_any_route(api: Api, keyless: Api) -> None:
    looks = itertools.cycle(SHOWN_ELSEWHERE)
    for one in (api, keyless):
        for route, method, path in routes(one):
            if method not in SAFE or (route.open and named(route, method) not in TELLING):
                continue
            headers = {**next(looks), "X-API-Key": OPS}
            answer = await one.client.request(method, path, headers=headers)
            assert answer.status_code == 403, named(route, method)
        assert not +one.deps.streams


async def test_a_foreign_host_is_in_no_answer_if_the_public_addresses_are_set(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    write_keys(tmp_path / "keys", f"ann {ANN}\n")
    hosts = itertools.cycle([{"Host": "evil.test"}, {"Host": "a.test", "X-Forwarded-Host": "evil.test"}])
    async with running(
        redis_port,
        tmp_path,
        keys_file=tmp_path / "keys",
        public_url="https://comfy.example.org",
        console_url="https://console.example.org",
    ) as api:
        await api.add_node()
        shown = {"X-API-Key": ANN}
        graph = {"workflow": GRAPH}
        made = await api.client.post("/api/v2/jobs", json=graph, headers={**shown, **next(hosts)})
        assert made.status_code == 201
        assert "https://comfy.example.org/api/v2/jobs/" in made.text
        paths = [
            path
            for _, method, path in routes(api)
            if method == "GET" and not path.endswith("/events") and path != ENDLESS
        ]
        answers = [await api.client.get(path, headers={**shown, **next(hosts)}) for path in paths]
        answers += [await api.client.get(path, headers=next(hosts)) for path in paths]
        for answer in [made, *answers]:
            assert "evil.test" not in answer.text + str(answer.headers), answer.url


async def test_json_comes_under_any_type_but_from_a_browser_as_json_alone(api: Api) -> None:
    tables = [*v1.TABLE, *v2.TABLE, *openai.TABLE]
    takes = {(one.method, one.path) for one in tables if one.body is not None and one.body_kind == JSON}
    assert len(takes) > 25
    kinds = itertools.cycle(KINDS)
    for method, path in sorted(takes):
        where = re.sub(r"{[^}]*}", UUID, path)
        headers = {"Content-Type": next(kinds), "X-API-Key": AGENT if "/agents/" in path else OPS}
        program = await api.client.request(method, where, headers=headers, content=b"[]")
        assert program.status_code != 415, path
        for browsers in ({"Origin": api.url}, {"Cookie": "a=b"}, {"Sec-Fetch-Site": "same-origin"}):
            page = await api.client.request(method, where, headers={**headers, **browsers}, content=b"[]")
            assert page.status_code == 415, (method, path, page.text)
