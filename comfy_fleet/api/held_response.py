"""Answers whose bytes count as held in memory until the client has taken them."""

import weakref
from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PART = 256 * 1024


class HeldResponse(Response):
    """Sends a body part by part, so that it is sent once the client has taken nearly all of it.

    Args:
        body: The body.
        status: The status.
        headers: The headers, the length included.
        done: Called once, when the body is sent, or the answer is given up.
    """

    def __init__(
        self, body: bytes | memoryview, status: int, headers: Mapping[str, str], done: Callable[[], object]
    ) -> None:
        super().__init__(body, status, headers)
        self._done = weakref.finalize(self, done)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            view = memoryview(self.body)
            for at in range(0, len(view), _PART):
                part = bytes(view[at : at + _PART])
                await send({"type": "http.response.body", "body": part, "more_body": at + _PART < len(view)})
            if not view:
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._done()
