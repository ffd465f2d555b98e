"""JPEG: EXIF in ``APP1`` segments before the first scan (ITU-T T.81, annex B)."""

import struct
from dataclasses import dataclass

from comfy_fleet.domain.graphs.pictures.exif import PREFIX, ExifBlock
from comfy_fleet.domain.graphs.pictures.parsing import (
    MAX_PARTS,
    Edit,
    Found,
    Parser,
    Skim,
    SkimScan,
    Take,
    Unusable,
)

START = b"\xff\xd8\xff"
"""Start of image, and the first byte of the next marker."""
_MAX_SEGMENT = 2**16 - 1
_APP1, _SCAN, _END = 0xE1, 0xDA, 0xD9
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a segment


@dataclass(frozen=True, slots=True)
class _App1:
    offset: int
    size: int

    def __call__(self, exif: bytes) -> list[Edit] | None:
        if len(exif) + 2 > _MAX_SEGMENT:
            return None
        return [Edit(self.offset, self.size, struct.pack(">H", len(exif) + 2) + exif)]


def parse(found: Found) -> Parser:
    """Parse a JPEG behind :data:`START`, up to its end marker; what follows that does not matter."""
    at, scanned = len(START), False
    for _ in range(MAX_PARTS):
        (code,) = yield Take(1)
        at += 1
        if code == 0xFF:  # fill
            continue
        while code == _SCAN or code not in _BARE:
            if code == _END:
                return
            (size,) = struct.unpack(">H", (yield Take(2)))
            if size < 2 or code == 0:
                raise Unusable
            left = size - 2
            if code == _APP1 and not scanned:
                data = bytes((yield Take(left)))
                left = 0
                if data.startswith(PREFIX):
                    found.room(len(data))
                    found.blocks.append(ExifBlock(data, _App1(at, size)))
            while left:
                left -= len((yield Skim(left)))
            at += size
            if code != _SCAN:
                break
            scanned = True
            (code,) = yield SkimScan()
        if (yield Take(1)) != b"\xff":
            raise Unusable
        at += 1
    raise Unusable
