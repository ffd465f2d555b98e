"""The stream that tells the console's pages when to ask for their parts anew."""

import asyncio
import contextlib
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from comfy_fleet.api.deps import ApiDeps, deps, owner, principal
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.events import HEADERS, LiveStream, wire_event
from comfy_fleet.api.jobs import seen_owners
from comfy_fleet.services.live_changes import Watcher
from comfy_fleet.timeouts import Timeout

ALIVE_S = 15.0
PAUSE_S = 0.2
"""Changes that come sooner after others are told together."""


class ChangeStream(LiveStream):
    """Tells that something has changed, and how many jobs have come to which status.

    Args:
        watcher: What tells it.
    """

    def __init__(
        self,
        d: ApiDeps,
        who: str,
        subscription: contextlib.AsyncExitStack,
        watcher: Watcher,
        *,
        session: str,
        key: str,
        seen: Callable[[], bool],
    ) -> None:
        super().__init__(d, who, subscription, session=session, key=key, seen=seen)
        self._watcher = watcher

    async def tell(self, send: Send) -> None:
        """Send events until the server stops."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send(_part(b"retry: 2000\n" + wire_event("hello", {})))
        closing = asyncio.ensure_future(self._deps.closing.wait())
        try:
            while not closing.done():
                news = asyncio.ensure_future(self._news())
                await asyncio.wait({news, closing}, return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    news.cancel()
                    await asyncio.gather(news, return_exceptions=True)
                    break
                await send(_part(news.result()))
                await asyncio.sleep(PAUSE_S)
        finally:
            closing.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _news(self) -> bytes:
        try:
            async with Timeout(ALIVE_S):
                news = await self._watcher.news()
        except TimeoutError:
            return b": still here\n\n"
        jobs = {status.value: count for status, count in news.statuses.items()}
        return wire_event("change", {"nodes": news.nodes, "jobs": jobs})


def _part(body: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def live(request: Request) -> Response:
    """``GET /console/live``: Server-Sent Events; of one's own jobs, to operators of everything.

    Raises:
        HttpError: 429 ``too_many_streams``.
    """
    d, who, caller = deps(request), owner(request), principal(request)
    if request.method == "HEAD":  # nothing to keep open
        answer = Response()
        answer.raw_headers = [*HEADERS]
        return answer
    if d.streams[who] >= caller.limits.streams:
        raise HttpError(
            429,
            "too_many_streams",
            f"{caller.limits.streams} event streams are open already: close one",
            headers={"Retry-After": "5"},
        )
    whose = seen_owners(request, by_operator=True)
    subscription = contextlib.AsyncExitStack()
    return ChangeStream(
        d,
        who,
        subscription,
        subscription.enter_context(d.live.watch(whose)),
        session=request.scope["session"],
        key=caller.key,
        seen=lambda: whose is None or frozenset(d.keys.ring.seen_by(caller)).issuperset(whose),
    )


routes = [ServedRoute("/console/live", live, name="console_live", streams=True, console=True)]
