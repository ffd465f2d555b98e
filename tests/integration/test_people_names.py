"""Users' names: who may have one, what comes with it, and those of the keys file."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.fleet import until
from tests.integration.api_kit import Api, code
from tests.integration.test_people import OPS, bearer, call, keyed, new_key, works
from tests.key_files import write_keys


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with keyed(redis_port, tmp_path) as started:
        yield started


async def _is_out(api: Api, key: str) -> bool:
    return not await works(api, key)


async def test_nobody_inherits_what_a_removed_user_has_left_unless_an_operator_says_so(api: Api) -> None:
    async def inherits(what: str, leave: Callable[[dict[str, str]], Awaitable[httpx.Response]]) -> None:
        name = f"ada-{what.partition(' ')[0]}"
        head = bearer((await new_key(api, name))["key"]) | {"X-Fleet-Origin": "editor"}
        left = await leave(head)
        assert left.is_success, left.text
        assert (await call(api, "DELETE", f"users/{name}")).status_code == 204
        refused = await call(api, "POST", "users", {"name": name})
        assert code(refused) == (409, "conflict")
        assert refused.json()["error"]["details"]["left"] == [what]
        adopted = await call(api, "POST", "users", {"name": name, "adopt": True})
        assert adopted.status_code == 201

    client = api.client
    file = {"file": ("me.png", b"\x89PNG", "image/png")}
    await inherits("uploads", lambda head: client.post("/api/v2/assets", files=file, headers=head))
    await inherits(
        "files in the editor",
        lambda head: client.post("/userdata/notes.txt", content=b"mine", headers=head),
    )
    await inherits("a webhook secret", lambda head: client.get("/api/v1/webhooks/secret", headers=head))
    # A job that was on its way while its user was removed.
    made = await new_key(api, "eve")
    assert (await call(api, "DELETE", "users/eve")).status_code == 204
    await api.stores.redis.zadd(api.stores.redis.keyspace.jobs_of("eve"), {"a job": 1.0})
    assert made["user"] == "eve"
    assert code(await call(api, "POST", "users", {"name": "eve"})) == (409, "conflict")


async def test_who_is_in_the_file_is_not_removed_and_may_get_keys(api: Api, tmp_path: Path) -> None:
    ann = "ann-key-0123456789"
    write_keys(tmp_path / "keys", f"ops {OPS} operator\nann {ann}\n")
    await until(lambda: works(api, ann), what="the new line counts")
    made = await call(api, "POST", "keys", {"user": "ann", "roles": ["artist"]})
    assert made.status_code == 201, made.text
    assert await works(api, made.json()["key"])
    refused = await call(api, "DELETE", "users/ann")
    assert code(refused) == (409, "conflict") and "FLEET_KEYS_FILE" in refused.text
    write_keys(tmp_path / "keys", f"ops {OPS} operator\n")
    await until(lambda: _is_out(api, ann), what="the line is gone")
    assert (await call(api, "DELETE", "users/ann")).status_code == 204
    assert not await works(api, made.json()["key"])


@pytest.mark.parametrize("name", [".", ".."])
async def test_no_name_is_one_that_a_path_can_t_have(api: Api, name: str) -> None:
    for what in ("users", "tenants"):
        assert code(await call(api, "POST", what, {"name": name})) == (400, "invalid_request")


async def test_a_limit_is_no_longer_than_any_needs_to_be(api: Api) -> None:
    long = {"submits": "," * 9000 + "1/1h"}
    refused = await call(api, "POST", "tenants", {"name": "studio", "limits": long})
    assert code(refused) == (422, "invalid_request")


async def test_a_name_that_left_the_file_is_nobody(api: Api, tmp_path: Path) -> None:
    write_keys(tmp_path / "keys", f"ops {OPS} operator\nann ann-key-0123456789\n")
    await until(lambda: works(api, "ann-key-0123456789"), what="the new line counts")
    write_keys(tmp_path / "keys", f"ops {OPS} operator\n")
    await until(lambda: _is_out(api, "ann-key-0123456789"), what="the line is gone")
    users = (await call(api, "GET", "users")).json()["users"]
    assert [one["name"] for one in users] == ["ops"]
