"""Metrics for Prometheus: this process's and the fleet's, and where those of all processes are.

The edge does not forward ``/metrics``.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, principal
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.ports.scrape_targets import ScrapeTarget

KIND = "text/plain"
FLEET_PATH = "/metrics/fleet"
_PAGES = {
    "api": (("fleet-api", "/metrics"),),
    "dispatch": (("fleet-dispatch", "/metrics"),),
    "haproxy": (
        ("fleet-haproxy", "/metrics"),
        ("fleet-broker", "/metrics/broker"),
        ("fleet-edge", "/metrics/edge"),
    ),
    "agent": (("fleet-agent", "/metrics"),),
}
"""What each kind of process serves: the value of the label ``job``, and the path."""


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
    """``GET /metrics``: this process's."""
    d = deps(request)
    metrics: Metrics = request.scope["metrics"]
    metrics.streams.set(sum(d.streams.values()))
    metrics.waits.set(d.waits.total())
    metrics.sockets.set(sum(d.sockets.values()))
    return Response(d.write_metrics(), media_type=CONTENT_TYPE_LATEST)


async def show_fleet(request: Request) -> Response:
    """``GET /metrics/fleet``: the fleet's, the same from every API."""
    return Response(await deps(request).fleet_figures.text(), media_type=CONTENT_TYPE_LATEST)


async def fleet_metrics(request: Request) -> Response:
    """The whole fleet's gauges as Prometheus reads them; for the roles `metrics` and `operator`."""
    _reads_figures(request)
    return await show_fleet(request)


async def prometheus_targets(request: Request) -> Response:
    """Where Prometheus finds the metrics of all processes, as its HTTP service discovery reads it; for the
    roles `metrics` and `operator`.

    A process that listens on loopback is listed by an API of the same machine only.
    """
    _reads_figures(request)
    d = deps(request)
    namespace = d.settings.namespace
    known = [one for one in await d.scrape_targets.targets() if one.only_on in ("", d.machine)]
    return json_response([*_fleet(known, namespace), *(g for one in known for g in _groups(one, namespace))])


def _reads_figures(request: Request) -> None:
    if not principal(request).reads_figures:
        raise HttpError(403, "forbidden", "this needs a key with the role metrics or operator")


def _fleet(known: Iterable[ScrapeTarget], namespace: str) -> Iterable[dict[str, Any]]:
    """Yield the one place for what is not of one process: any API has it, and the series are the same."""
    first = next((one for one in known if one.process == "api"), None)
    if first is not None:
        yield {
            "targets": [first.address],
            "labels": {
                "job": "fleet",
                "instance": namespace,
                "__metrics_path__": FLEET_PATH,
                "__meta_fleet_namespace": namespace,
                "__meta_fleet_process": "fleet",
                "__meta_fleet_host": "",
            },
        }


def _groups(one: ScrapeTarget, namespace: str) -> Iterable[dict[str, Any]]:
    for job, path in _PAGES.get(one.process, ()):
        yield {
            "targets": [one.address],
            "labels": {
                "job": job,
                "instance": one.address,
                "host": one.host,
                "__metrics_path__": path,
                "__meta_fleet_namespace": namespace,
                "__meta_fleet_process": one.process,
                "__meta_fleet_host": one.host,
            },
        }


routes = [
    ServedRoute("/metrics", show, name="show", open=True),
    ServedRoute(FLEET_PATH, show_fleet, name="show_fleet", open=True),
]
