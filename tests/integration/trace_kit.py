"""A collector of traces on a real socket, as OpenTelemetry's exporters reach it."""

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """A span that came."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    kind: int
    failed: bool
    facts: dict[str, Any]
    events: list[tuple[str, float]]


@dataclass
class Collector:
    """What came."""

    port: int = 0
    refuses: bool = False
    spans: list[Seen] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, trace_id: str) -> dict[str, list[Seen]]:
        """Return the spans of a trace by name, in the order of their begins."""
        found: dict[str, list[Seen]] = {}
        for one in sorted(self.spans, key=lambda span: span.start):
            if one.trace_id == trace_id:
                found.setdefault(one.name, []).append(one)
        return found

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.refuses:
            return web.Response(status=400)
        if request.headers.get("content-encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        asked = ExportTraceServiceRequest.FromString(body)
        for resource in asked.resource_spans:
            about = _facts(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [
                    Seen(
                        service=about["service.name"],
                        name=one.name,
                        trace_id=one.trace_id.hex(),
                        span_id=one.span_id.hex(),
                        parent_id=one.parent_span_id.hex(),
                        start=one.start_time_unix_nano / 1e9,
                        end=one.end_time_unix_nano / 1e9,
                        kind=one.kind,
                        failed=one.status.code == 2,
                        facts=_facts(one.attributes),
                        events=[(event.name, event.time_unix_nano / 1e9) for event in one.events],
                    )
                    for one in scope.spans
                ]
        return web.Response(content_type="application/x-protobuf")


def _facts(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a collector on a port that the kernel chose."""
    made = Collector()
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/v1/traces", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        await runner.cleanup()
