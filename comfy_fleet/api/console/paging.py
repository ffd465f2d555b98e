"""Pages of a list by their number."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Which part of a list is shown.

    Attributes:
        total: Length of the list.
        each: How much one page shows.
        number: Which is asked for, from 1.
    """

    total: int
    each: int
    number: int = 1

    @property
    def count(self) -> int:
        """How many there are, at least one."""
        return max(1, -(-self.total // self.each))

    @property
    def shown(self) -> int:
        """Which is shown: the last one, if a later one is asked for."""
        return min(self.number, self.count)

    @property
    def first(self) -> int:
        """Where it begins in the list, from 0."""
        return (self.shown - 1) * self.each

    @property
    def last(self) -> int:
        """Where the next one would begin."""
        return min(self.total, self.first + self.each)


def number(text: str) -> int:
    """Return a page's number out of a query; 1 if it is none."""
    return max(1, int(text)) if re.fullmatch("[0-9]{1,6}", text) else 1
