"""Metrics for Prometheus, on the API's own port; the edge does not forward ``/metrics``."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, principal
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError

KIND = "text/plain"


class Metrics:
    """This app's metrics, in addition to the process's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "fleet_http_requests_total",
            "Requests by handler and status.",
            ["handler", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "fleet_http_request_seconds",
            "Time to the end of the answer, event streams and submits that wait left out.",
            ["handler"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
            registry=self.registry,
        )
        # Finding a metric by its labels takes longer than counting; both labels have few values.
        self._requests, self._seconds = cache(self.requests.labels), cache(self.seconds.labels)
        self.depth = Gauge("fleet_queue_depth", "Jobs that wait.", registry=self.registry)
        self.nodes = Gauge("fleet_nodes", "Nodes by verdict.", ["verdict"], registry=self.registry)
        self.busy = Gauge("fleet_nodes_busy", "Nodes that run a job.", registry=self.registry)
        self.streams = Gauge("fleet_event_streams", "Open event streams.", registry=self.registry)
        self.waits = Gauge(
            "fleet_waiting_submits", "Submits that wait for their job's end.", registry=self.registry
        )
        self.sockets = Gauge("fleet_websockets", "Open websockets.", registry=self.registry)

    def count(self, handler: str, status: int, seconds: float | None) -> None:
        """Count one answered request."""
        self._requests(handler, status).inc()
        if seconds is not None:
            self._seconds(handler).observe(seconds)


async def show(request: Request) -> Response:
    """``GET /metrics``."""
    d = deps(request)
    metrics: Metrics = request.scope["metrics"]
    metrics.depth.set(await d.jobs.depth())
    states = await d.nodes.states()
    metrics.nodes.clear()
    for state in states:
        metrics.nodes.labels("drained" if state.node.cordoned else state.verdict).inc()
    metrics.busy.set(sum(s.run is not None for s in states))
    metrics.streams.set(sum(d.streams.values()))
    metrics.waits.set(d.waits.total())
    metrics.sockets.set(sum(d.sockets.values()))
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def fleet_metrics(request: Request) -> Response:
    """What this process counts, as Prometheus reads it; for the roles `metrics` and `operator`."""
    if not principal(request).reads_figures:
        raise HttpError(403, "forbidden", "this needs a key with the role metrics or operator")
    return await show(request)


routes = [ServedRoute("/metrics", show, name="show", open=True)]
