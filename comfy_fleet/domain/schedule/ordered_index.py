"""Names in the order of their keys: what a sorted set is in Redis, with the same order of equal keys."""

from bisect import bisect_left, insort
from itertools import islice
from typing import TypeAlias

BLOCK = 512
"""Most entries in one block; two thirds of that cost least with 100,000 entries."""

Entry: TypeAlias = tuple[float, str]


class OrderedIndex:
    """Each name once, sorted by its key, equal keys by name.

    The entries are in sorted blocks, so that no change moves more than a block.
    """

    __slots__ = ("_blocks", "_keys", "_lasts")

    def __init__(self) -> None:
        self._keys: dict[str, float] = {}
        self._blocks: list[list[Entry]] = [[]]
        self._lasts: list[Entry] = []  # the last entry of each block, if there is more than one block

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def key_of(self, name: str) -> float | None:
        """Return the key of a name, or None if it is not here."""
        return self._keys.get(name)

    def first(self) -> Entry | None:
        """Return the lowest key and its name, or None."""
        block = self._blocks[0]
        return block[0] if block else None

    def head(self, count: int) -> list[Entry]:
        """Return the first entries, at most so many."""
        block = self._blocks[0]
        if len(block) >= count or len(self._blocks) == 1:
            return block[:count]
        return list(islice((entry for block in self._blocks for entry in block), count))

    def before(self, name: str) -> int:
        """Return how many names come before one that is here.

        Raises:
            KeyError: It is not here.
        """
        entry = (self._keys[name], name)
        at = bisect_left(self._lasts, entry)
        return sum(map(len, self._blocks[:at])) + bisect_left(self._blocks[at], entry)

    def at(self, place: int) -> str:
        """Return the name at a place, from 0.

        Raises:
            IndexError: There are fewer.
        """
        for block in self._blocks:
            if place < len(block):
                return block[place][1]
            place -= len(block)
        raise IndexError("there are fewer entries")

    def below(self, key: float) -> int:
        """Return how many entries have a lower key."""
        entry = (key, "")
        at = bisect_left(self._lasts, entry)
        if at == len(self._blocks):
            return len(self._keys)
        return sum(map(len, self._blocks[:at])) + bisect_left(self._blocks[at], entry)

    def put(self, name: str, key: float) -> None:
        """Add a name, or move it."""
        keys = self._keys
        old = keys.get(name)
        if old is not None:
            if old == key:
                return
            self._take((old, name))
        keys[name] = key
        blocks, lasts = self._blocks, self._lasts
        entry = (key, name)
        if not lasts:
            block, at = blocks[0], 0
            insort(block, entry)
        else:
            at = min(bisect_left(lasts, entry), len(lasts) - 1)
            block = blocks[at]
            insort(block, entry)
            lasts[at] = block[-1]
        if len(block) > BLOCK:
            half = block[BLOCK // 2 :]
            del block[BLOCK // 2 :]
            blocks.insert(at + 1, half)
            if not lasts:
                lasts.append(half[-1])
            lasts.insert(at, block[-1])

    def discard(self, name: str) -> None:
        """Remove a name if it is here."""
        key = self._keys.pop(name, None)
        if key is not None:
            self._take((key, name))

    def _take(self, entry: Entry) -> None:
        """Remove an entry that is in one of the blocks."""
        blocks, lasts = self._blocks, self._lasts
        if not lasts:
            block = blocks[0]
            del block[bisect_left(block, entry)]
            return
        at = bisect_left(lasts, entry)
        block = blocks[at]
        del block[bisect_left(block, entry)]
        if block:
            lasts[at] = block[-1]
            return
        del blocks[at], lasts[at]
        if len(blocks) == 1:
            lasts.clear()
