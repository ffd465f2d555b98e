"""A limited number of places, for which others wait in line, or of bytes."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from comfy_fleet.timeouts import Timeout


class NoTurn(Exception):
    """The line was too long, or no place became free in time."""


class LineFull(NoTurn):
    """Too many of the same owner wait already."""


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


class FairTurns:
    """A limited number of places that owners share: of those who wait, each has a turn before one has two.

    Args:
        places: How many there are.
        each: How many of them one owner may have at the same time.
        line: How many of one owner may wait at the same time.
        wait_s: Longest wait for a place; None: any.
    """

    def __init__(self, places: int, *, each: int, line: int, wait_s: float | None) -> None:
        self._free = places
        self._each = each
        self._line = line
        self._wait_s = wait_s
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def take(self, owner: str) -> None:
        """Wait for a place; :meth:`give` has to follow.

        Raises:
            LineFull: Too many of this owner wait already.
            NoTurn: It took too long.
        """
        if self._free and self._held[owner] < self._each:  # nobody waits whom it could be given to
            self._hold(owner)
            return
        line = self._waiting.setdefault(owner, deque())
        if len(line) >= self._line:
            raise LineFull
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            async with Timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give(owner)  # it came at the same moment
            elif turn in line:
                line.remove(turn)
                if not line:
                    del self._waiting[owner]
            if isinstance(error, TimeoutError):
                raise NoTurn from None
            raise

    def give(self, owner: str) -> None:
        """Give a place back."""
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        while self._free and (following := self._next()) is not None:
            line = self._waiting[following]
            turn = line.popleft()
            if not line:
                del self._waiting[following]
            if not turn.done():  # else who waited is being canceled
                turn.set_result(None)
                self._hold(following)
                if line:
                    self._waiting.move_to_end(following)

    @asynccontextmanager
    async def of(self, owner: str) -> AsyncIterator[None]:
        """Have a place for a while; raises as :meth:`take`."""
        await self.take(owner)
        try:
            yield
        finally:
            self.give(owner)

    def _next(self) -> str | None:
        return next((owner for owner in self._waiting if self._held[owner] < self._each), None)

    def _hold(self, owner: str) -> None:
        self._free -= 1
        self._held[owner] += 1


class SharedRoom:
    """A number of bytes that owners share: each may hold half of them, or one thing of any size.

    Args:
        most: The bytes that all may hold together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()

    def take(self, owner: str, size: int) -> bool:
        """Return whether there is room for so many bytes of an owner; :meth:`give` has to follow then."""
        own, total = self._held[owner], self._held.total()
        if (own and own + size > self._most // 2) or (total and total + size > self._most):
            return False
        self._held[owner] += size
        return True

    def give(self, owner: str, size: int) -> None:
        """Give them back."""
        self._held[owner] -= size
        if not self._held[owner]:
            del self._held[owner]
