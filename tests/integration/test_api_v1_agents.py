"""Agents' heartbeats over HTTP: who may send them, what comes back, and what operators see."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from tests.integration.api_kit import Api, running
from tests.integration.redis_kit import claim, submit

TOKEN = "agents-token-0123456789"
BEAT: dict[str, Any] = {"instance": "i1", "version": "1"}
G1 = {"name": "h1-gpu0", "url": "http://127.0.0.1:9100", "agent": "127.0.0.1:9200", "cleans": True}
REPORT = {"name": "h1-gpu0", "word": "drain", "why": "other programs hold 20 GiB", "facts": {"pid": 7}}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("ada ada-0123456789abcdef\nroot root-0123456789abcdef admin\n")
    return path


async def beat(api: Api, token: str | None = None, host: str = "h1", **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return await api.client.post(f"/api/v1/agents/{host}/heartbeat", json={**BEAT, **more}, headers=headers)


async def test_a_heartbeat_registers_nodes_and_gets_orders(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api:
        first = await beat(api, join=[G1], nodes=[REPORT])
        assert first.status_code == 200, first.text
        assert first.json()["joined"] == ["h1-gpu0"]
        twin = await beat(api, instance="i2", join=[{**G1, "url": "http://127.0.0.1:9999"}])
        assert (twin.status_code, "speaks for host h1" in twin.text) == (409, True)
        kept = await api.stores.nodes.get("h1-gpu0")
        assert kept is not None and kept.url == G1["url"]
        second = await beat(api, join=[{**G1, "name": "other"}])
        assert (second.json()["joined"], list(second.json()["refused"])) == ([], ["other"])
        assert "one ComfyUI is one node" in second.json()["refused"]["other"]
        assert [node["name"] for node in first.json()["nodes"]] == ["h1-gpu0"]
        job = await submit(api.stores)
        run = (await claim(api.stores, "h1-gpu0")).run
        await api.client.post("/api/v1/nodes/h1-gpu0/drain", json={"reason": "fans"})
        stranger = str(uuid4())
        said = (await beat(api, seen=[run, stranger], leaving=["h1-gpu0"], nodes=[REPORT])).json()
        assert (said["explained"], said["clear"]) == ([run], [])
        assert said["nodes"][0]["cordon_reason"] == "fans"
        assert (await api.stores.hosts.report("h1-gpu0")) == {"pid": 7}
        shown = (await api.client.get("/api/v1/hosts")).json()["hosts"]
        assert [(host["host"], host["alive"]) for host in shown] == [("h1", True)]
        assert shown[0]["nodes"][0]["why"] == REPORT["why"]
        assert job.id


async def test_only_agents_send_heartbeats(redis: Redis, redis_port: int, tmp_path: Path, keys: Path) -> None:
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=TOKEN) as api:
        assert (await beat(api, TOKEN)).status_code == 200
        assert (await beat(api)).status_code == 401
        assert (await beat(api, "ada-0123456789abcdef")).status_code == 403
        assert (await beat(api, "root-0123456789abcdef")).status_code == 403
        seen = await api.client.get("/api/v1/hosts", headers={"X-API-Key": TOKEN})
        assert seen.status_code == 403


async def test_without_a_token_only_this_machine_is_heard(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api:
        assert (await beat(api)).status_code == 200
        far = {"X-Forwarded-For": "192.0.2.7"}
        answer = await api.client.post("/api/v1/agents/h1/heartbeat", json=BEAT, headers=far)
        assert answer.status_code == 403
        assert "FLEET_AGENT_TOKEN" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "more"),
    [
        ("Bad!", {}),
        ("h1", {"nodes": [{**REPORT, "word": "maybe"}]}),
        ("h1", {"nodes": [{**REPORT, "name": "../x"}]}),
        ("h1", {"deleted": ["h1-gpu0 .. .."]}),
        ("h1", {"surprise": 1}),
    ],
)
async def test_nonsense_is_refused(
    redis: Redis, redis_port: int, tmp_path: Path, host: str, more: dict[str, Any]
) -> None:
    async with running(redis_port, tmp_path) as api:
        answer = await beat(api, host=host, **more)
        assert answer.status_code in (400, 422), answer.text
