"""How requests get to the fleet: through httpx, with or without an event loop.

Everything else of the client is written once, as coroutines over a :class:`Transport`. Nothing of the
blocking one ever suspends, so :func:`finished` runs such a coroutine to its end by itself, without an event
loop.
"""

import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

import httpx

T = TypeVar("T")


class StreamedBody(Protocol):
    """An answer whose body is still to be read."""

    @property
    def head(self) -> httpx.Response:
        """Status and headers; its body only after :meth:`read`."""

    async def read(self) -> bytes:
        """Return the whole body."""

    def lines(self) -> AsyncIterator[str]:
        """Yield its lines as they come."""

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield its bytes as they come."""


class Transport(Protocol):
    """What the client needs of its surroundings."""

    async def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request and return the answer with its body."""

    def stream(self, path: str, **more: Any) -> AbstractAsyncContextManager[StreamedBody]:
        """Open a GET whose body is read bit by bit."""

    async def pause(self, seconds: float) -> None:
        """Let time pass."""

    async def aside(self, work: Callable[[], T]) -> T:
        """Return what a function returns that reads or writes files."""

    async def tell(self, listener: Callable[..., Any], *what: Any) -> None:
        """Call a function of the caller's; only with an event loop, it may be a coroutine function."""

    async def close(self) -> None:
        """Close all connections."""


class _Blocked:
    def __init__(self, answer: httpx.Response) -> None:
        self.head = answer

    async def read(self) -> bytes:
        return self.head.read()

    async def lines(self) -> AsyncIterator[str]:
        for line in self.head.iter_lines():
            yield line

    async def pieces(self) -> AsyncIterator[bytes]:
        for piece in self.head.iter_bytes():
            yield piece


class BlockingTransport:
    """Waits in the caller's thread."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    async def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request and return the answer with its body."""
        return self._http.request(method, path, **more)

    @asynccontextmanager
    async def stream(self, path: str, **more: Any) -> AsyncIterator[StreamedBody]:
        """Open a GET whose body is read bit by bit."""
        with self._http.stream("GET", path, **more) as answer:
            yield _Blocked(answer)

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop

    async def aside(self, work: Callable[[], T]) -> T:
        """Return what a function returns that reads or writes files."""
        return work()

    async def tell(self, listener: Callable[..., Any], *what: Any) -> None:
        """Call a function of the caller's."""
        if inspect.isawaitable(made := listener(*what)):
            if inspect.iscoroutine(made):
                made.close()
            raise TypeError("a coroutine function needs AsyncFleetClient")

    async def close(self) -> None:
        """Close all connections."""
        self._http.close()


class _Awaited:
    def __init__(self, answer: httpx.Response) -> None:
        self.head = answer

    async def read(self) -> bytes:
        return await self.head.aread()

    async def lines(self) -> AsyncIterator[str]:
        async for line in self.head.aiter_lines():
            yield line

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self.head.aiter_bytes():
            yield piece


class AwaitedTransport:
    """Waits in an event loop, asyncio's or trio's."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request and return the answer with its body."""
        return await self._http.request(method, path, **more)

    @asynccontextmanager
    async def stream(self, path: str, **more: Any) -> AsyncIterator[StreamedBody]:
        """Open a GET whose body is read bit by bit."""
        async with self._http.stream("GET", path, **more) as answer:
            yield _Awaited(answer)

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        import anyio

        await anyio.sleep(seconds)

    async def aside(self, work: Callable[[], T]) -> T:
        """Return what a function returns that reads or writes files; it runs in a thread."""
        from anyio import to_thread

        return await to_thread.run_sync(work)

    async def tell(self, listener: Callable[..., Any], *what: Any) -> None:
        """Call a function of the caller's, or await it."""
        if inspect.isawaitable(made := listener(*what)):
            await made

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


def finished(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return what it returns."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("a blocking client was given a coroutine that waits for an event loop")


def stepped(work: AsyncGenerator[T, None]) -> Iterator[T]:
    """Yield what an asynchronous generator yields that never suspends."""
    try:
        while True:
            try:
                one = finished(work.__anext__())
            except StopAsyncIteration:
                return
            yield one
    finally:
        finished(work.aclose())
