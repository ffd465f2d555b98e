"""Sends spans over OTLP/HTTP, as the standard variables ``OTEL_*`` say."""

import atexit
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode
from prometheus_client import CollectorRegistry, Counter

from comfy_fleet import __version__
from comfy_fleet.domain.jobs.job_spans import Attributes, TraceSpan
from comfy_fleet.domain.jobs.trace_context import JobTrace

logger = logging.getLogger(__name__)

QUEUE_SPANS, DELAY_MS = 2048, 1000
"""What ``OTEL_BSP_MAX_QUEUE_SIZE`` and ``OTEL_BSP_SCHEDULE_DELAY`` are if they are not set."""
LAST_S = 2.0
"""How long the end of a process may wait for the last spans."""
_SAMPLED, _NOT = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_LATEST_NS = 2**63 - 1


class OtlpSpans:
    """Sends spans from a thread of its own; see the port ``Spans``.

    A span that finds the queue full, or can't be sent, is dropped and counted.

    Args:
        process: The process, e.g. ``dispatch``.
        registry: Gets the counter of spans.
        exporter: Sends them; None: over OTLP/HTTP.
    """

    def __init__(
        self, process: str, registry: CollectorRegistry, *, exporter: SpanExporter | None = None
    ) -> None:
        named = {"service.name": f"fleet-{process}"} if not os.environ.get("OTEL_SERVICE_NAME") else {}
        own = {**named, "service.version": __version__, "host.name": socket.gethostname()}
        self._resource = Resource.create({**own, "process.pid": os.getpid()})
        self._scope = InstrumentationScope("comfy_fleet", __version__)
        # Only its sampler is used, which has read OTEL_TRACES_SAMPLER.
        self._sampler = TracerProvider(resource=self._resource, shutdown_on_exit=False).sampler
        self._most = _whole("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SPANS)
        self._counter = Counter(
            "fleet_spans_total", "Spans of traces, by what became of them.", ["outcome"], registry=registry
        )
        for outcome in ("exported", "failed", "dropped"):
            self._counter.labels(outcome)
        self._lock = threading.Lock()
        self._pending = 0
        self._exporter = _Counted(exporter or OTLPSpanExporter(), self._sent)
        delay_ms = _whole("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS)
        self._batches = BatchSpanProcessor(
            self._exporter,
            max_queue_size=self._most,
            schedule_delay_millis=delay_ms,
            max_export_batch_size=min(_whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), self._most),
        )
        self._last_s = LAST_S + delay_ms / 1000
        # What it says of each batch that fails is told once, by us.
        logging.getLogger("opentelemetry").setLevel("CRITICAL")
        atexit.register(self.close)

    def sampled(self, trace: JobTrace) -> bool:
        """See the port."""
        if trace.caller is None:
            # Some bits of a job's id are the same in all ids, and samplers look at the number.
            parent, trace_id = Context(), int(trace.span_id("sampled") * 2, 16)
        else:
            caller = self._context(trace, trace.caller, sampled=trace.sampled is True, remote=True)
            parent, trace_id = set_span_in_context(NonRecordingSpan(caller), Context()), caller.trace_id
        decision = self._sampler.should_sample(parent, trace_id, "job").decision
        return decision is Decision.RECORD_AND_SAMPLE

    def take(self, trace: JobTrace, span: TraceSpan) -> None:
        """See the port."""
        with self._lock:
            full = self._pending >= self._most
            if not full:
                self._pending += 1
        if full:
            self.lost(1)
            return
        parent = self._context(trace, span.parent_id, remote=True) if span.parent_id else None
        made = ReadableSpan(
            name=span.name,
            context=self._context(trace, span.span_id),
            parent=parent,
            resource=self._resource,
            attributes=_attributes(span.attributes),
            events=[Event(one.name, _attributes(one.attributes), _ns(one.at)) for one in span.events],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=_ns(span.start),
            end_time=_ns(span.end),
            instrumentation_scope=self._scope,
        )
        self._batches.on_end(made)

    def lost(self, count: int) -> None:
        """See the port."""
        self._counter.labels("dropped").inc(count)

    def close(self) -> None:
        """Send what waits, for a moment at most; called as the process ends, too."""
        atexit.unregister(self.close)
        until = time.monotonic() + self._last_s
        while self._pending and not self._exporter.failing and time.monotonic() < until:
            time.sleep(0.02)
        self._exporter.shutdown()

    def _sent(self, count: int, outcome: str) -> None:
        with self._lock:
            self._pending -= count
        self._counter.labels(outcome).inc(count)

    def _context(
        self, trace: JobTrace, span_id: str, *, sampled: bool = True, remote: bool = False
    ) -> SpanContext:
        flags = _SAMPLED if sampled else _NOT
        return SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote=remote, trace_flags=flags)


class _Counted(SpanExporter):
    """Tells what becomes of spans, and logs when sending them begins to fail and works again."""

    def __init__(self, exporter: SpanExporter, sent: Callable[[int, str], None]) -> None:
        self._exporter = exporter
        self._sent = sent
        self._closed = False
        self.failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - of a library, in its own thread
            logger.debug("spans not sent", extra={"error": str(error)})
        good = result is SpanExportResult.SUCCESS
        self._sent(len(spans), "exported" if good else "failed")
        if good is self.failing and not self._closed:
            self.failing = not good
            if good:
                logger.info("traces are exported again")
            else:
                logger.warning("traces can't be exported: spans are dropped until the collector answers")
        return result

    def shutdown(self) -> None:
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def _whole(variable: str, usual: int) -> int:
    """Return a positive whole number from the environment; one that is none counts as not set."""
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text) < 10**9 else usual


def _ns(seconds: float) -> int:
    return min(_LATEST_NS, max(0, int(seconds * 1e9))) if math.isfinite(seconds) else 0


def _attributes(found: Attributes) -> Mapping[str, str | int | float | bool]:
    """Return attributes that the wire's 64-bit numbers can hold."""
    return {
        name: value if not isinstance(value, int) or abs(value) < _LATEST_NS else str(value)
        for name, value in found.items()
    }
