"""Parsers that are fed a file in pieces of any size, and what they find.

A parser is a generator that asks for bytes and is sent them. It ends when the file is whole, and raises
:class:`Unusable` for a file in which nothing must be changed. It keeps only what it takes, so its memory does
not grow with the file.
"""

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

MAX_TEXT_BYTES = 16 * 1024 * 1024
"""Most bytes of a file's texts that are looked at, packed or not."""
MAX_TEXTS = 16
"""Most texts with a graph in one file; ComfyUI and the packs write one or two."""
MAX_PARTS = 2**17
"""Most chunks or segments of a file; a picture of a gigabyte has some 10,000."""


class Unusable(Exception):
    """The file is damaged, too large where it is small in practice, or of another format."""


@dataclass(frozen=True, slots=True)
class Take:
    """Asks for exactly so many bytes, in one piece."""

    count: int


@dataclass(frozen=True, slots=True)
class Skim:
    """Asks for 1 to so many bytes that the parser does not keep."""

    count: int


@dataclass(frozen=True, slots=True)
class SkimScan:
    """Asks for the code of the next marker behind the entropy-coded data of a JPEG (ITU-T T.81, B.1.1)."""


Ask: TypeAlias = Take | Skim | SkimScan
Piece: TypeAlias = bytes | memoryview
Parser: TypeAlias = Generator[Ask, Piece, None]

PutBack: TypeAlias = Callable[[str], str | None]
"""Returns a text with the submitted graph in it; None if it holds no graph that a run has posted."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace ``length`` bytes at ``offset`` of the file as it came by ``data``."""

    offset: int
    length: int
    data: bytes


class Block(Protocol):
    """A part of a file that may hold graphs."""

    def edits(self, put_back: PutBack) -> Iterable[Edit]:
        """Return what changes in the file; raises Unusable if that can't be written."""


@dataclass(slots=True)
class Found:
    """What a parser has found so far.

    Attributes:
        blocks: In the file's order.
        size: How many bytes they have together.
        packed: One of them has to be unpacked.
    """

    blocks: list[Block] = field(default_factory=list)
    size: int = 0
    packed: bool = False

    def room(self, size: int) -> None:
        """Note that a block of this size is about to be taken. Raises Unusable if that is too much."""
        self.size += size
        if self.size > MAX_TEXT_BYTES or len(self.blocks) >= MAX_TEXTS:
            raise Unusable


class PieceReader:
    """Feeds a parser.

    Attributes:
        whole: The parser has seen the whole file.
        ended: It wants nothing more, because the file is whole or unusable.
    """

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._held = bytearray()
        self._after_ff = False
        self.whole = False
        self.ended = False
        self._ask: Ask = Take(0)
        self._advance(None)

    def feed(self, piece: bytes) -> None:
        """Give the parser the next bytes of the file."""
        view = memoryview(piece)
        while view and not self.ended:
            match self._ask:
                case Take(count):
                    missing = count - len(self._held)
                    self._held += view[:missing]
                    view = view[missing:]
                    if len(self._held) == count:
                        taken = bytes(self._held)
                        self._held.clear()
                        self._advance(taken)
                case Skim(count):
                    skimmed, view = view[:count], view[count:]
                    self._advance(skimmed)
                case SkimScan():
                    view = self._skim_scan(view)

    def _skim_scan(self, view: memoryview) -> memoryview:
        if self._after_ff and view[0] not in _NO_MARKER:
            found, end = bytes(view[:1]), 1
        elif marker := _MARKER.search(view):
            found, end = marker[0][-1:], marker.end()
        else:
            self._after_ff = view[-1] == 0xFF
            return view[:0]
        self._after_ff = False
        self._advance(found)
        return view[end:]

    def _advance(self, answer: Piece | None) -> None:
        try:
            self._ask = next(self._parser) if answer is None else self._parser.send(answer)
            while self._ask == Take(0):
                self._ask = self._parser.send(b"")
        except StopIteration:
            self.whole = self.ended = True
        except Unusable:
            self.ended = True


def applied(edits: Sequence[Edit], chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a file's bytes with the edits made; these are in order and don't overlap."""
    at, left = 0, list(reversed(edits))
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            if not left or left[-1].offset >= at + len(view):
                yield chunk if len(view) == len(chunk) else bytes(view)
                at += len(view)
                break
            edit = left[-1]
            if edit.offset > at:
                yield bytes(view[: edit.offset - at])
                view = view[edit.offset - at :]
                at = edit.offset
            gone = min(len(view), edit.offset + edit.length - at)
            view = view[gone:]
            at += gone
            if at == edit.offset + edit.length:
                yield edit.data
                left.pop()


_NO_MARKER = frozenset((0x00, 0xFF, *range(0xD0, 0xD8)))
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
