"""The simulated node against recordings of a real ComfyUI 0.3.64, request by request, frame by frame.

All recordings were made on one server, one after the other, so they are replayed in that order on one
node: file numbers and prompt numbers then agree as well. What is not compared, and why:

- ids that the client draws, times, and the random part of a temporary file's name;
- the values and the number of ``TestSleep``'s reports: they are times (their form is compared);
- the text of tensors in ``current_inputs`` and tracebacks: a simulated node has neither;
- the order in ``executed`` and ``current_outputs``: ComfyUI makes both from sets;
- the frames after an error or an interrupt: those recordings stop there;
- headers: the recorded server was aiohttp; PNG bytes beyond the head: encoders differ by version;
- ``/extensions``: the files of an editor that a simulated node does not serve;
- ``/object_info`` of video classes, which a simulated node does not have, ``newbie`` among the types of
  ``DualCLIPLoader``, which later servers have, and display names of classes that later got one.
"""

import asyncio
import json
import re
from base64 import b64decode
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.native_client import Frame, NativeClient

RECORDINGS = Path(__file__).parent.parent / "recordings"
ORDER = (
    "success",
    "cached_rerun",
    "sleep_progress",
    "flags",
    "extra_pnginfo",
    "interrupted",
    "error_validation_missing_input",
    "error_validation_range",
    "error_unknown_node",
    "error_no_outputs",
    "error_missing_checkpoint",
    "error_execution",
    "preview_and_ws_image",
)
RECORDED_MODELS = {"vae": {"pixel_space": 0}}  # the recorded server had no model files
VIDEO = {"SaveVideo", "CreateVideo", "LoadVideo"}
TEMPORARY = re.compile(r"ComfyUI_temp_[a-z]{5}_")
HEAD = 33  # bytes of a PNG up to the end of its first chunk: size, depth, colour type


@dataclass
class Replay:
    """What the simulated node did with one recording's requests."""

    frames: list[Frame] = field(default_factory=list)
    answers: list[httpx.Response] = field(default_factory=list)


def read(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def replays() -> dict[str, Replay]:
    """Every recording, replayed."""
    return asyncio.run(_replay_all())


async def _replay_all() -> dict[str, Replay]:
    options = NodeOptions(name="replay", models=RECORDED_MODELS, timing=SimTiming(scale=0))
    async with SimNode(options) as node:
        return {name: await _replay(node, read(name)) for name in ORDER}


async def _replay(node: SimNode, recording: dict[str, Any]) -> Replay:
    flags = {"supports_preview_metadata": True} if recording["name"] == "flags" else None
    replay = Replay()
    async with NativeClient(node.url, recording["client_id"], flags) as client:
        for exchange in recording["http"]:
            request = exchange["request"]
            path = request["path"]
            if path.startswith("/queue"):
                await client.until(lambda: len(client.of("progress")) > 2)
            if path.startswith("/history"):
                prompt_id = path.rpartition("/")[2]
                await client.until(partial(client.finished, prompt_id))
            if TEMPORARY.search(path):
                path = TEMPORARY.sub(_temporary(json.dumps(client.of("executed"))), path)
            replay.answers.append(
                await client.http.request(request["method"], path, json=request.get("json"))
            )
        replay.frames = list(client.frames)
    return replay


def _temporary(text: str) -> str:
    found = TEMPORARY.search(text)
    assert found, text
    return found[0]


def normal(value: Any) -> Any:
    """Take out what can't be equal; see the top of this file."""
    if isinstance(value, dict):
        changed = {key: normal(item) for key, item in value.items()}
        if "timestamp" in changed:
            changed["timestamp"] = 0
        if "traceback" in changed:
            changed["traceback"] = ["..."]
        for key in ("executed", "current_outputs"):
            if isinstance(changed.get(key), list):
                changed[key] = sorted(changed[key])
        if "current_inputs" in changed:
            changed["current_inputs"] = {
                key: ["tensor" if str(item).startswith("tensor") else item for item in items]
                for key, items in changed["current_inputs"].items()
            }
        return changed
    if isinstance(value, list):
        return [normal(item) for item in value]
    return TEMPORARY.sub("TEMPORARY_", value) if isinstance(value, str) else value


def steps(frames: list[dict[str, Any]]) -> list[Any]:
    """Bring frames into one form: runs of equal progress become one, pictures become their head."""
    made: list[Any] = []
    sleeping = _sleeps(frames)
    for frame in frames:
        if "note" in frame:  # similar ones were left out here
            continue
        if "binary" in frame:
            made.append(("binary", frame["binary"][: 8 + HEAD].hex()))
            continue
        if "binary_head_hex" in frame:
            made.append(("binary", frame["binary_head_hex"][: 2 * (8 + HEAD)]))
            continue
        frame = frame.get("text", frame)
        kind, data = frame["type"], normal(frame["data"])
        if sleeping and kind == "progress":
            data["value"] = "time"
        if sleeping and kind == "progress_state":
            for state in data["nodes"].values():
                if state["state"] == "running" and state["node_id"] == "3" and state["value"]:
                    state["value"] = "time"
        if kind in ("progress", "progress_state") and (kind, data) in made[-2:]:
            continue
        made.append((kind, data))
    return made


def _sleeps(frames: list[dict[str, Any]]) -> bool:
    values = [frame.get("text", frame) for frame in frames]
    return any(value.get("type") == "progress" and value["data"]["value"] % 1 for value in values)


@pytest.mark.parametrize("name", ORDER)
def test_answers_are_those_of_the_recording(name: str, replays: dict[str, Replay]) -> None:
    exchanges = read(name)["http"]
    for exchange, answer in zip(exchanges, replays[name].answers, strict=True):
        recorded = exchange["response"]
        assert answer.status_code == recorded["status"]
        body = recorded["body"]
        if isinstance(body, dict) and "base64_head" in body:
            assert answer.headers["content-type"] == recorded["headers"]["Content-Type"]
            head = b64decode(body["base64_head"])
            assert answer.content[:HEAD] == head[:HEAD]
            assert answer.content[HEAD + 4 : HEAD + 15] == b"tEXtprompt\0"
        elif body == "":
            assert answer.content == b""
        else:
            assert normal(answer.json()) == normal(body)


@pytest.mark.parametrize("name", [name for name in ORDER if read(name)["ws"]])
def test_frames_are_those_of_the_recording(name: str, replays: dict[str, Replay]) -> None:
    recorded, seen = steps(read(name)["ws"]), steps(replays[name].frames)
    if name in ("error_execution", "interrupted"):
        assert [kind for kind, _ in seen[len(recorded) :]] == ["status", "executing"]
        seen = seen[: len(recorded)]
    assert seen == recorded


def shape(value: Any) -> Any:
    """Return the keys and the kinds of values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


@pytest.mark.parametrize("path", ["embeddings", "features", "models", "prompt", "queue"])
async def test_plain_answers_are_equal(path: str) -> None:
    async with (
        SimNode(NodeOptions(models=RECORDED_MODELS)) as node,
        httpx.AsyncClient(base_url=node.url) as http,
    ):
        for prefix in ("", "/api"):
            assert (await http.get(f"{prefix}/{path}")).json() == read(f"GET_{path}")


async def test_system_stats_has_the_recorded_form_and_says_that_it_is_simulated() -> None:
    async with SimNode(NodeOptions(name="gpu-7")) as node, httpx.AsyncClient(base_url=node.url) as http:
        answer = await http.get("/system_stats")
    recorded = read("GET_system_stats")
    recorded["devices"][0]["index"] = 0  # the recorded server ran on the CPU, which has no index
    assert shape(answer.json()) == shape(recorded)
    assert answer.json()["system"]["comfyui_version"] == "sim-0.3.64"
    assert "SIMULATED" in answer.json()["devices"][0]["name"]
    assert answer.headers["x-comfy-simulated"] == "1"


async def test_object_info_has_the_recorded_classes() -> None:
    async with (
        SimNode(NodeOptions(models=RECORDED_MODELS)) as node,
        httpx.AsyncClient(base_url=node.url) as http,
    ):
        node.files.inside("input", "", "example.png").write_bytes(b"as on the recorded server")
        seen = (await http.get("/object_info")).json()
        sampler = (await http.get("/object_info/KSampler")).json()
    recorded = read("GET_object_info")
    assert set(recorded) - set(seen) == VIDEO
    seen["DualCLIPLoader"]["input"]["required"]["type"][0].remove("newbie")
    for name in set(recorded) - VIDEO:
        recorded[name]["display_name"] = seen[name]["display_name"]
        assert seen[name] == recorded[name], name
    assert sampler == read("GET_object_info_KSampler")
