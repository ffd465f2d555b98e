"""Answers of nodes that are kept in memory for a while: as many as fit, those asked for last."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

_ENTRY_BYTES = 500
"""About what an entry takes beside its key and its answer."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class KeptAnswer(Generic[Answer]):
    """An answer.

    Attributes:
        value: What it is; None: there is nothing.
        until: When it is forgotten, by the clock of :class:`KeptAnswers`.
        size: In bytes, with its key.
    """

    value: Answer | None
    until: float
    size: int


class KeptAnswers(Generic[Answer]):
    """The answers by what was asked.

    Args:
        most_bytes: Of all together.
        size: Returns how many bytes an answer has.
        clock: Seconds, for intervals.
    """

    def __init__(self, most_bytes: int, *, size: Callable[[Answer], int], clock: Callable[[], float]) -> None:
        self._most_bytes = most_bytes
        self._size = size
        self._clock = clock
        self._kept: OrderedDict[tuple[str, ...], KeptAnswer[Answer]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, ...]) -> KeptAnswer[Answer] | None:
        """Return an answer that is still good, if there is one; also one that says that there is nothing."""
        kept = self._kept.get(key)
        if kept is None or self._clock() >= kept.until:
            return None
        self._kept.move_to_end(key)
        return kept

    def put(
        self, key: tuple[str, ...], value: Answer | None, *, keep_s: float, most: float = float("inf")
    ) -> None:
        """Keep an answer in place of an earlier one; those asked for longest ago make room.

        Args:
            key: What was asked.
            value: The answer; None: there is nothing.
            keep_s: For how long, in seconds.
            most: Most bytes of it, with its key: a larger one is not kept.
        """
        if (former := self._kept.pop(key, None)) is not None:
            self._bytes -= former.size
        size = _ENTRY_BYTES + sum(map(len, key)) + (0 if value is None else self._size(value))
        if size > most:
            return
        self._kept[key] = KeptAnswer(value=value, until=self._clock() + keep_s, size=size)
        self._bytes += size
        while self._bytes > self._most_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].size
