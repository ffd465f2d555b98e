"""Names of outputs on a real ComfyUI: what a fleet's client sees, beside what the bare server says."""

import re
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.comfyui_server import ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

COLOURS = count(time.time_ns() % 0x7FFFFF)
"""Nothing comes from ComfyUI's cache: all servers have the same input only within a test."""


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet whose only node is a real ComfyUI."""
    fleet = start_fleet(tmp_path_factory.mktemp("names") / "data", "--node", f"real={comfyui_server.url}")
    yield fleet
    stop_fleet(fleet)


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def empty(batch: int = 1, size: int = 8) -> dict[str, Any]:
    return node("EmptyImage", width=size, height=size, batch_size=batch, color=next(COLOURS))


def outputs(url: str, graph: dict[str, Any]) -> dict[str, Any]:
    """Run a graph at a server's own routes; return what its history says of the outputs."""
    answer = httpx.post(f"{url}/prompt", json={"prompt": graph}, timeout=30)
    assert answer.status_code == 200, answer.text
    prompt_id = answer.json()["prompt_id"]
    deadline = time.monotonic() + 60
    while not (entry := httpx.get(f"{url}/history/{prompt_id}", timeout=30).json().get(prompt_id)):
        assert time.monotonic() < deadline, f"{prompt_id} did not end"
        time.sleep(0.05)
    assert entry["status"]["completed"], entry
    found: dict[str, Any] = entry["outputs"]
    return found


def alike(found: dict[str, Any]) -> str:
    """Return what must be equal: not the letters that a node draws, nor the order of a graph's nodes."""
    text = re.sub(r"_temp_[a-z]{5}_", "_temp_LETTERS_", repr(sorted(found.items())))
    return re.sub(r"_[0-9a-f]{32}\.", "_DRAWN.", text)


def in_both(up: Up, server: ComfyServer, graph: dict[str, Any], *, times: int = 2) -> list[dict[str, Any]]:
    """Run a graph several times, with another picture each, at the server and at the fleet: they agree."""
    told = []
    for _ in range(times):
        for one in graph.values():
            if one["class_type"] == "EmptyImage":
                one["inputs"]["color"] = next(COLOURS)
        bare, ours = outputs(server.url, graph), outputs(up.url, graph)
        assert alike(ours) == alike(bare)
        told.append(ours)
    return told


def classes(server: ComfyServer) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/object_info", timeout=30).json()
    return found


def test_pictures_count_up(up: Up, comfyui_server: ComfyServer) -> None:
    one = in_both(
        up, comfyui_server, {"1": empty(), "2": node("SaveImage", images=["1", 0], filename_prefix="ComfyUI")}
    )
    assert [told["2"]["images"][0]["filename"] for told in one] == [
        "ComfyUI_00001_.png",
        "ComfyUI_00002_.png",
    ]
    four = {"1": empty(4), "2": node("SaveImage", images=["1", 0], filename_prefix="ComfyUI")}
    (told,) = in_both(up, comfyui_server, four, times=1)
    assert [file["filename"] for file in told["2"]["images"]] == [
        f"ComfyUI_0000{n}_.png" for n in (3, 4, 5, 6)
    ]


@pytest.mark.parametrize("prefix", ["two", "a/b/two", "x_%width%", "2026-01-02_00005", "ünï cødé"])
def test_prefixes_of_all_kinds_count_up(up: Up, comfyui_server: ComfyServer, prefix: str) -> None:
    graph = {
        "1": empty(2),
        "2": empty(1, 16),
        "3": node("SaveImage", images=["1", 0], filename_prefix=prefix),
        "4": node("SaveImage", images=["2", 0], filename_prefix=prefix),
    }
    in_both(up, comfyui_server, graph, times=3)


def test_a_batch_with_a_prefix_for_each_picture_counts_on(up: Up, comfyui_server: ComfyServer) -> None:
    """As ComfyUI counts in the first job; in a second one it would overwrite the files."""
    graph = {"1": empty(3), "2": node("SaveImage", images=["1", 0], filename_prefix="b_%batch_num%_x")}
    (first,) = in_both(up, comfyui_server, graph, times=1)
    names = [file["filename"] for file in first["2"]["images"]]
    assert names == [f"b_{at}_x_0000{at + 1}_.png" for at in range(3)]
    second = outputs(up.url, {**graph, "1": empty(3)})
    assert not {file["filename"] for file in second["2"]["images"]} & set(names)


def test_extensions_share_a_counter(up: Up, comfyui_server: ComfyServer) -> None:
    webp = {"fps": 6.0, "lossless": True, "quality": 80, "method": "default"}
    graph = {
        "1": empty(2),
        "2": node("SaveImage", images=["1", 0], filename_prefix="mixed"),
        "3": node("SaveAnimatedWEBP", images=["1", 0], filename_prefix="mixed", **webp),
    }
    in_both(up, comfyui_server, graph, times=3)


def test_previews_are_told_apart(up: Up, comfyui_server: ComfyServer) -> None:
    graph = {"1": empty(2), "2": node("PreviewImage", images=["1", 0])}
    seen = []
    for _ in range(3):
        graph["1"] = empty(2)
        files = outputs(up.url, graph)["2"]["images"]
        assert {file["type"] for file in files} == {"temp"}
        assert {file["subfolder"] for file in files} == {""}
        seen += [file["filename"] for file in files]
    found = [re.fullmatch(r"ComfyUI_temp_[a-z]{5}_([0-9]{5})_\.png", name) for name in seen]
    assert [match and int(match[1]) for match in found] == list(range(1, 7))


def test_a_video_and_its_picture_share_a_number(up: Up) -> None:
    for number in (1, 2):
        told = outputs(up.url, {"1": node("FleetShapes", what="pair", size=number)})["1"]
        assert told["gifs"][0]["filename"] == f"v_0000{number}.mp4"
        assert told["images"][0]["filename"] == f"v_0000{number}.png"


def test_texts_videos_and_sounds_count_up(up: Up, comfyui_server: ComfyServer) -> None:
    known = classes(comfyui_server)
    if "SaveText" not in known:
        return  # an older version
    codec = {"format.codec": "auto", "codec": "auto"}
    graph = {
        "1": empty(2, 64),
        "2": node("CreateVideo", images=["1", 0], fps=4.0),
        "3": node("SaveVideo", video=["2", 0], filename_prefix="video/x", format="auto", **codec),
        "4": node("PrimitiveStringMultiline", value="one"),
        "5": node("SaveText", text=["4", 0], filename_prefix="txt/x", format="md"),
    }
    for told in in_both(up, comfyui_server, graph):
        assert told["5"]["files"][0]["subfolder"] == "txt"


def test_each_file_is_had_under_its_name(up: Up) -> None:
    """The bytes are those of the picture that the job made."""
    saved = {}
    for _ in range(3):
        graph = {"1": empty(), "2": node("SaveImage", images=["1", 0], filename_prefix="own")}
        (file,) = outputs(up.url, graph)["2"]["images"]
        answer = httpx.get(f"{up.url}/view", params=file, timeout=30)
        assert answer.status_code == 200, answer.headers
        saved[file["filename"]] = answer.content
    assert len(set(saved.values())) == len(saved) == 3
