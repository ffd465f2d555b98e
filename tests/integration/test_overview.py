"""``GET /api/v1/overview``: what it says of nodes, queue and jobs, and to whom."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobError, JobStatus
from comfy_fleet.services import fleet_overview
from tests.factories import GRAPH, picture
from tests.fleet import until
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

OPS, ANN, EYE, AGENT = (f"{name}-key-0123456789" for name in ("ops", "ann", "eye", "agent"))
GIB = 2**30


@pytest.fixture
async def api(
    redis: Redis, redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    monkeypatch.setattr(fleet_overview, "KEPT_S", 0.0)
    keys = write_keys(tmp_path / "keys", f"ops {OPS} operator\nann {ANN}\neye {EYE} metrics\n")
    async with running(redis_port, tmp_path / "data", keys_file=keys, agent_token=AGENT) as it:
        it.client.headers["Authorization"] = f"Bearer {OPS}"
        yield it


async def look(api: Api, **query: Any) -> Any:
    answer = await api.client.get("/api/v1/overview", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ask(api: Api, key: str) -> httpx.Response:
    answer: httpx.Response = await api.client.get(
        "/api/v1/overview", headers={"Authorization": f"Bearer {key}"}
    )
    return answer


async def test_nodes_queue_and_jobs_at_one_glance(api: Api) -> None:
    empty = await look(api)
    assert (empty["ready"], empty["nodes"], empty["pools"], empty["queued"]) == (False, [], [], 0)
    assert [one["part"] for one in empty["reasons"]][:1] == ["nodes"]

    for name in ("g1", "g2", "g10"):
        await api.add_node(name)
    await until(lambda: api.deps.inventories.known == {"g1", "g2", "g10"}, what="the nodes are read")
    runs = (await api.submit(GRAPH))["id"]
    claim = await api.claim(runs)
    failed = (await api.submit(picture(2)))["id"]
    other = await api.claim(failed, "g2")
    error = JobError(code="out_of_memory", message="m" * 1000)
    await api.stores.runs.left(other, [])
    await api.stores.runs.finish(other, JobStatus.FAILED, error=error, duration_s=1.0)
    waits = (await api.submit(picture(3)))["id"]
    await api.client.post("/api/v1/nodes/g2/drain", json={"reason": "fans"})

    seen = await look(api)
    assert seen["states"] == {"up": 2, "drained": 1}
    assert [one["name"] for one in seen["nodes"]] == ["g1", "g2", "g10"]
    working, drained, idle = seen["nodes"]
    (job,) = working["jobs"]
    assert (job["id"], job["user"], job["phase"]) == (runs, "ops", "claimed")
    assert (drained["state"], drained["why"], drained["jobs"]) == ("drained", "fans", [])
    assert (idle["state"], idle["jobs"], idle["temperature_c"]) == ("up", [], None)
    (pool,) = seen["pools"]
    assert {key: pool[key] for key in ("name", "waiting", "nodes", "up", "busy")} == {
        "name": "default",
        "waiting": 1,
        "nodes": 3,
        "up": 2,
        "busy": 1,
    }
    assert [one["id"] for one in seen["waiting"]] == [waits]
    (ended,) = seen["ended"]
    assert (ended["id"], ended["status"], ended["node"]) == (failed, "failed", "g2")
    assert ended["error"].startswith("out_of_memory: mmm")
    assert len(ended["error"]) == 300

    await api.finish(claim)
    assert [one["id"] for one in (await look(api))["ended"]] == [runs, failed]
    assert (await api.client.delete(f"/api/v1/jobs/{failed}")).status_code == 204
    assert [one["id"] for one in (await look(api))["ended"]] == [runs]


async def test_only_a_pool_and_only_so_many_nodes(api: Api) -> None:
    for name in ("g1", "g2", "g3"):
        await api.add_node(name)
    far = {"name": "far", "url": "http://10.0.0.9:1", "pool": "far"}
    assert (await api.client.post("/api/v1/nodes", json=far)).status_code == 201
    await api.stores.nodes.report("g3", verdict="down", why="gone")
    first = await look(api, nodes=2)
    assert [one["name"] for one in first["nodes"]] == ["far", "g3"]  # those with trouble first
    assert (first["more_nodes"], first["states"]) == (2, {"up": 2, "down": 1, "new": 1})
    alone = await look(api, pool="far")
    assert [one["name"] for one in alone["nodes"]] == ["far"]
    assert [one["name"] for one in alone["pools"]] == ["far"]
    assert (await look(api, pool="nowhere"))["nodes"] == []
    for wrong in ({"pool": "Not a pool"}, {"nodes": -1}, {"nodes": 10**6}, {"nodes": "x"}):
        answer = await api.client.get("/api/v1/overview", params=wrong)
        assert answer.status_code in (400, 422), answer.text
        assert next(iter(wrong)) in answer.text


async def test_what_agents_measure_and_what_they_make_up(api: Api) -> None:
    for name in ("g1", "g2"):
        await api.add_node(name)
    card = {"index": 0, "uuid": "GPU-1", "temperature_c": 71, "utilisation": 40}
    vram = {"total": 24 * GIB, "own": GIB, "own_all": 3 * GIB, "foreign": GIB, "available": 5}
    odd_card = {"index": 1, "uuid": "GPU-2", "temperature_c": "hot", "utilisation": 1e300, "xids": "x"}
    odd = {"total": 10**18, "own": [], "own_all": 10**18, "foreign": {"a": 1}, "available": True}
    beat = {
        "instance": "i1",
        "gpus": [card, odd_card],
        "nodes": [
            {"name": "g1", "word": "ready", "facts": {"gpu": "GPU-1", "vram": vram}},
            {"name": "g2", "word": "ready", "facts": {"gpu": "GPU-2", "vram": odd, "orphans": 7}},
            {"name": "nobody", "word": "ready", "facts": {"gpu": "GPU-1", "vram": vram}},
        ],
    }
    head = {"Authorization": f"Bearer {AGENT}"}
    answer = await api.client.post("/api/v1/agents/h1/heartbeat", json=beat, headers=head)
    assert answer.status_code == 200, answer.text
    first, second = (await look(api))["nodes"]
    assert (first["memory_bytes"], first["memory_used_bytes"]) == (24 * GIB, 4 * GIB)
    assert (first["temperature_c"], first["utilization"]) == (71, 0.4)
    for figure in ("memory_used_bytes", "temperature_c", "utilization"):
        assert second[figure] is None, figure


async def test_it_is_for_operators(api: Api) -> None:
    for key in (ANN, EYE, AGENT):
        assert code(await ask(api, key)) == (403, "forbidden")
    assert code(await ask(api, "nobodys-key-0123456789"))[0] == 401


async def test_many_who_look_cost_one_look(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_overview, "KEPT_S", 60.0)
    assert (await look(api))["nodes"] == []
    await api.add_node()
    assert (await look(api))["nodes"] == []
    for number in range(20):
        await look(api, pool=f"p{number}")
    assert len((await look(api))["nodes"]) == 1  # it was looked at too long ago to be kept
