"""Where a job's time went, from its submit to the delivery of its results."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from comfy_fleet.domain.jobs.job import Attempt, Job, JobStatus
from comfy_fleet.domain.jobs.run_times import STEPS, RunTimes
from comfy_fleet.domain.stores.output_plan import StoreState
from comfy_fleet.domain.text import clip

MOST_NOTE = 200


class SpanName(StrEnum):
    """What a part of a job's time was for."""

    QUEUE = "queue"
    FOLLOW = "follow"
    ATTEMPT = "attempt"
    STAGE = "stage"
    POST = "post"
    WAIT_ON_NODE = "wait_on_node"
    EXECUTE = "execute"
    GRAPH_NODE = "graph_node"
    COLLECT = "collect"
    STORE = "store"
    WEBHOOK = "webhook"


_UNTIL = dict(
    zip(
        STEPS,
        (SpanName.STAGE, SpanName.POST, SpanName.WAIT_ON_NODE, SpanName.EXECUTE, SpanName.COLLECT),
        strict=True,
    )
)
"""What a run does until it reaches a step."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a job's time.

    Attributes:
        name: What for.
        start_s: Seconds from the job's submit.
        seconds: For how long, or until now.
        lasting: Whether it goes on.
        attempt: The number of the attempt that it belongs to, from 1; None: none.
        node: The node of that attempt.
        node_id: The node of the graph.
        class_type: Its class.
        note: More about it, in words.
    """

    name: SpanName
    start_s: float
    seconds: float
    lasting: bool = False
    attempt: int | None = None
    node: str | None = None
    node_id: str | None = None
    class_type: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What has become of a message to the job's webhook.

    Attributes:
        type: E.g. ``job.succeeded``.
        at: When it was written, in Unix seconds.
        tried_at: When it was sent last.
        state: ``waiting``, ``delivered`` or ``failed``.
        attempts: How often it was sent.
        status: The HTTP status of the last answer.
    """

    type: str
    at: float
    tried_at: float | None
    state: str
    attempts: int
    status: int | None


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """A job's parts of time, in the order of their begins, and what is not known of them."""

    spans: tuple[Span, ...]
    unknown: tuple[str, ...]
    until: float


def timeline(job: Job, *, waiting_for: str | None, deliveries: Sequence[Delivery], now: float) -> Timeline:
    """Return where a job's time went.

    Args:
        job: The job, with its attempts.
        waiting_for: What it waits for now, in words.
        deliveries: Messages to its webhook.
        now: The store's time.
    """
    drawn = _Drawing(job, now)
    drawn.life(waiting_for)
    drawn.store()
    for one in deliveries:
        drawn.delivery(one)
    spans = sorted(drawn.spans, key=lambda span: span.start_s)
    return Timeline(spans=tuple(spans), unknown=tuple(drawn.unknown), until=drawn.until)


class _Drawing:
    def __init__(self, job: Job, now: float) -> None:
        self._job, self._now = job, max(now, job.created_at)
        self._end = job.completed_at if job.status.terminal and job.completed_at else self._now
        self.until = self._end
        self.spans: list[Span] = []
        self.unknown: list[str] = []

    def _span(self, name: SpanName, start: float, end: float | None, **more: object) -> None:
        """Add a span between two times; without an end, it goes on."""
        until = self._now if end is None else end
        self.until = max(self.until, until)
        self.spans.append(
            Span(
                name=name,
                start_s=round(max(0.0, start - self._job.created_at), 3),
                seconds=round(max(0.0, until - start), 3),
                lasting=end is None,
                **more,  # type: ignore[arg-type]  # fields of Span
            )
        )

    def life(self, waiting_for: str | None) -> None:
        """Add the waits in the queue and the attempts."""
        job, at = self._job, self._job.created_at
        if job.cached or job.follows:
            self._as_another(waiting_for)
            return
        attempts = job.attempts
        if attempts and len(attempts) > 1 and job.started_at and attempts[0].started_at > job.started_at + 1:
            self.unknown.append("the first attempts: a job's record keeps the last 20")
        for number, one in enumerate(attempts, 1):
            self._span(SpanName.QUEUE, at, one.started_at)
            self._attempt(number, one)
            at = one.ended_at
        if job.status in (JobStatus.RUNNING, JobStatus.CANCELING):
            began = job.claimed_at or (None if attempts else job.started_at)
            if began is None:
                self.unknown.append("when the present attempt began")
            else:
                self._span(SpanName.QUEUE, at, began)
            began = at if began is None else began
            note = waiting_for or "its steps are known once it has ended"
            number = len(attempts) + 1
            self._span(SpanName.ATTEMPT, began, None, attempt=number, node=job.node, note=note)
        elif not job.status.terminal:
            self._span(SpanName.QUEUE, at, None, note=_note(waiting_for))
        elif not attempts or self._end - at > 0.001:
            self._span(SpanName.QUEUE, at, self._end, note=job.status.value)

    def _as_another(self, waiting_for: str | None) -> None:
        ended = self._job.status.terminal
        note = "it got the result of an equal job" if self._job.cached else waiting_for or ""
        self._span(SpanName.FOLLOW, self._job.created_at, self._end if ended else None, note=_note(note))
        for number, one in enumerate(self._job.attempts, 1):
            self._attempt(number, one)

    def _attempt(self, number: int, one: Attempt) -> None:
        why = f"{one.error.code}: {one.error.message}" if one.error else ""
        self._span(
            SpanName.ATTEMPT, one.started_at, one.ended_at, attempt=number, node=one.node, note=_note(why)
        )
        if one.times is None:
            why = "another dispatcher ended it than began it, or an earlier version did"
            self.unknown.append(f"the steps of attempt {number}: {why}")
        else:
            self._steps(number, one, one.times)

    def _steps(self, number: int, one: Attempt, times: RunTimes) -> None:
        whole = max(0.0, one.ended_at - one.started_at)
        ends: dict[str, float] = {}
        last = whole
        for step in reversed(STEPS):  # a frame may overtake the answer to the post
            if step in times.steps:
                ends[step] = last = min(last, max(0.0, times.steps[step]))
        at = 0.0
        for step in STEPS:
            if step in ends:
                self._step(number, one, _UNTIL[step], at, ends[step], times)
                at = ends[step]
        for node in times.nodes:
            start = one.started_at + min(whole, max(0.0, node.start_s))
            self._span(
                SpanName.GRAPH_NODE,
                start,
                min(one.ended_at, start + max(0.0, node.seconds)),
                attempt=number,
                node=one.node,
                node_id=node.node_id,
                class_type=node.class_type,
            )

    def _step(
        self, number: int, one: Attempt, name: SpanName, start: float, end: float, times: RunTimes
    ) -> None:
        note = ""
        if name is SpanName.EXECUTE:
            parts = [f"{times.cached} nodes cached"] if times.cached else []
            parts += [f"{times.others} quicker nodes left out"] if times.others else []
            note = ", ".join(parts)
        began = one.started_at
        self._span(name, began + start, began + end, attempt=number, node=one.node, note=note)

    def store(self) -> None:
        """Add the outputs' way into a store."""
        job = self._job
        if job.output is None or job.status is not JobStatus.SUCCEEDED or not job.stored:
            return
        if not job.storing and job.stored_at is None:
            self.unknown.append("when its outputs were in their store: an earlier version put them there")
            return
        failed = sum(one.state is StoreState.FAILED for one in job.stored.values())
        outputs = "1 output" if len(job.stored) == 1 else f"{len(job.stored)} outputs"
        note = f"{job.output.store}: {outputs}" + (f", {failed} failed" if failed else "")
        self._span(
            SpanName.STORE, self._end, None if job.storing else max(self._end, job.stored_at or 0), note=note
        )

    def delivery(self, one: Delivery) -> None:
        """Add a message to its webhook."""
        answer = f", HTTP {one.status}" if one.status else ""
        note = f"{one.type} {one.state}, {one.attempts} tries{answer}"
        end = None if one.state == "waiting" else one.tried_at or one.at
        self._span(SpanName.WEBHOOK, one.at, end, note=_note(note))


def _note(text: str | None) -> str:
    return clip(text or "", MOST_NOTE)
