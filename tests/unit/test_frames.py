"""Binary and text frames, as recorded and as newer servers may send them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.frames import (
    MAX_LINE_BYTES,
    MAX_METADATA_BYTES,
    Picture,
    ProgressText,
    frame_of,
    parse_binary,
    prompt_of,
)
from comfy_fleet.domain.jobs.run_messages import Frame
from tests.unit.run_harness import PNG, events_of, recording

JPEG = b"\xff\xd8\xff\xe0" + bytes(16)
WEBP = b"RIFF\x10\0\0\0WEBPVP8 "


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def test_recorded_picture() -> None:
    (data,) = [
        event.data for event in events_of(recording("preview_and_ws_image")) if not isinstance(event, Frame)
    ]
    picture = parse_binary(data)
    assert isinstance(picture, Picture)
    assert picture.content_type == "image/png"
    assert bytes(picture.data).startswith(b"\x89PNG\r\n\x1a\n")
    assert (picture.node_id, picture.prompt_id) == (None, None)


@pytest.mark.parametrize(
    ("announced", "image", "content_type"),
    [(1, JPEG, "image/jpeg"), (2, PNG, "image/png"), (1, WEBP, "image/webp"), (2, b"unknown", "image/png")],
)
def test_the_images_own_type_wins(announced: int, image: bytes, content_type: str) -> None:
    picture = parse_binary(number(1) + number(announced) + image)
    assert picture == Picture(data=image, content_type=content_type)


def test_a_picture_with_metadata_names_its_node() -> None:
    metadata = json.dumps({"node_id": "3", "prompt_id": "p", "image_type": "image/jpeg", "new": [1]}).encode()
    picture = parse_binary(number(4) + number(len(metadata)) + metadata + JPEG)
    assert picture == Picture(data=JPEG, content_type="image/jpeg", node_id="3", prompt_id="p")


def test_metadata_that_is_no_json_is_left_out() -> None:
    assert parse_binary(number(4) + number(3) + b"{{{" + PNG) == Picture(data=PNG, content_type="image/png")


def test_progress_text() -> None:
    assert parse_binary(number(3) + number(2) + b"12" + "läuft".encode()) == ProgressText(
        node_id="12", text="läuft"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        number(1),
        number(1) + number(2),
        number(4) + number(99) + b"{}",
        number(3),
        number(7) + PNG,
    ],
)
def test_cut_and_unknown_frames_are_none(data: bytes) -> None:
    assert parse_binary(data) is None


@given(st.binary(max_size=64), st.sampled_from([1, 2, 3, 4]))
def test_no_bytes_raise(data: bytes, type_: int) -> None:
    parse_binary(number(type_) + data)


def test_text_frames() -> None:
    assert frame_of({"type": "x", "data": {"prompt_id": "p"}}) == Frame("x", {"prompt_id": "p"})
    assert frame_of({"type": "x", "data": None}) == Frame("x", {})
    shapes: list[object] = [[], "x", None, {"type": 3}, {"data": {}}]
    for value in shapes:
        assert frame_of(value) is None


def test_the_prompt_of_a_frame() -> None:
    assert prompt_of(Frame("x", {"prompt_id": "p"})) == "p"
    assert prompt_of(Frame("x", {"prompt_id": 3})) is None
    assert prompt_of(Frame("status", {})) is None


def test_only_as_much_is_decoded_as_anybody_needs() -> None:
    long = b"x" * (MAX_METADATA_BYTES + 1)
    assert parse_binary(number(4) + number(len(long)) + long + PNG) is None
    assert parse_binary(number(3) + number(len(long)) + long + b"text") is None
    line = parse_binary(number(3) + number(1) + b"1" + long)
    assert isinstance(line, ProgressText)
    assert len(line.text) == MAX_LINE_BYTES
