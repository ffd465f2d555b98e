"""A limited number of places: others wait in line, but not too many and not too long."""

import asyncio
from types import TracebackType

from comfy_fleet.timeouts import Timeout


class NoTurn(Exception):
    """The line was too long, or no place became free in time."""


class Turns:
    """A limited number of places, given in the order of requests.

    Args:
        places: How many there are.
        wait_s: Longest wait for a place.
        line: How many may wait at the same time; None: any number.
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
            await self._free.acquire()  # at once, without a turn of the event loop
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
