"""Pages of other origins: those that an operator lists, with a key of their own; and all others."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from comfy_fleet.settings import Settings
from tests.integration.api_kit import Api, running
from tests.integration.edge_kit import Edge, edge_of
from tests.key_files import write_keys

SHOP, OTHER = "https://shop.example", "https://evil.example"
LISTED = f"{SHOP}, http://localhost:3000"
KEY = "ann-key-0123456789"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_of(tmp_path, cors_origins=LISTED) as it:
        yield it


async def head(edge: Edge, path: str, *headers: str, method: str = "GET", console: bool = False) -> str:
    answer = await edge.raw(path, *headers, method=method, console=console)
    return answer.partition(b"\r\n\r\n")[0].decode().lower()


ASKS = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, content-type")


async def test_a_listed_page_is_answered_before_it_asks(edge: Edge) -> None:
    for origin in (SHOP, "HTTP://localhost:3000"):
        told = await head(
            edge, "/api/v1/workflows/image_card/jobs", f"Origin: {origin}", *ASKS, method="OPTIONS"
        )
        assert told.startswith("http/1.1 204")
        assert f"access-control-allow-origin: {origin.lower()}" in told
        allowed = next(line for line in told.split("\r\n") if line.startswith("access-control-allow-headers"))
        words = {word.strip() for word in allowed.partition(":")[2].split(",")}
        assert {"authorization", "x-api-key", "content-type", "range", "idempotency-key"} <= words
        assert "allow-credentials" not in told
    assert edge.api.requests == []


async def test_its_answers_are_marked_and_may_be_kept_for_it_alone(edge: Edge) -> None:
    told = await head(edge, "/queue", f"Origin: {SHOP}")
    assert f"access-control-allow-origin: {SHOP}" in told
    assert "vary: origin" in told and "x-request-id" in told.partition("expose-headers:")[2]
    refused = await head(edge, "/metrics", f"Origin: {SHOP}")
    assert refused.startswith("http/1.1 404") and f"access-control-allow-origin: {SHOP}" in refused
    assert "vary: origin" in await head(edge, "/queue")


@pytest.mark.parametrize(
    "origin",
    [OTHER, "null", f"{SHOP}.evil.example", f"{SHOP}:444", "http://shop.example", "https://shop.example/"],
)
async def test_nobody_else_is_told_anything(edge: Edge, origin: str) -> None:
    for method, more in (("OPTIONS", ASKS), ("GET", ())):
        assert "access-control" not in await head(edge, "/queue", f"Origin: {origin}", *more, method=method)


async def test_two_origins_are_none(edge: Edge) -> None:
    assert "access-control" not in await head(edge, "/queue", f"Origin: {SHOP}", f"Origin: {OTHER}")


async def test_the_console_knows_no_other_page(edge: Edge) -> None:
    for method, more in (("OPTIONS", ASKS), ("GET", ())):
        told = await head(edge, "/queue", f"Origin: {SHOP}", *more, method=method, console=True)
        assert "access-control" not in told


@pytest.mark.parametrize("console", [False, True])
async def test_no_other_origin_shows_what_is_here(edge: Edge, console: bool) -> None:
    for path in ("/queue", "/metrics"):
        assert "cross-origin-resource-policy: same-origin" in await head(edge, path, console=console)


# ---- the API ----


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, f"ann {KEY} admin\n")
    async with running(redis_port, tmp_path, keys_file=keys, cors_origins=LISTED) as it:
        yield it


async def asked(api: Api, method: str, path: str, *, mark: str = "editor", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await api.client.request(
        method, path, json={} if method == "POST" else None, headers={"X-Fleet-Origin": mark, **named}
    )
    return answer.status_code


async def test_a_listed_page_needs_a_key_of_its_own(api: Api) -> None:
    page = {"Origin": SHOP, "Sec_Fetch_Site": "cross-site"}
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()
    form = {"X-Fleet-Origin": "console", "Content-Type": "application/x-www-form-urlencoded"}
    signed_in = await api.client.post("/login", content=f"key={KEY}", headers=form)
    session = signed_in.headers["set-cookie"].partition("=")[2].partition(";")[0]
    for method, path in (("GET", "/queue"), ("POST", "/queue")):
        assert await asked(api, method, path, **page, Authorization=f"Bearer {KEY}") == 200
        assert await asked(api, method, f"/k/{KEY}{path}", **page) == 200
        assert await asked(api, method, path, **page, Authorization=f"Basic {basic}") == 401
        assert await asked(api, method, path, Authorization=f"Basic {basic}") == 200
        assert await asked(api, method, path, **page, Cookie=f"fleet_session={session}") == 401


async def test_it_may_not_do_so_anywhere_else(api: Api) -> None:
    page = {"Origin": SHOP, "Sec_Fetch_Site": "cross-site", "Authorization": f"Bearer {KEY}"}
    assert await asked(api, "POST", "/queue", mark="console", **page) == 403
    assert await asked(api, "GET", "/queue", mark="console", **page) == 403
    assert await asked(api, "POST", "/queue", **{**page, "Origin": OTHER}) == 403
    no_origin = {"Sec_Fetch_Site": "cross-site", "Authorization": f"Bearer {KEY}"}
    assert await asked(api, "POST", "/queue", **no_origin) == 403
    assert await asked(api, "GET", "/queue", **no_origin) == 403
    followed = {**no_origin, "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert await asked(api, "GET", "/queue", **followed) == 200
    assert await asked(api, "POST", "/queue", **followed) == 403


@pytest.mark.parametrize(
    "text", ["*", "https://*.shop.example", "shop.example", "https://a.example/x", "null"]
)
def test_a_list_of_everybody_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        Settings.model_validate({"cors_origins": text})
