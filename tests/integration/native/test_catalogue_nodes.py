"""What clients see of simulated nodes of two versions with different models, through the broker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.services import node_answers
from tests.fleet import Fleet, fleet_of, until
from tests.integration.api_kit import Api, running

GB = 10**9
MODELS = {
    "old": {"checkpoints": {"a.safetensors": GB, "both.safetensors": GB}, "loras": {"x.safetensors": GB}},
    "new": {"checkpoints": {"b.safetensors": GB, "both.safetensors": GB}, "embeddings": {"sub/e.pt": 1}},
}


@dataclass
class World:
    fleet: Fleet
    api: Api
    nodes: NodeClient

    async def got(self, path: str) -> Any:
        answer = await self.api.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def bare(self, name: str) -> httpx.AsyncClient:
        """The node itself, without a fleet."""
        return httpx.AsyncClient(base_url=self.fleet.sims[name].url)


@asynccontextmanager
async def a_world(redis_port: int, folder: Path, **versions: str) -> AsyncIterator[World]:
    async with (
        fleet_of(redis_port, dispatch=False) as fleet,
        NodeClient(fleet.settings.direct_url) as nodes,
        running(redis_port, folder, info=nodes) as api,
    ):
        for name, comfyui in versions.items():
            await fleet.add_sim(name, comfyui=comfyui, models=MODELS[name])
            await fleet.verdict(name)
        await until(lambda: api.deps.inventories.known == set(versions), what="all nodes are read")
        yield World(fleet, api, nodes)


@pytest.mark.parametrize(("name", "comfyui"), [("old", "0.3.64"), ("new", "0.33.0")])
async def test_one_node_behind_the_fleet_says_what_it_says_alone(
    redis_port: int, redis: Redis, tmp_path: Path, name: str, comfyui: str
) -> None:
    async with a_world(redis_port, tmp_path, **{name: comfyui}) as world, world.bare(name) as bare:
        for path in (
            "/object_info",
            "/object_info/KSampler",
            "/models",
            "/models/checkpoints",
            "/embeddings",
        ):
            assert await world.got(path) == (await bare.get(path)).json(), path
        files = "/experiment/models/checkpoints"
        assert await world.got(files) == (await bare.get(files)).json()
        infos = (await bare.get("/experiment/models")).json()
        hidden = [{**info, "folders": [f"models/{info['name']}"]} for info in infos]
        assert await world.got("/experiment/models") == hidden
        replaced = await bare.get("/node_replacements")
        assert await world.got("/node_replacements") == (
            replaced.json() if replaced.status_code == 200 else {}
        )
        own = (await bare.get("/system_stats")).json()
        (device,) = (await world.got("/system_stats"))["devices"]
        assert device == {**own["devices"][0], "name": f"{name}: SIMULATED GPU ({name})"}


async def test_nodes_of_two_versions_with_different_models(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with a_world(redis_port, tmp_path, old="0.3.64", new="0.33.0") as world:
        found = await world.got("/api/object_info")
        async with world.bare("old") as old, world.bare("new") as new:
            first, second = [(await one.get("/object_info")).json() for one in (new, old)]
            assert set(found) == set(first) | set(second)
        files = ["a.safetensors", "b.safetensors", "both.safetensors"]
        listed, extra = found["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"]
        assert listed == files
        assert "a.safetensors (only on old)" in extra["tooltip"]
        assert found["KSampler"]["has_intermediate_output"] is False  # as 0.33 describes it
        only = next(name for name in first if name not in second)
        assert found[only]["description"].endswith("nly on new.")
        assert await world.got("/models/checkpoints") == files
        assert await world.got("/models/loras") == ["x.safetensors"]
        assert await world.got("/embeddings") == ["sub/e"]
        assert set(await world.got("/models")) >= {"detection", "loras"}
        stats = await world.got("/system_stats")
        assert [device["name"].partition(":")[0] for device in stats["devices"]] == ["new", "old"]


async def test_a_model_that_was_added_is_there_when_a_client_looks_again(
    redis_port: int, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_answers, "FRESH_S", 0.0)
    async with a_world(redis_port, tmp_path, new="0.33.0") as world:
        await world.got("/object_info")
        sim = world.fleet.sims["new"]
        sim.models = sim.catalogue.models = {"checkpoints": {"fresh.safetensors": GB}}

        async def there() -> bool:
            found = await world.got("/object_info/CheckpointLoaderSimple")
            declared = found["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"]
            return "fresh.safetensors" in str(declared)

        await until(there, what="the new model is listed")

        async def listed() -> bool:
            return "fresh.safetensors" in await world.got("/models/checkpoints")

        await until(listed, what="the new model's file is listed")


async def test_a_node_is_asked_only_below_its_lists(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with a_world(redis_port, tmp_path, new="0.33.0") as world:
        assert await world.nodes.listing("new", "/models/nothing") is None
        assert await world.nodes.listing("new", "/models/diffusion_models") == []
        assert (
            await world.nodes.listing("new", "/view_metadata/loras", {"filename": "x y/ä.safetensors"})
            is None
        )
        assert await world.nodes.preview("new", folder="loras", index=0, name="sub/x y ä#?.pt") is None
        for path in ("/models/../queue", "/settings", "/models/a/b", "/experiment/models/preview/a/b/c"):
            with pytest.raises(NodeError):
                await world.nodes.listing("new", path)
        with pytest.raises(NodeError):
            await world.nodes.listing("gone", "/models")
