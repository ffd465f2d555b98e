"""Operators see which nodes have which model files."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.api_kit import Api, object_info, running
from tests.key_files import write_keys

OPS, ANN = "ops-key-0123456789", "ann-key-0123456789"
BY = {"Authorization": f"Bearer {OPS}"}


def with_loras(*names: str) -> dict[str, Any]:
    info = object_info()
    loader = {"input": {"required": {"lora_name": [list(names)]}}, "output": ["MODEL"]}
    return {**info, "LoraLoader": loader, "LoraLoaderModelOnly": loader}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    write_keys(tmp_path / "keys", f"ann {ANN}\nops {OPS} operator\n")
    async with running(redis_port, tmp_path, keys_file=tmp_path / "keys") as started:
        for name, loras in {
            "g1": ("a.safetensors",),
            "g2": ("a.safetensors", "b.safetensors"),
            "g3": ("a.safetensors",),
        }.items():
            await started.add_node(name)
            started.info.serve(name, with_loras(*loras))
            answer = await started.client.post(f"/api/v1/nodes/{name}/refresh", headers=BY)
            assert answer.status_code == 200, answer.text
        await started.add_node("g4", info=False, up=False)
        yield started


async def models(api: Api, **query: Any) -> dict[str, Any]:
    answer = await api.client.get("/api/v1/models", params=query, headers=BY)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_who_has_what_and_who_lacks_what(api: Api) -> None:
    found = await models(api, folder="loras")
    assert [group["nodes"] for group in found["groups"]] == [["g1", "g3"], ["g2"]]
    assert found["groups"][1]["files"] == found["groups"][0]["files"] + 1
    shown = [(file["folder"], file["name"], file["nodes"], file["groups"]) for file in found["files"]]
    assert shown == [("loras", "a.safetensors", 3, [0, 1]), ("loras", "b.safetensors", 1, [1])]
    assert (found["unread"], found["next"], found["total"]) == (["g4"], None, 2)
    only = [("loras", "b.safetensors")]
    for query in ({"missing_on": "g1"}, {"unequal": "true"}):
        assert [(file["folder"], file["name"]) for file in (await models(api, **query))["files"]] == only
    assert (await models(api, missing_on="g2"))["files"] == []
    everything = await models(api)
    page = await models(api, limit=1)
    paged = page["files"]
    while page["next"] is not None:
        page = await models(api, limit=1, after=page["next"])
        paged += page["files"]
    assert paged == everything["files"]
    assert len(paged) == everything["total"] == 2


async def test_only_operators_and_only_nodes_that_there_are(api: Api) -> None:
    as_ann = await api.client.get("/api/v1/models", headers={"Authorization": f"Bearer {ANN}"})
    assert as_ann.status_code == 403
    for query, status in (({"node": "g9"}, 404), ({"missing_on": "g4"}, 400), ({"limit": 0}, 422)):
        answer = await api.client.get("/api/v1/models", params=query, headers=BY)
        assert answer.status_code == status, answer.text
    assert (await models(api, pool="none"))["groups"] == []
