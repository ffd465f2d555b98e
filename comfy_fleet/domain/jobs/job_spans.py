"""A job's spans, as OpenTelemetry shows them: its timeline, with parents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from comfy_fleet.domain.jobs.job import Attempt, Job, JobStatus
from comfy_fleet.domain.jobs.timeline import Span, SpanName, timeline
from comfy_fleet.domain.jobs.trace_context import JobTrace
from comfy_fleet.domain.text import clip

MOST_TEXT: Final = 200
"""Characters of an attribute."""

Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, kw_only=True)
class SpanEvent:
    """Something that happened within a span, at a time in Unix seconds."""

    name: str
    at: float
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TraceSpan:
    """A span of a job's trace.

    Attributes:
        name: What for.
        span_id: Its id.
        parent_id: That of the span that it is a part of; None: it is the first of its trace.
        start: Unix seconds.
        end: Unix seconds.
        kind: ``internal``; ``server``: a request was answered; ``client``: a request was made.
        error: Why it failed; None: it did not.
        attributes: Facts.
        events: What happened in it.
    """

    name: str
    span_id: str
    parent_id: str | None
    start: float
    end: float
    kind: str = "internal"
    error: str | None = None
    attributes: Attributes = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()


SUBMIT, JOB, LEASE, WEBHOOK = "submit", "job", "lease", "webhook"
_SHOWN = {SpanName.EXECUTE: "run"}
_HOLDS_NODE = (SpanName.STAGE, SpanName.POST, SpanName.WAIT_ON_NODE, SpanName.EXECUTE)
"""What a run does while it holds its node."""


def submit_span(trace: JobTrace, *, start: float, end: float, workflow: str | None) -> TraceSpan:
    """Return the span of the request that has made a job."""
    return TraceSpan(
        name=SUBMIT,
        span_id=trace.span_id(SUBMIT),
        parent_id=trace.caller,
        start=start,
        end=max(start, end),
        kind="server",
        attributes=_facts({"fleet.job_id": trace.job_id, "fleet.workflow": workflow}),
    )


def webhook_span(
    trace: JobTrace,
    *,
    message: str,
    type_: str,
    attempt: int,
    start: float,
    end: float,
    status: int | None,
    error: str,
) -> TraceSpan:
    """Return the span of one try to deliver a message to a job's webhook.

    Args:
        trace: The job's.
        message: The message's id.
        type_: Its type.
        attempt: The number of the try, from 1.
        start: Unix seconds.
        end: Unix seconds.
        status: The answer's HTTP status.
        error: Why there was no answer.
    """
    failed = status is None or not 200 <= status < 300
    facts = {
        "fleet.job_id": trace.job_id,
        "fleet.webhook.id": message,
        "fleet.webhook.type": type_,
        "fleet.attempt": attempt,
        "http.response.status_code": status,
    }
    return TraceSpan(
        name=WEBHOOK,
        span_id=trace.span_id(WEBHOOK, f"{message} {attempt}"),
        parent_id=trace.span_id(JOB),
        start=start,
        end=max(start, end),
        kind="client",
        error=(error or f"HTTP {status}")[:MOST_TEXT] if failed else None,
        attributes=_facts(facts),
    )


def job_spans(job: Job, trace: JobTrace) -> list[TraceSpan]:
    """Return the spans of a job that has ended, from its record: the job, its waits and its attempts.

    The submit and the webhook are told by whoever answered and made these requests.
    """
    end = job.completed_at or job.created_at
    spans = timeline(job, waiting_for=None, deliveries=(), now=end).spans
    whole = trace.span_id(JOB)
    error = None
    if job.status in (JobStatus.FAILED, JobStatus.EXPIRED):
        error = f"{job.error.code}: {job.error.message}" if job.error else job.status.value
    facts = {
        "fleet.job_id": job.id,
        "fleet.status": job.status.value,
        "fleet.workflow": job.workflow,
        "fleet.tenant": job.tenant,
        "fleet.batch_id": job.batch_id,
        "fleet.attempts": len(job.attempts),
        "fleet.outputs": job.output_count,
        "fleet.shared_result": job.cached or job.follows or None,
    }
    found = [
        TraceSpan(
            name=JOB,
            span_id=whole,
            parent_id=trace.span_id(SUBMIT),
            start=job.created_at,
            end=max(job.created_at, end),
            error=clip(error, MOST_TEXT) if error else None,
            attributes=_facts(facts),
        )
    ]
    for number, one in enumerate(spans):
        if one.attempt is None and not one.lasting:
            found.append(_span(job, trace, one, str(number), whole, {"fleet.note": one.note}))
    for number, attempt in enumerate(job.attempts, 1):
        found += _of_attempt(job, trace, number, attempt, [one for one in spans if one.attempt == number])
    return found


def _of_attempt(
    job: Job, trace: JobTrace, number: int, attempt: Attempt, spans: Sequence[Span]
) -> list[TraceSpan]:
    named = {one.name: one for one in spans if one.name is not SpanName.GRAPH_NODE}
    whole = named.get(SpanName.ATTEMPT)
    if whole is None:
        return []
    about = {"fleet.run_id": attempt.run, "fleet.node": attempt.node, "fleet.attempt": number}
    more = {
        "fleet.counted": attempt.counted,
        "fleet.error_code": attempt.error.code if attempt.error else None,
        "fleet.steps_unknown": attempt.times is None or None,
    }
    top = _span(
        job, trace, whole, attempt.run, trace.span_id(JOB), {**about, **more}, error=whole.note or None
    )
    found = [top]
    held = [named[name] for name in _HOLDS_NODE if name in named]
    lease = trace.span_id(LEASE, attempt.run)
    if held:
        found.append(
            TraceSpan(
                name=LEASE,
                span_id=lease,
                parent_id=top.span_id,
                start=top.start,
                end=max(job.created_at + one.start_s + one.seconds for one in held),
                attributes=_facts(about),
            )
        )
    for one in held:
        events: Sequence[SpanEvent] = ()
        if one.name is SpanName.EXECUTE:
            events = [_event(job, node) for node in spans if node.name is SpanName.GRAPH_NODE]
        facts = {**about, "fleet.note": one.note}
        found.append(_span(job, trace, one, attempt.run, lease, facts, events=events))
    if (collect := named.get(SpanName.COLLECT)) is not None:
        found.append(_span(job, trace, collect, attempt.run, top.span_id, about))
    return found


def _event(job: Job, node: Span) -> SpanEvent:
    return SpanEvent(
        name=clip(node.class_type or "node", MOST_TEXT),
        at=job.created_at + node.start_s,
        attributes=_facts({"fleet.graph_node": node.node_id, "fleet.seconds": node.seconds}),
    )


def _span(
    job: Job,
    trace: JobTrace,
    one: Span,
    which: str,
    parent: str,
    facts: Mapping[str, object],
    *,
    error: str | None = None,
    events: Sequence[SpanEvent] = (),
) -> TraceSpan:
    name = _SHOWN.get(one.name, one.name.value)
    start = job.created_at + one.start_s
    return TraceSpan(
        name=name,
        span_id=trace.span_id(name, which),
        parent_id=parent,
        start=start,
        end=start + one.seconds,
        error=error,
        attributes=_facts(facts),
        events=events,
    )


def _facts(facts: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Return what is known of them; texts come from clients and nodes, so they are bounded and cleaned."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in facts.items():
        if isinstance(value, bool | int | float):
            found[name] = value
        elif value:
            found[name] = clip(str(value), MOST_TEXT)
    return found
