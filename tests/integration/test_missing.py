"""Refusals for what no node has say how to get it, on every surface; what was asked for is remembered."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.clock import ServerClock
from comfy_fleet.adapters.redis.missing import RedisMissing
from comfy_fleet.cli.app import build
from comfy_fleet.cli.client import failure
from comfy_fleet.cli.exits import Fail
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.graphs.missing import MissingPart, PartKind
from comfy_fleet.domain.graphs.part_sources import PartSource
from comfy_fleet.domain.graphs.stored import NewVersion, WorkflowContent
from comfy_fleet.ports.missing import MOST_OF_OWNER
from tests.factories import picture, sampled
from tests.integration.api_kit import Api, object_info, running
from tests.key_files import write_keys

ANN, BOB, OPS = "ann-key-0123456789-0123456789", "bob-key-0123456789-0123456789", "ops-key-0123456789-012"
AGENT = "agent-0123456789abc"
URL = "https://huggingface.co/Comfy-Org/x/resolve/main/x.safetensors?download=true"
FANCY = {"1": {"class_type": "FancyImage", "inputs": {}}, "2": {"class_type": "SaveImage", "inputs": {}}}
FANCY["2"]["inputs"] = {"images": ["1", 0], "filename_prefix": "x"}


def told(*nodes: dict[str, Any]) -> dict[str, Any]:
    """Return extra data with the editor's form of a graph."""
    return {"extra_pnginfo": {"workflow": {"nodes": list(nodes), "links": [], "version": 0.4}}}


PACKAGE = told({"type": "FancyImage", "properties": {"cnr_id": "fancy-nodes", "ver": "1.2.0"}})
MODEL = told(
    {
        "type": "CheckpointLoaderSimple",
        "properties": {"models": [{"name": "x.safetensors", "url": URL, "directory": "checkpoints"}]},
    }
)


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, f"ann {ANN} artist\nbob {BOB}\nops {OPS} admin\n")
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=AGENT) as started:
        for name in ("gpu1", "gpu2"):
            await started.add_node(name)
            assert await started.deps.inventories.refresh(name)
        yield started


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def prompted(api: Api, graph: Any, extra: Any, key: str = ANN) -> dict[str, Any]:
    sent = {"prompt": graph, "extra_data": extra}
    answer = await api.client.post("/prompt", json=sent, headers=bearer(key))
    assert answer.status_code == 400, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def asked(api: Api, query: str = "", key: str = OPS) -> list[dict[str, Any]]:
    answer = await api.client.get(f"/api/v1/missing{query}", headers=bearer(key))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["missing"]
    return found


async def test_comfyuis_interface_names_the_package_and_the_nodes(api: Api) -> None:
    error = (await prompted(api, FANCY, PACKAGE))["error"]
    assert error["type"] == "missing_node_type"
    hint = "it is in the package fancy-nodes 1.2.0; missing on gpu1, gpu2"
    assert error["details"] == f"Node ID '#1'\nFancyImage: {hint}"
    (part,) = error["extra_info"]["missing"]
    assert (part["package"], part["version"]) == ("fancy-nodes", "1.2.0")
    assert (part["lacked_by"], part["node_ids"]) == (["gpu1", "gpu2"], ["1"])


async def test_comfyuis_interface_names_file_folder_and_url(api: Api) -> None:
    body = await prompted(api, sampled(file="x.safetensors"), MODEL)
    (error,) = body["node_errors"]["1"]["errors"]
    assert error["type"] == "value_not_in_list"
    first, hint = error["details"].split("\n")
    assert first.startswith("ckpt_name: 'x.safetensors' not in ")
    assert hint == (
        "it belongs into models/checkpoints; "
        f"the workflow says where it is from: {URL}; missing on gpu1, gpu2"
    )
    (part,) = error["extra_info"]["missing"]
    assert (part["url"], part["folder"], part["name"]) == (URL, "checkpoints", "x.safetensors")


async def test_a_part_that_runs_does_not_hide_what_the_rest_lacks(api: Api) -> None:
    graph = {
        **sampled(file="x.safetensors"),
        **{f"a{key}": node for key, node in renamed(picture(1)).items()},
    }
    sent = {"prompt": graph, "extra_data": MODEL}
    answer = await api.client.post("/prompt", json=sent, headers=bearer(ANN))
    assert answer.status_code == 200, answer.text
    (error,) = answer.json()["node_errors"]["1"]["errors"]
    assert URL in error["details"]
    assert [part["name"] for part in await asked(api)] == ["x.safetensors"]


def renamed(graph: dict[str, Any]) -> dict[str, Any]:
    """Return a graph whose ids another may stand beside."""
    return {
        key: {
            **node,
            "inputs": {
                name: [f"a{value[0]}", value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
        }
        for key, node in graph.items()
    }


async def test_comfy_api_v2_and_the_command_line_say_the_same(api: Api) -> None:
    sent = {"workflow": FANCY, "extra_data": PACKAGE}
    answer = await api.client.post("/api/v2/jobs", json=sent, headers=bearer(ANN))
    assert answer.status_code == 422
    error = answer.json()["error"]
    sentence = (
        "node 1: class 'FancyImage' is not installed; it is in the package fancy-nodes 1.2.0; "
        "missing on gpu1, gpu2"
    )
    assert error["details"]["node_errors"]["1"][0]["message"] == sentence
    assert [part["package"] for part in error["details"]["missing"]] == ["fancy-nodes"]
    assert failure(answer, "/api/v2/jobs").message.count(sentence) == 1


async def test_a_picture_that_is_submitted_says_where_its_parts_are_from(api: Api, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", json.dumps(FANCY))
    info.add_text("workflow", json.dumps(PACKAGE["extra_pnginfo"]["workflow"]))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    argv = ["submit", str(tmp_path / "a.png"), "--api", api.url, "--key", ANN]
    result = await asyncio.to_thread(lambda: CliRunner().invoke(build(argv), argv))
    assert isinstance(result.exception, Fail), result.output
    assert "it is in the package fancy-nodes 1.2.0; missing on gpu1, gpu2" in result.exception.message


async def test_what_is_missing_is_told_although_thousands_of_nodes_lack_it(api: Api) -> None:
    many = {str(n): {"class_type": "FancyImage", "inputs": {}} for n in range(3000)}
    sent = {"workflow": {**many, "s": FANCY["2"]}, "extra_data": PACKAGE}
    answer = await api.client.post("/api/v2/jobs", json=sent, headers=bearer(ANN))
    assert (answer.status_code, len(answer.content) < 500_000) == (422, True)
    (part,) = answer.json()["error"]["details"]["missing"]
    assert (part["package"], len(part["node_ids"])) == ("fancy-nodes", 20)


@pytest.mark.parametrize("published", [True, False])
async def test_a_stored_workflow_knows_its_packages_from_the_editor(api: Api, published: bool) -> None:
    graph = {**FANCY, "2": {**FANCY["2"], "_meta": {"title": "$out"}}}
    ui = PACKAGE["extra_pnginfo"]["workflow"]
    new = NewVersion(content=WorkflowContent(graph=graph), ui=ui if published else None, author="ann")
    await api.stores.workflows.publish("fancy", new, expected=None)
    answer = await api.client.post("/api/v1/workflows/fancy/jobs", json={}, headers=bearer(BOB))
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert ("fancy-nodes 1.2.0" in error["message"]) is published
    assert "missing on gpu1, gpu2" in error["details"]["node_errors"]["1"][0]["message"]
    (part,) = error["details"]["missing"]
    assert part["package"] == ("fancy-nodes" if published else "")


async def test_hostile_hints_are_left_out(api: Api) -> None:
    extra = told(
        {"type": "FancyImage", "properties": {"cnr_id": "\x1b[2J<script>", "ver": "1"}},
        {"type": "FancyImage", "properties": {"models": [{"name": 5}, "x", None]}},
        {"type": ["x"], "properties": "y"},
    )
    error = (await prompted(api, FANCY, extra))["error"]
    assert error["details"] == "Node ID '#1'\nFancyImage: missing on gpu1, gpu2"
    model = {"name": "x.safetensors", "url": "javascript:alert(1)", "directory": "../../etc"}
    extra = told({"type": "CheckpointLoaderSimple", "properties": {"models": [model]}})
    body = await prompted(api, sampled(file="x.safetensors"), extra)
    assert body["node_errors"]["1"]["errors"][0]["details"].endswith(
        "\nit belongs into models/checkpoints; missing on gpu1, gpu2"
    )


# -- the record --------------------------------------------------------------------------------------------


async def test_operators_and_artists_see_what_people_asked_for(api: Api) -> None:
    for key in (ANN, ANN, BOB):
        await prompted(api, FANCY, PACKAGE, key)
    await prompted(api, sampled(file="x.safetensors"), MODEL)
    file, fancy = await asked(api, key=ANN)
    assert {name: fancy[name] for name in ("kind", "name", "package", "version", "asked", "people")} == {
        "kind": "class",
        "name": "FancyImage",
        "package": "fancy-nodes",
        "version": "1.2.0",
        "asked": 3,
        "people": 2,
    }
    assert fancy["first_asked_at"] < fancy["last_asked_at"] < file["last_asked_at"]
    assert (file["kind"], file["url"], file["folder"]) == ("file", URL, "checkpoints")
    assert (file["nodes_with"], file["nodes_without"]) == ([], ["gpu1", "gpu2"])
    for key in (BOB, AGENT):
        assert (await api.client.get("/api/v1/missing", headers=bearer(key))).status_code == 403
    assert (await api.client.get("/api/v1/missing")).status_code == 401


async def test_who_does_not_say_where_it_is_from_takes_nothing_away(api: Api) -> None:
    await prompted(api, FANCY, PACKAGE)
    for key in (ANN, BOB):
        await prompted(api, FANCY, {}, key)
    (fancy,) = await asked(api)
    assert (fancy["package"], fancy["version"], fancy["asked"]) == ("fancy-nodes", "1.2.0", 3)


async def test_all_that_is_missing_is_told_with_the_first_class(api: Api) -> None:
    graph = sampled(file="x.safetensors")
    graph["6"]["inputs"]["images"] = ["f", 0]
    graph["f"] = {"class_type": "FancyImage", "inputs": {"images": ["5", 0]}}
    nodes = [*PACKAGE["extra_pnginfo"]["workflow"]["nodes"], *MODEL["extra_pnginfo"]["workflow"]["nodes"]]
    error = (await prompted(api, graph, told(*nodes)))["error"]
    lines = error["details"].split("\n")
    assert lines[0] == "Node ID '#f'"
    assert {line.partition(":")[0] for line in lines[1:]} == {"FancyImage", "x.safetensors"}
    assert any(URL in line for line in lines)
    assert len(error["extra_info"]["missing"]) == 2


async def test_what_a_node_has_by_now_is_listed_only_with_all(api: Api) -> None:
    await prompted(api, sampled(file="x.safetensors"), MODEL)
    info = object_info()
    info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"] = [["x.safetensors"], {}]
    api.info.serve("gpu2", info)
    assert await api.deps.inventories.refresh("gpu2")
    assert await asked(api) == []
    (part,) = await asked(api, "?all=true")
    assert (part["nodes_with"], part["nodes_without"]) == (["gpu2"], ["gpu1"])


def part(number: int) -> MissingPart:
    source = PartSource(package=f"p{number}", version="1")
    return MissingPart(kind=PartKind.CLASS, name=f"C{number}", class_type=f"C{number}", source=source)


async def test_nobody_crowds_out_what_others_asked_for(redis: FleetRedis) -> None:
    record = RedisMissing(redis, clock=ServerClock(redis))
    await record.note("ann", [part(0)])
    for start in range(0, 3 * MOST_OF_OWNER, 20):
        await record.note("bob", [part(start + n) for n in range(1, 21)])
    found = await record.asked()
    assert len(found) == MOST_OF_OWNER + 1
    assert found[-1].part == part(0)
    assert {one.part.name for one in found[:-1]} == {f"C{n}" for n in range(201, 301)}


async def test_requests_at_once_are_all_counted_and_junk_harms_nothing(redis: FleetRedis) -> None:
    record = RedisMissing(redis, clock=ServerClock(redis))
    await asyncio.gather(*(record.note(f"owner{n % 3}", [part(1), part(2)]) for n in range(30)))
    assert [(one.asked, one.people) for one in await record.asked()] == [(30, 3), (30, 3)]
    await redis.hset(redis.keyspace.missing_of("owner1"), mapping={"junk": "{", "j2": '{"about": 5}'})
    await redis.sadd(redis.keyspace.missing_owners, "nobody")
    assert len(await record.asked()) == 2
    assert not await redis.sismember(redis.keyspace.missing_owners, "nobody")
    await record.note("owner1", [part(3)])
    assert len(await record.asked()) == 3


async def test_a_refusal_comes_though_the_record_fails(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise StoreDown("away")

    monkeypatch.setattr(RedisMissing, "note", fails)
    error = (await prompted(api, FANCY, PACKAGE))["error"]
    assert "fancy-nodes 1.2.0" in error["details"]
    assert await asked(api) == []


async def test_a_list_is_of_one_fleet(redis: FleetRedis, redis_port: int, api: Api, tmp_path: Path) -> None:
    await prompted(api, FANCY, PACKAGE)
    async with (
        running(redis_port, tmp_path / "other", namespace="other") as other,
        httpx.AsyncClient(base_url=other.url) as client,
    ):
        assert (await client.get("/api/v1/missing")).json() == {"missing": []}
