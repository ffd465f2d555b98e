"""PNG and animated PNG: texts in ``tEXt``, ``zTXt`` and ``iTXt`` (W3C PNG, 11.3.3) and ComfyUI's ``comf``.

ComfyUI writes ``prompt`` as ``tEXt``, in animated PNGs as ``comf`` behind the pixels: the same layout under
another type, so that readers of PNG leave it alone.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from comfy_fleet.domain.graphs.pictures.exif import ExifBlock
from comfy_fleet.domain.graphs.pictures.parsing import (
    MAX_PARTS,
    MAX_TEXT_BYTES,
    Edit,
    Found,
    Parser,
    PutBack,
    Skim,
    Take,
    Unusable,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt", b"comf"))
_MAX_KEYWORD = 80  # with the null byte behind it
_MAX_SIZE = 2**31 - 1
_FRAME = 12  # bytes of a chunk around its data: length, type, CRC


@dataclass(frozen=True, slots=True)
class PngText:
    """A text chunk; ``body`` is all of its data, and ``offset`` is where its length stands."""

    offset: int
    kind: bytes
    body: bytes

    def edits(self, put_back: PutBack) -> Iterator[Edit]:
        """See :meth:`Block.edits`."""
        head, raw, packed = self._parts()
        text = _text(unpacked(raw) if packed else raw)
        if (new := put_back(text)) is not None:
            data = new.encode()
            body = head + (zlib.compress(data) if packed else data)
            yield from _Chunk(self.offset, self.kind, len(self.body))(body)

    def _parts(self) -> tuple[bytes, bytes, bool]:
        """Return what precedes the text, the text, and whether it is packed."""
        at = self.body.index(b"\0") + 1
        packed = False
        if self.kind == b"zTXt":
            at, packed = at + 1, True
        elif self.kind == b"iTXt":
            packed = self.body[at : at + 1] == b"\1"
            at += 2
            for _ in ("language", "translated keyword"):
                end = self.body.find(b"\0", at)
                if end < 0:
                    raise Unusable
                at = end + 1
        return self.body[:at], self.body[at:], packed


@dataclass(frozen=True, slots=True)
class _Chunk:
    offset: int
    kind: bytes
    size: int

    def __call__(self, body: bytes) -> list[Edit]:
        chunk = self.kind + body
        data = struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return [Edit(self.offset, self.size + _FRAME, data)]


def parse(found: Found) -> Parser:
    """Parse a PNG behind its signature. Every CRC must be right; what follows ``IEND`` does not matter."""
    at = len(SIGNATURE)
    for part in range(MAX_PARTS):
        size, kind = struct.unpack(">I4s", (yield Take(8)))
        if size > _MAX_SIZE or (part == 0) != (kind == b"IHDR"):
            raise Unusable
        crc, left = zlib.crc32(kind), size
        if kind == b"eXIf" and size <= MAX_TEXT_BYTES:
            found.room(size)
            body = bytes((yield Take(left)))
            crc, left = zlib.crc32(body, crc), 0
            found.blocks.append(ExifBlock(body, _Chunk(at, kind, size)))
        elif kind in _TEXTS and size <= MAX_TEXT_BYTES:
            body = bytes((yield Take(min(size, _MAX_KEYWORD))))
            left -= len(body)
            keyword, null, _ = body.partition(b"\0")
            if null and keyword.lower() == b"prompt":
                found.room(size)
                body += bytes((yield Take(left)))
                left = 0
                found.packed = found.packed or kind != b"tEXt"
                found.blocks.append(PngText(at, kind, body))
            crc = zlib.crc32(body, crc)
        while left:
            piece = yield Skim(left)
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
        if struct.unpack(">I", (yield Take(4))) != (crc,):
            raise Unusable
        if kind == b"IEND":
            return
        at += size + _FRAME
    raise Unusable


def unpacked(packed: bytes) -> bytes:
    """Return what ``zlib`` has packed. Raises Unusable if it is damaged or too much."""
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(packed, MAX_TEXT_BYTES + 1)
    except zlib.error:
        raise Unusable from None
    if len(text) > MAX_TEXT_BYTES or not reader.eof:
        raise Unusable
    return text


def _text(raw: bytes) -> str:
    # Latin-1 by the standard, except in iTXt; writers use UTF-8 everywhere. ComfyUI's JSON is ASCII.
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
