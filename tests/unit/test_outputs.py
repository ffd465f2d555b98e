"""Finding outputs in whatever nodes return."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.job import OutputKind
from comfy_fleet.domain.jobs.media import content_type_of, kind_of
from comfy_fleet.domain.jobs.outputs import (
    FileRef,
    InlineBytes,
    InlineText,
    OutputItem,
    find_outputs,
    frame_output,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["filename", "subfolder", "type", "text", "x"]), inner, max_size=4)
    ),
)


def file(name: str, subfolder: Any = "", type_: Any = "output") -> dict[str, Any]:
    return {"filename": name, "subfolder": subfolder, "type": type_}


@pytest.mark.parametrize("key", ["images", "gifs", "audio", "video", "3d", "latents", "a_key_of_tomorrow"])
def test_files_under_any_key(key: str) -> None:
    items = find_outputs("7", {key: [file("a.png", "x/y"), file("b.png", type_="temp")]})
    assert [item.id for item in items] == [("7", key, 0), ("7", key, 1)]
    assert [item.source for item in items] == [FileRef("a.png", "x/y"), FileRef("b.png", "", "temp")]
    assert [item.temporary for item in items] == [False, True]


@pytest.mark.parametrize(
    ("name", "kind", "content_type"),
    [
        ("a.PNG", OutputKind.IMAGE, "image/png"),
        ("a.gif", OutputKind.IMAGE, "image/gif"),
        ("a_00001-audio.mp4", OutputKind.VIDEO, "video/mp4"),
        ("a.webm", OutputKind.VIDEO, "video/webm"),
        ("a.flac", OutputKind.AUDIO, "audio/flac"),
        ("a.txt", OutputKind.TEXT, "text/plain"),
        ("a.latent", OutputKind.LATENT, "application/octet-stream"),
        ("a.safetensors", OutputKind.LATENT, "application/octet-stream"),
        ("a.glb", OutputKind.FILE, "model/gltf-binary"),
        ("a.json", OutputKind.FILE, "application/json"),
        ("a.unknown", OutputKind.FILE, "application/octet-stream"),
        ("noextension", OutputKind.FILE, "application/octet-stream"),
    ],
)
def test_kinds(name: str, kind: OutputKind, content_type: str) -> None:
    (item,) = find_outputs("1", {"gifs": [file(name)]})
    assert (item.kind, item.content_type, item.name) == (kind, content_type, name)
    assert (kind_of(name, content_type_of(name))) == kind


def test_texts() -> None:
    items = find_outputs("5", {"text": ["one", "two"], "notes": ["three"]})
    assert [item.source for item in items] == [InlineText("one"), InlineText("two"), InlineText("three")]
    assert [item.name for item in items] == ["text_00001.txt", "text_00002.txt", "notes_00001.txt"]
    assert {item.kind for item in items} == {OutputKind.TEXT}
    assert {item.content_type for item in items} == {"text/plain"}


def values(output: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and texts of the outputs that are no files."""
    return [
        (item.name, item.source.text)
        for item in find_outputs("1", output)
        if isinstance(item.source, InlineText)
    ]


@pytest.mark.parametrize("text", ["word " * 1000, "ok", "ünïcode ✨"])
def test_a_bare_string_that_comfyui_took_apart_is_one_text(text: str) -> None:
    assert values({"text": list(text)}) == [("text_00001.txt", text)]
    assert values({"text": text}) == [("text_00001.txt", text)]  # nobody took it apart


def test_one_character_is_a_text_and_so_is_an_empty_one() -> None:
    assert values({"text": ["a"], "more": [""]}) == [("text_00001.txt", "a"), ("more_00001.txt", "")]


@pytest.mark.parametrize(
    ("nested", "texts"),
    [
        ([["one", "two"], ["three"]], ["one", "two", "three"]),
        ([[["deep"]]], ["deep"]),
        ((("one",), ["two", ("three",)]), ["one", "two", "three"]),
        (["one", ["two", None, "three"]], ["one", "two", "three"]),
    ],
)
def test_lists_inside_lists_of_texts(nested: Any, texts: list[str]) -> None:
    for key in ("text", "tags"):
        assert [text for _, text in values({key: nested})] == texts


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        ([3.5], "value_00001.txt", "3.5"),
        ([512], "value_00001.txt", "512"),
        ([2**70], "value_00001.txt", str(2**70)),
        ([True], "value_00001.txt", "true"),
        (7, "value_00001.txt", "7"),
        ([1, 2], "value_00001.json", "[1, 2]"),
        ([[1, 2], [3, 4]], "value_00001.json", "[[1, 2], [3, 4]]"),
        ([{"a": 1}], "value_00001.json", '{"a": 1}'),
        ({"a": "ü"}, "value_00001.json", '{"a": "ü"}'),
        ([None, {"a": 1}, {"b": 2}], "value_00002.json", '[{"a": 1}, {"b": 2}]'),
    ],
)
def test_numbers_and_objects_are_outputs_too(value: Any, name: str, text: str) -> None:
    ((found, written),) = values({"value": value})
    assert found == name
    assert written == text or json.loads(written) == json.loads(text)
    (item,) = find_outputs("1", {"value": value})
    assert item.content_type == ("text/plain" if name.endswith(".txt") else "application/json")


def test_texts_and_objects_under_one_key_are_all_kept() -> None:
    found = values({"mix": ["one", {"a": 1}, "two", 3]})
    assert [name for name, _ in found] == ["mix_00001.txt", "mix_00003.txt", "mix_00002.json"]
    assert json.loads(found[2][1]) == [{"a": 1}, 3]


def test_what_cannot_be_written_down_is_said_to_be_there() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    ((_, text),) = values({"value": [deep]})
    assert "RecursionError" in text
    nested: Any = ["x"]
    for _ in range(100_000):
        nested = [nested]
    assert values({"value": nested}) == [("value_00001.txt", "x")]


def test_what_describes_files_is_no_output() -> None:
    output = {
        "images": [file("a.png", type_="temp")],
        "compositor_layers": [file("b.png", type_="temp")],
        "compositor_inputs": ["00112233445566aa", "ffeeddccbbaa9988"],
        "compositor_bboxes": [{"x": 1, "y": 2}],
        "compositor_state_stale": [True],
        "animated": [True],
        "width": [512],
        "empty": None,
    }
    assert [item.name for item in find_outputs("1", output)] == ["a.png", "b.png"]
    output = {"text": ["a cat"], "prompt": ["0011"], "files": [file("a.md")]}
    assert [item.name for item in find_outputs("1", output)] == ["text_00001.txt", "prompt_00001.txt", "a.md"]


def test_what_only_comfyuis_editor_wants_is_no_output() -> None:
    notes = {"animated": [False], "dims": [5, 6], "histogram": [1, 2], "input_bboxes": [{"x": 1}]}
    assert find_outputs("1", {"images": [], "none": [None], "object": [{}], **notes}) == ()
    # A fingerprint alone is a node's result.
    assert values({"hash": ["00112233445566aa"]}) == [("hash_00001.txt", "00112233445566aa")]


RUN = "e7e94a3a-d404-45cb-9be4-e7dddac8c09d"
HEX = "0752def6daf94a89a5e4d28ddcdae8b5"


@pytest.mark.parametrize(
    ("name", "ref", "temporary"),
    [
        (
            f"fleet/job-1/{RUN}/3d/x_00001.glb",
            FileRef("x_00001.glb", f"fleet/job-1/{RUN}/3d"),
            False,
        ),
        (f"fleet\\job-1\\{RUN}/y.ply", FileRef("y.ply", f"fleet/job-1/{RUN}"), False),
        (f"preview3d_{HEX}.glb", FileRef(f"preview3d_{HEX}.glb", "", "output", "temp"), True),
        (
            f"preview3d_advanced_{HEX}.fbx",
            FileRef(f"preview3d_advanced_{HEX}.fbx", "", "temp", "output"),
            True,
        ),
        (f"preview_splat_{HEX}.spz", FileRef(f"preview_splat_{HEX}.spz", "", "temp", "output"), True),
        (
            f"preview_pointcloud_{HEX}.ply",
            FileRef(f"preview_pointcloud_{HEX}.ply", "", "temp", "output"),
            True,
        ),
    ],
)
def test_3d_files_named_by_a_bare_string(name: str, ref: FileRef, temporary: bool) -> None:
    camera = {"position": {"x": 1}}
    beside: list[list[Any]] = [[None, []], [camera, [{"x": 1}]], [camera, f"temp/bg_{HEX}.png"]]
    for rest in beside:
        first, *others = find_outputs("4", {"result": [name, *rest]}, run=RUN)
        assert (first.source, first.temporary, first.name) == (ref, temporary, ref.filename)
        assert first.content_type.startswith("model/")
        assert all(isinstance(other.source, InlineText) for other in others)
        assert OutputItem.from_json(first.to_json()) == first


@pytest.mark.parametrize(
    "name",
    [
        f"fleet/job-1/{RUN[:-1]}e/x.glb",  # another run's
        f"fleet/job-1/{RUN}/../other/x.glb",
        f"fleet/job-1/{RUN}",
        f"fleet/{RUN}.glb",
        f"/fleet/job-1/{RUN}/x.glb",
        f"fleet/job-1//{RUN}/x.glb",
        f"x/fleet/job-1/{RUN}/x.glb",
        "3d/theirs_00001.glb",
        "../secret.glb",
        "C:\\secret.glb",
        f"preview3d_{HEX[:-1]}.glb",
        f"preview3d_{HEX.upper()}.glb",
        f"sub/preview3d_{HEX}.glb",
        f"ComfyUI_temp_{HEX}.glb",
        f"preview3d_{HEX}.glb\n",
    ],
)
def test_a_text_that_only_looks_like_a_file_is_a_text(name: str) -> None:
    for run in (RUN, ""):
        item, *others = find_outputs("4", {"result": [name, {"position": 1}, None]}, run=run)
        assert item.source == InlineText(name)
        assert all(isinstance(other.source, InlineText) for other in others)


def test_a_path_among_texts_is_a_text_and_no_file_is_named_twice() -> None:
    path = f"fleet/j/{RUN}/x.glb"
    (item,) = find_outputs("4", {"text": [path]}, run=RUN)
    assert item.source == InlineText(path)
    found = find_outputs("4", {"path": [path], "3d": [file("x.glb", f"fleet/j/{RUN}")]}, run=RUN)
    assert sum(isinstance(one.source, FileRef) for one in found) == 1


@pytest.mark.parametrize(
    ("name", "family"),
    [(f"x.{e}", "model/") for e in ("ply", "splat", "spz", "ksplat", "fbx", "usdz", "glb", "gltf", "obj")]
    + [("x.exr", "image/"), ("x.opus", "audio/"), ("x.mkv", "video/"), ("x.webm", "video/")]
    + [("x.md", "text/"), ("x.csv", "text/"), ("x.flac", "audio/"), ("x.mp3", "audio/")],
)
def test_what_comfyui_writes_has_a_type(name: str, family: str) -> None:
    assert content_type_of(name.upper()).startswith(family)


def test_what_records_carry_is_short_and_clean() -> None:
    long = "k" * 100_000
    items = find_outputs(
        "n" * 5000,
        {
            long: [file("f" * 500 + ".png", "s" * 5000)],
            long + "2": [file("a\udcfc.png")],
            "\ud83d": ["\ud83d"],
        },
    )
    assert len({item.id for item in items}) == 3
    for item in items:
        assert len(str(item.id)) < 500 and len(item.name) <= 200
        assert len(orjson.dumps(item.to_json())) < 5000
    assert items[0].name.endswith(".png") and items[0].content_type == "image/png"


def test_a_long_text_is_no_part_of_a_record() -> None:
    (short,) = find_outputs("1", {"text": ["x" * 65_536]})
    (wide,) = find_outputs("1", {"text": ["ü" * 65_536]})
    assert OutputItem.from_json(short.to_json()) == short
    assert len(orjson.dumps(wide.to_json())) < 500
    with pytest.raises(ValueError, match="memory only"):
        OutputItem.from_json(wide.to_json())


def test_an_odd_reference_is_read_with_defaults() -> None:
    (item,) = find_outputs("1", {"images": [file("b/a.png", "sub")]})
    assert (item.name, item.source) == ("a.png", FileRef(filename="a.png", subfolder="sub/b", type="output"))
    (item,) = find_outputs("1", {"images": [{"filename": "sub\\a.png", "subfolder": None, "type": 3}]})
    assert item.source == FileRef("sub\\a.png")
    assert item.name == "a.png"


@pytest.mark.parametrize(
    "output", [None, [], "x", 3, {"images": [{"filename": ""}, {"filename": 3}, {}]}, {"x": [[], [[]]]}]
)
def test_shapes_that_name_nothing(output: object) -> None:
    assert find_outputs("1", output) == ()


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_no_shape_raises_and_every_item_survives_json(output: dict[str, Any]) -> None:
    items = find_outputs("1", output)
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert OutputItem.from_json(orjson.loads(orjson.dumps(item.to_json()))) == item


def test_a_frames_picture_stays_in_memory() -> None:
    item = frame_output("3", 1, "image/jpeg", b"12345")
    assert (item.id, item.name, item.kind) == (("3", "images", 1), "websocket_00002.jpg", OutputKind.IMAGE)
    assert item.source == InlineBytes(b"12345")
    stored = item.to_json()
    assert stored["source"] == {"bytes": 5}
    with pytest.raises(ValueError, match="memory only"):
        OutputItem.from_json(stored)


@pytest.mark.parametrize("value", [{}, {"source": {"text": "x"}}, {"source": None}])
def test_what_is_no_output_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not an output"):
        OutputItem.from_json(value)
