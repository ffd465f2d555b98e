"""What an autoscaler shows to Prometheus."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from comfy_fleet.domain.scaling.decide import PoolStrength
from comfy_fleet.domain.scaling.orders import PoolBook

Counted = Mapping[str, tuple[PoolStrength, PoolBook]]
"""By pool, its nodes and what is remembered of it."""


class AutoscaleFigures(Collector):
    """Its figures; of several autoscalers, only the active one has pools.

    Args:
        active: Whether it is active.
        counted: Its pools.
    """

    def __init__(self, active: Callable[[], bool], counted: Callable[[], Counted]) -> None:
        self._active = active
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        active = GaugeMetricFamily("fleet_autoscale_active", "Whether this autoscaler is the active one.")
        active.add_metric([], float(self._active()))
        nodes = GaugeMetricFamily(
            "fleet_autoscale_nodes",
            "Nodes of a pool, as the autoscaler counts them: ready, booting, or others.",
            labels=["pool", "state"],
        )
        changes = CounterMetricFamily(
            "fleet_autoscale_changes", "Nodes that were ordered or removed.", labels=["pool", "direction"]
        )
        failures = CounterMetricFamily(
            "fleet_autoscale_failures", "Nodes that were ordered and failed.", labels=["pool"]
        )
        for pool, (strength, book) in self._counted().items():
            nodes.add_metric([pool, "ready"], strength.ready)
            nodes.add_metric([pool, "booting"], strength.booting)
            nodes.add_metric([pool, "others"], strength.others)
            changes.add_metric([pool, "up"], book.added)
            changes.add_metric([pool, "down"], book.removed)
            failures.add_metric([pool], book.failed)
        yield from (active, nodes, changes, failures)
