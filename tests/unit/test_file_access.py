"""Whether a rule covers every input of ComfyUI's own classes that names a file; a new one makes this fail."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.graphs.file_access import KNOWN, Use, declared_inputs, keeps_graph, use_of, uses
from tests.path_inputs import DECISIONS, uncovered, undecided

DATA = Path(__file__).parent.parent / "data"
VERSIONS = ["0.3.64", "0.33.0"]


def classes_of(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        gzip.decompress((DATA / f"all_classes_{version}.json.gz").read_bytes())
    )
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_input_that_looks_like_a_path_is_covered(version: str) -> None:
    assert undecided(classes_of(version)) == {}


@pytest.mark.parametrize(
    ("declared", "output_node"),
    [
        (["STRING", {"default": "loras/x"}], False),
        (["COMBO", {"options": ["marker.png"]}], False),
        ([["a", "markdir"], {}], False),
        (["THEIR_RECORDER", {}], False),
    ],
)
def test_an_input_that_nobody_has_looked_at_is_noticed(declared: list[Any], output_node: bool) -> None:
    body = {"input": {"required": {"thing": declared}}, "output": [], "output_node": output_node}
    assert list(uncovered({"New": body})) == ["New.thing"]
    assert undecided({"New": body}) == {"New.thing": "looks like a path"}


def test_an_input_that_the_rules_know_needs_a_decision_too() -> None:
    body = {"input": {"required": {"folder": [["a", "b"], {}]}}, "output": []}
    assert undecided({"New": body}) == {"New.folder": "path"}
    assert undecided({"LoadImageSetFromFolderNode": body}) == {}


def test_what_was_looked_at_is_still_there() -> None:
    seen = {
        f"{class_type}.{name}"
        for version in VERSIONS
        for class_type, body in classes_of(version).items()
        for name, _ in declared_inputs(body["input"])
    }
    assert set(DECISIONS) <= seen
    core = {name for version in VERSIONS for name in classes_of(version)}
    assert {
        f"{class_type}.{name}" for class_type, entry in KNOWN.items() if class_type in core for name in entry
    } <= seen


@pytest.mark.parametrize(
    ("name", "declared", "output_node", "use"),
    [
        ("image", [["a.png"], {"image_upload": True}], False, Use.FILE),
        ("anything", ["COMBO", {"options": ["x"], "file_upload": True}], False, Use.FILE),
        ("mask", ["STRING", {"image_upload": True}], False, Use.FILE),
        ("shot", ["WEBCAM", {}], False, Use.FILE),
        ("video", [["a.mp4", "b.webm"], {}], False, Use.FILE),
        ("mask", [["alpha", "red"], {}], False, None),
        ("folder", [["a", "b"], {}], False, Use.PATH),
        ("model_path", ["COMBO", {"options": ["a"]}], False, Use.PATH),
        ("file_path", ["STRING", {"multiline": True}], False, Use.PATH),
        ("filename", ["STRING", {}], True, Use.PATH),
        ("output_dir", ["STRING", {}], True, Use.TARGET),
        ("output_dir", ["STRING", {}], False, Use.PATH),
        ("prefix", ["STRING", {}], True, Use.PREFIX),
        ("prefix", ["STRING", {}], False, None),
        ("filename_prefix", ["STRING", {}], False, Use.PREFIX),
        ("text", ["STRING", {"multiline": True}], False, Use.TEXT),
        ("text", ["STRING", {}], True, None),
        ("video", ["STRING", {"vhs_path_extensions": ["mp4"], "placeholder": "x"}], False, Use.PATH),
        ("source", ["STRING", {"default": "X://insert/path/here.mp4"}], False, Use.PATH),
        ("source", ["STRING", {"default": "./ComfyUI/input"}], False, Use.PATH),
        ("where", [["a"], {"image_folder": "output"}], False, Use.PATH),
        ("delimiter", ["STRING", {"default": "/"}], False, None),
        ("output_path", ["STRING", {}], True, Use.PATH),
        ("profile", ["STRING", {}], False, None),
        ("profile_name", ["STRING", {}], False, None),
        ("direction", ["STRING", {}], False, None),
        ("file_format", ["STRING", {}], True, None),
        ("model_file", ["STRING,FILE_3D", {}], False, Use.PATH),
        ("files", ["OPENAI_INPUT_FILES", {}], False, None),
        ("n", ["INT", {}], False, None),
    ],
)
def test_the_rules(name: str, declared: list[Any], output_node: bool, use: Use | None) -> None:
    body = {"input": {"required": {name: declared}}, "output_node": output_node}
    assert uses("Custom", body).get(name) == use


def combo(name: str, declared: list[Any]) -> list[Any]:
    return ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a", "inputs": {"required": {name: declared}}}]}]


def slot(name: str, declared: list[Any]) -> list[Any]:
    return ["COMFY_DYNAMICSLOT_V3", {"inputs": {"optional": {name: declared}}}]


def growing(inner: str, declared: list[Any], **template: Any) -> list[Any]:
    return [
        "COMFY_AUTOGROW_V3",
        {"template": {"input": {"required": {inner: declared}}, "max": 9, **template}},
    ]


MEDIA, FOLDER, LINE = [["a.png"], {}], ["COMBO", {"options": ["a", "b"]}], ["STRING", {}]


@pytest.mark.parametrize(
    ("declared", "given", "output_node", "use"),
    [
        (combo("image", MEDIA), "g.image", False, Use.FILE),
        (combo("folder", FOLDER), "g.folder", False, Use.PATH),
        (combo("output_dir", LINE), "g.output_dir", True, Use.TARGET),
        (combo("prefix", LINE), "g.prefix", True, Use.PREFIX),
        (combo("in", combo("mask", MEDIA)), "g.in.mask", False, Use.FILE),
        (slot("video", MEDIA), "g.video", False, Use.FILE),
        (slot("file", LINE), "g.file", False, Use.PATH),
        (growing("x", MEDIA, prefix="image"), "g.image0", False, Use.FILE),
        (growing("image", MEDIA, prefix="x"), "g.x3", False, Use.FILE),
        (growing("x", LINE, names=["a", "file"]), "g.file", False, Use.PATH),
        (growing("folder", LINE, prefix="x"), "g.x1", False, Use.PATH),
        (growing("folder", LINE, prefix="x"), "g.x1", True, Use.TARGET),
        (combo("rows", growing("image", MEDIA, prefix="x")), "g.rows.x0", False, Use.FILE),
        (growing("x", combo("image", MEDIA), prefix="x"), "g.x0.image", False, Use.FILE),
        (growing("x", ["IMAGE", {}], prefix="image"), "g.image0", False, None),
        (growing("x", LINE, prefix="text"), "g.text0", False, None),
    ],
)
def test_the_rules_hold_inside_groups(
    declared: list[Any], given: str, output_node: bool, use: Use | None
) -> None:
    body = {"input": {"required": {"g": declared}}, "output_node": output_node}
    assert use_of(uses("Custom", body), given) == use


def test_a_row_is_named_by_its_name_too() -> None:
    body = {"input": {"required": {"files": growing("x", LINE, prefix="x")}}}
    assert use_of(uses("Custom", body), "files.x0") is Use.PATH


def test_what_any_branch_reads_is_a_file_in_each() -> None:
    reads, writes = ({"required": {"folder": spec}} for spec in (FOLDER, LINE))
    for branches in ((reads, writes), (writes, reads)):
        options = [{"key": str(key), "inputs": inputs} for key, inputs in enumerate(branches)]
        body = {"input": {"required": {"g": ["COMFY_DYNAMICCOMBO_V3", {"options": options}]}}}
        assert uses("Saver", {**body, "output_node": True}) == {"g.folder": Use.PATH}


def test_a_path_beside_a_prefix_is_the_prefixes_folder() -> None:
    inputs = {"output_path": ["STRING", {}], "file_path": ["STRING", {}], "filename_prefix": ["STRING", {}]}
    expected = {"file_path": Use.PATH, "filename_prefix": Use.PREFIX}
    saver = {"input": {"required": inputs}, "output_node": True}
    assert uses("Saver", saver) == {**expected, "output_path": Use.TARGET}
    assert uses("Other", {"input": {"required": inputs}}) == {**expected, "output_path": Use.PATH}
    options = [{"key": "a", "inputs": {"required": inputs}}]
    group = {"required": {"g": ["COMFY_DYNAMICCOMBO_V3", {"options": options}]}}
    grouped = uses("Saver", {"input": group, "output_node": True})
    assert grouped == {"g.file_path": Use.PATH, "g.filename_prefix": Use.PREFIX, "g.output_path": Use.TARGET}


@pytest.mark.parametrize(
    ("kind", "more", "kept"),
    [
        ("IMAGE", {}, True),
        ("STRING,FILE_3D", {}, True),
        ("IMAGE", {"output_node": False, "has_intermediate_output": True}, True),
        ("IMAGE", {"output_node": False}, False),
        ("IMAGE", {"api_node": True}, False),
        ("STRING", {}, False),
        ("*", {}, False),
    ],
)
def test_who_may_write_the_graph_into_files(kind: str, more: dict[str, Any], kept: bool) -> None:
    for hidden in ("PROMPT", ["EXTRA_PNGINFO"], "EXTRA_PNGINFO"):
        inputs = {"required": {"x": [kind, {}], "n": ["INT", {}]}, "hidden": {"h": hidden}}
        body = {"input": inputs, "output_node": True, **more}
        assert keeps_graph(body, uses("C", body)) is kept
    inputs = {"required": {"x": [kind, {}]}, "hidden": {"id": "UNIQUE_ID", "odd": None, "empty": []}}
    assert not keeps_graph({"input": inputs, "output_node": True}, {})
    saver = {"required": {"x": [kind, {}], "filename_prefix": ["STRING", {}]}, "hidden": {"p": "PROMPT"}}
    body = {"input": saver, "output_node": True}
    assert not keeps_graph(body, uses("C", body))


def test_groups_are_walked_and_odd_answers_are_no_error() -> None:
    text, line = ["STRING", {"multiline": True}], ["STRING", {}]
    group = ["COMFY_DYNAMICCOMBO_V3", {"options": [
        {"key": "a", "inputs": {"required": {"same": text, "either": text, "folder": line}}},
        {"key": "b", "inputs": {"required": {"same": text, "either": line}}},
        "odd",
    ]}]  # fmt: skip
    odd = {"x": "nonsense", "y": [], "z": [None], "w": ["COMBO", {"options": 3, "template": 4}]}
    found = uses("C", {"input": {"required": {"g": group}, "optional": odd}})
    assert found == {"g.same": Use.TEXT, "g.folder": Use.PATH}
    assert uses("C", {"input": []}) == uses("C", {}) == {}
