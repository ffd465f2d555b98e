"""So many at once: the others wait in line, neither too many of them nor too long."""

import asyncio
from types import TracebackType

from comfy_fleet.timeouts import Timeout


class NoTurn(Exception):
    """The line was too long, or nobody left in time."""


class Turns:
    """A bounded number of places, given in the order in which they were asked for.

    Args:
        places: How many there are.
        wait_s: Longest time that somebody waits for one.
        line: Most that may wait at the same time; None: any number.
    """

    def __init__(self, places: int, *, wait_s: float, line: int | None = None) -> None:
        self.places = places
        self._wait_s = wait_s
        self._line = line
        self._waiting = 0
        self._free = asyncio.Semaphore(places)

    async def take(self) -> None:
        """Wait for a place; :meth:`give` has to follow.

        Raises:
            NoTurn: Too many wait already, or it took too long.
        """
        if not self._free.locked():
            await self._free.acquire()  # at once, without a step of the loop
            return
        if self._line is not None and self._waiting >= self._line:
            raise NoTurn
        self._waiting += 1
        try:
            async with Timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise NoTurn from None
        finally:
            self._waiting -= 1

    def give(self) -> None:
        """Give a place back."""
        self._free.release()

    async def __aenter__(self) -> None:
        await self.take()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give()
