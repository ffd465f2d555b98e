"""Agents' heartbeats over HTTP: who may send them, what comes back, and what operators see."""

import asyncio
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.hosts import MAX_HOSTS
from comfy_fleet.domain.nodes.orphans import MOST_SHOWN
from tests.acceptance.test_attacks_access import NODES
from tests.integration.api_kit import Api, running
from tests.integration.redis_kit import claim, submit
from tests.key_files import write_keys

TOKEN = "agents-token-0123456789"
BEAT: dict[str, Any] = {"instance": "i1", "version": "1"}
G1 = {"name": "h1-gpu0", "url": "http://127.0.0.1:9100", "agent": "127.0.0.1:9200", "cleans": True}
REPORT = {"name": "h1-gpu0", "word": "drain", "why": "other programs hold 20 GiB", "facts": {"pid": 7}}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    write_keys(path, "ada ada-0123456789abcdef\nroot root-0123456789abcdef admin\n")
    return path


async def beat(api: Api, token: str | None = None, host: str = "h1", **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return await api.client.post(f"/api/v1/agents/{host}/heartbeat", json={**BEAT, **more}, headers=headers)


async def test_nodes_are_added_by_the_stores_clock_whatever_the_apis_says(
    redis: Redis, redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "comfy_fleet.api.main.time", SimpleNamespace(time=lambda: 1.0, monotonic=time.monotonic)
    )
    async with running(redis_port, tmp_path) as api:  # whose clock is decades late
        assert (await beat(api, join=[G1], nodes=[REPORT])).status_code == 200
        by_hand = {"name": "by-hand", "url": "http://127.0.0.1:9300"}
        assert (await api.client.post("/api/v1/nodes", json=by_hand)).status_code == 201
        seconds, _ = await redis.time()
        for node in await api.stores.nodes.nodes():
            assert abs(node.added_at - seconds) < 60, node


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


ODD = [one for one in NODES.values() if one["url"] != "https://10.0.0.1"]


async def test_no_odd_node_of_an_agents_is_registered(redis: Redis, redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        for odd in ODD:
            answer = await beat(api, join=[{"agent": "10.0.0.9:8193", **odd}])
            assert answer.status_code in (200, 400, 422), (odd, answer.text)
            if answer.status_code == 200:
                assert answer.json()["refused"], odd
            assert "secret" not in answer.text
            assert await api.stores.nodes.nodes() == [], odd


def _nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("facts", "status", "limit"),
    [
        (_nested(15), 200, ""),
        (_nested(17), 422, "nested deeper than 16 levels"),
        (_nested(120), 422, "nested deeper than 16 levels"),
        (_nested(900), 422, "nested deeper than 16 levels"),
        (_nested(100_000), 400, "depth limit"),
        (b'{"a":"' + b"x" * 20_000 + b'"}', 422, "16384 bytes"),
        (b'{"a":"' + b"x" * 15_000_000 + b'"}', 422, "16384 bytes"),
        (b'{"a":NaN}', 400, "JSON"),
        (b'{"a":' + b"9" * 400 + b"}", 400, "JSON"),
    ],
)
async def test_what_an_agent_tells_in_a_form_of_its_own_is_limited(
    redis: Redis, redis_port: int, tmp_path: Path, facts: bytes, status: int, limit: str
) -> None:
    async with running(redis_port, tmp_path) as api:
        body = b'{"instance":"i1","nodes":[{"name":"g1","word":"ready","facts":' + facts + b"}]}"
        headers = {"Content-Type": "application/json"}
        answer = await api.client.post("/api/v1/agents/h1/heartbeat", content=body, headers=headers)
        assert (answer.status_code, limit in answer.text) == (status, True), answer.text[:400]
        assert (await beat(api)).status_code == 200


async def test_runs_that_an_agent_tells_of_are_limited(redis: Redis, redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        runs = [str(uuid4()) for _ in range(MOST_SHOWN)]
        assert (await beat(api, nodes=[{**REPORT, "runs": runs}])).status_code == 200
        answer = await beat(api, nodes=[{**REPORT, "runs": [*runs, str(uuid4())]}])
        assert (answer.status_code, str(MOST_SHOWN) in answer.text) == (422, True), answer.text


async def test_invented_hosts_are_kept_up_to_a_limit_that_is_named(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api:
        places = asyncio.Semaphore(16)

        async def invent(number: int) -> int:
            async with places:
                return int((await beat(api, host=f"invented-{number}")).status_code)

        assert set(await asyncio.gather(*map(invent, range(300)))) == {200}
        assert set(await asyncio.gather(*map(invent, range(300, MAX_HOSTS)))) == {200}
        answer = await beat(api, host="one-more")
        assert (answer.status_code, f"{MAX_HOSTS} hosts" in answer.text) == (409, True), answer.text
        assert (await beat(api, host="invented-7")).status_code == 200  # who was there stays
        assert len((await api.client.get("/api/v1/hosts")).json()["hosts"]) == MAX_HOSTS


async def test_an_agent_that_is_silent_is_named_with_its_host_in_the_listing(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api:
        assert (await beat(api, join=[G1], nodes=[REPORT])).status_code == 200
        await api.stores.nodes.report("h1-gpu0", verdict="down", why="Connection refused")
        await redis.delete("fleet:report:h1-gpu0")  # what was heard is forgotten after a while
        await redis.zincrby("fleet:hosts", -30, "h1")
        (node,) = (await api.client.get("/api/v1/nodes")).json()["nodes"]
        assert re.fullmatch(r"agent of h1 silent for 3\d s \(Connection refused\)", node["why"]), node
