"""How a dispatcher's death is noticed before its leases expire."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class LifeLine(Protocol):
    """A connection that is open for as long as a dispatcher lives, and that its runs name.

    Whoever sees that it is closed may take those runs over once they have not been renewed for a while, see
    :meth:`comfy_fleet.ports.runs.RunStore.take_over`.

    Attributes:
        id: What runs name it by.
    """

    id: str

    def held(self) -> AbstractAsyncContextManager[Any]:
        """Hold it for as long as the block lasts."""

    def unbroken_since(self) -> float | None:
        """Return since when others have been able to see it without a break (monotonic seconds).

        None: they can't, as far as is known.
        """
