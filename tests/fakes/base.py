"""What all fakes have in common."""

from collections import Counter
from typing import Any

from comfy_fleet.domain.errors import StoreDown


class Fake:
    """Counts calls, and fails when a test wants it to.

    Attributes:
        calls: How often each method was called.
        down: Every call raises StoreDown while it is set.
        troubles: What the next calls raise, one each.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.down = False
        self.troubles: list[Exception] = []

    def answer(self, method: str) -> None:
        """Begin a call."""
        self.calls[method] += 1
        if self.troubles:
            raise self.troubles.pop(0)
        if self.down:
            raise StoreDown("the store is away")


def unplayed(*_: Any, **__: Any) -> Any:
    """Stand for a method of the port that no test with a fake needs."""
    raise NotImplementedError("use the real adapter")
