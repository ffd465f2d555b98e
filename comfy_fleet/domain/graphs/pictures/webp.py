"""WebP, still and animated: EXIF in a RIFF chunk, usually the last one (RFC 9649, section 2)."""

import struct
from dataclasses import dataclass

from comfy_fleet.domain.graphs.pictures.exif import ExifBlock
from comfy_fleet.domain.graphs.pictures.parsing import (
    MAX_PARTS,
    MAX_TEXT_BYTES,
    Edit,
    Found,
    Parser,
    Skim,
    Take,
    Unusable,
)

_HEAD = 12  # "RIFF", size, "WEBP"
_MAX_SIZE = 2**32 - 10


@dataclass(frozen=True, slots=True)
class _ExifChunk:
    offset: int
    size: int
    riff_size: int

    def __call__(self, exif: bytes) -> list[Edit] | None:
        old, new = self.size + self.size % 2, len(exif) + len(exif) % 2
        riff_size = self.riff_size + new - old
        if riff_size > _MAX_SIZE:
            return None
        chunk = b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
        return [Edit(4, 4, struct.pack("<I", riff_size)), Edit(self.offset, 8 + old, chunk)]


def parse(riff_size: int, found: Found) -> Parser:
    """Parse a WebP behind ``RIFF``, size and ``WEBP``; chunks must fill exactly the size that it gives."""
    at, end = _HEAD, riff_size + 8
    for _ in range(MAX_PARTS):
        if at == end:
            return
        kind, size = struct.unpack("<4sI", (yield Take(8)))
        left = size + size % 2
        if at + 8 + left > end:
            raise Unusable
        if kind == b"EXIF" and size <= MAX_TEXT_BYTES:
            if found.blocks:  # the standard allows one
                raise Unusable
            found.room(size)
            data = bytes((yield Take(size)))
            found.blocks.append(ExifBlock(data, _ExifChunk(at, size, riff_size)))
            left -= size
        at += 8 + size + size % 2
        while left:
            left -= len((yield Skim(left)))
    raise Unusable
