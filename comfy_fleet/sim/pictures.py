"""Draws what a simulated node "generates": parameters, in words and in colours.

The picture depends on every note it is given, compresses well and is drawn in about a millisecond, so
that a benchmark measures the fleet and not Pillow.
"""

import hashlib
import json
import struct
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

GRID = 8  # coloured squares across
SMALL = 128  # pictures below this many pixels stay unmarked: tests and previews read their colours
TEXT_INPUTS = ("text", "prompt", "value", "string")
SEED_INPUTS = ("seed", "noise_seed")
MAX_CAPTION = 200
MAX_TEXT = 600  # characters of a prompt that are drawn
PLAIN_AREA = 1 << 16  # bigger pictures are saved with less effort
COLOUR_TYPES = {"L": 0, "RGB": 2, "RGBA": 6}  # of the PNG format


class Painter:
    """Draws for one node.

    Args:
        name: The node's name.
        stamp: Whether saved pictures are marked.
    """

    def __init__(self, name: str, *, stamp: bool = True) -> None:
        self._name = name
        self._stamp = stamp

    @cached_property
    def _font(self) -> Any:
        return ImageFont.load_default(14)

    def generate(self, notes: Mapping[str, str], width: int, height: int, index: int = 0) -> Image.Image:
        """Draw a picture that shows its notes and depends on them.

        Args:
            notes: What made it; ``prompt`` is drawn first.
            width: In pixels.
            height: In pixels.
            index: Place in the batch.
        """
        digest = hashlib.shake_128(json.dumps([dict(notes), width, height, index], sort_keys=True).encode())
        colours = digest.digest(GRID * GRID * 3)
        # Dark colours, so that white text stays readable on them.
        squares = Image.frombytes("RGB", (GRID, GRID), bytes(value // 2 for value in colours))
        picture = squares.resize((width, height), Image.Resampling.NEAREST)
        if min(width, height) < SMALL // 2:
            return picture
        draw = ImageDraw.Draw(picture)
        lines = [f"SIMULATED on {self._name}", f"{width} x {height}" + (f"  #{index}" if index else "")]
        columns = max(8, width // 8)
        lines += textwrap.wrap(notes.get("prompt", "")[:MAX_TEXT], columns)
        lines += [f"{key}: {value}" for key, value in notes.items() if key != "prompt"]
        shown = lines[: max(1, height // 18 - 1)]
        draw.multiline_text((6, 4), "\n".join(shown), fill="white", font=self._font, spacing=3)
        return picture

    def mark(self, picture: Image.Image, caption: str = "") -> Image.Image:
        """Return the picture with a footer that says it was not made by a GPU, and from what."""
        if not self._stamp or min(picture.size) < SMALL:
            return picture
        marked = picture.copy() if picture.mode in ("RGB", "RGBA") else picture.convert("RGB")
        draw = ImageDraw.Draw(marked)
        draw.rectangle((0, marked.height - 20, marked.width, marked.height), fill="black")
        draw.text(
            (6, marked.height - 19), f"SIMULATED on {self._name}  {caption}", fill="white", font=self._font
        )
        return marked


def caption(graph: Mapping[str, Any]) -> str:
    """Return a graph's first text and first seed, for a footer."""
    text = seed = ""
    for node in graph.values():
        for name, value in node["inputs"].items():
            if not text and name in TEXT_INPUTS and isinstance(value, str):
                text = " ".join(value[:MAX_CAPTION].split())
            if not seed and name in SEED_INPUTS and isinstance(value, int):
                seed = f"seed {value}"
    return "  ".join(filter(None, (seed, text)))


def png(picture: Image.Image, texts: Mapping[str, Any] | None = None, *, level: int = 4) -> bytes:
    """Encode a PNG with JSON text chunks, as ComfyUI does for ``prompt`` and ``workflow``."""
    if picture.width * picture.height > PLAIN_AREA and picture.mode in COLOUR_TYPES:
        return _quick_png(picture, texts or {})
    info = PngInfo()
    for key, value in (texts or {}).items():
        info.add_text(key, json.dumps(value))
    buffer = BytesIO()
    picture.save(buffer, "PNG", pnginfo=info, compress_level=level)
    return buffer.getvalue()


def _quick_png(picture: Image.Image, texts: Mapping[str, Any]) -> bytes:
    """Encode without line filters, in half of Pillow's time: big flat areas need none."""
    data = picture.tobytes()
    stride = len(data) // picture.height
    rows = b"".join(b"\0" + data[start : start + stride] for start in range(0, len(data), stride))
    head = struct.pack(">IIBBBBB", picture.width, picture.height, 8, COLOUR_TYPES[picture.mode], 0, 0, 0)
    chunks = [(b"IHDR", head)]
    chunks += [
        (b"tEXt", f"{key}\0{json.dumps(value)}".encode("latin-1", "replace")) for key, value in texts.items()
    ]
    chunks += [(b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    made = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        made += [
            struct.pack(">I", len(content)),
            kind,
            content,
            struct.pack(">I", zlib.crc32(kind + content)),
        ]
    return b"".join(made)


def animation(pictures: Sequence[Image.Image], kind: str, duration: int, texts: Mapping[str, Any]) -> bytes:
    """Encode a moving PNG or WebP with JSON texts where ComfyUI puts them.

    Args:
        pictures: The frames.
        kind: ``PNG`` or ``WEBP``.
        duration: Of a frame, in milliseconds.
        texts: Go into chunks of ComfyUI's own type behind the pixels, or into EXIF: the prompt into
            ``Model``, others into ``Make`` and the tags before it.
    """
    tag = 0x010F
    info, exif = PngInfo(), Image.Exif()
    for key, value in texts.items():
        written = json.dumps(value)
        info.add(b"comf", f"{key}\0{written}".encode("latin-1"), after_idat=True)
        exif[0x0110 if key == "prompt" else tag] = f"{key}:{written}"
        tag -= key != "prompt"
    carried: dict[str, Any] = {"pnginfo": info} if kind == "PNG" else {"exif": exif}
    buffer = BytesIO()
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=duration, **carried)
    return buffer.getvalue()


def jpeg(picture: Image.Image, longest: int = 512) -> bytes:
    """Encode a JPEG preview."""
    small = picture.convert("RGB")
    small.thumbnail((longest, longest))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
