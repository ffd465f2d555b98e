"""EXIF: texts with graphs in WebP and JPEG (CIPA DC-008; TIFF 6.0, section 2).

Seen in the wild: ``prompt:{...}`` in ``Model`` (ComfyUI) or ``Prompt:{...}`` in ``Make`` (several packs, some
in UTF-8), and ``{"prompt": {...}, "workflow": {...}}`` in ``UserComment``.

A text is written over the old one, or behind everything else if it is longer, so that nothing else moves.
"""

import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from comfy_fleet.domain.graphs.pictures.parsing import MAX_TEXTS, Edit, PutBack, Unusable

PREFIX = b"Exif\0\0"
"""Precedes the TIFF header in JPEG; some writers put it into WebP as well."""

Frame: TypeAlias = Callable[[bytes], list[Edit] | None]
"""Returns the edits of a file whose EXIF is to become these bytes; None if they are too many for it."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_FOLDERS = frozenset((0x8769, 0x8825, 0xA005))  # Exif, GPS, interoperability
_MAX_FOLDERS, _MAX_ENTRIES = 16, 1000
_USER_COMMENT = 0x9286
_BYTE, _ASCII, _LONG, _UNDEFINED = 1, 2, 4, 7
_OF_COMMENT = frozenset((_BYTE, _ASCII, _UNDEFINED))  # Pillow writes bytes
_CHARSETS = (b"ASCII\0\0\0", b"UNICODE\0", bytes(8))


@dataclass(frozen=True, slots=True)
class ExifText:
    """A text of some length.

    Attributes:
        entry: Where its entry is.
        start: Where its bytes are, behind the character code of a comment.
        size: Their number.
        head: The character code.
        encoding: Of the text.
        text: Without the null bytes at its end.
    """

    entry: int
    start: int
    size: int
    head: bytes
    encoding: str
    text: str


@dataclass(frozen=True, slots=True)
class ExifBlock:
    """EXIF as it stands in a file; ``frame`` knows where."""

    data: bytes
    frame: Frame

    def edits(self, put_back: PutBack) -> Iterator[Edit]:
        """See :meth:`Block.edits`."""
        new = rewritten(self._tiff, put_back)
        if new is not None:
            edits = self.frame(self.data[: -len(self._tiff)] + new)
            if edits is None:
                raise Unusable
            yield from edits

    def texts(self) -> list[str]:
        """Return all its texts; none if it is damaged."""
        try:
            return [text.text for text in read(self._tiff)[1]]
        except Unusable:
            return []

    @property
    def _tiff(self) -> bytes:
        return self.data.removeprefix(PREFIX)


def rewritten(tiff: bytes, put_back: PutBack) -> bytes | None:
    """Return the EXIF with graphs put back; None if there are none, or if it is damaged."""
    try:
        order, found = read(tiff)
    except Unusable:
        return None
    changed = [
        (text, text.head + new.encode(text.encoding))
        for text in found
        if (new := put_back(text.text)) is not None
    ]
    if not changed or len(changed) > MAX_TEXTS:
        return None
    result = bytearray(tiff)
    for text, data in changed:
        written = data if text.head else data + b"\0"
        result[text.start : text.start + text.size] = bytes(text.size)
        start = text.start
        if len(written) > text.size:
            result += bytes(len(result) % 2)
            start = len(result)
            result += written
        else:
            result[start : start + len(written)] = written
        struct.pack_into(f"{order}II", result, text.entry + 4, len(written), start)
    return bytes(result)


def read(tiff: bytes) -> tuple[str, list[ExifText]]:
    """Return the byte order, as :mod:`struct` writes it, and all texts of more than four bytes.

    Raises:
        Unusable: Something is not where it should be, or a text shares its bytes with something else.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise Unusable
    found: list[ExifText] = []
    used: list[tuple[int, int]] = [(0, 8)]
    try:
        folders = [struct.unpack_from(f"{order}I", tiff, 4)[0]]
        for at in folders:  # which grows
            (count,) = struct.unpack_from(f"{order}H", tiff, at)
            if len(folders) > _MAX_FOLDERS or count > _MAX_ENTRIES:
                raise Unusable
            end = at + 2 + 12 * count
            used.append((at, end))
            for entry in range(at + 2, end, 12):
                tag, kind, length, value = struct.unpack_from(f"{order}HHII", tiff, entry)
                size = length * _SIZES.get(kind, 0)
                if tag in _FOLDERS and kind == _LONG and length == 1:
                    folders.append(value)
                elif size > 4:
                    used.append((value, value + size))
                    if kind == _ASCII or (tag == _USER_COMMENT and kind in _OF_COMMENT):
                        found.append(_text(tiff[value : value + size], entry, value, kind, order))
            if tiff[end : end + 4] not in (b"", bytes(4)):
                folders.append(struct.unpack_from(f"{order}I", tiff, end)[0])
    except struct.error:
        raise Unusable from None
    used.sort()
    if used[-1][1] > len(tiff) or any(one[1] > other[0] for one, other in itertools.pairwise(used)):
        raise Unusable
    return order, found


def _text(raw: bytes, entry: int, start: int, kind: int, order: str) -> ExifText:
    head = raw[:8] if kind != _ASCII and raw[:8] in _CHARSETS else b""
    body = raw[len(head) :]
    if head == b"UNICODE\0":
        # Its byte order is not said; a graph begins with an ASCII character in either.
        encoding = "utf-16-be" if body[:1] == b"\0" or (order == ">" and body[1:2] != b"\0") else "utf-16-le"
    else:
        encoding = "utf-8"
    text = body.decode(encoding, errors="replace").rstrip("\0")
    return ExifText(entry=entry, start=start, size=len(raw), head=head, encoding=encoding, text=text)
