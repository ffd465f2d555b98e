"""Model files, statistics and small routes of ComfyUI's own interface, for the whole fleet."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.services import fleet_models
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

RECORDED = Path(__file__).parents[2] / "recordings-0.33"
NEW, OLD = "0.33.0", "0.3.64"


def info(name: str, index: int = 0, size: int = 1) -> dict[str, Any]:
    return {"name": name, "pathIndex": index, "modified": 1.5, "created": 2.5, "size": size}


def lists(*files: str, folders: tuple[str, ...] = ("checkpoints", "loras", "custom_nodes")) -> dict[str, Any]:
    """What a node with these checkpoints answers."""
    return {
        "/models": [*folders],
        "/models/checkpoints": [*files],
        "/models/loras": [],
        "/embeddings": ["emb"],
        "/experiment/models": [{"name": "checkpoints", "folders": ["/srv/models"]}],
        "/experiment/models/checkpoints": [info(file) for file in files],
        "/system_stats": {"system": {"comfyui_version": NEW}, "devices": [{"name": "cpu", "type": "cpu"}]},
    }


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


@pytest.fixture
async def two(api: Api) -> Api:
    """Two nodes with different files, the second with the newer ComfyUI."""
    await node(api, "gpu1", lists("a.safetensors", "both.safetensors"), comfyui=OLD)
    folders = ("checkpoints", "loras", "custom_nodes", "detection")
    await node(api, "gpu2", lists("b.safetensors", "both.safetensors", folders=folders), comfyui=NEW)
    return api


async def node(api: Api, name: str, answers: dict[str, Any], *, comfyui: str = NEW) -> None:
    api.info.serve(name, {"A": {"input": {}, "output": []}}, comfyui=comfyui)
    api.info.listings[name] = answers
    await api.add_node(name, info=False)
    await api.deps.inventories.refresh(name)


async def got(api: Api, path: str, status: int = 200) -> Any:
    answer = await api.client.get(path)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_folders_and_files_of_all_nodes(two: Api, prefix: str) -> None:
    assert await got(two, f"{prefix}/models") == ["checkpoints", "loras", "custom_nodes", "detection"]
    files = ["a.safetensors", "b.safetensors", "both.safetensors"]
    assert await got(two, f"{prefix}/models/checkpoints") == files
    assert await got(two, f"{prefix}/models/loras") == []
    assert await got(two, f"{prefix}/embeddings") == ["emb"]
    assert await got(two, f"{prefix}/models/nothing", 404) is None
    assert await got(two, f"{prefix}/experiment/models/nothing", 404) is None
    assert await got(two, f"{prefix}/experiment/models") == [
        {"name": "checkpoints", "folders": ["models/checkpoints"]}
    ]
    listed = await got(two, f"{prefix}/experiment/models/checkpoints")
    assert sorted(one["name"] for one in listed) == files


async def test_files_of_node_packs_are_not_shown(two: Api) -> None:
    assert await got(two, "/models/custom_nodes") == []
    assert await got(two, "/experiment/models/custom_nodes") == []
    assert not any("custom_nodes" in path for _, path, _ in two.info.listed)


async def test_a_folder_that_no_node_has_is_never_asked_for(two: Api) -> None:
    for path in ("/models/%2e%2e", "/models/a%5Cb", "/experiment/models/secrets"):
        assert (await two.client.get(path)).status_code == 404
    assert {path for _, path, _ in two.info.listed} <= {"/models"}


async def test_nodes_are_asked_once_in_some_seconds_however_many_clients_ask(two: Api) -> None:
    await asyncio.gather(*(got(two, "/models/checkpoints") for _ in range(20)))
    await got(two, "/models/checkpoints")
    asked = [(name, path) for name, path, _ in two.info.listed]
    assert sorted(asked) == sorted(
        (name, path) for name in ("gpu1", "gpu2") for path in ("/models", "/models/checkpoints")
    )


async def test_a_node_that_hangs_or_is_down_holds_nobody_up(two: Api) -> None:
    gate = two.info.gates["gpu1"] = asyncio.Event()
    found = await asyncio.wait_for(got(two, "/models"), 15)
    assert found == ["checkpoints", "loras", "custom_nodes", "detection"]
    gate.set()
    del two.info.listings["gpu2"]
    await two.stores.nodes.report("gpu2", verdict="down", why="gone")
    assert await got(two, "/models/checkpoints") == ["a.safetensors", "both.safetensors"]


async def test_without_any_answer_it_says_so(api: Api) -> None:
    for path in ("/models", "/system_stats", "/node_replacements"):
        assert (await api.client.get(path)).status_code == 503


async def test_a_preview_comes_from_a_node_that_has_the_file(two: Api) -> None:
    two.info.pictures["checkpoints/0/b.safetensors"] = b"RIFFwebp"
    path = "/api/experiment/models/preview/checkpoints/0"
    for name in ("b.webp", "b.safetensors"):
        answer = await two.client.get(f"{path}/{name}")
        assert (answer.status_code, answer.content) == (200, b"RIFFwebp")
        assert answer.headers["content-type"] == "image/webp"
    assert [who for who, what, _ in two.info.listed if what.startswith("preview")] == ["gpu2"]
    assert await got(two, f"{path}/a.webp", 404) is None
    assert await got(two, f"{path}/unknown.webp", 404) is None
    assert await got(two, f"{path}/..%2F..%2Fetc%2Fpasswd", 403) is None
    assert await got(two, "/experiment/models/preview/checkpoints/x/b.webp", 400) is None
    assert await got(two, "/experiment/models/preview/checkpoints/0/", 400) is None
    assert await got(two, "/experiment/models/preview/nothing/0/b.webp", 404) is None


async def test_a_preview_is_asked_of_the_next_node_if_the_first_can_not_answer(two: Api) -> None:
    two.info.pictures["checkpoints/0/both.safetensors"] = b"picture"
    await got(two, "/experiment/models/checkpoints")
    del two.info.listings["gpu2"]
    answer = await two.client.get("/experiment/models/preview/checkpoints/0/both.webp")
    assert (answer.status_code, answer.content) == (200, b"picture")


async def test_a_preview_is_kept_once_whatever_index_is_asked_for(two: Api) -> None:
    two.info.pictures["checkpoints/0/b.safetensors"] = b"picture"
    for index in range(30):
        answer = await two.client.get(f"/experiment/models/preview/checkpoints/{index}/b.webp")
        assert answer.content == b"picture"
    assert [what for _, what, _ in two.info.listed if what.startswith("preview")] == [
        "preview checkpoints/0/b.safetensors"
    ]


async def test_a_preview_is_that_of_the_place_that_was_asked_for(two: Api) -> None:
    listed = [info("b.safetensors"), info("b.safetensors", 1)]
    two.info.listings["gpu2"]["/experiment/models/checkpoints"] = listed
    for index in (0, 1):
        two.info.pictures[f"checkpoints/{index}/b.safetensors"] = b"picture %d" % index
    for index in (0, 1, 0, 1, 7):
        answer = await two.client.get(f"/experiment/models/preview/checkpoints/{index}/b.webp")
        assert answer.content == b"picture %d" % (index % 7)
    assert len([what for _, what, _ in two.info.listed if what.startswith("preview")]) == 2


async def test_nobody_waits_for_what_others_ask_about_models(
    redis_port: int, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    ann, bob = "ann-key-0123456789-0123456789", "bob-key-0123456789-0123456789"
    write_keys(keys, f"ann {ann}\nbob {bob}\n")
    monkeypatch.setattr(fleet_models, "_WAIT_S", 60.0)
    async with running(redis_port, tmp_path, keys_file=keys, max_requests=4) as api:
        api.client.headers["Authorization"] = f"Bearer {ann}"
        await node(api, "gpu1", lists(*(f"{n}.safetensors" for n in range(80))))
        answering = asyncio.Event()

        async def preview(asked: str, *, folder: str, index: int, name: str) -> bytes | None:
            if name != "0.safetensors":
                await answering.wait()
            return name.encode()

        monkeypatch.setattr(api.info, "preview", preview)
        path = "/experiment/models/preview/checkpoints/0"
        hers = [asyncio.create_task(api.client.get(f"{path}/{n}.webp")) for n in range(1, 74)]
        try:
            for refused in [await one for one in itertools.islice(asyncio.as_completed(hers), 3)]:
                assert refused.status_code == 503
            answer = await api.client.get(f"{path}/0.webp", headers={"Authorization": f"Bearer {bob}"})
            assert (answer.status_code, answer.content) == (200, b"0.safetensors")
        finally:
            answering.set()
        answers = [(await one).status_code for one in hers]
        assert answers.count(200) == 70 and answers.count(503) == 3


async def test_a_picture_that_is_too_large_is_none(two: Api) -> None:
    two.info.pictures["checkpoints/0/a.safetensors"] = bytes(5 * 2**20)
    assert await got(two, "/experiment/models/preview/checkpoints/0/a.webp", 404) is None


async def test_metadata_comes_from_a_node_that_has_the_file(two: Api) -> None:
    two.info.listings["gpu1"]["/view_metadata/checkpoints"] = {"ss_tag": "x"}
    assert await got(two, "/view_metadata/checkpoints?filename=a.safetensors") == {"ss_tag": "x"}
    assert ("gpu1", "/view_metadata/checkpoints", {"filename": "a.safetensors"}) in two.info.listed
    for query in (
        "",
        "?filename=",
        "?filename=a.ckpt",
        "?filename=../a.safetensors",
        "?filename=no.safetensors",
    ):
        assert await got(two, f"/api/view_metadata/checkpoints{query}", 404) is None
    assert await got(two, "/view_metadata/nothing?filename=a.safetensors", 404) is None


async def test_every_gpu_is_a_device(two: Api) -> None:
    stats = await got(two, "/api/system_stats")
    assert [device["name"] for device in stats["devices"]] == ["gpu1: cpu", "gpu2: cpu"]
    assert stats["system"]["comfyui_version"] == NEW
    assert stats["system"]["argv"] == []


async def test_statistics_of_a_fleet_whose_nodes_hang_are_those_that_were_read(api: Api) -> None:
    api.info.stats["gpu1"] = {
        "system": {"comfyui_version": NEW},
        "devices": [{"name": "cuda:0 NVIDIA L40S : native", "type": "cuda", "vram_total": 48}],
    }
    api.info.classes["gpu1"] = {}
    await api.add_node("gpu1", info=False)
    await api.deps.inventories.refresh("gpu1")
    (device,) = (await got(api, "/system_stats"))["devices"]
    assert (device["name"], device["vram_total"], device["vram_free"]) == ("gpu1: NVIDIA L40S", 48, 0)


async def test_replacements_of_all_nodes(two: Api) -> None:
    await node(two, "gpu3", {"/node_replacements": {"Old": [{"new_node_id": "New"}]}})
    assert await got(two, "/api/node_replacements") == {"Old": [{"new_node_id": "New"}]}


async def test_features_are_those_of_the_fleet(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, max_body_bytes=12345) as api:
        found = await got(api, "/api/features")
        assert found == await got(api, "/features")
        assert (found["supports_preview_metadata"], found["max_upload_size"]) == (True, 12345)
        assert found["assets"] is False


async def test_assets_are_switched_off_as_on_a_plain_server(api: Api) -> None:
    exchanges = orjson.loads((RECORDED / "other_routes.json").read_bytes())
    recorded = next(one["response"] for one in exchanges if one["request"]["path"] == "/api/assets")
    uuid = "c3a4e2f1-0000-4000-8000-1234567890ab"
    routes = [
        ("GET", "/api/assets"),
        ("POST", "/api/assets"),
        ("POST", "/api/assets/from-hash"),
        ("GET", "/api/assets/tags/refine"),
        ("GET", f"/api/assets/{uuid}"),
        ("PUT", f"/api/assets/{uuid}"),
        ("DELETE", f"/api/assets/{uuid}"),
        ("GET", f"/api/assets/{uuid}/content"),
        ("POST", f"/api/assets/{uuid}/tags"),
        ("DELETE", f"/api/assets/{uuid}/tags"),
        ("GET", "/api/tags"),
    ]
    for method, path in routes:
        answer = await api.client.request(method, path)
        assert (answer.status_code, answer.json()) == (recorded["status"], recorded["body"]), path
    head = await api.client.head("/api/assets/hash/blake3:00")
    assert (head.status_code, head.content) == (503, b"")
    closed = ["/api/assets/seed", "/api/assets/seed/cancel", "/api/assets/prune"]
    for method, path in [*(("POST", one) for one in closed), ("GET", "/api/assets/seed/status")]:
        assert (await api.client.request(method, path)).status_code == 404
    for path in ("/internal/logs", "/internal/logs/raw", "/internal/folder_paths"):
        assert (await api.client.get(path)).status_code == 404


async def test_models_are_unloaded_on_all_nodes_for_operators_only(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "ann key-of-ann-0123456789\nops key-of-ops-0123456789 admin\n")
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        await node(api, "gpu1", lists())
        await node(api, "gpu2", lists())
        ann, ops = ({"Authorization": f"Bearer key-of-{name}-0123456789"} for name in ("ann", "ops"))
        orders = {"unload_models": True}
        keyspace = api.stores.redis.keyspace
        await api.stores.redis.hset(keyspace.sched_node("gpu1"), "card", '[["vae/a", 5]]')
        assert (await api.client.post("/free", json=orders, headers=ann)).status_code == 403
        assert api.info.freed == []
        answer = await api.client.post("/api/free", json=orders, headers=ops)
        assert (answer.status_code, answer.content) == (200, b"")
        assert sorted(api.info.freed) == ["gpu1", "gpu2"]
        assert api.info.told_to_free == [(True, False)] * 2
        assert not await api.stores.redis.hexists(keyspace.sched_node("gpu1"), "card")
        assert (await api.client.post("/free", json={}, headers=ops)).status_code == 200
        assert len(api.info.freed) == 2
        assert (await api.client.post("/free", content=b"{", headers=ops)).status_code == 400
