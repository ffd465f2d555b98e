"""The simulated node against recordings of real ComfyUIs, request by request, frame by frame.

All recordings of a version were made on one server, one after the other, so they are replayed in that order
on one node: file numbers and prompt numbers then agree as well. What is not compared, and why:

- ids that the client draws, times, and the random part of a temporary file's name;
- the values and the number of ``TestSleep``'s reports: they are times (their form is compared);
- the text of tensors in ``current_inputs`` and tracebacks: a simulated node has neither;
- the order in ``executed`` and ``current_outputs``: ComfyUI makes both from sets;
- the frames after an error or an interrupt on 0.3.64: those recordings stop there;
- headers: the recorded server was aiohttp; PNG bytes beyond the head: encoders differ by version;
- texts (descriptions, tooltips, search words): a simulated node has none;
- settings and user data: they belong to an editor, which a simulated node does not serve; it only says which
  scripts and blueprints it would have;
- ``/object_info`` of classes that a simulated node does not have, ``newbie`` among the types of
  ``DualCLIPLoader`` on 0.3.64, which later servers have, and display names of classes that later got one;
- the server with ``--enable-assets``: a simulated node is one without.
"""

import asyncio
import json
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.native_client import Frame, NativeClient

TESTS = Path(__file__).parent.parent
FOLDERS = {"0.3.64": TESTS / "recordings", "0.33.0": TESTS / "recordings-0.33"}
OLD, NEW = FOLDERS
EARLY = (
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
GAP = "one number that no recording has"
LATER = (
    GAP,
    "intermediate_output",
    "intermediate_output_cached",
    "text_and_files",
    "video_and_audio",
    "autogrow_and_dynamic_combo",
    "autogrow_min_0_left_out",
    "expansion",
    "error_cycle",
    "error_cycle_while_running",
    "partly_valid",
    "error_combo_value",
    "outputs_3d",
    "prompt_refusals",
    "jobs_api",
    "other_routes",
)
ORDER = {OLD: EARLY, NEW: EARLY + LATER}
#: What a simulated node does not do, with the first class of the graph that it refuses.
NOT_SIMULATED = {"video_and_audio": "CreateVideo", "expansion": "TestDynamicAsyncGeneration"}
LISTS = ("prompt_refusals", "jobs_api", "other_routes")  # requests without a websocket
RUNS = [(version, name) for version, names in ORDER.items() for name in names if name not in (GAP, *LISTS)]
OTHER = {"assets_enabled", "editor_requests"}
#: Routes that a simulated node lacks: an editor's, and those that tell of a machine's folders.
NOT_SERVED = re.compile("/internal/folder_paths|/api/(users|settings|userdata|v2/userdata).*")
RECORDED_MODELS = {"vae": {"pixel_space": 0}}  # the recorded servers had no model files
TEMPORARY = re.compile(r"temp_[a-z]{5}_|[0-9a-f]{32}(?=\.glb)")
TEMPORARY_NAME = re.compile(r"temp_[a-z]{5}_\d{5}|[0-9a-f]{32}(?=\.glb)")
HEAD = 33  # bytes of a PNG up to the end of its first chunk: size, depth, colour type
GLB = b"glTF\x02\0\0\0\x0c\0\0\0"


@dataclass
class Replay:
    """What the simulated node did with one recording's requests."""

    frames: list[Frame] = field(default_factory=list)
    answers: list[httpx.Response] = field(default_factory=list)


def read(version: str, name: str) -> Any:
    return json.loads((FOLDERS[version] / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def replays() -> dict[tuple[str, str], Replay]:
    """Every recording, replayed."""
    return asyncio.run(_replay_all())


def upload(node: SimNode) -> None:
    """Give a node the files that the recorded servers had."""
    model = node.files.inside("input", "3d", "m.glb")
    model.parent.mkdir()
    model.write_bytes(GLB)
    node.files.inside("input", "", "example.png").touch()


async def _replay_all() -> dict[tuple[str, str], Replay]:
    made = {}
    for version, names in ORDER.items():
        options = NodeOptions(
            name="replay", comfyui=version, models=RECORDED_MODELS, timing=SimTiming(scale=0)
        )
        async with SimNode(options) as node:
            upload(node)
            for name in names:
                if name in LISTS:
                    made[version, name] = await _repeat(node, read(version, name))
                elif name == GAP:
                    async with httpx.AsyncClient(base_url=node.url) as http:
                        await http.post("/prompt", json={})
                else:
                    made[version, name] = await replay(node.url, read(version, name))
                if name == "expansion":  # what it saved counts
                    node.files.inside("output", "", "fleet_00009_.png").touch()
    return made


async def replay(url: str, recording: dict[str, Any]) -> Replay:
    """Replay one recording."""
    flags = {"supports_preview_metadata": True} if recording["name"] == "flags" else None
    async with NativeClient(url, recording["client_id"], flags) as client:
        return await play(client, recording)


async def play(client: NativeClient, recording: dict[str, Any]) -> Replay:
    """Replay one recording; ComfyUI draws the order of outputs, so the graph is posted in the drawn order."""
    for exchange in recording["http"]:
        if exchange["request"]["path"].startswith("/history/"):
            graph = recording["http"][0]["request"]["json"]["prompt"]
            (entry,) = exchange["response"]["body"].values()
            for node_id in entry["prompt"][4]:
                graph[node_id] = graph.pop(node_id)
    made = Replay()
    for exchange in recording["http"]:
        request = exchange["request"]
        path = request["path"]
        if path.startswith("/queue"):
            await client.until(lambda: len(client.of("progress")) > 2)
        if path.startswith("/history"):
            if made.answers[0].status_code != 200:
                break
            prompt_id = path.rpartition("/")[2]
            await client.until(partial(client.finished, prompt_id))
        if TEMPORARY_NAME.search(path):
            path = TEMPORARY_NAME.sub(_temporary(json.dumps(client.of("executed"))), path)
        made.answers.append(await client.http.request(request["method"], path, json=request.get("json")))
    made.frames = list(client.frames)
    return made


async def _repeat(node: SimNode, exchanges: list[dict[str, Any]]) -> Replay:
    """Send requests one after the other, each where the real server was when it got it."""
    replay = Replay()
    async with NativeClient(node.url, "jobs") as client:
        for exchange in exchanges:
            request = exchange["request"]
            path = request["path"]
            if path == "/queue":  # the first of three sleeps, and goes on doing so after it was canceled
                await client.until(lambda: len(client.of("progress")) > 2)
                node.faults.history_lag_s = 3600
            elif path.startswith("/api/jobs/cancel") and "json" not in request:
                continue
            replay.answers.append(
                await client.http.request(request["method"], path, json=request.get("json"))
            )
            if (
                replay.answers[-1].status_code == 200
                and path == "/prompt"
                and "seconds" not in json.dumps(request)
            ):
                await _idle(client.http)
            if path == "/api/jobs/cancel":
                node.faults.history_lag_s = 0
    return replay


async def _idle(http: httpx.AsyncClient) -> None:
    while (await http.get("/prompt")).json()["exec_info"]["queue_remaining"]:
        await asyncio.sleep(0.005)


def _temporary(text: str) -> str:
    found = TEMPORARY_NAME.search(text)
    assert found, text
    return found[0]


TIMES = {"timestamp", "create_time", "execution_start_time", "execution_end_time"}


def normal(value: Any) -> Any:
    """Take out what can't be equal; see the top of this file."""
    if isinstance(value, dict):
        changed = {key: normal(item) for key, item in value.items()}
        for key in TIMES & set(changed):
            changed[key] = 0
        if "traceback" in changed:
            changed["traceback"] = ["..."]
        for key in ("executed", "current_outputs"):
            if isinstance(changed.get(key), list):
                changed[key] = sorted(changed[key])
        if isinstance(changed.get("current_inputs"), dict):
            changed["current_inputs"] = {
                key: ["tensor" if str(item).startswith("tensor") else item for item in items]
                for key, items in changed["current_inputs"].items()
            }
        return changed
    if isinstance(value, list):
        return [normal(item) for item in value]
    return TEMPORARY.sub("TEMPORARY", value) if isinstance(value, str) else value


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
                if state["state"] == "running" and state["value"]:
                    state["value"] = "time"
        if kind in ("progress", "progress_state") and (kind, data) in made[-2:]:
            continue
        made.append((kind, data))
    return made


def _sleeps(frames: list[dict[str, Any]]) -> bool:
    values = [frame.get("text", frame) for frame in frames]
    return any(value.get("type") == "progress" and value["data"]["value"] % 1 for value in values)


def test_every_recording_is_replayed_or_named() -> None:
    for version, folder in FOLDERS.items():
        there = {path.stem for path in folder.glob("*.json") if not path.stem.startswith("GET_")}
        assert there == (set(ORDER[version]) | OTHER if version == NEW else set(ORDER[version])) - {GAP}


@pytest.mark.parametrize(("version", "name"), [run for run in RUNS if run[1] not in NOT_SIMULATED])
def test_answers_are_those_of_the_recording(
    version: str, name: str, replays: dict[tuple[str, str], Replay]
) -> None:
    exchanges = read(version, name)["http"]
    for exchange, answer in zip(exchanges, replays[version, name].answers, strict=True):
        compare(exchange["response"], answer)


def compare(recorded: dict[str, Any], answer: httpx.Response) -> None:
    assert answer.status_code == recorded["status"], answer.text
    body = recorded["body"]
    if isinstance(body, dict) and "base64_head" in body:
        for name in ("Content-Type", "Content-Disposition", "X-Content-Type-Options"):
            assert normal(answer.headers.get(name)) == normal(recorded["headers"].get(name))
        head = b64decode(body["base64_head"])
        assert answer.content[:HEAD] == head[:HEAD]
        if head[HEAD + 4 : HEAD + 8] == b"tEXt":
            assert answer.content[HEAD + 4 : HEAD + 15] == b"tEXtprompt\0"
        else:
            assert b"tEXt" not in answer.content
    elif isinstance(body, str):
        assert answer.text == body
    else:
        assert normal(answer.json()) == normal(without_texts(body))


@pytest.mark.parametrize("name", NOT_SIMULATED)
def test_what_is_not_simulated_is_refused_as_a_missing_class(
    name: str, replays: dict[tuple[str, str], Replay]
) -> None:
    (answer,) = replays[NEW, name].answers
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "missing_node_type"
    assert answer.json()["error"]["extra_info"]["class_type"] == NOT_SIMULATED[name]


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_requests_get_the_recorded_answers(
    name: str, replays: dict[tuple[str, str], Replay]
) -> None:
    drawn, ours = (
        [answer["prompt_id"] for answer in bodies if "prompt_id" in answer]
        for bodies in (
            [exchange["response"]["body"] for exchange in read(NEW, "prompt_refusals")],
            [answer.json() for answer in replays[NEW, "prompt_refusals"].answers if answer.status_code < 500],
        )
    )
    exchanges = json.loads(json.dumps(read(NEW, name)).replace(drawn[0], ours[0]))
    for exchange, answer in zip(exchanges, replays[NEW, name].answers, strict=True):
        path, recorded = exchange["request"]["path"], exchange["response"]
        if path.startswith("/api/jobs?status=completed"):
            recorded["body"]["pagination"]["total"] -= len(NOT_SIMULATED)
        if NOT_SERVED.fullmatch(path):
            assert answer.status_code == 404
        elif path == "/api/experiment/models":  # with the folders of a machine
            names = [one["name"] for one in answer.json()]
            assert names == [one["name"] for one in recorded["body"]]
        else:
            compare(recorded, answer)


@pytest.mark.parametrize(
    ("version", "name"), [run for run in RUNS if read(*run)["ws"] and run[1] not in NOT_SIMULATED]
)
def test_frames_are_those_of_the_recording(
    version: str, name: str, replays: dict[tuple[str, str], Replay]
) -> None:
    recorded, seen = steps(read(version, name)["ws"]), steps(replays[version, name].frames)
    if version == OLD and name in ("error_execution", "interrupted"):
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


@asynccontextmanager
async def fresh(version: str, **options: Any) -> AsyncIterator[tuple[SimNode, httpx.AsyncClient]]:
    async with (
        SimNode(NodeOptions(comfyui=version, models=RECORDED_MODELS, **options)) as node,
        httpx.AsyncClient(base_url=node.url) as http,
    ):
        yield node, http


PLAIN = ("embeddings", "extensions", "features", "models", "prompt", "queue")


@pytest.mark.parametrize(
    ("version", "path"),
    [*((version, path) for version in FOLDERS for path in PLAIN), (NEW, "node_replacements")],
)
async def test_plain_answers_are_equal(version: str, path: str) -> None:
    async with fresh(version) as (_, http):
        for prefix in ("", "/api"):
            assert (await http.get(f"{prefix}/{path}")).json() == read(version, f"GET_{path}")


@pytest.mark.parametrize("version", FOLDERS)
async def test_system_stats_has_the_recorded_form_and_says_that_it_is_simulated(version: str) -> None:
    async with fresh(version, name="gpu-7") as (_, http):
        answer = await http.get("/system_stats")
    recorded = read(version, "GET_system_stats")
    recorded["devices"][0]["index"] = 0  # the recorded server ran on the CPU, which has no index
    assert shape(answer.json()) == shape(recorded)
    assert answer.json()["system"]["comfyui_version"] == f"sim-{version}"
    assert "SIMULATED" in answer.json()["devices"][0]["name"]
    assert answer.headers["x-comfy-simulated"] == "1"


#: Recorded classes that a simulated node does not have: video, sound, layers, loops, paid services ...
MISSING = {
    OLD: {"SaveVideo", "CreateVideo", "LoadVideo"},
    NEW: {
        *("BeebleSwitchXImageEdit", "BeebleSwitchXVideoEdit", "ByteDanceSeedreamLayerSeparationNode"),
        *(
            "ClaudeNode",
            "ComfyMathExpression",
            "ComfyNumberConvert",
            "ComfySwitchNode",
            "CreateBoundingBoxes",
        ),
        *(
            "CreateList",
            "CreateVideo",
            "CurveEditor",
            "GLSLShader",
            "ImageCompositor",
            "LTXVEmptyLatentAudio",
        ),
        *("LatentConcat", "Load3D", "LoadAudio", "LoadVideo", "Painter", "PreviewAudio", "RecordAudio"),
        *("SaveAudio", "SaveAudioAdvanced", "SaveImageAdvanced", "SaveImageDataSetToFolder", "SaveVideo"),
        *("TestForLoopClose", "TestForLoopOpen", "TestWhileLoopClose", "WebcamCapture"),
    },
}


@pytest.mark.parametrize("version", FOLDERS)
async def test_object_info_has_the_recorded_classes(version: str) -> None:
    async with fresh(version) as (node, http):
        upload(node)
        seen = (await http.get("/object_info")).json()
        sampler = (await http.get("/object_info/KSampler")).json()
    recorded = read(version, "GET_object_info")
    assert set(recorded) - set(seen) == MISSING[version]
    if version == OLD:
        seen["DualCLIPLoader"]["input"]["required"]["type"][0].remove("newbie")
    for name in set(recorded) - MISSING[version]:
        recorded[name]["display_name"] = seen[name]["display_name"]
        assert seen[name] == without_texts(recorded[name]), name
    assert sampler == without_texts(read(version, "GET_object_info_KSampler"))


def without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        made = {key: without_texts(item) for key, item in value.items() if key != "tooltip"}
        if "output_node" in made:
            made |= {"description": ""}
            made |= {"search_aliases": []} if made.get("search_aliases") else {}
            tips = made.get("output_tooltips", [])
            made |= {"output_tooltips": [None] * len(tips)} if tips and "" not in tips else {}
        return made
    return [without_texts(item) for item in value] if isinstance(value, list) else value


async def test_an_editor_gets_the_part_of_the_api_that_is_about_running_graphs() -> None:
    asked = {
        (seen["method"], seen["path"].partition("?")[0])
        for session in read(NEW, "editor_requests")
        for seen in session["seen"]
        if "method" in seen
    }
    own = re.compile("/|/api/(users|settings|userdata|experiment)(/.*)?|/user.css|/templates/.*")
    served = {(method, path) for method, path in asked if not own.fullmatch(path)}
    assert served
    async with fresh(NEW) as (_, http):
        for method, path in served:
            answer = await http.request(method, path, json={})
            found = answer.headers["content-type"] if answer.content else None
            if path.startswith("/api/jobs/"):
                assert answer.json() == {"error": "Job not found"}
            elif path != "/api/view":  # no file is asked for
                assert answer.status_code != 404, (method, path, found)
