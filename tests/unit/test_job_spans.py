"""A job's spans, what is sent of them, and when none are made."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from comfy_fleet import bootstrap
from comfy_fleet.adapters.telemetry.otlp import OtlpSpans
from comfy_fleet.domain.jobs.job import Attempt, Job, JobError, JobStatus
from comfy_fleet.domain.jobs.job_spans import MOST_TEXT, SpanEvent, TraceSpan, job_spans
from comfy_fleet.domain.jobs.run_times import NodeTime, RunTimes
from comfy_fleet.domain.jobs.trace_context import JobTrace
from comfy_fleet.domain.jobs.trace_settings import asked_for_traces
from comfy_fleet.ports.telemetry import EndedJob
from comfy_fleet.services import job_tracing
from comfy_fleet.services.job_tracing import JobTracing
from tests.factories import new_job

JOB_ID = "fee18684-1906-49a8-aae2-a6125f7539a7"
CALLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STEPS = {"ready": 0.1, "accepted": 0.2, "executing": 0.3, "left": 2.0, "collected": 2.5}
NODES = (NodeTime(node_id="3", class_type="KSampler", start_s=0.5, seconds=1.0),)
RUN = Attempt(
    run="r1", node="g1", started_at=1001.0, ended_at=1003.6, times=RunTimes(steps=STEPS, nodes=NODES)
)
JOB = Job(
    id=JOB_ID,
    owner="o",
    status=JobStatus.SUCCEEDED,
    created_at=1000.0,
    started_at=1001.0,
    completed_at=1003.6,
    expires_at=9e9,
    graph_hash="h",
    attempts=(RUN,),
)
OWN = JobTrace.of(JOB_ID, None)


class Kept(SpanExporter):
    """Keeps what it is given; waits, or fails, if asked to."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.go = threading.Event()
        self.go.set()
        self.fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        assert self.go.wait(30)
        encode_spans(spans).SerializeToString()
        if self.fails:
            raise OSError("no collector")
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.go.set()


@contextmanager
def sending(exporter: SpanExporter) -> Iterator[tuple[OtlpSpans, Callable[[str], float]]]:
    """Yield what sends spans, and what returns how many had an outcome."""
    registry = CollectorRegistry()
    spans = OtlpSpans("test", registry, exporter=exporter)

    def count(outcome: str) -> float:
        return registry.get_sample_value("fleet_spans_total", {"outcome": outcome}) or 0.0

    try:
        yield spans, count
    finally:
        spans.close()


def waited(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def span(name: str = "x", **more: object) -> TraceSpan:
    fields = {"span_id": "1" * 16, "parent_id": None, "start": 1.0, "end": 2.0, **more}
    return TraceSpan(name=name, **fields)  # type: ignore[arg-type]


def test_a_trace_is_the_callers_or_has_the_jobs_id() -> None:
    assert (OWN.trace_id, OWN.caller, OWN.sampled) == (JOB_ID.replace("-", ""), None, None)
    called = JobTrace.of(JOB_ID, CALLED)
    assert (called.trace_id, called.caller, called.sampled) == (CALLED[3:35], CALLED[36:52], True)
    assert JobTrace.of(JOB_ID, f"{CALLED[:-1]}0").sampled is False
    for odd in ("j", "0" * 32, "g" * 32, "\udcff"):  # ids of earlier versions, or of nobody
        trace = JobTrace.of(odd, None)
        assert len(bytes.fromhex(trace.trace_id)) == 16 and trace.trace_id.strip("0")
    assert OWN.header("1" * 16, sampled=True) == f"00-{OWN.trace_id}-{'1' * 16}-01"
    ids = {OWN.span_id(name, which) for name in ("a", "b") for which in ("", "1", "2")}
    assert len(ids) == 6 and {len(one) for one in ids} == {16}


def test_spans_follow_from_the_record() -> None:
    found = {one.name: one for one in job_spans(JOB, OWN)}
    times = {name: (one.start, one.end) for name, one in found.items()}
    assert times == {
        "job": (1000.0, 1003.6),
        "queue": (1000.0, 1001.0),
        "attempt": (1001.0, 1003.6),
        "lease": (1001.0, 1003.0),
        "stage": (1001.0, pytest.approx(1001.1)),
        "post": (pytest.approx(1001.1), pytest.approx(1001.2)),
        "wait_on_node": (pytest.approx(1001.2), pytest.approx(1001.3)),
        "run": (pytest.approx(1001.3), pytest.approx(1003.0)),
        "collect": (1003.0, 1003.5),
    }
    (event,) = found["run"].events
    assert event == SpanEvent(
        name="KSampler", at=1001.5, attributes={"fleet.graph_node": "3", "fleet.seconds": 1.0}
    )
    assert found["job"].parent_id == OWN.span_id("submit")
    again = [one.span_id for one in job_spans(JOB, OWN)]
    assert again == [one.span_id for one in found.values()] and len({*again}) == len(again)


def test_attempts_without_times_errors_and_jobs_that_never_ran() -> None:
    lost = replace(RUN, run="r0", ended_at=1001.5, times=None, error=JobError(code="node_lost", message="m"))
    failed = replace(
        JOB, status=JobStatus.FAILED, attempts=(lost,), error=JobError(code="node_lost", message="x" * 999)
    )
    found = {one.name: one for one in job_spans(failed, OWN)}
    assert found.keys() == {"job", "queue", "attempt"}
    assert found["attempt"].attributes["fleet.steps_unknown"] is True
    assert found["attempt"].error == "node_lost: m" and len(found["job"].error or "") == MOST_TEXT
    expired = replace(JOB, status=JobStatus.EXPIRED, attempts=(), started_at=None)
    names = [(one.name, one.error) for one in job_spans(expired, OWN)]
    assert names == [("job", "expired"), ("queue", None)]
    cached = replace(JOB, cached=True, attempts=())
    assert [one.name for one in job_spans(cached, OWN)] == ["job", "follow"]


def test_whatever_a_record_holds_can_be_sent() -> None:
    odd = "\ud800\x00" + "y" * 70_000
    times = RunTimes(
        steps=dict.fromkeys(STEPS, float("inf")),
        nodes=(NodeTime(node_id=odd, class_type=odd, start_s=-1e300, seconds=1e300),),
        cached=10**30,
    )
    run = replace(RUN, run=odd, node=odd, times=times, error=JobError(code=odd, message=odd))
    job = replace(JOB, workflow=odd, tenant=odd, output_count=10**30, attempts=(run,) * 20)
    exporter = Kept()
    with sending(exporter) as (spans, count):
        made = job_spans(job, OWN)
        texts = [value for one in made for value in one.attributes.values() if isinstance(value, str)]
        assert max(map(len, texts)) == MOST_TEXT
        for one in made:
            spans.take(OWN, one)
        spans.take(OWN, span("late", start=float("nan"), end=1e200))
        spans.close()
        assert count("exported") == len(made) + 1 == len(exporter.spans)


def test_a_full_queue_drops_and_counts_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    exporter = Kept()
    exporter.go.clear()
    with sending(exporter) as (spans, count):
        for _ in range(25):
            spans.take(OWN, span())
        assert (count("dropped"), count("exported")) == (15, 0)
        exporter.go.set()
        spans.close()
        assert (count("dropped"), count("exported"), count("failed")) == (15, 10, 0)


def test_a_collector_that_is_away_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    caplog.set_level("INFO")
    exporter = Kept()
    exporter.fails = True
    with sending(exporter) as (spans, count):
        for number in range(1, 4):
            spans.take(OWN, span())
            waited(lambda: count("failed") == number)  # noqa: B023 - called at once
        exporter.fails = False
        spans.take(OWN, span())
        waited(lambda: count("exported") == 1)
    told = [one.message for one in caplog.records if one.name.startswith("comfy_fleet")]
    assert told == [
        "traces can't be exported: spans are dropped until the collector answers",
        "traces are exported again",
    ]


def test_the_caller_decides_what_is_recorded_else_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    with sending(Kept()) as (spans, _):
        assert spans.sampled(JobTrace.of("a", CALLED))
        assert not spans.sampled(JobTrace.of("a", f"{CALLED[:-1]}0"))
        ids = [f"{number:08x}-1906-49a8-aae2-a6125f7539a7" for number in range(2000)]
        taken = sum(spans.sampled(JobTrace.of(one, None)) for one in ids)
        assert 400 < taken < 600
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with sending(Kept()) as (spans, _):
        assert not spans.sampled(JobTrace.of("a", CALLED)) and not spans.sampled(OWN)


def test_ended_jobs_that_nobody_can_read_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_tracing, "MOST_ENDED", 5)
    with sending(Kept()) as (spans, count):
        tracing = JobTracing(spans, clock=lambda: 1.0)
        for number in range(8):
            job = EndedJob(job_id=str(number), status=JobStatus.CANCELED, workflow=None, total_s=1)
            tracing.ended_without_run(job)
        assert count("dropped") == 3


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HERE = {ENDPOINT: "http://me:secret@[::1]:4318/x?token=1"}


@pytest.mark.parametrize(
    ("environ", "wanted", "said"),
    [
        ({}, False, ""),
        ({ENDPOINT: " "}, False, ""),
        (HERE, True, ""),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/v1/traces"}, True, ""),
        ({**HERE, "OTEL_SDK_DISABLED": "TRUE"}, False, ""),
        ({**HERE, "OTEL_TRACES_EXPORTER": "none"}, False, ""),
        ({**HERE, "OTEL_TRACES_EXPORTER": "otlp"}, True, ""),
        ({**HERE, "OTEL_TRACES_EXPORTER": "zipkin"}, False, "OTEL_TRACES_EXPORTER=zipkin: use otlp, or none"),
        ({**HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False, "PROTOCOL=grpc: the fleet speaks http/pr"),
        ({**HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True, ""),
        ({ENDPOINT: "localhost:4318"}, False, f"{ENDPOINT} is no URL such as http://127.0.0.1:4318"),
        ({ENDPOINT: "http://[::1"}, False, "is no URL"),
    ],
)
def test_standard_variables_ask_for_traces(environ: dict[str, str], wanted: bool, said: str) -> None:
    asked = asked_for_traces(environ)
    assert asked.wanted is wanted and said in asked.why_not and bool(said) is bool(asked.why_not)
    if environ is HERE:
        assert asked.endpoint == "http://[::1]:4318/x"


def test_a_missing_package_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert bootstrap.open_tracing("api", CollectorRegistry()) is None and not caplog.records
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setitem(__import__("sys").modules, "comfy_fleet.adapters.telemetry.otlp", None)
    assert bootstrap.open_tracing("api", CollectorRegistry()) is None
    (line,) = caplog.records
    assert "install 'comfy-fleet[opentelemetry]'" in line.__dict__["reason"]


def test_a_submit_outside_of_a_request_is_told_too() -> None:
    exporter = Kept()
    with sending(exporter) as (spans, _):
        JobTracing(spans, clock=lambda: 5.0).submitted(replace(new_job(), id=JOB_ID, traceparent=CALLED))
        spans.close()
    (made,) = exporter.spans
    assert made.parent is not None and f"{made.parent.span_id:016x}" == CALLED[36:52]
    assert (made.start_time, made.end_time) == (5 * 10**9, 5 * 10**9)
