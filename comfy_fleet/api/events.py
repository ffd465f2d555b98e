"""A job's live events as Server-Sent Events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import StatusEventAnswer
from comfy_fleet.api.deps import ApiDeps, deps, links, owner, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.jobs import read_job
from comfy_fleet.api.links import Links, Signing
from comfy_fleet.domain.jobs.job import Job, JobEvent, Output, Progress
from comfy_fleet.ports.jobs import JobSnapshot
from comfy_fleet.services.job_queries import is_id, is_seen, no_job
from comfy_fleet.services.job_watch import Alive, Preview, Seen, Status, watch
from comfy_fleet.services.session_watch import EVERY_S
from comfy_fleet.timeouts import Timeout

GOODBYE_S = 1.0
"""How long a client that may be reading too slowly has to be told why its stream ends."""

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


async def open_stream(request: Request, job_id: str) -> Response:
    """Return the stream of one of the caller's jobs.

    Raises:
        NotFound: The caller has no such job.
        HttpError: 429 ``too_many_streams``.
    """
    d, who, caller = deps(request), owner(request), principal(request)
    most = caller.limits.streams
    if request.method == "HEAD":  # nothing to keep open
        await read_job(request, job_id)
        answer = Response()
        answer.raw_headers = [*HEADERS]
        return answer
    expires_at: float | None = request.scope.get("signed")
    to, left_s = links(request), None
    if expires_at is not None:  # what the stream names can be read as the stream itself can
        to = to.signed(Signing(urls=d.signed_urls, owner=who, expires_at=expires_at))
        left_s = max(0.0, expires_at - d.clock())
        who = f"{who}, signed"  # people on an owner's pages don't take the owner's own streams
    if d.streams[who] >= most:
        await read_job(request, job_id)
        raise HttpError(
            429,
            "too_many_streams",
            f"{most} event streams are open already: close one, or poll the job",
            headers={"Retry-After": "5"},
        )
    if not is_id(job_id):
        raise no_job(job_id)
    async with contextlib.AsyncExitStack() as subscription:
        # Subscribed to first, so that one look at the record tells both whose it is and how far it is.
        events = await subscription.enter_async_context(d.events.subscribe(job_id))
        now = await d.jobs.snapshot(job_id)
        if now is None or not is_seen(now.job, d.keys.ring.seen_by(caller)):
            raise no_job(job_id)
        return EventStream(
            d,
            who,
            now,
            events,
            subscription.pop_all(),
            to,
            session=request.scope["session"],
            key=caller.key,
            seen=lambda: is_seen(now.job, d.keys.ring.seen_by(caller)),
            left_s=left_s,
        )


class LiveStream(Response):
    """Streams until there is nothing more to tell, the client's disconnect or sign-out, or the server's end.

    Args:
        d: The services.
        who: Whose streams it is counted among.
        subscription: Is closed at the end.
        session: The session that it ends with, if there is one.
        key: The key that it ends with, if there is one.
        seen: Returns whether the caller may still see what it tells of: a tenant may be shared no longer.
        left_s: Seconds after which its URL holds no more; None: it has no end.
    """

    def __init__(
        self,
        d: ApiDeps,
        who: str,
        subscription: contextlib.AsyncExitStack,
        *,
        session: str,
        key: str,
        seen: Callable[[], bool],
        left_s: float | None = None,
    ) -> None:
        super().__init__()
        self._deps = d
        self._who = who
        self._subscription = subscription
        self._session = session
        self._left_s = left_s
        self._key = key
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames; a client that goes away ends it at once."""
        async with self._subscription:
            await self._stream(receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        streams = self._deps.streams
        streams[self._who] += 1
        with self._deps.session_watch.follow(self._session, self._key) as signed_out:
            telling = asyncio.ensure_future(self.tell(send))
            left = asyncio.ensure_future(_left(receive))
            ends = {
                b"signed out": asyncio.ensure_future(signed_out.wait()),
                b"this URL has expired": asyncio.ensure_future(_over(self._left_s)),
                b"this is no longer shared": asyncio.ensure_future(_hidden(self._seen)),
            }
            others = (left, *ends.values())
            try:
                await asyncio.wait({telling, *others}, return_when=asyncio.FIRST_COMPLETED)
                if telling.done():
                    telling.result()
            finally:
                for task in (telling, *others):
                    task.cancel()
                await asyncio.gather(telling, *others, return_exceptions=True)
                try:
                    why = next((why for why, end in ends.items() if not end.cancelled()), None)
                    if telling.cancelled() and why is not None:
                        await _goodbye(send, why)
                    elif telling.cancelled() and not left.cancelled() and not self._deps.closing.is_set():
                        await self.hung_up()
                finally:  # until then the connection counts
                    streams[self._who] -= 1
                    if not streams[self._who]:
                        del streams[self._who]

    async def tell(self, send: Send) -> None:
        """Send an answer's start, and all of its body."""
        raise NotImplementedError

    async def hung_up(self) -> None:
        """Do what is to be done when the client is gone before the end."""


class EventStream(LiveStream):
    """Streams until the job's last status.

    Args:
        now: The job as it is now.
        events: What happens to it from now on.
        to: Makes the URLs in what is told.
    """

    def __init__(
        self,
        d: ApiDeps,
        who: str,
        now: JobSnapshot,
        events: AsyncIterator[JobEvent],
        subscription: contextlib.AsyncExitStack,
        to: Links,
        *,
        session: str,
        key: str,
        seen: Callable[[], bool],
        left_s: float | None = None,
    ) -> None:
        super().__init__(d, who, subscription, session=session, key=key, seen=seen, left_s=left_s)
        self._now = now
        self._events = events
        self._links = to

    async def tell(self, send: Send) -> None:
        """Send frames until the job's end."""
        d = self._deps
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        job = self._now.job
        seen = watch(self._now, self._events, jobs=d.jobs, outlook=d.estimator.outlook, closing=d.closing)
        async with contextlib.aclosing(seen):
            async for some in seen:
                body = b"".join(frame(one, job, self._links) for one in some)
                one = some[-1]
                last = isinstance(one, Status) and one.status.terminal  # the end comes with it, not after it
                await send({"type": "http.response.body", "body": body, "more_body": not last})
                if last:
                    return
        await send({"type": "http.response.body", "body": b""})


async def _goodbye(send: Send, why: bytes) -> None:
    with contextlib.suppress(TimeoutError):  # it may wait behind what is not read
        async with Timeout(GOODBYE_S):
            await send({"type": "http.response.body", "body": b": " + why + b"\n\n"})


async def _over(left_s: float | None) -> None:
    async with Timeout(left_s):
        await asyncio.Event().wait()


async def _hidden(seen: Callable[[], bool]) -> None:
    while seen():  # noqa: ASYNC110 - what a refresh of all keys has changed
        await asyncio.sleep(EVERY_S)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def frame(seen: Seen, job: Job, to: Links) -> bytes:
    """Return one event in the wire format."""
    match seen:
        case Alive():
            return b": still here\n\n"
        case Status():
            status: StatusEventAnswer = {"status": seen.status, "queue_position": seen.queue_position}
            if (estimate := serialize.estimate(seen.end)) is not None:
                status["estimate"] = estimate
            return wire_event("status", status)
        case Progress():
            return wire_event("progress", serialize.progress(seen))
        case Preview():
            return wire_event("preview", dict(seen.data))
        case Output():
            return wire_event("output", serialize.output(seen, job.id, job.expires_at, to))


def wire_event(name: str, data: Mapping[str, Any]) -> bytes:
    """Return an event in the wire format."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))
