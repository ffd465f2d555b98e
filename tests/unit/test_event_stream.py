"""How a job's event stream ends on the wire."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message

from comfy_fleet.api import events
from comfy_fleet.api.deps import ApiDeps
from comfy_fleet.api.links import Links
from comfy_fleet.domain.jobs.job import Job, JobEvent, JobStatus
from comfy_fleet.ports.jobs import JobSnapshot
from comfy_fleet.ports.sessions import Sessions
from comfy_fleet.services.job_watch import Alive, Seen, Status
from comfy_fleet.services.session_watch import SessionWatch


async def nothing() -> AsyncIterator[JobEvent]:
    return
    yield


async def told(monkeypatch: pytest.MonkeyPatch, *seen: Seen) -> list[Message]:
    """Return what a stream sends for what is seen of its job."""

    async def watch(*_: Any, **__: Any) -> AsyncGenerator[list[Seen], None]:
        for one in seen:
            yield [one]

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    monkeypatch.setattr(events, "watch", watch)
    job = Job(id="j", owner="me", status=JobStatus.QUEUED, created_at=0, expires_at=9, graph_hash="h")
    no_session = SessionWatch(cast(Sessions, None))
    parts = SimpleNamespace(
        streams=Counter(),
        jobs=None,
        events=None,
        closing=None,
        session_watch=no_session,
        estimator=SimpleNamespace(outlook=None),
    )
    deps = cast(ApiDeps, parts)
    subscription = AsyncExitStack()
    left: list[bool] = []
    subscription.callback(left.append, True)
    stream = events.EventStream(
        deps,
        "me",
        JobSnapshot(job=job),
        nothing(),
        subscription,
        cast(Links, None),
        session="",
        key="",
        seen=lambda: True,
    )
    await stream({"type": "http"}, receive, send)
    assert not deps.streams and left
    return sent


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED])
async def test_the_end_comes_with_the_last_status(monkeypatch: pytest.MonkeyPatch, status: JobStatus) -> None:
    start, *bodies = await told(monkeypatch, Status(status=JobStatus.RUNNING), Alive(), Status(status=status))
    assert start["status"] == 200
    assert [body.get("more_body", False) for body in bodies] == [True, True, False]
    assert status.value.encode() in bodies[-1]["body"]


async def test_a_stream_that_is_cut_short_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    _, *bodies = await told(monkeypatch, Status(status=JobStatus.RUNNING))
    assert [(bool(body["body"]), body.get("more_body", False)) for body in bodies] == [
        (True, True),
        (False, False),
    ]


async def test_who_is_signed_out_and_does_not_read_is_let_go_and_counts_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "GOODBYE_S", 0.05)
    stuck, never = asyncio.Event(), asyncio.Event()
    counts: list[int] = []

    async def watch(*_: Any, **__: Any) -> AsyncGenerator[list[Seen], None]:
        yield [Alive()]

    async def receive() -> Message:
        await never.wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            stuck.set()
            counts.append(parts.streams["me"])
            await never.wait()

    class SignedOut(SessionWatch):
        @contextmanager
        def follow(self, token: str, key: str) -> Iterator[asyncio.Event]:
            yield stuck

    monkeypatch.setattr(events, "watch", watch)
    parts = SimpleNamespace(
        streams=Counter(),
        jobs=None,
        events=None,
        closing=None,
        session_watch=SignedOut(cast(Sessions, None)),
        estimator=SimpleNamespace(outlook=None),
    )
    job = Job(id="j", owner="me", status=JobStatus.QUEUED, created_at=0, expires_at=9, graph_hash="h")
    stream = events.EventStream(
        cast(ApiDeps, parts),
        "me",
        JobSnapshot(job=job),
        nothing(),
        AsyncExitStack(),
        cast(Links, None),
        session="s",
        key="",
        seen=lambda: True,
    )
    async with asyncio.timeout(20):
        await stream({"type": "http"}, receive, send)
    assert counts == [1, 1] and not parts.streams
