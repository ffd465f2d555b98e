"""Spans of jobs: of each submit and webhook at once, of the rest when the job has ended, from its record.

Nothing is held open meanwhile, so a job that is taken over has the same spans as any other.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.jobs.job import JobError, JobStatus, NewJob
from comfy_fleet.domain.jobs.job_spans import SUBMIT, WEBHOOK, job_spans, submit_span, webhook_span
from comfy_fleet.domain.jobs.trace_context import JobTrace
from comfy_fleet.domain.webhooks.delivery import PostAnswer
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.runs import Claim
from comfy_fleet.ports.spans import Spans
from comfy_fleet.ports.telemetry import EndedJob, NullTelemetry
from comfy_fleet.ports.webhooks import WebhookMessage
from comfy_fleet.request_context import submitting
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

LOOK_S = 0.25
READ_AT_ONCE = 50
MOST_ENDED = 2000
"""Jobs whose records are still to be read; about as many as end while Redis does not answer for a moment."""
LAST_S = 1.0
"""How long the end of a process may wait for their records."""


@dataclass(frozen=True, kw_only=True)
class Delivering:
    """A message to a webhook that is being sent.

    Attributes:
        header: Its request's ``traceparent``.
        done: Called with the answer.
    """

    header: str
    done: Callable[[PostAnswer], None]


class JobTracing(NullTelemetry):
    """Makes spans of what observers are told. Event loops in several threads may share it.

    Args:
        spans: Where they go.
        clock: Unix seconds.
    """

    def __init__(self, spans: Spans, *, clock: Callable[[], float]) -> None:
        self._spans = spans
        self._clock = clock
        self._ended: deque[str] = deque()

    def submitted(self, new: NewJob) -> None:
        """Tell of the request that has made a job, and let its answer name the trace."""
        trace = JobTrace.of(new.id, new.traceparent)
        sampled, now, request = self._spans.sampled(trace), self._clock(), submitting.get()
        if request is not None:
            request.made(trace.trace_id, trace.header(trace.span_id(SUBMIT), sampled=sampled))
        if sampled:
            began = now if request is None else request.began_at
            self._spans.take(trace, submit_span(trace, start=began, end=now, workflow=new.workflow))

    def ended(
        self, claim: Claim, status: JobStatus, *, error: JobError | None, duration_s: float, outputs: int
    ) -> None:
        """Note a job to be told of."""
        self._note(claim.job.id, claim.job.traceparent)

    def given_back(self, claim: Claim, status: JobStatus, *, error: JobError, counts: bool) -> None:
        """Note a job whose attempts are used up; else its attempts are told when it has ended."""
        if status.terminal:
            self._note(claim.job.id, claim.job.traceparent)

    def ended_without_run(self, job: EndedJob) -> None:
        """Note a job to be told of."""
        self._note(job.job_id, None)

    def _note(self, job_id: str, traceparent: str | None) -> None:
        if traceparent and not self._spans.sampled(JobTrace.of(job_id, traceparent)):
            return
        if len(self._ended) >= MOST_ENDED:
            self._spans.lost(1)
            return
        self._ended.append(job_id)

    def delivering(self, message: WebhookMessage, traceparent: str | None) -> Delivering:
        """Begin to tell of a try to deliver a job's message.

        Args:
            message: The message.
            traceparent: The job's.
        """
        trace, start, attempt = JobTrace.of(message.job, traceparent), self._clock(), message.attempts + 1
        sampled = self._spans.sampled(trace)

        def done(answer: PostAnswer) -> None:
            if sampled:
                span = webhook_span(
                    trace,
                    message=message.id,
                    type_=message.type,
                    attempt=attempt,
                    start=start,
                    end=self._clock(),
                    status=answer.status,
                    error=answer.error,
                )
                self._spans.take(trace, span)

        span_id = trace.span_id(WEBHOOK, f"{message.id} {attempt}")
        return Delivering(header=trace.header(span_id, sampled=sampled), done=done)

    async def run(self, jobs: JobStore) -> None:
        """Tell of jobs that have ended, until canceled."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                with contextlib.suppress(FleetError):  # Redis is away: others tell
                    await self._tell(jobs)
        finally:
            with contextlib.suppress(FleetError, TimeoutError):
                async with Timeout(LAST_S):
                    await self._tell(jobs)

    async def _tell(self, jobs: JobStore) -> None:
        while some := self._taken():
            try:
                found = await jobs.load(some)
            except BaseException:
                self._ended.extendleft(reversed(some))
                raise
            for job in found:
                if job is None:  # it was deleted meanwhile
                    continue
                trace = JobTrace.of(job.id, job.traceparent)
                if not self._spans.sampled(trace):
                    continue
                try:
                    spans = job_spans(job, trace)
                except Exception:
                    logger.exception("no spans of a job", extra={"job_id": job.id})
                    self._spans.lost(1)
                    continue
                for span in spans:
                    self._spans.take(trace, span)

    def _taken(self) -> list[str]:
        some: list[str] = []
        with contextlib.suppress(IndexError):  # another thread was quicker
            while len(some) < READ_AT_ONCE:
                some.append(self._ended.popleft())
        return some
