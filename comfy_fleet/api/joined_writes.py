"""Sends an answer's head together with the first part of its body.

Uvicorn writes them one after the other, and the event loop sends each at once. Then the edge and the client
wake up twice for each answer.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = b"HTTP/1.1 "


class JoinedWrites(asyncio.Transport):
    """A transport in front of another one; it has what uvicorn's HTTP protocol uses.

    Args:
        inner: The transport.
        soon: Calls a function in the next turn of the event loop.
    """

    def __init__(self, inner: asyncio.Transport, soon: Callable[[Callable[[], None]], object]) -> None:
        super().__init__()
        self.inner = inner
        self._soon = soon
        self._head = b""

    def write(self, data: Any) -> None:
        """Write; a head waits for what follows in this turn of the event loop."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_HEAD):
            self._head = data
            self._soon(self.flush)
            return
        self.inner.write(data)

    def flush(self) -> None:
        """Write a head that waits."""
        head, self._head = self._head, b""
        if head and not self.inner.is_closing():
            self.inner.write(head)

    def close(self) -> None:
        """Close once all is written."""
        self.flush()
        self.inner.close()

    def is_closing(self) -> bool:
        """Return whether it is closed, or will be."""
        return self.inner.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact about the connection."""
        return self.inner.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read no more for now."""
        self.inner.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self.inner.resume_reading()


class JoinedHttpProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol with :class:`JoinedWrites`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Begin."""
        super().connection_made(JoinedWrites(transport, self.loop.call_soon))

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to a websocket, which writes whole messages."""
        if isinstance(self.transport, JoinedWrites):
            self.transport.flush()
            self.transport = self.transport.inner
        super().handle_websocket_upgrade()
