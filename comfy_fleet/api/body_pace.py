"""A request's body on its way in: it must keep coming, and none is left half read.

HAProxy limits the time for a request's head, and a client's silence; but a byte now and then satisfies it for
ever. Such a client would occupy a task, a connection, and memory for all it has sent.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from comfy_fleet.api.errors import HttpError
from comfy_fleet.domain.limits import least
from comfy_fleet.domain.principal import Principal
from comfy_fleet.timeouts import Timeout


@dataclass(frozen=True, kw_only=True)
class BodyPace:
    """How slowly a body may come.

    Attributes:
        window_s: How long the API waits in total for the next ``window_bytes`` or for the body's end. Its own
            work on the bytes does not count.
        window_bytes: See ``window_s``. With 30 s, a line of 18 kbit/s is fast enough for a body of any
            length.
        linger_s: How long the rest of an answered request's body is still read. Closing at once could take
            the answer away from a client that is still sending.
    """

    window_s: float = 30.0
    window_bytes: int = 64 * 1024
    linger_s: float = 2.0


class Incoming:
    """ASGI's ``receive`` for one request, with a :class:`BodyPace`.

    Args:
        receive: The server's.
        headers: The request's.
        pace: How slowly the body may come.
        whole: Called once the whole body is here; its exceptions reach the reader.

    Attributes:
        ended: Whether the whole body was read, or the client is gone.
    """

    def __init__(
        self, receive: Receive, headers: Headers, pace: BodyPace, whole: Callable[[], Awaitable[None]]
    ) -> None:
        self._receive = receive
        self._pace = pace
        self._whole = whole
        self._waited_s = 0.0
        self._came = 0
        self._all = 0
        self._most: tuple[int, str] | None = None
        self._announced = headers.get("content-length", "")
        self.ended = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

    def narrow(self, who: Principal) -> None:
        """Bound the body as its sender's limits say.

        Raises:
            HttpError: 413 if it is announced to be larger.
        """
        self._most = least(who.quotas, "body")
        if self._most is not None and self._announced.isdecimal():
            self._check(int(self._announced))

    def _check(self, size: int) -> None:
        if self._most is not None and size > self._most[0]:
            most, scope = self._most
            raise HttpError(
                413,
                "payload_too_large",
                f"the body is larger than {most} bytes, the {scope}'s limit 'body'",
                details={"limit": "body", "scope": scope, "most": most},
            )

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            HttpError: 408 if the body comes too slowly; 413 if it is larger than its sender's limit.
        """
        if self.ended:
            return await self._receive()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with Timeout(self._pace.window_s - self._waited_s):
                message = await self._receive()
        except TimeoutError:
            raise HttpError(408, "request_timeout", "the body comes too slowly") from None
        self._waited_s += loop.time() - began
        came = len(message.get("body", b""))
        self._came += came
        self._all += came
        self._check(self._all)
        if self._came >= self._pace.window_bytes:
            self._waited_s, self._came = 0.0, 0
        self.ended = not message.get("more_body", False)
        if self.ended and message["type"] == "http.request":
            await self._whole()
        return message

    async def discard(self) -> None:
        """Read the rest, for a moment."""
        with contextlib.suppress(TimeoutError):
            async with Timeout(self._pace.linger_s):
                while not self.ended:
                    self.ended = not (await self._receive()).get("more_body", False)
