"""Who changed the fleet, what and when: in the log, over HTTP and on the command line."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.adapters.redis import audit as stream
from comfy_fleet.cli.app import build
from comfy_fleet.ports.audit import AuditEntry
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

OPS, ANN, ART = "ops-key-0123456789", "ann-key-0123456789", "art-key-0123456789"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = write_keys(tmp_path / "keys", f"ops {OPS} operator\nann {ANN}\nart {ART} artist\n")
    async with running(redis_port, tmp_path / "data", keys_file=keys) as started:
        await started.add_node()
        yield started


async def call(api: Api, method: str, path: str, body: Any = None, *, key: str = OPS) -> Any:
    answer = await api.client.request(method, f"/api/v1/{path}", json=body, headers=bearer(key))
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


async def entries(api: Api, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await call(api, "GET", f"audit?{query}"))["entries"]
    return found


async def test_who_tries_what_only_operators_may_do_is_written_down_once_a_minute(api: Api) -> None:
    for _ in range(3):
        answer = await api.client.post("/api/v1/nodes/g1/drain", json={}, headers=bearer(ANN))
        assert code(answer) == (403, "forbidden")
    assert (await api.client.get("/api/v1/audit", headers=bearer(ART))).status_code == 403
    submit = {"workflow": GRAPH, "priority": 2000}  # a limit of their own job is no attempt
    assert (await api.client.post("/api/v2/jobs", json=submit, headers=bearer(ANN))).status_code == 403
    told = [(one["event"], one["by"], one["about"]) for one in await entries(api)]
    assert told == [
        ("refused", "art", {"method": "GET", "path": "/api/v1/audit", "code": "forbidden"}),
        ("refused", "ann", {"method": "POST", "path": "/api/v1/nodes/g1/drain", "code": "forbidden"}),
    ]


async def test_who_tries_much_pushes_nothing_out_of_the_trail(api: Api) -> None:
    for number, key in enumerate([*[ANN] * 30, ART]):
        path = f"/api/v1/nodes/n{number}/drain"
        assert (await api.client.post(path, json={}, headers=bearer(key))).status_code == 403
    assert [one["by"] for one in await entries(api)] == ["art", *["ann"] * 10]


async def test_what_is_done_is_written_down_with_who_and_from_where(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await call(api, "POST", "nodes", {"name": "g9", "url": "http://me:geheim@10.0.0.9:8188"})
    await call(api, "POST", "nodes/g9/drain", {"reason": "fans"})
    await call(api, "POST", "nodes/g9/resume")
    await call(api, "DELETE", "nodes/g9")
    await call(api, "PATCH", "pools/default", {"free_idle_s": 60.0})
    await call(api, "POST", "users", {"name": "eve"})
    made = await call(api, "POST", "keys", {"user": "eve", "roles": ["artist"]})
    await call(api, "PUT", "workflows/mine", {"graph": GRAPH}, key=ART)
    job = (await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer(ANN))).json()["id"]
    await call(api, "POST", f"jobs/{job}/cancel")
    await call(api, "POST", f"jobs/{job}/cancel")  # it has ended: nothing is done any more
    await call(api, "DELETE", f"keys/{made['id']}")

    found = await entries(api)
    assert [one["event"] for one in found] == [
        *("key.revoked", "job.canceled", "workflow.published", "key.made", "user.added", "pool.changed"),
        *("node.removed", "node.resumed", "node.drained", "node.added"),
    ]
    by_event = {one["event"]: one for one in found}
    assert by_event["workflow.published"]["by"] == "art" and by_event["node.drained"]["by"] == "ops"
    assert by_event["node.drained"]["about"] == {"node": "g9", "reason": "fans", "requeue": False}
    assert by_event["job.canceled"]["about"] == {"job": job, "user": "ann", "status": "canceled"}
    assert {one["address"] for one in found} == {"127.0.0.1"}
    assert all(one["key"].startswith("file-") for one in found)
    assert made["key"] not in str(found) and "geheim" not in str(found)
    told = [one.__dict__["event"] for one in caplog.records if one.message == "audit"]
    assert told == [one["event"] for one in reversed(found)]
    assert made["key"] not in caplog.text


async def test_ones_own_jobs_and_what_failed_are_not_in_it(api: Api) -> None:
    job = (await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer(OPS))).json()["id"]
    await call(api, "POST", f"jobs/{job}/cancel")
    refused = await api.client.post("/api/v1/nodes/none/drain", headers=bearer(OPS))
    assert code(refused) == (404, "not_found")
    assert await entries(api) == []


async def test_it_is_for_operators_by_page_user_and_time(
    api: Api, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (ANN, ART):
        answer = await api.client.get("/api/v1/audit", headers=bearer(key))
        assert code(answer) == (403, "forbidden")
    trail = api.deps.audit
    for number in range(25):
        by = "ada" if number % 5 == 0 else "ops"
        await trail.note(AuditEntry(event=f"e{number}", by=by))
    monkeypatch.setattr(stream, "_AT_ONCE", 4)
    seen: list[str] = []
    cursor = ""
    while True:
        page = await call(api, "GET", f"audit?limit=10{cursor}")
        seen += [one["event"] for one in page["entries"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == [*[f"e{number}" for number in reversed(range(25))], "refused", "refused"]
    assert [one["event"] for one in await entries(api, "user=ada")] == ["e20", "e15", "e10", "e5", "e0"]
    assert await entries(api, "since=99999999999") == []
    wrong = await api.client.get("/api/v1/audit?cursor=x", headers=bearer(OPS))
    assert code(wrong) == (400, "invalid_request")


async def test_it_stays_bounded(api: Api, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MOST", 100)
    for number in range(500):
        await api.deps.audit.note(AuditEntry(event=f"e{number}", by="ops"))
    client: Any = redis
    assert await client.xlen("fleet:audit") < 400
    assert (await entries(api, "limit=1"))[0]["event"] == "e499"


async def test_the_command_shows_it(api: Api) -> None:
    await call(api, "POST", "nodes/g1/drain", {"reason": "fans"})
    argv = ["audit", "--since", "1h", "--user", "ops"]
    env = {"FLEET_API_URL": api.url, "FLEET_API_KEY": OPS}
    told = await asyncio.to_thread(CliRunner().invoke, build(argv), argv, env=env)
    assert told.exit_code == 0, told.output
    assert "node.drained" in told.stdout and "fans" in told.stdout and "127.0.0.1" in told.stdout
