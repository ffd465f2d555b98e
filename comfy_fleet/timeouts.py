"""A timeout that also works in a task that was canceled before, e.g. while it cleans up."""

import asyncio
from types import TracebackType
from typing import Self


class Timeout:
    """End a block of code after a time, as :func:`asyncio.timeout` does.

    Before Python 3.11.4, ``asyncio.timeout`` raises ``CancelledError`` instead of ``TimeoutError`` in a task
    that was canceled before: waits in its ``finally``, such as for the end of a child, would break off.
    Debian 12 has 3.11.2.

    Args:
        delay_s: Seconds; None waits for ever.
    """

    def __init__(self, delay_s: float | None) -> None:
        self._inner = asyncio.timeout(delay_s)  # noqa: TID251
        self._before = 0

    def expired(self) -> bool:
        """Return whether the time was up before the block ended."""
        return self._inner.expired()

    async def __aenter__(self) -> Self:
        self._before = _cancel_requests()
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the block.

        Raises:
            TimeoutError: The time is up, and nobody else canceled the task meanwhile.
        """
        await self._inner.__aexit__(kind, error, trace)
        if (
            kind is not None
            and issubclass(kind, asyncio.CancelledError)
            and self.expired()
            and _cancel_requests() <= self._before
        ):
            raise TimeoutError from error


def _cancel_requests() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0
