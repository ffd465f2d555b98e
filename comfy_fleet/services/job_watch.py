"""Follow a job live: its snapshot first, then changes, until its last status.

Events are quick, the record is the truth. The watcher subscribes before it reads the record, drops events
that the record includes already, follows a job from run to run, and reads the record again now and then in
case an event was lost.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import Job, JobEvent, JobStatus, Output, Progress
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.domain.schedule.calibration import EndEstimate
from comfy_fleet.ports.jobs import JobSnapshot, JobStore
from comfy_fleet.services.estimator import Outlook


@dataclass(frozen=True, kw_only=True)
class Status:
    """The job's state changed, its place in the queue, or its probable end while it waits."""

    status: JobStatus
    queue_position: int | None = None
    end: EndEstimate | None = None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A preview picture: ``{node_id, content_type, data_base64}``."""

    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Alive:
    """Nothing has happened for a while: a sign of life for the connection."""


Seen: TypeAlias = Status | Progress | Preview | Output | Alive


@dataclass(frozen=True, kw_only=True)
class StreamPace:
    """How often updates are sent, in seconds."""

    progress_s: float = 0.5
    position_s: float = 1.0
    estimate_s: float = 5.0
    reread_s: float = 5.0
    alive_s: float = 15.0


class _Throttle:
    """Lets the newest value through, at most once per period."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self.due_at = float("-inf")
        self.waiting: Progress | Preview | None = None

    def offer(self, value: Progress | Preview) -> None:
        self.waiting = value

    def take(self, now: float) -> Progress | Preview | None:
        if self.waiting is None or now < self.due_at:
            return None
        value, self.waiting = self.waiting, None
        self.due_at = now + self._period_s
        return value


async def watch(
    now: JobSnapshot,
    stream: AsyncIterator[JobEvent],
    *,
    jobs: JobStore,
    outlook: Callable[[Job], Awaitable[Outlook]],
    closing: asyncio.Event,
    pace: StreamPace | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[list[Seen], None]:
    """Yield a job's snapshot and then what happens, outputs before the last status.

    Updates that come together are yielded together. Ends after the final status, when the job is forgotten,
    or when ``closing`` is set.

    Args:
        now: The job, read after ``stream`` began, so that nothing is missed in between.
        stream: What happens to it.
        jobs: Reads the record.
        outlook: Says when a job that waits will have ended.
        closing: Ends the stream.
        pace: How often updates are sent.
        monotonic: Seconds, for intervals.
    """
    pace = pace or StreamPace()
    watcher = _Watcher(now.job.id, jobs=jobs, outlook=outlook, pace=pace, monotonic=monotonic)
    yield list(watcher.begin(now))
    if watcher.done:
        return
    coming: asyncio.Task[JobEvent] | None = None
    closed = asyncio.ensure_future(closing.wait())
    try:
        while not watcher.done and not closing.is_set():
            if coming is None:
                coming = asyncio.ensure_future(_next(stream))
            timeout = max(0.0, watcher.next_at() - monotonic())
            await asyncio.wait({coming, closed}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                event = coming.result()
                coming = None
                try:
                    told = [seen async for seen in watcher.take(event)]
                except UNREADABLE:  # from another version: the record has the facts
                    continue
                if told:
                    yield told
            if told := [seen async for seen in watcher.tick()]:
                yield told
    finally:
        closed.cancel()
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def _next(stream: AsyncIterator[JobEvent]) -> JobEvent:
    return await anext(stream)


class _Watcher:
    """What one stream has sent so far, and what it still has to send."""

    def __init__(
        self,
        job_id: str,
        *,
        jobs: JobStore,
        outlook: Callable[[Job], Awaitable[Outlook]],
        pace: StreamPace,
        monotonic: Callable[[], float],
    ) -> None:
        self._job_id = job_id
        self._jobs = jobs
        self._pace = pace
        self._monotonic = monotonic
        self._run: str | None = None
        self._seq = -1
        self._status: JobStatus | None = None
        self._position: int | None = None
        self._outlook = outlook
        self._end: EndEstimate | None = None
        self._end_told: EndEstimate | None = None
        self._estimated_at = float("-inf")
        self._outputs: set[str] = set()
        self._shown: Progress | None = None
        self._progress = _Throttle(pace.progress_s)
        self._preview = _Throttle(pace.progress_s)
        self._told_at = self._position_at = self._read_at = monotonic()
        self.done = False

    def begin(self, now: JobSnapshot) -> Iterator[Seen]:
        """Yield the present state: status, progress, preview, outputs; the status comes last if it is
        final."""
        yield from self._record(now.job, now.position)  # an estimate would take another trip
        if now.preview is not None and not self.done:
            yield Preview(data=now.preview)
            self._preview.due_at = self._monotonic() + self._pace.progress_s

    def next_at(self) -> float:
        """Return the monotonic time at which :meth:`tick` has something to do."""
        moments = [self._read_at + self._pace.reread_s, self._told_at + self._pace.alive_s]
        if self._status is JobStatus.QUEUED:
            moments.append(self._position_at + self._pace.position_s)
        moments += [t.due_at for t in (self._progress, self._preview) if t.waiting is not None]
        return min(moments)

    async def take(self, event: JobEvent) -> AsyncIterator[Seen]:
        """Yield what an event means for this stream."""
        if event.seq <= self._seq or (event.type != "status" and event.run != self._run):
            return
        whole, self._seq = event.seq == self._seq + 1, event.seq
        if event.type == "status":
            status = JobStatus(event.data["status"])
            self._run = event.run
            if status.terminal and whole:
                last = self._progress.waiting  # complete progress before the end
                if "progress" in event.data:
                    last = progress_of(event.data["progress"])
                self.done = True
                if last is not None and last != self._shown:
                    yield self._told(last)
                yield self._told(Status(status=status))
            elif status.terminal:
                async for seen in self._reread():  # outputs that were missed, before the end
                    yield seen
            elif status is not self._status:
                async for seen in self._say_status(status):
                    yield seen
        elif event.type == "progress":
            self._progress.offer(progress_of(event.data))
        elif event.type == "preview":
            self._preview.offer(Preview(data=event.data))
        elif event.type == "output":
            for output in self._fresh((output_of(event.data),)):
                yield self._told(output)

    async def tick(self) -> AsyncIterator[Seen]:
        """Yield what is due: throttled events, queue positions, changes of the record, a sign of life."""
        now = self._monotonic()
        if self.done:
            return
        for throttle in (self._progress, self._preview):
            if (value := throttle.take(now)) is not None:
                yield self._told(value)
        if now >= self._read_at + self._pace.reread_s or (
            self._status is JobStatus.QUEUED and now >= self._position_at + self._pace.position_s
        ):
            async for seen in self._reread():
                yield seen
        if now >= self._told_at + self._pace.alive_s:
            yield self._told(Alive())

    async def _reread(self) -> AsyncIterator[Seen]:
        self._read_at = self._monotonic()
        try:
            job = await self._jobs.get(self._job_id)
        except StoreDown:
            return  # the stream survives a restart of Redis; the next look finds what was missed
        if job is None:  # past its retention
            self.done = True
            return
        if job.seq < self._seq and not job.status.terminal:
            return
        position, end = None, None
        if job.status is JobStatus.QUEUED:
            position, end = await self._jobs.position(job), await self._estimate(job)
        for seen in self._record(job, position, end):
            yield seen

    def _record(self, job: Job, position: int | None, end: EndEstimate | None = None) -> Iterator[Seen]:
        """Yield what the record has that was not told yet; the status comes last if it is final."""
        first = self._status is None
        self._seq = max(self._seq, job.seq)
        self._run = job.run
        if job.status.terminal:
            if not first and job.progress is not None and job.progress != self._shown:
                yield self._told(job.progress)
            for output in self._fresh(job.outputs):
                yield self._told(output)
            yield self._told(Status(status=job.status))
            self.done = True
            return
        self._position_at = self._monotonic()
        if job.status is not self._status or position != self._position or end is not self._end_told:
            self._status, self._position, self._end_told = job.status, position, end
            yield self._told(Status(status=job.status, queue_position=position, end=end))
        if first and job.progress is not None:
            yield self._told(job.progress)
            self._progress.due_at = self._monotonic() + self._pace.progress_s
        for output in self._fresh(job.outputs):
            yield self._told(output)

    async def _estimate(self, job: Job) -> EndEstimate | None:
        """Return when a job that waits will have ended: the last estimate until another one is due."""
        now = self._monotonic()
        if now >= self._estimated_at + self._pace.estimate_s:
            with contextlib.suppress(StoreDown):
                end = (await self._outlook(job)).end
                self._end = self._end if end == self._end else end
            self._estimated_at = now
        return self._end

    async def _say_status(self, status: JobStatus) -> AsyncIterator[Seen]:
        if status is JobStatus.QUEUED:  # back in the queue: its place is in the record
            async for seen in self._reread():
                yield seen
            return
        self._status, self._position, self._end_told = status, None, None
        yield self._told(Status(status=status))

    def _fresh(self, outputs: tuple[Output, ...]) -> list[Output]:
        found = [o for o in outputs if o.asset_id not in self._outputs]
        self._outputs.update(o.asset_id for o in found)
        return found

    def _told(self, seen: Seen) -> Seen:
        self._told_at = self._monotonic()
        if isinstance(seen, Progress):
            self._shown = seen
        return seen


def progress_of(data: Mapping[str, Any]) -> Progress:
    """Read a progress event's data."""
    return from_fields(Progress, data)


def output_of(data: Mapping[str, Any]) -> Output:
    """Read an output event's data."""
    return from_fields(Output, data)
