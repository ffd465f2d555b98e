"""What ComfyUI refuses, the fleet refuses in the same words: held against the recordings."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.nodes.node import Node
from tests.factories import picture, sampled
from tests.integration.api_kit import Api, running
from tests.integration.native.hints import without_hints
from tests.integration.native.prompts_kit import claim_next, post

TESTS = Path(__file__).parents[2]
OLD, NEW = TESTS / "recordings", TESTS / "recordings-0.33"


def classes(version: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(
        gzip.decompress((TESTS / "data" / f"all_classes_{version}.json.gz").read_bytes())
    )
    if version == "0.33.0":  # of these, tooltips are kept, too
        found |= orjson.loads((NEW / "GET_object_info.json").read_bytes())
    return found


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        await nodes(started, g1=classes("0.33.0"))
        yield started


async def nodes(api: Api, **infos: dict[str, Any]) -> None:
    """Register nodes by what they answer to /object_info, and wait until that is known."""
    for number, (name, info) in enumerate(infos.items()):
        api.info.serve(name, info)
        await api.stores.nodes.add(Node(name=name, url=f"http://127.0.0.1:{9000 + number}"))
        await api.stores.nodes.report(name, verdict="up", why="")
        assert await api.deps.inventories.refresh(name)


def exchanges(folder: Path, name: str) -> list[tuple[dict[str, Any], int, Any]]:
    """Return the prompts that were posted in a recording, with status and body of the answers."""
    found = json.loads((folder / f"{name}.json").read_text())
    return [
        (one["request"].get("json"), one["response"]["status"], one["response"]["body"])
        for one in (found if isinstance(found, list) else found["http"])
        if one["request"]["method"] == "POST" and one["request"]["path"] == "/prompt"
    ]


def comparable(body: Any) -> Any:
    """Leave out what must differ: numbers, and ids that the server draws."""
    if isinstance(body, dict) and "number" in body:
        body = {**body, "number": 0, "prompt_id": ""}
    return without_hints(body)


RECORDED = [
    "error_combo_value",
    "error_cycle",
    "error_missing_checkpoint",
    "error_no_outputs",
    "error_unknown_node",
    "error_validation_missing_input",
    "error_validation_range",
    "partly_valid",
]


async def test_refusals_are_those_of_the_recordings(api: Api) -> None:
    for name in RECORDED:
        for sent, status, body in exchanges(NEW, name):
            answer = await api.client.post("/prompt", json=sent)
            told = (answer.status_code, comparable(answer.json()))
            assert told == (status, comparable(body)), name


async def test_odd_prompts_get_the_recorded_answers_or_a_clear_400(api: Api) -> None:
    seen = set()
    for sent, status, body in exchanges(NEW, "prompt_refusals"):
        answer = await api.client.post("/prompt", json=sent)
        told = answer.json()
        if status == 500:  # of which clients can make nothing
            assert answer.status_code == 400
            assert told["error"].keys() == {"type", "message", "details", "extra_info"}
        elif sent is not None and sent.get("prompt_id"):  # 0.3.64 takes any text
            assert answer.status_code == 200
            assert told["prompt_id"] == sent["prompt_id"]
        else:
            assert answer.status_code == status
            # A class that 0.33 replaces by one whose inputs it then drops counts as missing here.
            if status == 400 and "Preview3DAnimation" not in json.dumps(sent):
                assert without_hints(told["error"]) == body["error"]
        seen.add(status)
    assert seen == {200, 400, 500}


BODIES = [
    (b"", "invalid_request"),
    (b"{", "invalid_request"),
    (b"null", "invalid_prompt"),
    (b"[]", "no_prompt"),
    (b'"x"', "no_prompt"),
    (b"5", "invalid_prompt"),
    (b"{}", "no_prompt"),
    (b'{"prompt": null}', "no_prompt"),
    (b'{"prompt": []}', "invalid_prompt"),
    (b'{"prompt": "{}"}', "invalid_prompt"),
    (b'{"prompt": {}}', "prompt_no_outputs"),
    (b'{"prompt": {"1": null}}', "invalid_prompt"),
    (b'{"prompt": {"1": {"class_type": "SaveImage"}}}', "invalid_prompt"),
    (b'{"prompt": {"1": {"class_type": 5, "inputs": {}}}}', "missing_node_type"),
    (b'{"prompt": {"nodes": [], "links": []}}', "invalid_prompt"),
    (b'{"prompt": {"1": {"class_type": "EmptyImage", "inputs": {}}}}', "prompt_no_outputs"),
]


async def test_bodies_that_are_no_prompts_are_refused_clearly(api: Api) -> None:
    for sent, kind in BODIES:
        for path in ("/prompt", "/api/prompt"):
            answer = await api.client.post(path, content=sent)
            assert (answer.status_code, answer.json()["error"]["type"]) == (400, kind), sent
            assert answer.json()["node_errors"] == {}
            assert answer.json()["error"]["message"]
        assert (await api.client.get("/prompt")).json()["exec_info"]["queue_remaining"] == 0, sent


FIELDS: list[tuple[str, object, str]] = [
    ("prompt_id", "", "invalid_prompt_id"),
    ("prompt_id", "a\nb", "invalid_prompt_id"),
    ("prompt_id", "x" * 129, "invalid_prompt_id"),
    ("prompt_id", 5, "invalid_prompt_id"),
    ("prompt_id", "a/b", "invalid_prompt_id"),
    ("prompt_id", "a\\b", "invalid_prompt_id"),
    ("prompt_id", "..", "invalid_prompt_id"),
    ("client_id", ["x"], "invalid_client_id"),
    ("client_id", "x" * 257, "invalid_client_id"),
    ("number", "many", "invalid_number"),
    ("number", None, "invalid_number"),
    ("number", 1e300, "invalid_number"),
    ("extra_data", [], "invalid_request"),
    ("partial_execution_targets", "2", "invalid_request"),
    ("partial_execution_targets", [], "prompt_no_outputs"),
    ("partial_execution_targets", ["1"], "prompt_no_outputs"),
    ("partial_execution_targets", ["nope", 5, None], "prompt_no_outputs"),
]


async def test_odd_fields_are_refused_clearly(api: Api) -> None:
    for field, value, kind in FIELDS:
        answer = await api.client.post("/prompt", json={"prompt": picture(1), field: value})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, kind), (field, value)


async def test_large_extra_data_is_refused_with_the_limit(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, max_pnginfo_bytes=100) as api:
        await api.add_node()
        sent = {"prompt": picture(1), "extra_data": {"x": "y" * 100}}
        answer = await api.client.post("/prompt", json=sent)
        assert answer.status_code == 413
        assert "FLEET_MAX_PNGINFO_BYTES" in answer.json()["error"]["message"]


async def test_a_full_queue_is_told_in_comfyuis_form(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, queue_depth=1) as api:
        await api.add_node()
        await post(api.client, 1)
        answer = await api.client.post("/prompt", json={"prompt": picture(2)})
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "queue_full")
        assert answer.json()["node_errors"] == {}
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_fleet_without_nodes_says_so(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        answer = await api.client.post("/prompt", json={"prompt": picture(2)})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "no_nodes")
        assert "retry-after" in answer.headers


def without(info: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: body for name, body in info.items() if name not in names}


def with_files(info: dict[str, Any], class_type: str, name: str, *files: str) -> dict[str, Any]:
    body = json.loads(json.dumps(info[class_type]))
    body["input"]["required"][name][0] = list(files)
    return {**info, class_type: body}


async def test_what_no_single_node_has_is_told_at_the_guilty_nodes(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    info = classes("0.33.0")
    graph = sampled(file="x.safetensors")
    graph["7"] = {"class_type": "ImageInvert", "inputs": {"image": ["5", 0]}}
    graph["6"]["inputs"]["images"] = ["7", 0]
    async with running(redis_port, tmp_path) as api:
        await nodes(
            api,
            gpu1=without(
                with_files(info, "CheckpointLoaderSimple", "ckpt_name", "x.safetensors"), "ImageInvert"
            ),
            gpu5=with_files(info, "CheckpointLoaderSimple", "ckpt_name", "y.safetensors"),
            gpu6=with_files(info, "CheckpointLoaderSimple", "ckpt_name"),
        )
        answer = await api.client.post("/prompt", json={"prompt": graph})
        assert answer.status_code == 400
        body = answer.json()
        told = "no GPU has both `checkpoints/x.safetensors` (gpu1) and the class `ImageInvert` (gpu5, gpu6)"
        assert body["error"] == {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": told,
            "extra_info": {},
        }
        assert body["node_errors"].keys() == {"1", "7"}
        for node_id, class_type in (("1", "CheckpointLoaderSimple"), ("7", "ImageInvert")):
            entry = body["node_errors"][node_id]
            assert (entry["class_type"], entry["dependent_outputs"]) == (class_type, ["6"])
            (error,) = entry["errors"]
            assert (error["message"], without_hints(error)["details"].partition(";")[0]) == (
                "No single GPU has everything",
                told,
            )
            (missing,) = error["extra_info"].pop("missing")
            assert missing["lacked_by"] == {"1": ["gpu5", "gpu6"], "7": ["gpu1"]}[node_id]
        assert body["node_errors"]["1"]["errors"][0]["extra_info"] == {
            "input_name": "ckpt_name",
            "received_value": "x.safetensors",
        }
        # Comfy API v2 names the same nodes.
        v2 = (await api.client.post("/api/v2/jobs", json={"workflow": graph})).json()["error"]
        assert v2["details"]["node_errors"].keys() == {"1", "7"}


async def test_only_the_targets_are_checked_and_run(api: Api) -> None:
    graph = picture(1) | {"3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["nowhere", 0], "filename_prefix": "x"}}
    targets = ["4711", "2"]
    name = str(uuid4())
    sent = {"prompt": graph, "partial_execution_targets": targets, "prompt_id": name}
    answer = await api.client.post("/prompt", json=sent)
    assert answer.json() == {"prompt_id": name, "number": 1, "node_errors": {}}
    queued = (await api.client.get("/queue")).json()["queue_pending"][0]
    assert (queued[2], queued[4]) == (graph, ["2"])
    assert (await claim_next(api)).job.targets == ("2",)
    bad = await api.client.post("/prompt", json={"prompt": graph, "partial_execution_targets": ["3"]})
    assert bad.status_code == 400
    assert bad.json()["node_errors"].keys() == {"3"}


async def test_the_sound_part_of_a_graph_runs(api: Api) -> None:
    graph = picture(1) | {
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["nowhere", 0], "filename_prefix": "x"}},
        "5": {"class_type": "ImageInvert", "inputs": {"image": ["6", 0]}},
        "6": {"class_type": "ImageInvert", "inputs": {"image": ["5", 0]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}},
        "8": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "x"}},
    }
    answer = await api.client.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 200
    errors = answer.json()["node_errors"]
    assert {node_id: [one["type"] for one in entry["errors"]] for node_id, entry in errors.items()} == {
        "3": ["required_input_missing"],
        "4": ["exception_during_validation"],
        "5": ["dependency_cycle"],
        "6": ["dependency_cycle"],
        "8": ["return_type_mismatch"],
    }
    assert errors["8"]["errors"][0]["details"] == "samples, received_type(IMAGE) mismatch input_type(LATENT)"
    assert errors["5"]["errors"][0]["details"] == "6 (ImageInvert) -> 5 (ImageInvert) -> 6 (ImageInvert)"
    claim = await claim_next(api)
    assert (claim.job.targets, json.loads(claim.graph)) == (("2",), graph)


@pytest.mark.parametrize(
    "bad",
    [
        {"class_type": "LoadLatent", "inputs": {"latent": "../../etc/passwd"}},
        {"class_type": "NopeNode", "inputs": {}},
    ],
)
async def test_a_graph_is_not_run_in_part_if_more_than_its_inputs_is_wrong(
    api: Api, bad: dict[str, Any]
) -> None:
    graph = picture(1) | {
        "3": bad,
        "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "x"}},
    }
    answer = await api.client.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 400
    told = answer.json()
    if bad["class_type"] == "NopeNode":
        assert (told["error"]["type"], told["node_errors"]) == ("missing_node_type", {})
    else:
        entry = told["node_errors"]["3"]
        assert entry["errors"][0]["type"] == "custom_validation_failed"
        assert entry["dependent_outputs"] == ["4"]
    # Nor if it is told to run the other part alone: its files are checked all the same.
    answer = await api.client.post("/prompt", json={"prompt": graph, "partial_execution_targets": ["2"]})
    assert answer.status_code == (200 if bad["class_type"] == "NopeNode" else 400)
