"""The agent's metrics for Prometheus, and a health check of each node for containers."""

from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness
from comfy_fleet.domain.nodes.host import Heartbeat

_GPU = {
    "utilisation": ("fleet_gpu_utilisation_percent", "Share of the time in which a kernel ran."),
    "temperature_c": ("fleet_gpu_temperature_celsius", "Temperature."),
    "power_w": ("fleet_gpu_power_watts", "Power."),
    "ecc_uncorrected": (
        "fleet_gpu_ecc_uncorrected",
        "Uncorrected memory errors since the driver was loaded.",
    ),
}
_VRAM = ("total", "own", "foreign", "available")


class AgentMetrics(Collector):
    """Makes metrics from the agent's present report at each scrape.

    Args:
        beat: What the agent would say now.
        answer: Returns a node's state for HAProxy; None: no such node.
    """

    def __init__(self, beat: Callable[[], Heartbeat], answer: Callable[[str], AgentState | None]) -> None:
        self._beat = beat
        self._answer = answer

    def describe(self) -> list[Metric]:
        """Return nothing: the registry must not collect before the agent has looked."""
        return []

    async def health(self, request: web.Request) -> web.StreamResponse:
        """``GET /health/NODE``: 200 only while the node may get jobs."""
        state = self._answer(request.match_info["node"])
        if state is None:
            return web.Response(status=404, text="no such node here\n")
        text = f"{state.readiness.value}: {state.reason}\n" if state.reason else f"{state.readiness.value}\n"
        return web.Response(status=200 if state.readiness is Readiness.READY else 503, text=text)

    def collect(self) -> list[Metric]:
        """Return the metrics."""
        beat = self._beat()
        readiness = GaugeMetricFamily(
            "fleet_node_verdict", "1 for the agent's word.", labels=["node", "word"]
        )
        vram = GaugeMetricFamily("fleet_gpu_memory_bytes", "GPU memory by owner.", labels=["node", "kind"])
        flags = {
            name: GaugeMetricFamily(f"fleet_node_{name}", text, labels=["node"])
            for name, text in (
                ("busy", "Whether anything runs or waits on it."),
                ("orphans", "Prompts on it that no run explains."),
                ("restarts", "Restarts of its process."),
                ("host_memory_bytes", "Its own host memory."),
            )
        }
        for node in beat.nodes:
            for one in Readiness:
                readiness.add_metric([node.name, one.value], float(node.readiness is one))
            for of in _VRAM:
                _add(vram, [node.name, of], node.facts.get("vram", {}).get(of))
            for name, family in flags.items():
                _add(family, [node.name], node.facts.get(name))
        gpus = [_gpu_family(name, text, key, beat.gpus) for key, (name, text) in _GPU.items()]
        return [readiness, vram, *flags.values(), *gpus]


def _gpu_family(name: str, text: str, key: str, gpus: Any) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["gpu", "name"])
    for gpu in gpus:
        _add(family, [str(gpu.get("uuid") or gpu.get("index")), str(gpu.get("name", ""))], gpu.get(key))
    return family


def _add(family: GaugeMetricFamily, labels: list[str], value: Any) -> None:
    if isinstance(value, list):
        value = len(value)
    if isinstance(value, int | float):
        family.add_metric(labels, float(value))
