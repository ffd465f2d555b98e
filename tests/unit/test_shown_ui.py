"""What nodes returned for the user interface, with the names that a job's owner knows."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.job import Output
from comfy_fleet.domain.jobs.output_names import NodeFile, SavedFile
from comfy_fleet.domain.jobs.outputs import FileRef, find_outputs
from comfy_fleet.domain.jobs.shown_ui import shown_ui
from tests.factories import an_output
from tests.unit.run_harness import history_of
from tests.unit.test_raw_ui import RECORDED, ids

JOB, RUN = "0f9f0f6e-7d6a-4b0f-9d55-5f6d1a2b3c4d", "1f9f0f6e-7d6a-4b0f-9d55-5f6d1a2b3c4d"
FOLDER = f"fleet/{JOB}/{RUN}"


def committed(ui: dict[str, Any], number: int = 42, *, run: str = RUN) -> list[Output]:
    """Return the outputs that a job has of what its nodes returned, each with the same number."""
    made = []
    for node_id, one in ui.items():
        for item in find_outputs(node_id, one, run=run):
            place = SavedFile(type="output", subfolder="", filename=item.name)
            if isinstance(item.source, FileRef):
                file = NodeFile.parse(item.source)
                before, after = file.around
                place = SavedFile.parse(file.unnumbered or f"{before}{number:05}{after}")
            made.append(
                an_output(
                    node_id=item.node_id,
                    key=item.key,
                    index=item.index,
                    name=place.filename,
                    subfolder=place.subfolder,
                    saved=isinstance(item.source, FileRef),
                    temporary=item.temporary,
                )
            )
    return made


def posted_below_the_run(value: Any) -> Any:
    """Return what a node would have returned for a job of the fleet's."""
    if isinstance(value, list):
        return [posted_below_the_run(one) for one in value]
    if isinstance(value, dict):
        if value.get("type") == "output" and "filename" in value:
            return {**value, "subfolder": "/".join(part for part in (FOLDER, value["subfolder"]) if part)}
        return {key: posted_below_the_run(one) for key, one in value.items()}
    if isinstance(value, str) and value.endswith(".glb") and not value.startswith("preview3d"):
        return f"{FOLDER}/{value}"
    return value


def renumbered(value: Any) -> Any:
    """Return a recording with the number 42 in each file's name."""
    text = json.dumps(value)
    for number in range(1, 10):
        text = text.replace(f"_0000{number}", "_00042")
    return json.loads(text)


@pytest.mark.parametrize("path", RECORDED, ids=ids)
def test_recordings_are_shown_as_one_comfyui_would(path: Path) -> None:
    ui = history_of(json.loads(path.read_text()))["outputs"]
    raw = posted_below_the_run(ui)
    shown = shown_ui(raw, committed(raw))
    assert shown == renumbered(ui)
    for node_id, one in raw.items():
        assert shown_ui({node_id: one}, committed(raw)) == {node_id: shown[node_id]}


def file(name: str, folder: str = FOLDER, **more: Any) -> dict[str, Any]:
    return {"filename": name, "subfolder": folder, "type": "output", **more}


def test_a_video_is_named_in_all_of_its_fields() -> None:
    """As VideoHelperSuite returns it."""
    video = file(
        "AnimateDiff_00001.mp4",
        f"{FOLDER}/sub",
        format="video/h264-mp4",
        frame_rate=8.0,
        workflow="AnimateDiff_00001.png",
        fullpath=f"/data/ComfyUI/output/{FOLDER}/sub/AnimateDiff_00001.mp4",
    )
    raw = {"7": {"gifs": [video]}}
    assert shown_ui(raw, committed(raw)) == {
        "7": {
            "gifs": [
                {
                    "filename": "AnimateDiff_00042.mp4",
                    "subfolder": "sub",
                    "type": "output",
                    "format": "video/h264-mp4",
                    "frame_rate": 8.0,
                    "workflow": "AnimateDiff_00042.png",
                    "fullpath": "/data/ComfyUI/output/sub/AnimateDiff_00042.mp4",
                }
            ]
        }
    }


def test_a_file_that_was_not_kept_is_left_out_and_the_others_keep_their_places() -> None:
    raw = {
        "1": {
            "images": [file("a_00001_.png"), file("b_00001_.png"), file("c_00001_.png")],
            "animated": [True],
        }
    }
    outputs = [output for output in committed(raw) if output.index != 1]
    names = [one["filename"] for one in shown_ui(raw, outputs)["1"]["images"]]
    assert names == ["a_00042_.png", "c_00042_.png"]
    assert shown_ui(raw, []) == {"1": {"images": [], "animated": [True]}}


def test_nested_lists_and_single_values_are_counted_as_outputs_are() -> None:
    raw = {
        "1": {
            "a": [[file("x_00001_.png")], "text", [[file("y_00001_.png")]]],
            "b": file("z_00001_.png"),
            "c": None,
        }
    }
    shown = shown_ui(raw, committed(raw))["1"]
    assert shown["a"][0][0]["filename"] == "x_00042_.png"
    assert shown["a"][2][0][0]["filename"] == "y_00042_.png"
    assert shown["b"]["filename"] == "z_00042_.png"
    assert shown["c"] is None


def test_what_stands_behind_a_model_keeps_its_place() -> None:
    raw = {"1": {"result": [f"{FOLDER}/3d/y_00001.glb", {"fov": 35}, []]}}
    assert shown_ui(raw, committed(raw)) == {"1": {"result": ["3d/y_00042.glb", {"fov": 35}, []]}}
    assert shown_ui(raw, []) == {"1": {"result": ["", {"fov": 35}, []]}}
    given = {"1": {"result": ["3d/my own.glb", None]}}
    assert shown_ui(given, committed(given)) == given


def test_a_text_that_was_split_into_characters_is_shown_as_it_came() -> None:
    raw = {"1": {"text": list("saved"), "result": list(f"{FOLDER}/y_00001.glb")}}
    shown = shown_ui(raw, committed(raw))
    assert shown == {"1": {"text": list("saved"), "result": list("y_00042.glb")}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"saved to /out/{FOLDER}/x.png", "saved to /out/x.png"),
        (f"C:\\out\\fleet\\{JOB}\\{RUN}\\x.png", "C:\\out\\x.png"),
        (f"in {FOLDER}", "in "),
        (f"fleet/{JOB}/y", "y"),
        ("fleet/a/b/x.png", "fleet/a/b/x.png"),
        ("the fleet", "the fleet"),
    ],
)
def test_texts_do_not_name_the_folder_of_the_run(text: str, shown: str) -> None:
    raw = {"1": {"text": [text], "notes": [{"deep": [{text: text}]}]}}
    assert shown_ui(raw, committed(raw)) == {"1": {"text": [shown], "notes": [{"deep": [{shown: shown}]}]}}


def test_files_of_other_folders_are_named_where_they_are_kept() -> None:
    raw = {"1": {"images": [{"filename": "staged.png", "subfolder": FOLDER, "type": "input"}]}}
    (one,) = shown_ui(raw, committed(raw))["1"]["images"]
    assert one == {"filename": "staged.png", "subfolder": "", "type": "output"}


def test_outputs_of_versions_without_numbers_can_be_asked_for() -> None:
    raw = {"1": {"images": [file("x_00001_.png")]}}
    old = an_output(asset_id=JOB, node_id="1", name="x_00001_.png")
    (one,) = shown_ui(raw, [old])["1"]["images"]
    assert one == {"filename": "x_00001_.png", "subfolder": f"asset/{JOB}", "type": "output"}


def test_long_ids_are_found_under_their_short_forms() -> None:
    raw = {"9" * 300: {"k" * 300: [file("x_00001_.png")]}}
    (one,) = shown_ui(raw, committed(raw))["9" * 300]["k" * 300]
    assert one["filename"] == "x_00042_.png"


def nested(depth: int) -> Any:
    value: Any = f"/{FOLDER}/x"
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_nested_too_deep_is_left_out() -> None:
    raw = {"1": {"a": [nested(100_000), file("x_00001_.png")], "b": [{"c": nested(5000)}], "d": 1}}
    shown = shown_ui(raw, committed({"1": {"a": raw["1"]["a"]}}))
    assert shown["1"]["a"][-1]["filename"] == "x_00042_.png"
    assert shown["1"]["d"] == 1
    assert "fleet" not in json.dumps(shown)


LEAVES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([f"{FOLDER}/a.glb", f"/x/{FOLDER}", "preview3d_" + "0" * 32 + ".glb", "a.glb"])
    | st.builds(lambda name, sub: file(name, f"{FOLDER}/{sub}"), st.text(max_size=12), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=4), LEAVES, max_size=3)),
    st.booleans(),
)
def test_whatever_a_node_returns_no_run_is_named(ui: dict[str, Any], kept: bool) -> None:
    try:
        outputs = committed(ui) if kept else []
    except UnicodeEncodeError:
        return
    shown = shown_ui(ui, outputs)
    assert RUN not in json.dumps(shown)
    assert list(shown) == list(ui)
    if kept:
        assert [list(one) for one in shown.values()] == [list(one) for one in ui.values()]
