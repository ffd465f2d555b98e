"""Find out, while a file passes, what must change in it so that it carries the graph as submitted."""

import struct
from collections.abc import Sequence
from functools import partial

from comfy_fleet.domain.graphs.pictures import jpeg, png, webp
from comfy_fleet.domain.graphs.pictures.parsing import Edit, Found, Parser, PieceReader, Take, Unusable
from comfy_fleet.domain.graphs.pictures.submitted import SubmittedGraph

_QUICK_BYTES = 64 * 1024


class PictureRestorer:
    """Is fed a file, and says at its end what to change.

    Only whole pictures are changed: one that is damaged, cut off or of another format stays as it is. Never
    raises; holds at most :data:`MAX_TEXT_BYTES` of the file.

    Args:
        submitted: The graph that the picture is to carry.
    """

    def __init__(self, submitted: SubmittedGraph) -> None:
        self._submitted = submitted
        self._found = Found()
        self._reader = PieceReader(parse(self._found))

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file; nothing is done for a file that is no picture."""
        self._reader.feed(chunk)

    @property
    def quick(self) -> bool:
        """Whether :meth:`edits` takes less than about a millisecond."""
        return not self._found.blocks or (self._found.size <= _QUICK_BYTES and not self._found.packed)

    def edits(self) -> Sequence[Edit]:
        """Return what to change in the file that was fed, in its order; empty: nothing."""
        if not self._reader.whole:
            return ()
        for compact in (False, True):  # a segment of a JPEG has little room
            put_back = partial(self._submitted.put_back, compact=compact)
            try:
                return [edit for block in self._found.blocks for edit in block.edits(put_back)]
            except Unusable:
                continue
        return ()


def parse(found: Found) -> Parser:
    """Parse a picture of any kind that may carry a graph."""
    start = bytes((yield Take(3)))
    if start == jpeg.START:
        yield from jpeg.parse(found)
    elif start == png.SIGNATURE[:3]:
        if (yield Take(5)) != png.SIGNATURE[3:]:
            raise Unusable
        yield from png.parse(found)
    elif start == b"RIF":
        rest = bytes((yield Take(9)))
        if rest[:1] != b"F" or rest[5:] != b"WEBP":
            raise Unusable
        yield from webp.parse(struct.unpack("<I", rest[1:5])[0], found)
    else:
        raise Unusable
