"""Submits that are answered once the job has ended: ``Prefer: wait=60`` (RFC 7240), or ``?wait=60``.

The job is durable before the wait begins, so nothing that happens to the request, the client or this process
changes what becomes of it. While it waits, a request holds a connection and a subscription, no place among
those that the API works on.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from comfy_fleet.api import jobs, waited_picture
from comfy_fleet.api.deps import deps, let_others_in, links, owner, principal
from comfy_fleet.api.errors import HttpError, fleet_error
from comfy_fleet.api.json import json_response
from comfy_fleet.api.output_response import FormQuery
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.domain.errors import FleetError, StoreDown
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.services.job_queries import until_ended

logger = logging.getLogger(__name__)

JOB = "X-Fleet-Job"
"""The header of an answer to a submit that wanted to wait: the job's id."""
PREFER: Mapping[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`wait=SECONDS` as in the query, `respond-async`, or both (RFC 7240); others are ignored. "
    "`Preference-Applied` says what counted.",
    "schema": {"type": "string", "example": "wait=60"},
}
"""The header as OpenAPI documents have it."""
_LONGEST_S = 86_400
_PREFERENCE = re.compile(r'(?:"(?:[^"\\]|\\.)*"?|[^",])+')  # a comma in quotes ends none

Describe = Callable[[Job], Awaitable[Mapping[str, Any]]]


class WaitQuery(FormQuery):
    """How a submit is answered; the form is that of a picture, which ``Accept: image/*`` asks for."""

    wait: int | None = Field(
        None,
        ge=0,
        le=_LONGEST_S,
        description="Seconds to wait for the job's end: 200 with the finished job, or the usual answer when "
        "the time is over. At most the operator's `FLEET_MAX_WAIT_S` count. With `Accept: image/*`, or with "
        "`format`, the first picture's bytes are the answer instead of the finished job.",
    )
    cancel_on_disconnect: bool = Field(
        False,
        description="With `wait`: cancel the job if the client hangs up before it has its answer.",
    )


@dataclass(frozen=True, kw_only=True)
class SubmitWait:
    """How long one submit is to wait.

    Attributes:
        request: The submit.
        seconds: For how long; 0: not at all.
        cancels: Whether the job is canceled if the client hangs up.
        picture: Whether the first picture is to be the answer, and not the job.
        applied: The preferences that count, as ``Preference-Applied`` has them.
        later: The same of an answer that comes before the job's end.
    """

    request: Request
    seconds: float
    cancels: bool
    picture: bool = False
    applied: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request) -> "SubmitWait":
        """Read what a request says about it; the query goes before the header.

        Raises:
            HttpError: 400 if the header's time is none, or there is nothing to wait for; 422 for the query.
        """
        query = read_query(request, WaitQuery)
        preferred = _preferences(request)
        seconds = query.wait
        if "wait" in preferred:
            told = _seconds(preferred["wait"])
            seconds = told if seconds is None else seconds
        if query.cancel_on_disconnect and not seconds:
            raise HttpError(
                400,
                "invalid_request",
                "cancel_on_disconnect needs wait: without it, the answer comes at once; send wait=60, too",
                details={"field": "cancel_on_disconnect"},
            )
        counts = min(float(seconds or 0), deps(request).settings.max_wait_s)
        applied = (f"wait={counts:g}",) if counts and "wait" in preferred and query.wait is None else ()
        later = ("respond-async",) if "respond-async" in preferred else ()
        return cls(
            request=request,
            seconds=counts,
            cancels=query.cancel_on_disconnect,
            picture=query.format is not None or waited_picture.is_wanted(request),
            applied=applied,
            later=later,
        )

    def then(self, *, usual: Describe, finished: Describe) -> Callable[[Response, Job], Response] | None:
        """Return what makes of the usual answer one that waits; None if this request does not want that.

        Args:
            usual: Describes a job that has not ended, as the usual answer does.
            finished: Describes one that has, as the surface's GET does.
        """
        if not self.seconds and not self.later:
            return None
        return lambda first, job: WaitedAnswer(self, job, first, usual=usual, finished=finished)


class WaitedAnswer(Response):
    """Waits for a job's end, and answers then, or when the time is over.

    Args:
        waiting: For how long.
        job: The job.
        first: The usual answer.
        usual: See :meth:`SubmitWait.then`.
        finished: See there.
    """

    def __init__(
        self, waiting: SubmitWait, job: Job, first: Response, *, usual: Describe, finished: Describe
    ) -> None:
        super().__init__(status_code=first.status_code)
        self._waiting = waiting
        self._job = job
        self._first = first
        self._usual = usual
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, and send the answer; nothing to a client that is gone."""
        answer = await self._answer(scope, receive)
        if answer is not None:
            await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        waiting, request = self._waiting, self._waiting.request
        d, who = deps(request), owner(request)
        try:
            if waiting.seconds and self._job.status.terminal:
                return self._told(await self._ended(self._job), waiting.applied)
            most = principal(request).limits.streams
            full = d.waits[who] >= most or d.waits.total() >= d.settings.max_waits
            if not waiting.seconds or full:
                return self._told(self._first, waiting.later)
            let_others_in(request)
            scope["lasting"] = True
            d.waits[who] += 1
            try:
                return await self._waited(receive)
            finally:
                d.waits[who] -= 1
                if not d.waits[who]:
                    del d.waits[who]
        except StoreDown:
            # The job is in the store, whatever becomes of that: who asks again gets to know.
            return self._told(self._first, (*waiting.applied, *waiting.later))

    async def _waited(self, receive: Receive) -> Response | None:
        waiting, request = self._waiting, self._waiting.request
        d = deps(request)
        with d.session_watch.follow(request.scope["session"], principal(request).key) as signed_out:
            ended = asyncio.ensure_future(until_ended(self._job.id, jobs=d.jobs, events=d.events))
            left = asyncio.ensure_future(client_left(receive))
            others = [asyncio.ensure_future(one.wait()) for one in (d.closing, signed_out)]
            every = (ended, left, *others)
            try:
                await asyncio.wait(every, timeout=waiting.seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in every:
                    task.cancel()
                await asyncio.gather(*every, return_exceptions=True)
            hung_up = not left.cancelled() and not d.closing.is_set()
            if ended.cancelled() and hung_up:
                await self._hung_up()
                return None
            applied = (*waiting.applied, *waiting.later)
            if signed_out.is_set():  # what the job is now, is for who may ask
                return self._told(self._first, applied)
            job = await d.jobs.get(self._job.id) if ended.cancelled() else ended.result()
            if job is None or job.removed:
                return self._told(self._first, applied)
            if job.status.terminal:
                return self._told(await self._ended(job), waiting.applied)
            now = json_response(await self._usual(job), self._first.status_code, self._kept_headers())
            return self._told(now, applied)

    async def _ended(self, job: Job) -> Response:
        if not self._waiting.picture:
            return json_response(await self._finished(job), 200, self._kept_headers())
        try:
            found = await waited_picture.answer(self._waiting.request, job)
        except FleetError as error:
            if isinstance(error, StoreDown):
                raise
            found = fleet_error(error)
        found.headers.update(self._kept_headers())
        return found

    def _kept_headers(self) -> dict[str, str]:
        replayed = self._first.headers.get("Idempotency-Replayed")
        return {"Idempotency-Replayed": replayed} if replayed else {}

    def _told(self, answer: Response, applied: tuple[str, ...]) -> Response:
        answer.headers["Location"] = links(self._waiting.request).job(self._job.id)
        answer.headers[JOB] = self._job.id
        if applied:
            answer.headers["Preference-Applied"] = ", ".join(applied)
        return answer

    async def _hung_up(self) -> None:
        if not self._waiting.cancels:
            return
        try:
            await jobs.cancel_job(self._waiting.request, self._job.id)
        except FleetError as error:
            logger.warning(
                "job not canceled although its client hung up",
                extra={"job_id": self._job.id, "error": error.message},
            )


def _preferences(request: Request) -> dict[str, str]:
    """Return what a request prefers, by name in lower case; of several with one name, the first counts."""
    found: dict[str, str] = {}
    for text in _PREFERENCE.findall(",".join(request.headers.getlist("prefer"))):
        name, _, value = text.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip().removeprefix('"').removesuffix('"').strip())
    return found


def _seconds(value: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) > _LONGEST_S:
        raise HttpError(
            400,
            "invalid_request",
            f"Prefer: wait={value[:40]} must be a whole number of seconds up to {_LONGEST_S}: send wait=60",
            details={"field": "Prefer"},
        )
    return int(value)


async def client_left(receive: Receive) -> None:
    """Return once the client has hung up."""
    with suppress(OSError):
        while (await receive())["type"] != "http.disconnect":
            pass
