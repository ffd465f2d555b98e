"""A request and its repetitions, and a stream of events."""

import json
import logging
import random
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import httpx

from comfy_fleet.client.address import CONNECT_S
from comfy_fleet.client.data import StreamEvent
from comfy_fleet.client.errors import (
    ClientError,
    FleetUnavailable,
    RateLimited,
    RequestRefused,
    WaitExpired,
    error_of,
    no_answer,
)
from comfy_fleet.client.transport import Transport

T = TypeVar("T")

logger = logging.getLogger("comfy_fleet.client")

SILENCE_S = 45.0
"""Longest silence of a stream, which sends a comment every 15 s."""
PATIENCE_S = 15.0
"""For so long at least, a stream is opened again and again while nothing answers."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
_NAME = re.compile(r"(?!\.{1,2}(?:$|@))[A-Za-z0-9_.@:-]{1,300}")


def path_part(kind: str, name: object) -> str:
    """Return an id or a name as a part of a path.

    Raises:
        RequestRefused: None can be like that, and in a path it could mean something else.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestRefused(f"no {kind} {str(name)[:80]!r}", details={"field": kind})
    return name


def id_of(kind: str, what: str | Mapping[str, Any]) -> str:
    """Return the id of what is named by it, or was answered by the fleet."""
    return path_part(kind, what if isinstance(what, str) else what["id"])


class Caller:
    """Sends requests, and again what can be repeated.

    Args:
        transport: What carries them.
        url: The fleet's address, for messages.
        timeout_s: How long one request may take.
        retry_s: For how long one is repeated while the fleet is busy, restarts or can't be reached.
    """

    def __init__(self, transport: Transport, *, url: str, timeout_s: float, retry_s: float) -> None:
        self._transport = transport
        self._url = url
        self._timeout_s = timeout_s
        self._retry_s = retry_s

    async def request(
        self,
        method: str,
        path: str,
        /,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        repeat: bool | None = None,
        **more: Any,
    ) -> Any:
        """Call any path of the API, and return the JSON that it answers; None if it answers nothing.

        For what has no method of its own, such as ``request("GET", "/api/v1/nodes")``.

        Args:
            method: The HTTP method.
            path: Below the fleet's address.
            params: The query; what is None is left out.
            body: What is sent as JSON.
            headers: Further headers.
            timeout_s: How long it may take, if not as long as others.
            repeat: Whether the same request may be sent again; None: unless it is a POST without
                ``Idempotency-Key``.
            more: What else ``httpx`` takes, such as ``content``.

        Raises:
            ClientError: It failed: see :mod:`comfy_fleet.client.errors`.
        """
        sent = dict(headers or {})
        if body is not None:
            try:
                more["content"] = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
            except (ValueError, TypeError) as error:
                raise RequestRefused(f"the request can't be sent as JSON: {error}") from None
            sent.setdefault("Content-Type", "application/json")
        if timeout_s is not None:
            more["timeout"] = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        if repeat is None:
            repeat = method not in ("POST", "PATCH") or "Idempotency-Key" in sent

        async def once() -> httpx.Response:
            query = {name: value for name, value in (params or {}).items() if value is not None}
            answer = await self._transport.send(method, path, params=query, headers=sent, **more)
            if answer.is_error:
                raise error_of(answer)
            return answer

        answer = await self.repeated(once, repeat=repeat)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise FleetUnavailable(f"{self._url}{path} did not answer with JSON: is that a fleet?") from None

    async def repeated(self, attempt: Callable[[], Awaitable[T]], *, repeat: bool = True) -> T:
        """Return what an attempt returns; try again while the fleet is busy, starts or can't be reached.

        Raises:
            ClientError: The last failure.
        """
        deadline = time.monotonic() + self._retry_s
        failures = 0
        while True:
            try:
                return await attempt()
            except httpx.TransportError as error:
                failure: ClientError = no_answer(self._url, error)
                failure.__cause__ = error
                # Nothing was sent, so nothing can have come of it.
                again = repeat or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            except (RateLimited, FleetUnavailable) as error:
                failure = error
                again = repeat if error.status != 429 else True  # 429: nothing was done
            failures += 1
            pause_s = failure.retry_after_s
            if pause_s is None:
                pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures - 1, 8))
                pause_s *= random.uniform(0.5, 1.0)  # noqa: S311 - so that not all clients come at once
            if not again or time.monotonic() + pause_s > deadline:
                raise failure
            logger.info("trying again in %.1f s: %s", pause_s, failure.code or type(failure).__name__)
            await self._transport.pause(pause_s)

    async def events(
        self, path: str, *, final: Callable[[StreamEvent], bool], deadline: float | None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of one stream, until it breaks off or the final one has come.

        Args:
            path: The stream's.
            final: Whether an event is the last.
            deadline: When to end, by the monotonic clock; it may end somewhat earlier.

        Raises:
            ClientError: It is refused.
            httpx.TransportError: It broke off.
        """
        left_s = SILENCE_S if deadline is None else deadline - time.monotonic()
        silence_s = max(0.05, min(SILENCE_S, left_s))
        patience = httpx.Timeout(silence_s, connect=min(CONNECT_S, silence_s))
        async with self._transport.stream(path, timeout=patience) as stream:
            if stream.head.is_error:
                await stream.read()
                raise error_of(stream.head)
            name, data = "message", ""
            async for line in stream.lines():
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    data += line[5:].strip()
                elif not line and data:
                    event = StreamEvent(name=name, data=json.loads(data))
                    yield event
                    if final(event):
                        return
                    name, data = "message", ""
                elif line.startswith(":") and deadline and time.monotonic() + silence_s > deadline:
                    return  # only a new stream can be waited for in the remaining time

    async def followed(
        self,
        path: str,
        *,
        what: str,
        state: str,
        final: Callable[[StreamEvent], bool],
        look: Callable[[], Awaitable[StreamEvent]],
        timeout_s: float | None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield events until the final one, across broken streams and restarts of the API.

        A stream has no history: it begins with the present state, which is yielded only if it is news.

        Args:
            path: The stream's.
            what: What is followed, in words.
            state: The name of the events that tell the state.
            final: Whether an event is the last.
            look: Returns the present state as an event; it is asked where no stream can be had.
            timeout_s: Give up after this time.

        Raises:
            WaitExpired: The time is up.
            ClientError: There is nothing to follow, or nothing was heard for ``retry_s``, at least 15 s.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        told: Mapping[str, Any] | None = None
        heard, failures = time.monotonic(), 0
        while True:
            pause_s, lost = _FIRST_PAUSE_S, None
            try:
                async with aclosing(self.events(path, final=final, deadline=deadline)) as events:
                    async for event in events:
                        heard, failures = time.monotonic(), 0
                        if event.name != state or event.data != told:
                            yield event
                        if event.name == state:
                            told = event.data
                        if final(event):
                            return
                        deadline = await _in_time(deadline, what, final=final, look=look)
            except RateLimited as error:  # as many streams as may be: ask for it instead
                heard, pause_s = time.monotonic(), min(error.retry_after_s or 1.0, 1.0)
                now = await look()
                if now.data != told:
                    told = now.data
                    yield now
                if final(now):
                    return
            except (FleetUnavailable, httpx.TransportError) as error:
                failures += 1
                pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures - 1, 8))
                lost = no_answer(self._url, error) if isinstance(error, httpx.TransportError) else error
            deadline = await _in_time(deadline, what, final=final, look=look)
            if lost is not None and time.monotonic() - heard > max(self._retry_s, PATIENCE_S):
                raise lost
            if deadline is not None:
                pause_s = max(0.0, min(pause_s, deadline - time.monotonic()))
            await self._transport.pause(pause_s)


async def _in_time(
    deadline: float | None,
    what: str,
    *,
    final: Callable[[StreamEvent], bool],
    look: Callable[[], Awaitable[StreamEvent]],
) -> float | None:
    """Return until when something is followed; None if it has ended, for all that is left comes at once.

    Raises:
        WaitExpired: The time is up.
    """
    if deadline is None or time.monotonic() <= deadline:
        return deadline
    try:
        if final(await look()):
            return None
    except ClientError:
        pass
    raise WaitExpired(f"{what} is not done yet; it goes on")


def submit_headers(idempotency_key: str | None, *, cache: str | None = None) -> dict[str, str]:
    """Return the headers of a submit: without a key of the caller's, one is drawn for all its attempts.

    Raises:
        RequestRefused: The caller's can't be sent; an empty one would make another job each time.
    """
    if idempotency_key is None:
        idempotency_key = str(uuid.uuid4())
    elif not _KEY.fullmatch(idempotency_key):
        raise RequestRefused(
            "idempotency_key must be 1 to 255 printable ASCII characters: encode others, such as with "
            "urllib.parse.quote",
            details={"field": "idempotency_key"},
        )
    headers = {"Idempotency-Key": idempotency_key}
    return headers | ({"Cache-Control": cache} if cache else {})
