"""Files that hold a graph: JSON in any Unicode encoding, and pictures that ComfyUI saved.

ComfyUI writes the graph that made a picture into PNG's text chunks, and into the EXIF of WebP and JPEG:
``prompt`` is in API format, ``workflow`` is the editor's. Its JSON may hold NaN.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.pictures.exif import ExifBlock
from comfy_fleet.domain.graphs.pictures.parsing import Found, PieceReader
from comfy_fleet.domain.graphs.pictures.restoring import parse

MAX_TEXT_BYTES = 16 * 1024 * 1024
"""Most bytes that a compressed text of a PNG may unpack to."""

_PNG = b"\x89PNG\r\n\x1a\n"
_OTHERS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or another RIFF file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
)
_WAY_OUT = "export the graph in ComfyUI with Workflow > Export (API)"
MAX_LEVELS = 200  # deeper than any graph, and shallow enough for recursion


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """What a file holds.

    Attributes:
        graph: JSON that may be a graph in API format.
        ui: The same graph in the editor's format; None if the file has none, or one that can't be read.
    """

    graph: Any
    ui: Mapping[str, Any] | None = None


def _no_limit(_: bytes) -> None:
    pass


def read_graph(content: bytes) -> Any:
    """Return the graph of :func:`read_graph_file`; raises the same."""
    return read_graph_file(content).graph


def read_graph_file(content: bytes, *, check: Callable[[bytes], None] = _no_limit) -> GraphFile:
    """Return what a file holds: JSON, or the graph inside a picture that ComfyUI has saved.

    NaN and infinite numbers are kept. :func:`comfy_fleet.domain.graphs.structure.check` decides if it is a
    graph.

    Args:
        content: The whole file.
        check: Is called with each JSON text before it is parsed, and may raise: parsed, it takes many times
            its size in memory.

    Raises:
        BadInput: It is neither; the message is the rest of a sentence that begins "the file ...".
    """
    if content.startswith(_PNG):
        return _of_png(content, check)
    if (graph := _of_exif(content, check)) is not None:
        return graph
    for start, kind in _OTHERS:
        if content.startswith(start):
            raise BadInput(f"is {kind}, not JSON: {_WAY_OUT}")
    check(content)
    return GraphFile(graph=_json(content, "is not JSON"))


def read_json(content: bytes) -> Any:
    """Return what a file of JSON holds, in any Unicode encoding.

    Raises:
        BadInput: It is none; the message is the rest of a sentence that begins "the file ...".
    """
    return _json(content, "is not JSON")


def _json(content: bytes, problem: str) -> Any:
    # Editors on Windows put a byte order mark in front, and PowerShell writes UTF-16.
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte {content[error.start]:#04x} at position {error.start}"
        raise BadInput(f"is not {encoding.upper()} text ({where}): save it as UTF-8") from None
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadInput(f"{problem}: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{problem}: {error}") from None
    except ValueError:  # Python's own limit; its message is for programmers
        raise BadInput(f"{problem}: it holds a number of more than 4300 digits") from None
    if _deep(value):  # the depth that Python's parser allows depends on its version
        raise BadInput(f"{problem}: it is nested too deeply")
    return value


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _of_png(content: bytes, check: Callable[[bytes], None]) -> GraphFile:
    found: dict[str, bytes] = {}
    for name, text in _texts(content):
        found.setdefault(name.lower(), text)
    if "prompt" in found:
        check(found["prompt"])
        graph = _json(found["prompt"], "is a PNG whose graph is not JSON")
        return GraphFile(graph=graph, ui=_ui(found.get("workflow"), check))
    if (of_exif := _of_exif(content, check)) is not None:
        return of_exif
    if "workflow" in found:
        raise BadInput(
            f"is a PNG that holds a graph in the editor's own format only: open it there, and {_WAY_OUT}"
        )
    raise BadInput(f"is a PNG without a graph in it: {_WAY_OUT}")


def _of_exif(content: bytes, check: Callable[[bytes], None]) -> GraphFile | None:
    """Return the graph in a picture's EXIF; None without one."""
    found = Found()
    PieceReader(parse(found)).feed(content)
    texts = [text for block in found.blocks if isinstance(block, ExifBlock) for text in block.texts()]
    named: dict[str, bytes] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        named.setdefault(name.strip().lower(), rest.encode())
    if "prompt" in named:
        check(named["prompt"])
        graph = _json(named["prompt"], "is a picture whose graph is not JSON")
        return GraphFile(graph=graph, ui=_ui(named.get("workflow"), check))
    for text in texts:
        if text.startswith("{") and '"prompt"' in text:
            check(text.encode())
            both = _json(text.encode(), "is a picture whose graph is not JSON")
            inner = both.get("prompt")
            if isinstance(inner, str):
                check(inner.encode())
                inner = _json(inner.encode(), "is a picture whose graph is not JSON")
            ui = both.get("workflow")
            return GraphFile(graph=inner, ui=ui if isinstance(ui, dict) else None)
    return None


def _ui(text: bytes | None, check: Callable[[bytes], None]) -> Mapping[str, Any] | None:
    """Return the editor's graph beside one in API format, which is what counts."""
    if text is None:
        return None
    check(text)
    try:
        read = _json(text, "is a picture whose editor graph is not JSON")
    except BadInput:
        return None
    return read if isinstance(read, dict) else None


def _texts(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Walk a PNG's texts: name, and the text in UTF-8 (PNG specification, section 11.3.3)."""
    at = len(_PNG)
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + size]
        at += size + 12
        name, _, rest = body.partition(b"\0")
        try:
            if kind in (b"tEXt", b"comf"):
                yield name.decode("latin-1"), rest.decode("latin-1").encode()
            elif kind == b"zTXt":
                yield name.decode("latin-1"), _unpacked(rest[1:]).decode("latin-1").encode()
            elif kind == b"iTXt":
                text = rest[2:].split(b"\0", 2)[-1]
                yield name.decode("latin-1"), _unpacked(text) if rest[:1] == b"\1" else text
        except zlib.error:
            continue


def _unpacked(packed: bytes) -> bytes:
    text = zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES + 1)
    if len(text) > MAX_TEXT_BYTES:
        raise BadInput(f"is a PNG whose text unpacks to more than {MAX_TEXT_BYTES} bytes")
    return text
