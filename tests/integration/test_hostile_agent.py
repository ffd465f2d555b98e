"""An agent that lies: about others' nodes, their GPUs and their files, and with numbers that nobody has."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from tests.factories import GRAPH
from tests.integration.api_kit import Api, running
from tests.integration.test_agent_tokens import SHARED, made

UUID = "GPU-7c6bfcb2-dd89-4093-9184-675cc1c94f75"
SEAT = {"gpu": UUID, "pids": [100], "own": 5, "used": 9, "age_s": 0.1}
NODES = {
    host: {"name": f"{host}-gpu0", "url": f"http://10.0.0.{host[1]}:8188", "agent": f"10.0.0.{host[1]}:9200"}
    for host in ("h1", "h2")
}


class Agents:
    """Two hosts' agents, each with a token of its own."""

    def __init__(self, api: Api, tokens: dict[str, str]) -> None:
        self.api = api
        self.tokens = tokens

    async def beat(self, host: str, **more: Any) -> Any:
        head = {"Authorization": f"Bearer {self.tokens[host]}"}
        body = {"instance": f"i-{host}", **more}
        return await self.api.client.post(f"/api/v1/agents/{host}/heartbeat", json=body, headers=head)


@pytest.fixture
async def agents(redis: Redis, redis_port: int, tmp_path: Path) -> AsyncIterator[Agents]:
    keys = tmp_path / "keys"
    keys.write_text("ada ada-0123456789abcdef\nroot root-0123456789abcdef admin\n")
    keys.chmod(0o600)
    async with running(redis_port, tmp_path / "data", keys_file=keys, agent_token=SHARED) as api:
        both = Agents(api, {host: (await made(api, host))["token"] for host in NODES})
        for host, node in NODES.items():
            joining = {**node, "cleans": True}
            report = {"name": node["name"], "word": "ready", "boot": "1", "facts": {"pid": 7}}
            said = await both.beat(host, join=[joining], nodes=[report])
            assert said.json()["joined"] == [node["name"]], said.text
            await api.stores.nodes.report(node["name"], verdict="up", why="")
        yield both


async def kept(api: Api, name: str) -> dict[bytes, Any]:
    """Return all that is stored about a node and its GPU."""
    client: Any = api.stores.redis
    found = {}
    async for key in client.scan_iter("fleet:*"):
        if name.encode() in key or UUID.encode() in key:
            kind = await client.type(key)
            found[key] = await (client.hgetall(key) if kind == b"hash" else client.dump(key))
    return found


async def test_nothing_that_is_said_of_anothers_node_changes_it(agents: Agents) -> None:
    nodes = agents.api.stores.nodes
    assert await nodes.record_failure("h1-gpu0", kind="gpu", limit=1, reason="quarantined")
    before = await kept(agents.api, "h1-gpu0")
    for number in range(20):
        lie = {
            "name": "h1-gpu0", "word": ("ready", "down", "drain")[number % 3], "why": "lie",
            "boot": str(number), "freed": str(number), "facts": {"pid": number},
            "runs": [str(uuid4())], "seat": SEAT,
        }  # fmt: skip
        answer = await agents.beat("h2", nodes=[lie], leaving=["h1-gpu0"], seen=[str(uuid4())])
        assert answer.status_code == 200, answer.text
        assert "h1-gpu0" not in str(answer.json()["nodes"])
    assert await kept(agents.api, "h1-gpu0") == before
    (state,) = [one for one in await nodes.states() if one.node.name == "h1-gpu0"]
    assert (state.node.cordoned, state.reading.starts) == (True, 0)


async def test_its_own_boots_change_nothing_of_others(agents: Agents) -> None:
    before = await kept(agents.api, "h1-gpu0")
    for number in range(20):
        report = {"name": "h2-gpu0", "word": "ready", "boot": f"b{number}"}
        assert (await agents.beat("h2", nodes=[report])).status_code == 200
    assert await kept(agents.api, "h1-gpu0") == before


async def test_no_agent_is_told_another_machines_gpu(agents: Agents) -> None:
    """Only who knows a GPU's UUID could say that it has memory there."""
    seat = {"name": "h1-gpu0", "word": "ready", "seat": SEAT}
    assert (await agents.beat("h1", nodes=[seat])).status_code == 200
    told = await agents.beat("h2", nodes=[{"name": "h2-gpu0", "word": "ready"}])
    head = {"Authorization": f"Bearer {agents.tokens['h2']}"}
    listed = await agents.api.client.get("/api/v1/nodes", headers=head)
    hosts = await agents.api.client.get("/api/v1/hosts", headers=head)
    assert listed.status_code == 200 and hosts.status_code == 403
    assert UUID not in told.text + listed.text + hosts.text


async def test_files_are_deleted_by_the_agent_of_their_host_alone(agents: Agents) -> None:
    api = agents.api
    head = {"Authorization": "Bearer ada-0123456789abcdef"}
    made_ = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=head)
    assert made_.status_code == 201, made_.text
    claim = await api.claim(made_.json()["id"], "h1-gpu0")
    await api.finish(claim, JobStatus.FAILED)
    wanted = (await agents.beat("h1")).json()["delete"]
    assert len(wanted) == 1
    assert (await agents.beat("h2", deleted=wanted)).json()["delete"] == []
    assert (await agents.beat("h1")).json()["delete"] == wanted  # nobody has said for it that it is done
    assert (await agents.beat("h1", deleted=wanted)).json()["delete"] == []


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1e999", "NaN", "9" * 400, "-1", "1.5", str(2**70)])
async def test_numbers_that_nobody_has_are_refused_or_kept_and_break_nothing(
    agents: Agents, number: str
) -> None:
    api = agents.api
    head = {"Authorization": f"Bearer {agents.tokens['h2']}", "Content-Type": "application/json"}
    seat = f'{{"gpu":"{UUID}","pids":[@],"own":@,"used":@,"age_s":@}}'
    reports = ('"facts":{"a":[@]}', f'"seat":{seat}')
    forms = [
        *(f'"nodes":[{{"name":"h2-gpu0","word":"ready",{report}}}]' for report in reports),
        '"gpus":[{"memory":@}]',
    ]
    for form in forms:
        answer = await api.client.post(
            "/api/v1/agents/h2/heartbeat",
            content=f'{{"instance":"i-h2",{form.replace("@", number)}}}',
            headers=head,
        )
        assert answer.status_code in (200, 400, 422), (form, answer.text)
    for path in ("/api/v1/nodes", "/api/v1/nodes/h2-gpu0", "/api/v1/hosts"):
        listed = await api.client.get(path, headers={"Authorization": "Bearer root-0123456789abcdef"})
        assert listed.status_code == 200, listed.text
    # Whoever has a node on the same GPU is told of the other one's.
    beside = await agents.beat("h1", nodes=[{"name": "h1-gpu0", "word": "ready", "seat": SEAT}])
    assert beside.status_code == 200, beside.text
