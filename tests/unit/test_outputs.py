"""Finding outputs in whatever nodes return."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.job import OutputKind
from comfy_fleet.domain.outputs import (
    FileRef,
    InlineBytes,
    InlineText,
    OutputItem,
    content_type_of,
    find_outputs,
    frame_output,
    kind_of,
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


def test_flags_numbers_and_cameras_are_no_outputs() -> None:
    output = {
        "animated": [True],
        "width": [512],
        "images": [],
        "result": ["mesh.glb", {"position": {"x": 1}}, None],
        "empty": None,
        "list": [[1, 2], ["a"]],
    }
    assert find_outputs("1", output) == ()


def test_an_odd_reference_is_read_with_defaults() -> None:
    (item,) = find_outputs("1", {"images": [file("b/a.png", "sub")]})
    assert (item.name, item.source) == ("a.png", FileRef(filename="a.png", subfolder="sub/b", type="output"))
    (item,) = find_outputs("1", {"images": [{"filename": "sub\\a.png", "subfolder": None, "type": 3}]})
    assert item.source == FileRef("sub\\a.png")
    assert item.name == "a.png"


@pytest.mark.parametrize("output", [None, [], "x", 3, {"images": [{"filename": ""}, {"filename": 3}, {}]}])
def test_shapes_that_name_nothing(output: object) -> None:
    assert find_outputs("1", output) == ()


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_no_shape_raises_and_every_item_survives_json(output: dict[str, Any]) -> None:
    items = find_outputs("1", output)
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert OutputItem.from_json(item.to_json()) == item


def test_a_frames_picture_stays_in_memory() -> None:
    item = frame_output("3", 1, "image/jpeg", b"12345")
    assert (item.id, item.name, item.kind) == (("3", "images", 1), "websocket_00002.jpg", OutputKind.IMAGE)
    assert item.source == InlineBytes(b"12345")
    stored = item.to_json()
    assert stored["source"] == {"bytes": 5}
    with pytest.raises(ValueError, match="came as a frame"):
        OutputItem.from_json(stored)


@pytest.mark.parametrize("value", [{}, {"source": {"text": "x"}}, {"source": None}])
def test_what_is_no_output_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not an output"):
        OutputItem.from_json(value)
