"""Tenants, users and keys over HTTP and on the command line, with real Redis and several processes."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner
from websockets.asyncio.client import connect

from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.api.wrong_keys import AT_ONCE, EVERY_S, LONGEST_S
from comfy_fleet.cli.app import build
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.machine_token import PURPOSE, machine_token
from tests.factories import GRAPH
from tests.fleet import until
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

OPS, AGENT = "ops-key-0123456789", "agent-0123456789abc"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def keyed(redis_port: int, folder: Path, **settings: Any) -> AsyncIterator[Api]:
    file = write_keys(folder / "keys", f"ops {OPS} operator\n")
    made = {"keys_file": file, "agent_token": AGENT, "require_keys": True, **settings}
    async with running(redis_port, folder / "data", **made) as api:
        yield api


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with keyed(redis_port, tmp_path) as started:
        await started.add_node()
        yield started


async def call(api: Api, method: str, path: str, body: Any = None, *, key: str = OPS) -> httpx.Response:
    return await api.client.request(method, f"/api/v1/{path}", json=body, headers=bearer(key))


async def new_key(api: Api, user: str, *roles: str, tenant: str = "default", **more: Any) -> dict[str, Any]:
    if (await call(api, "GET", f"users/{user}")).status_code == 404:
        added = await call(api, "POST", "users", {"name": user, "tenant": tenant})
        assert added.status_code == 201, added.text
    made = await call(api, "POST", "keys", {"user": user, "roles": list(roles), **more})
    assert made.status_code == 201, made.text
    answer: dict[str, Any] = made.json()
    return answer


async def works(api: Api, key: str) -> bool:
    status = (await api.client.get("/api/v2/jobs", headers=bearer(key))).status_code
    assert status in (200, 401)
    return status == 200


async def submit(api: Api, key: str) -> str:
    answer = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer(key))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_a_key_is_told_once_and_only_its_hash_is_stored(api: Api, redis: Redis) -> None:
    made = await new_key(api, "ada", "artist", note="studio")
    assert made["key"].startswith("cfk_") and len(made["key"]) == 47
    assert await works(api, made["key"])
    listed = (await call(api, "GET", "keys?user=ada")).json()["keys"]
    assert [(one["id"], one["roles"], one["note"], one["from_file"]) for one in listed] == [
        (made["id"], ["artist"], "studio", False)
    ]
    shown = await call(api, "GET", f"keys/{made['id']}")
    assert made["key"] not in shown.text
    stored = b"".join([value for raw in await redis.keys("*") for value in await _values(redis, raw)])
    assert b"studio" in stored and made["key"].encode() not in stored


async def _values(redis: Redis, name: Any) -> list[bytes]:
    client: Any = redis
    kind = await client.type(name)
    found = await (client.hgetall(name) if kind in (b"hash", "hash") else client.dump(name))
    return [str(found).encode()]


async def test_tenants_have_rules_for_classes_and_for_what_is_judged(api: Api) -> None:
    rules = {"deny_classes": "@code", "allow_classes": "@core,Theirs", "moderation": "open"}
    made = await call(api, "POST", "tenants", {"name": "studio", **rules})
    assert made.status_code == 201, made.text
    assert rules.items() <= made.json().items()
    changed = await call(api, "PATCH", "tenants/studio", {"deny_classes": "", "moderation": ""})
    assert (changed.json()["deny_classes"], changed.json()["moderation"]) == ("", "")
    assert changed.json()["allow_classes"] == "@core,Theirs"
    for wrong in ({"deny_classes": "@folder"}, {"allow_classes": "@all"}, {"moderation": "perhaps"}):
        assert (await call(api, "PATCH", "tenants/studio", wrong)).status_code == 422
    ada = await new_key(api, "ada", tenant="studio")
    assert (await call(api, "PATCH", "tenants/studio", {"allow_classes": "LoadImage"})).status_code == 200
    refused = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer(ada["key"]))
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_workflow")
    assert "fleet tenant set studio --allow-classes" in refused.text
    assert await submit(api, OPS), "others are in another tenant"


async def test_keys_count_and_are_revoked_in_every_process(api: Api, redis_port: int, tmp_path: Path) -> None:
    made = await new_key(api, "ada")
    async with keyed(redis_port, tmp_path) as other:
        await until(lambda: works(other, made["key"]), what="the other process knows the key")
        url = other.url.replace("http", "ws") + "/ws?clientId=a"
        job = await submit(other, made["key"])
        async with (
            connect(url, additional_headers=bearer(made["key"]), proxy=None) as socket,
            connect(url, additional_headers=bearer(OPS), proxy=None) as another,
            other.client.stream("GET", f"/api/v2/jobs/{job}/events", headers=bearer(made["key"])) as stream,
        ):
            assert (await call(api, "DELETE", f"keys/{made['id']}")).status_code == 204
            assert not await works(api, made["key"])
            await asyncio.wait_for(socket.wait_closed(), 60)
            assert socket.close_code == 1008
            async for _ in stream.aiter_lines():  # it ends
                pass
            await until(lambda: _is_out(other, made["key"]), what="the other process knows it no more")
            await asyncio.wait_for(await another.ping(), 60)
    assert code(await call(api, "DELETE", f"keys/{made['id']}")) == (404, "not_found")


async def _is_out(api: Api, key: str) -> bool:
    return not await works(api, key)


async def test_sessions_end_with_their_key(api: Api) -> None:
    made = await new_key(api, "ada")
    answer = await api.client.post("/login", data={"key": made["key"]})
    session = {"Cookie": answer.headers["set-cookie"].split(";")[0]}
    assert (await api.client.get("/api/v2/jobs", headers=session)).status_code == 200
    url = api.url.replace("http", "ws") + "/ws?clientId=a"
    async with connect(url, additional_headers=session, proxy=None) as socket:
        await call(api, "DELETE", f"keys/{made['id']}")
        await asyncio.wait_for(socket.wait_closed(), 60)
        assert socket.close_code == 1008
    assert (await api.client.get("/api/v2/jobs", headers=session)).status_code == 401


async def test_a_rotated_key_keeps_its_users_jobs_and_the_old_one_works_for_a_while(api: Api) -> None:
    made = await new_key(api, "ada", "artist")
    job = await submit(api, made["key"])
    new = (await call(api, "POST", f"keys/{made['id']}/rotate", {"grace_s": 3600})).json()
    assert await works(api, made["key"]) and await works(api, new["key"])
    assert (await api.client.get(f"/api/v2/jobs/{job}", headers=bearer(new["key"]))).status_code == 200
    at_once = (await call(api, "POST", f"keys/{new['id']}/rotate")).json()
    assert not await works(api, new["key"]) and await works(api, at_once["key"])


async def test_an_expired_key_opens_nothing(api: Api) -> None:
    made = await new_key(api, "ada", expires_in_s=0.01)
    await until(lambda: _is_out(api, made["key"]), what="the key expires")
    assert (await call(api, "GET", f"keys/{made['id']}")).json()["expired"]
    assert code(await call(api, "POST", f"keys/{made['id']}/rotate")) == (409, "conflict")


async def test_a_user_who_has_jobs_is_kept_so_that_nobody_inherits_them(api: Api) -> None:
    made = await new_key(api, "ada", tenant="default")
    await submit(api, made["key"])
    assert code(await call(api, "DELETE", "users/ada")) == (409, "conflict")
    await new_key(api, "eve")
    assert (await call(api, "DELETE", "users/eve")).status_code == 204
    assert code(await call(api, "GET", "keys?user=eve")) == (404, "not_found")


async def test_the_files_names_are_users_and_its_keys_are_the_files(api: Api, tmp_path: Path) -> None:
    users = (await call(api, "GET", "users")).json()["users"]
    assert [(one["name"], one["tenant"], one["stored"]) for one in users] == [("ops", "default", False)]
    (mine,) = (await call(api, "GET", "keys")).json()["keys"]
    assert mine["from_file"] and mine["user"] == "ops"
    for method, path in (("DELETE", f"keys/{mine['id']}"), ("POST", f"keys/{mine['id']}/rotate")):
        refused = await call(api, method, path)
        assert code(refused) == (409, "conflict") and "FLEET_KEYS_FILE" in refused.text
    # A file that changes is read; a wrong one changes nothing, and is told.
    write_keys(tmp_path / "keys", f"ops {OPS} operator\nann ann-key-0123456789\n")
    await until(lambda: works(api, "ann-key-0123456789"), what="the new line counts")
    with_tenant = await call(api, "POST", "users", {"name": "ann", "tenant": "nowhere"})
    assert code(with_tenant) == (404, "not_found")


async def test_a_wrong_new_file_keeps_the_last_good_one(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [one.__dict__["why"] for one in caplog.records if "keys file not taken over" in one.message]

    write_keys(tmp_path / "keys", f"ops {OPS} operator\nann short\n")
    await until(told, what="it is told")
    assert await works(api, OPS)
    (tmp_path / "keys").chmod(0o644)
    await until(lambda: len(told()) == 2, what="it is told, too")
    assert "chmod 600" in told()[1]
    assert await works(api, OPS)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "tenants", None),
        ("POST", "tenants", {"name": "x"}),
        ("GET", "tenants/default", None),
        ("PATCH", "tenants/default", {"sharing": "shared"}),
        ("DELETE", "tenants/default", None),
        ("GET", "users", None),
        ("POST", "users", {"name": "x"}),
        ("GET", "users/ops", None),
        ("DELETE", "users/ops", None),
        ("GET", "keys", None),
        ("POST", "keys", {"user": "ops", "roles": ["operator"]}),
        ("GET", "keys/x", None),
        ("DELETE", "keys/x", None),
        ("POST", "keys/x/rotate", None),
    ],
)
async def test_people_are_for_operators(api: Api, method: str, path: str, body: Any) -> None:
    for role in ("submit", "artist", "metrics"):
        key = (await new_key(api, "ada", role))["key"]
        assert code(await call(api, method, path, body, key=key)) == (403, "forbidden")
    assert code(await call(api, method, path, body, key=AGENT)) == (403, "forbidden")
    page = {"X-Fleet-Origin": "editor"}  # a key in a header counts there, what a browser adds does not
    answer = await api.client.request(method, f"/k/{OPS}/api/v1/{path}", json=body, headers=page)
    assert code(answer) == (403, "console_only")


async def test_a_key_for_metrics_reads_figures_and_nothing_else(api: Api) -> None:
    key = (await new_key(api, "prom", "metrics"))["key"]
    for path in ("metrics", "prometheus/targets", "queue", "me"):
        assert (await call(api, "GET", path, key=key)).status_code == 200, path
    assert "fleet_queue_depth" in (await call(api, "GET", "metrics", key=key)).text
    paths = "api/v1/jobs api/v2/jobs api/v1/workflows api/v1/nodes object_info queue features history "
    paths += "api/v1/openapi.json internal/files/output userdata"
    for path in paths.split():
        answer = await api.client.get(f"/{path}", headers=bearer(key))
        assert answer.status_code == 403, path
    made = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer(key))
    assert made.status_code == 403
    with pytest.raises(Exception, match="403"):
        async with connect(api.url.replace("http", "ws") + "/ws", additional_headers=bearer(key), proxy=None):
            pass
    plain = (await new_key(api, "ada"))["key"]
    assert code(await call(api, "GET", "metrics", key=plain)) == (403, "forbidden")


async def test_operators_list_and_cancel_everybodys_jobs_and_others_do_not(api: Api) -> None:
    ada, bob = (await new_key(api, "ada"))["key"], (await new_key(api, "bob"))["key"]
    jobs = {"ada": await submit(api, ada), "bob": await submit(api, bob)}

    async def listed(query: str, key: str) -> dict[str, str]:
        found = (await call(api, "GET", f"jobs?{query}", key=key)).json()["jobs"]
        return {one["user"]: one["id"] for one in found}

    assert await listed("all=true", OPS) == jobs
    assert await listed("user=ada", OPS) == {"ada": jobs["ada"]}
    assert await listed("", OPS) == {}
    assert await listed("all=true", ada) == {"ada": jobs["ada"]}
    assert code(await call(api, "GET", "jobs?user=bob", key=ada)) == (403, "forbidden")
    assert code(await call(api, "POST", f"jobs/{jobs['bob']}/cancel", key=ada)) == (404, "not_found")
    assert (await call(api, "GET", f"job-ids?prefix={jobs['bob'][:8]}", key=ada)).json() == {"ids": []}
    assert (await call(api, "GET", f"job-ids?prefix={jobs['bob'][:8]}")).json() == {"ids": [jobs["bob"]]}
    canceled = await call(api, "POST", f"jobs/{jobs['bob']}/cancel")
    assert canceled.json()["status"] == "canceled" and canceled.json()["user"] == "bob"


async def test_members_of_a_shared_tenant_see_each_others_jobs_and_nobody_elses(api: Api) -> None:
    assert (await call(api, "POST", "tenants", {"name": "studio", "sharing": "shared"})).status_code == 201
    ada = (await new_key(api, "ada", tenant="studio"))["key"]
    eve = (await new_key(api, "eve", tenant="studio"))["key"]
    bob = (await new_key(api, "bob"))["key"]
    job = await submit(api, ada)
    output = await api.output(await api.claim(job), b"picture")
    other = await submit(api, bob)
    reads = [
        f"/api/v1/jobs/{job}",
        f"/api/v2/jobs/{job}",
        f"/api/v2/jobs/{job}/workflow",
        f"/api/v1/jobs/{job}/outputs",
        f"/api/v2/assets/{output.asset_id}",
        f"/api/v2/assets/{output.asset_id}/content",
    ]
    for path in reads:
        assert (await api.client.get(path, headers=bearer(eve))).status_code == 200, path
        assert (await api.client.get(path, headers=bearer(bob))).status_code == 404, path
    for query, found in (("all=true", [job]), ("user=ada", [job]), ("", [])):
        listed = (await call(api, "GET", f"jobs?{query}", key=eve)).json()["jobs"]
        assert [one["id"] for one in listed] == found, query
    changes = [
        ("POST", f"/api/v1/jobs/{job}/cancel"),
        ("POST", f"/api/v2/jobs/{job}/cancel"),
        ("DELETE", f"/api/v1/jobs/{job}"),
        ("PUT", f"/api/v1/jobs/{job}/keep"),
        ("DELETE", f"/api/v2/assets/{output.asset_id}"),
        ("GET", f"/api/v2/jobs/{other}"),
    ]
    for method, path in changes:
        assert (await api.client.request(method, path, headers=bearer(eve))).status_code == 404, path
    assert (await call(api, "PATCH", "tenants/studio", {"sharing": "private"})).status_code == 200
    for path in reads:
        assert (await api.client.get(path, headers=bearer(eve))).status_code == 404, path


async def test_a_tenants_share_counts_for_its_users_jobs(api: Api) -> None:
    for wrong in (0, 101, "much"):
        refused = await call(api, "POST", "tenants", {"name": "studio", "share": wrong})
        assert refused.status_code == 422 and "share" in refused.text
    made = await call(api, "POST", "tenants", {"name": "studio", "share": 3})
    assert made.json()["share"] == 3
    assert (await call(api, "GET", "tenants/default")).json()["share"] == 1
    ada, bob = (await new_key(api, "ada", tenant="studio"))["key"], (await new_key(api, "bob"))["key"]
    store: Any = api.stores.redis
    for share in (3.0, 0.5):
        assert (await call(api, "PATCH", "tenants/studio", {"share": share})).json()["share"] == share
        job = await submit(api, ada)
        assert await store.hget(f"fleet:job:{job}", "tenant") == b"studio"
        assert float(await store.hget("fleet:sched:used:/studio", "weight")) == share
    other = await submit(api, bob)
    assert await store.hget(f"fleet:job:{other}", "tenant") is None


async def test_a_tenants_retention_counts_for_its_jobs_and_their_files(api: Api) -> None:
    too_long = await call(api, "POST", "tenants", {"name": "studio", "retention_s": 400 * 86400})
    assert code(too_long) == (400, "invalid_request")
    assert "34560000: at most 31622400 (FLEET_MAX_RETENTION_S)" in too_long.text
    assert (await call(api, "POST", "tenants", {"name": "studio", "retention_s": 3600})).status_code == 201
    ada, bob = (await new_key(api, "ada", tenant="studio"))["key"], (await new_key(api, "bob"))["key"]
    store: Any = api.stores.redis

    async def kept_s(key: str) -> float:
        run = await api.claim(job := await submit(api, key))
        output = await api.output(run, job.encode())
        assert await api.stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
        completed, expires = await store.hmget(f"fleet:job:{job}", "completed", "expires")
        [asset] = await store.hmget(f"fleet:asset:{output.asset_id}", "expires_at")
        assert float(asset) == pytest.approx(float(expires), abs=30)
        return float(expires) - float(completed)

    assert await kept_s(ada) == pytest.approx(3600, abs=1)
    assert await kept_s(bob) == pytest.approx(7 * 86400, abs=1)
    longer = await call(api, "PATCH", "tenants/studio", {"retention_s": 30 * 86400})
    assert longer.json()["retention_s"] == 30 * 86400
    assert await kept_s(ada) == pytest.approx(30 * 86400, abs=1)
    assert (await call(api, "PATCH", "tenants/studio", {"retention_s": 0})).status_code == 200
    assert await kept_s(ada) == pytest.approx(7 * 86400, abs=1)


async def test_a_stream_of_anothers_job_ends_when_its_tenant_is_shared_no_longer(api: Api) -> None:
    assert (await call(api, "POST", "tenants", {"name": "studio", "sharing": "shared"})).status_code == 201
    ada = (await new_key(api, "ada", tenant="studio"))["key"]
    eve = (await new_key(api, "eve", tenant="studio"))["key"]
    job = await submit(api, ada)
    path = f"/api/v2/jobs/{job}/events"
    async with (
        api.client.stream("GET", path, headers=bearer(eve)) as hers,
        api.client.stream("GET", path, headers=bearer(ada)) as own,
    ):
        seen, mine = hers.aiter_lines(), own.aiter_lines()
        assert await anext(seen) == await anext(mine) == "event: status"
        assert (await call(api, "PATCH", "tenants/studio", {"sharing": "private"})).status_code == 200
        async with asyncio.timeout(60):
            rest = [line async for line in seen]
        assert not any("canceled" in line for line in rest)
        await call(api, "POST", f"jobs/{job}/cancel", key=ada)
        assert any("canceled" in line for line in [line async for line in mine])


async def test_operators_get_no_signed_urls_of_others_files(api: Api) -> None:
    ada = (await new_key(api, "ada"))["key"]
    job = await submit(api, ada)
    await api.output(await api.claim(job), b"picture")
    assert code(await call(api, "GET", f"jobs/{job}?signed=60")) == (403, "forbidden")
    assert (await call(api, "GET", f"jobs/{job}")).status_code == 200
    mine = (await call(api, "GET", f"jobs/{job}?signed=60", key=ada)).json()
    assert (await api.client.get(mine["outputs"][0]["url"])).content == b"picture"


async def test_a_tenant_whose_record_cant_be_read_makes_no_jobs(api: Api, redis: Redis) -> None:
    """A newer version beside this one may write limits in words that are not known here."""
    store: Any = api.stores.redis
    for tenant in ("studio", "default"):
        added = await call(api, "POST", "tenants", {"name": tenant, "limits": {"live": "5"}})
        assert added.status_code == 201, added.text
        key = (await new_key(api, f"ada-{tenant}", tenant=tenant))["key"]
        await submit(api, key)
        raw = orjson.loads(await store.hget(store.keyspace.tenants, tenant))
        raw["limits"]["live"] = "half"
        await store.hset(store.keyspace.tenants, tenant, orjson.dumps(raw))
        await store.set(store.keyspace.people_version, f"newer {tenant}")

        async def refused(key: str = key) -> bool:
            made = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer(key))
            return made.status_code == 429

        await until(refused, what="no job is made")
        kept = orjson.loads(await store.hget(store.keyspace.tenants, tenant))
        assert kept["limits"]["live"] == "half"  # nobody has overwritten it
        healed = await call(api, "PATCH", f"tenants/{tenant}", {"limits": {"live": "50"}})
        assert healed.status_code == 200, healed.text
        await submit(api, key)


async def test_who_may_read_the_machines_secret_makes_the_first_key(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, require_keys=True) as api:
        await api.add_node()
        secret = SecretBox.open(tmp_path / "secret.key").derive(PURPOSE)
        token = machine_token(secret, api.deps.clock())
        assert code(await call(api, "GET", "keys", key=machine_token(b"x" * 32, api.deps.clock())))[0] == 401
        old = machine_token(secret, api.deps.clock() - 120)
        assert code(await call(api, "GET", "keys", key=old))[0] == 401
        assert (await api.client.get(f"/k/{token}/api/v2/jobs")).status_code == 401  # never in an address
        assert (await call(api, "POST", "users", {"name": "me"}, key=token)).status_code == 201
        made = await call(api, "POST", "keys", {"user": "me", "roles": ["operator"]}, key=token)
        assert (await call(api, "GET", "nodes", key=made.json()["key"])).status_code == 200


async def test_a_fleet_that_asks_for_no_key_makes_none(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        refused = await api.client.post("/api/v1/keys", json={"user": "local", "roles": ["operator"]})
        assert code(refused) == (409, "conflict") and "FLEET_REQUIRE_KEYS" in refused.text
        me = (await api.client.get("/api/v1/me")).json()
        assert me == {
            "user": "local",
            "tenant": "default",
            "roles": ["operator"],
            "key": None,
            "live_jobs": 0,
        }


async def test_wrong_keys_are_logged_and_slowed_and_right_ones_are_not(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "wrong-key-0123456789"
    monkeypatch.setattr(api.deps.wrong_keys, "_monotonic", lambda: 1000.0)  # all of them at once

    async def guess() -> int:
        return (await api.client.get("/api/v2/jobs", headers=bearer(wrong))).status_code

    statuses = [status for _ in range(4) for status in await asyncio.gather(*(guess() for _ in range(50)))]
    assert statuses[:100] == [401] * 100 and 429 in statuses
    assert statuses.count(401) == AT_ONCE + round(LONGEST_S / EVERY_S)
    assert await works(api, OPS)
    lines = [one for one in caplog.records if one.message == "wrong key"]
    assert 1 <= len(lines) < 20 and lines[0].__dict__["address"] == "127.0.0.1"
    assert wrong not in caplog.text and not any(wrong in str(vars(one)) for one in caplog.records)


async def test_a_right_key_behind_a_wrong_one_in_the_path_is_not_logged(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await api.client.get(f"/k/wrong-key-0123456789/k/{OPS}/api/v2/jobs")
    assert answer.status_code == 401
    (line,) = [one for one in caplog.records if one.message == "wrong key"]
    assert line.__dict__["path"] == "/k/***/api/v2/jobs"
    assert not any(OPS in str(vars(one)) for one in caplog.records)


async def test_unknown_keys_cost_redis_nothing(api: Api, redis: Redis) -> None:
    async def calls() -> int:
        client: Any = redis
        found = await client.info("commandstats")
        return sum(
            found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("hget", "hgetall", "evalsha")
        )

    before = await calls()
    for number in range(90):
        await api.client.get("/api/v2/jobs", headers=bearer(f"unknown-{number:012}"))
    assert await calls() - before < 60  # what processes do by themselves


async def test_the_first_key_by_the_command(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, require_keys=True) as api:
        env = {"FLEET_API_URL": api.url, "FLEET_DATA": str(tmp_path)}

        async def fleet(*argv: str, **more: str) -> Any:
            return await asyncio.to_thread(
                CliRunner().invoke, build(argv), list(argv), env={"FLEET_API_KEY": None, **env, **more}
            )

        refused = await fleet("key", "ls")
        assert refused.exit_code == 1 and "API key" in _said(refused)
        made = await fleet("key", "create", "me", "--role", "operator", "--here")
        assert made.exit_code == 0, _said(made)
        key = made.stdout.strip()
        assert key.startswith("cfk_") and "shown this once" in made.stderr
        mine = {"FLEET_API_KEY": key}
        assert (await fleet("tenant", "create", "studio", "--sharing", "shared", **mine)).exit_code == 0
        shown = (await fleet("tenant", "show", "studio", **mine)).stdout
        assert re.search(r"retention +the fleet's", shown) and "retention s" not in shown
        wrongs = (("--share", "nan"), ("--share", "inf"), ("--retention", "0"), ("--retention", "0d"))
        for option, value in wrongs:
            for command in ("create", "set"):
                wrong = await fleet("tenant", command, "studio", option, value, **mine)
                assert wrong.exit_code != 0 and option in _said(wrong), wrong.output
        shown = (await fleet("tenant", "set", "studio", "--retention", "30m", **mine)).stdout
        assert re.search(r"retention +30m", shown)
        assert (await fleet("tenant", "set", "studio", "--retention", "", **mine)).exit_code == 0
        assert (await fleet("user", "create", "ada@example.org", "--tenant", "studio", **mine)).exit_code == 0
        shown = await fleet("user", "show", "ada@example.org", "--json", **mine)
        assert orjson.loads(shown.stdout)["tenant"] == "studio"
        other = await fleet("key", "create", "ada@example.org", "--tenant", "default", **mine)
        assert other.exit_code != 0 and "in the tenant studio" in _said(other)
        second = await fleet("key", "create", "ada@example.org", "--expires", "30d", "--json", **mine)
        id_ = orjson.loads(second.stdout)["id"]
        table = await fleet("key", "ls", **mine)
        assert id_ in table.stdout and key not in table.stdout
        rotated = await fleet("key", "rotate", id_, "--grace", "1h", **mine)
        assert rotated.stdout.startswith("cfk_")
        gone = await fleet("key", "revoke", "--user", "ada@example.org", **mine)
        assert gone.exit_code == 0 and gone.stderr.count("is revoked") == 2
        assert (await fleet("user", "rm", "ada@example.org", **mine)).exit_code == 0
        assert (await fleet("tenant", "rm", "studio", **mine)).exit_code == 0
        elsewhere = await fleet("key", "ls", "--here", FLEET_API_URL="http://fleet.example:8189")
        assert elsewhere.exit_code != 0 and "not on this machine" in _said(elsewhere)
        wrong = await fleet("key", "create", "me", "--expires", "soon", **mine)
        assert wrong.exit_code != 0 and "30d" in _said(wrong)
        # What is refused is named as on the command line, leaves no user behind, and says where to look.
        for option, value in (("--role", "root"), ("--expires", "0s"), ("--limit", "queued=-1")):
            wrong = await fleet("key", "create", "eve", option, value, **mine)
            assert wrong.exit_code != 0 and option.strip("-") in _said(wrong)
            missing: Any = (await fleet("user", "show", "eve", **mine)).exception
            assert "no user 'eve'" in str(missing) and "fleet user ls" in missing.hint
        assert "--role: Input" in _said(await fleet("key", "create", "eve", "--role", "root", **mine))


def _said(result: Any) -> str:
    return str(result.output) + str(result.exception or "")
