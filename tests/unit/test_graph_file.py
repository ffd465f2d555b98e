"""Files with a graph in them: encodings, pictures, and what to do about the others."""

import json
import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfy_fleet.domain.errors import BadInput, InvalidWorkflow
from comfy_fleet.domain.graphs.graph_file import MAX_TEXT_BYTES, read_graph
from comfy_fleet.domain.graphs.structure import carried
from tests.unit.test_pictures import MAKERS

GRAPH: dict[str, Any] = {"1": {"class_type": "A", "inputs": {"text": "schön ✨"}}}
TEXT = json.dumps(GRAPH, ensure_ascii=False)


def png(*, packed: bool = False, **texts: str) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text, zip=packed)
    file = BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace(" ", "\r\n", 1).encode("utf-8-sig"),
        png(prompt=json.dumps(GRAPH)),
        png(prompt=TEXT),
        png(prompt=json.dumps(GRAPH), workflow="{}", packed=True),
        png(prompt=TEXT, packed=True),
        png(workflow='{"nodes": []}', prompt=TEXT) + b"rest",
        *(make(GRAPH) for make in MAKERS.values()),
    ],
)
def test_a_graph_is_read_in_every_form_in_which_people_have_it(content: bytes) -> None:
    assert read_graph(content) == GRAPH


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (
            TEXT.encode("latin-1", "replace"),
            r"is not UTF-8 text \(byte 0xf6 at position \d+\): save it as UTF-8",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "is not JSON: it holds a number of more than 4300 digits$"),
        (png(), "is a PNG without a graph in it: export"),
        (png(parameters="steps: 3"), "is a PNG without a graph in it"),
        (png(workflow="{}"), "PNG that holds a graph in the editor's own format only"),
        (png(prompt="{"), "is a PNG whose graph is not JSON"),
        (png(prompt=TEXT)[:40], "is a PNG without a graph in it"),
        (b"\xff\xd8\xff\xe0....", "is a JPEG picture, not JSON: export the graph"),
        (b"RIFF....WEBPVP8 ", "is a WebP picture"),
        (MAKERS["jpeg"](1)[:-2].replace(b"prompt:", b"nobody:"), "is a JPEG picture, not JSON"),
        (MAKERS["webp"](0).replace(b"prompt:0", b"prompt:{"), "is a picture whose graph is not JSON"),
        (MAKERS["jpeg comment ascii"](0).replace(b'"0"', b'"{"'), "is a picture whose graph is not JSON"),
        (b"GIF89a", "is a GIF picture"),
        (b"PK\x03\x04", "is a ZIP archive"),
    ],
)
def test_what_holds_none_is_named_with_the_way_out(content: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_graph(content)


def test_a_text_that_unpacks_to_very_much_is_refused() -> None:
    body = b"prompt\0\0" + zlib.compress(b" " * (MAX_TEXT_BYTES + 1))
    chunk = struct.pack(">I4s", len(body), b"zTXt") + body + b"\0\0\0\0"
    with pytest.raises(BadInput, match="unpacks to more than"):
        read_graph(png()[:8] + chunk)
    broken = b"prompt\0\0nothing packed"
    chunk = struct.pack(">I4s", len(broken), b"zTXt") + broken + b"\0\0\0\0"
    with pytest.raises(BadInput, match="without a graph"):
        read_graph(png()[:8] + chunk)


def test_what_json_can_not_carry_is_left_out_or_named() -> None:
    read = read_graph(b'{"1": {"class_type": "A", "inputs": {}, "is_changed": [NaN]}, "note": "x"}')
    assert carried(read) == {"1": {"class_type": "A", "inputs": {}}, "note": "x"}
    for content, says in (
        (b'{"1": {"inputs": {"cfg": -Infinity}}}', "node 1: cfg holds NaN or an infinite number"),
        (b'{"x": NaN}', "x holds NaN"),
        (b'{"1": {"class_type": "A\\ud800", "inputs": {}}}', "node 1: class_type holds text that is not"),
        (b'{"1": {"class_type": NaN, "inputs": {}}}', "node 1: class_type holds NaN"),
        (b"[1]", "holds a list, not an object of nodes"),
    ):
        with pytest.raises(InvalidWorkflow, match=says):
            carried(read_graph(content))
