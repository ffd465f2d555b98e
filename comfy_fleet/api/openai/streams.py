"""Pictures as events: previews while they are made, each picture when it is there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from comfy_fleet.api import errors
from comfy_fleet.api.deps import deps, owner, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.events import HEADERS, LiveStream
from comfy_fleet.api.openai import pictures, waits
from comfy_fleet.api.openai.bodies import PictureRequestBody
from comfy_fleet.api.openai.errors import reshaped
from comfy_fleet.api.openai.waits import MadeJobs
from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.jobs.job import Job, JobEvent, Progress
from comfy_fleet.ports.jobs import JobSnapshot
from comfy_fleet.services.job_watch import Preview, Seen, watch
from comfy_fleet.services.output_forms import OutputForm

_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
_ALIVE_S = 15.0
_QUALITIES = ("low", "medium", "high", "xhigh", "max", "auto")
_BACKGROUNDS = ("transparent", "opaque", "auto")


def check_room(request: Request) -> None:
    """Refuse a stream if as many are open as may.

    At the edge, all of them go where requests that wait go, and so they count among these, too.

    Raises:
        HttpError: 429 ``too_many_streams`` or ``too_many_waits``.
    """
    d, most = deps(request), principal(request).limits.streams
    if d.waits.total() >= d.settings.max_waits > 0:
        raise waits.too_many(request)
    if d.streams[owner(request)] >= most:
        raise HttpError(
            429,
            "too_many_streams",
            f"{most} event streams are open already: close one",
            headers={"Retry-After": "5"},
        )


@dataclass(frozen=True, kw_only=True)
class AskedStream:
    """What is asked of a stream.

    Attributes:
        name: What its events' names begin with: ``image_generation`` or ``image_edit``.
        cancels: Whether its jobs are canceled if the client hangs up.
    """

    name: str
    body: PictureRequestBody
    form: OutputForm | None
    cancels: bool


class PictureStream(LiveStream):
    """Streams until the last picture, or the first error.

    Args:
        request: The request.
        made: Its jobs.
        asked: What is asked.
    """

    def __init__(self, request: Request, made: MadeJobs, asked: AskedStream) -> None:
        super().__init__(
            deps(request),
            owner(request),
            contextlib.AsyncExitStack(),
            session=request.scope["session"],
            key=principal(request).key,
            seen=lambda: True,
        )
        request.scope["lasting"] = True
        self._request = request
        self._made = made
        self._asked = asked
        self._alone = asyncio.Lock()  # no event begins before the one before it has ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count among requests that wait, and stream."""
        with waits.counted(self._deps, f"{self._who}, streams"):
            await super().__call__(scope, receive, send)

    async def hung_up(self) -> None:
        """Cancel the jobs, if that was asked for."""
        if self._asked.cancels:
            await waits.cancel(self._request, self._made)

    async def tell(self, send: Send) -> None:
        """Send events until the last picture's."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        there = asyncio.ensure_future(waits.queued(self._deps, self._made))
        tasks = [asyncio.ensure_future(self._one(job_id, there, send)) for job_id in self._made.ids]
        try:
            await asyncio.gather(*tasks)
        except FleetError as error:
            told = {"type": "error", **orjson.loads(bytes(reshaped(errors.fleet_error(error)).body))}
            await self._send(send, b"event: error\ndata: " + orjson.dumps(told) + b"\n\n")
        finally:
            for task in (*tasks, there):
                task.cancel()
            await asyncio.gather(*tasks, there, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})

    async def _one(self, job_id: str, there: "asyncio.Future[None]", send: Send) -> None:
        """Tell of one job, once it has a record."""
        while not (await asyncio.wait({there}, timeout=_ALIVE_S))[0]:
            await self._send(send, b": still here\n\n")
        there.result()
        d = self._deps
        async with d.events.subscribe(job_id) as events:
            now = await d.jobs.snapshot(job_id)
            if now is None:
                raise _removed(job_id)
            await self._watched(now, events, send)
        job = await d.jobs.get(job_id)
        if job is None or job.removed:
            raise _removed(job_id)
        if not job.status.terminal:
            raise HttpError(503, "stopping", f"this server stops, and job {job_id} goes on")
        await self._completed(job, send)

    async def _watched(self, now: JobSnapshot, events: AsyncIterator[JobEvent], send: Send) -> None:
        d, partials = self._deps, _Partials(self._asked.body.partial_images)
        seen = watch(now, events, jobs=d.jobs, outlook=d.estimator.outlook, closing=d.closing)
        async with contextlib.aclosing(seen):
            async for some in seen:
                for one in some:
                    if (number := partials.next(one)) is not None and isinstance(one, Preview):
                        await self._send(send, self._partial(one, number))
                if not any(isinstance(one, Preview) for one in some):
                    await self._send(send, b": still here\n\n")

    async def _completed(self, job: Job, send: Send) -> None:
        found = await pictures.made(self._request, job, self._asked.form, urls=False)
        for picture in found:
            told = self._fields("completed", picture.kind or "png") | {"usage": _NO_USAGE}
            async with self._alone:
                name = f"{self._asked.name}.completed".encode()
                await send(_body(b"event: " + name + b"\n"))
                async for piece in pictures.event(self._request, picture, told):
                    await send(_body(piece))

    def _partial(self, preview: Preview, number: int) -> bytes:
        kind = str(preview.data.get("content_type", "")).removeprefix("image/")
        told = self._fields("partial_image", kind) | {
            "partial_image_index": number,
            "b64_json": preview.data.get("data_base64", ""),
        }
        return b"event: %s\ndata: %s\n\n" % (str(told["type"]).encode(), orjson.dumps(told))

    def _fields(self, what: str, kind: str) -> dict[str, Any]:
        body = self._asked.body
        return {
            "type": f"{self._asked.name}.{what}",
            "created_at": int(deps(self._request).clock()),
            "size": body.size or "auto",
            "quality": body.quality if body.quality in _QUALITIES else "auto",
            "background": body.background if body.background in _BACKGROUNDS else "auto",
            "output_format": kind,
        }

    async def _send(self, send: Send, data: bytes) -> None:
        async with self._alone:
            await send(_body(data))


def _removed(job_id: str) -> HttpError:
    return HttpError(404, "not_found", f"job {job_id} was removed before its end")


def _body(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


class _Partials:
    """Chooses previews that are as far apart as there are to be."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sent = 0
        self._progress = 0.0

    def next(self, seen: Seen) -> int | None:
        """Return the number of the preview that this is, from 0; None if it is not to be sent."""
        if isinstance(seen, Progress):
            self._progress = seen.value
        if not isinstance(seen, Preview) or self._sent == self._most:
            return None
        if self._progress < self._sent / self._most:
            return None
        self._sent += 1
        return self._sent - 1
