"""What real ComfyUI nodes return, in every shape, as outputs of a job: nothing lost, nothing too much."""

import asyncio
import json
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest

from comfy_fleet.bootstrap import open_stores
from comfy_fleet.domain.jobs.frames import RawFrame
from comfy_fleet.settings import Settings
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import ends, peak_bytes
from tests.comfyui_server import ComfyServer
from tests.factories import new_job

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

LIMITS = {"FLEET_MAX_OUTPUTS": "40", "FLEET_MAX_OUTPUT_BYTES": "8000000"}


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet whose only node is a real ComfyUI."""
    data = tmp_path_factory.mktemp("outputs") / "data"
    fleet = start_fleet(data, "--node", f"real={comfyui_server.url}", env=LIMITS)
    yield fleet
    stop_fleet(fleet)


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def run(up: Up, workflow: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": workflow}, timeout=30)
    assert answer.status_code == 201, answer.text
    return ends(up, answer.json())


def shape(up: Up, what: str, size: int = 1) -> dict[str, Any]:
    return run(up, {"7": node("FleetShapes", what=what, size=size)})


def names(job: dict[str, Any]) -> list[str]:
    return [output["name"] for output in job["outputs"]]


def contents(job: dict[str, Any]) -> list[bytes]:
    return [httpx.get(output["url"], timeout=30).content for output in job["outputs"]]


@pytest.mark.parametrize(
    ("what", "size", "found"),
    [
        ("nested", 1, [b"one", b"two", b"three"]),
        ("bare", 300, [b"word " * 300]),
        ("number", 1, [b"3.5"]),
        ("long", 3_000_000, [b"t" * 3_000_000]),
        ("late", 1, [b"x"]),
        ("preview gone", 1, [b"x"]),
        ("fingerprint", 1, [b"x"]),
    ],
)
def test_a_result_of_any_shape_is_had_in_one_run(up: Up, what: str, size: int, found: list[bytes]) -> None:
    job = shape(up, what, size)
    assert (job["status"], job["error"]) == ("succeeded", None)
    assert contents(job) == found
    assert len(job["attempts"]) == 1


def test_an_object_is_json(up: Up) -> None:
    (output,) = shape(up, "object")["outputs"]
    assert (output["name"], output["content_type"]) == ("facts_00001.json", "application/json")


@pytest.mark.parametrize(
    ("what", "size", "code", "words", "runs"),
    [
        ("refused", 1, "output_lost", "'a..b.png'", 1),
        ("never", 1, "output_lost", "'never.png'", 2),
        ("many", 41, "output_limit", "FLEET_MAX_OUTPUTS", 1),
        ("large", 9_000_000, "output_limit", "FLEET_MAX_OUTPUT_BYTES", 1),
    ],
)
def test_what_can_not_be_had_ends_the_job_with_its_reason(
    up: Up, what: str, size: int, code: str, words: str, runs: int
) -> None:
    job = shape(up, what, size)
    assert (job["status"], job["error"]["code"]) == ("failed", code)
    assert words in job["error"]["message"]
    assert len(job["attempts"]) == runs
    if code == "output_lost":
        (kept,) = names(job)  # what could be had; the second such file of an owner has a number
        assert kept.startswith("fine")


def test_a_graph_of_24576_outputs_costs_its_job_and_nobody_else(up: Up) -> None:
    savers = {
        str(number): node("SaveImage", images=["2", 0], filename_prefix=f"s{number}")
        for number in range(3, 9)
    }
    told = {"1": node("EmptyImage", width=16, height=16, batch_size=4096, color=3)} | {
        name: {**saver, "inputs": {**saver["inputs"], "images": ["1", 0]}} for name, saver in savers.items()
    }
    refused = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": told}, timeout=30)
    assert refused.status_code == 422 and "FLEET_MAX_OUTPUTS" in refused.text
    # Of this one nothing tells it before it runs.
    untold = {
        "1": node("EmptyImage", width=16, height=16, batch_size=1, color=4),
        "2": node("RepeatImageBatch", image=["1", 0], amount=4096),
        **savers,
    }
    answer = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": untold}, timeout=30)
    assert answer.status_code == 201, answer.text
    failed = ends(up, answer.json(), within_s=180)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "output_limit")
    assert len(failed["outputs"]) <= int(LIMITS["FLEET_MAX_OUTPUTS"]) and len(failed["attempts"]) == 1

    def lists(face: str) -> int:
        return httpx.get(f"{up.url}/api/{face}/jobs?limit=100", timeout=60).status_code

    with ThreadPoolExecutor(40) as pool:
        assert {*pool.map(lists, ["v1", "v2"] * 20)} == {200}
    assert peak_bytes(up, "api") < 200_000_000
    small = {"1": node("EmptyImage", width=16, height=16, batch_size=1, color=5)}
    small["2"] = node("SaveImage", images=["1", 0], filename_prefix="after")
    assert run(up, small)["status"] == "succeeded"


def test_saved_and_previewed_3d_files_are_outputs(up: Up, comfyui_server: ComfyServer) -> None:
    classes = httpx.get(f"{comfyui_server.url}/object_info", timeout=30).json()
    if "Save3DAdvanced" not in classes:
        saved = [name for name in ("SaveGLB", "Preview3D") if name in classes]
        assert saved  # older servers name such files by objects, or take paths only
        return
    text = b'{"asset":{"version":"2.0"}}'.ljust(28)
    head = struct.pack("<4sII", b"glTF", 2, 20 + len(text)) + struct.pack("<I4s", len(text), b"JSON")
    model = head + text
    answer = httpx.post(
        f"{up.url}/api/v2/assets", files={"file": ("x.glb", model)}, data={"file_path": "x.glb"}
    )
    asset = {"__type": "core/ASSET", "info": {"id": answer.json()["id"]}}
    size = {"width": 64, "height": 64}
    load = node(
        "Load3DAdvanced",
        model_file=asset,
        viewport_state={"camera_info": {}, "model_3d_info": []},
        **size,
    )
    view: dict[str, Any] = {"model_3d": ["1", 0], "viewport_state": {}, **size}
    job = run(
        up,
        {
            "1": load,
            "2": node("Save3DAdvanced", filename_prefix="3d/x", **view),
            "3": node("Preview3DAdvanced", **view),
            "4": node("Preview3D", model_file=["1", 0]),
        },
    )
    assert (job["status"], job["error"]) == ("succeeded", None)
    assert contents(job) == [model] * 3
    found = {output["node_id"]: (output["name"], output["content_type"]) for output in job["outputs"]}
    assert {kind for _, kind in found.values()} == {"model/gltf-binary"}
    assert found["2"][0] == "x_00001.glb"
    assert found["3"][0].startswith("preview3d_advanced_") and found["4"][0].startswith("preview3d_")


def test_a_layered_picture_brings_its_pictures_only(up: Up, comfyui_server: ComfyServer) -> None:
    classes = httpx.get(f"{comfyui_server.url}/object_info", timeout=30).json()
    if "ImageCompositor" not in classes:
        return  # this version has none
    job = run(
        up,
        {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=time.time_ns() % 0xFFFFFF),
            "2": node("AddLayer", image=["1", 0]),
            "3": node("ImageCompositor", layers=["2", 0], compositor={}),
        },
    )
    assert job["status"] == "succeeded"
    assert {output["content_type"] for output in job["outputs"]} == {"image/png"}


async def test_what_comfyui_s_own_clients_see_is_kept_as_the_node_says_it(
    up: Up, comfyui_server: ComfyServer
) -> None:
    """Its outputs with all that goes with them, its classes with their tooltips, and the frames of a run."""
    webp = {"fps": 6.0, "lossless": True, "quality": 80, "method": "default"}
    workflow = {
        "1": node("EmptyImage", width=8, height=8, batch_size=2, color=time.time_ns() % 0xFFFFFF),
        "2": node("PreviewImage", images=["1", 0]),
        "3": node("SaveImage", images=["1", 0], filename_prefix="a/b"),
        "4": node("SaveAnimatedWEBP", images=["1", 0], filename_prefix="x", **webp),
        "7": node("FleetShapes", what="nested", size=1),
    }
    job_id = str(uuid4())
    socket = up.data / "redis" / "redis.sock"
    async with open_stores(Settings(redis_url=f"unix://{socket}", data=up.data)) as stores:
        frames: list[RawFrame] = []
        async with stores.events.frames(job_id) as coming, asyncio.timeout(60):
            new = new_job(workflow, id=job_id)
            await stores.jobs.submit(new, idempotency=None, depth_limit=1000)
            while not frames or json.loads(frames[-1].data)["data"].get("node", "") is not None:
                frames.append(await anext(coming))
        while not (job := await stores.jobs.get(job_id)) or not job.status.terminal:
            await asyncio.sleep(0.05)
        assert (job.status, job.error) == ("succeeded", None)
        async with httpx.AsyncClient(base_url=comfyui_server.url, timeout=60) as client:
            history = (await client.get(f"/history/{job.run}")).json()[job.run]
            said = (await client.get("/object_info")).json()
        assert (await stores.jobs.with_ui(job_id))[1] == history["outputs"] and len(history["outputs"]) == 4
        told = [json.loads(frame.data) for frame in frames if frame.text]
        executed = {one["data"]["node"]: one["data"]["output"] for one in told if one["type"] == "executed"}
        assert executed == history["outputs"]
        assert told[0]["type"] == "execution_start" and "execution_success" in {one["type"] for one in told}

        (state,) = await stores.nodes.states()
        kept = await stores.inventories.object_info(state.reading.object_info)
        assert kept is not None and kept.keys() == said.keys()
        for name in ("KSampler", "SaveImage", "CLIPTextEncode", "FleetShapes"):
            assert json.loads(kept[name]) == said[name]


def test_the_node_s_temporary_files_are_gone(up: Up) -> None:
    assert not list((up.data / "files" / "tmp").iterdir())
