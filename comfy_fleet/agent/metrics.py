"""The agent's own metrics for Prometheus, and a health check of each node for containers.

What it sees of nodes and GPUs goes with its heartbeats, and the API shows it to Prometheus.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness
from comfy_fleet.domain.nodes.host import Heartbeat


class AgentMetrics(Collector):
    """Makes metrics from the agent's present report at each scrape.

    Args:
        beat: What the agent would say now.
        answer: Returns a node's state for HAProxy; None: no such node.
        confirmed_s_ago: Seconds since the API has answered a heartbeat; None: it never has.
    """

    def __init__(
        self,
        beat: Callable[[], Heartbeat],
        answer: Callable[[str], AgentState | None],
        confirmed_s_ago: Callable[[], float | None],
    ) -> None:
        self._beat = beat
        self._answer = answer
        self._confirmed_s_ago = confirmed_s_ago

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
        said = GaugeMetricFamily(
            "fleet_agent_nodes", "The agent's nodes by what it says of them.", labels=["word"]
        )
        for one in Readiness:
            said.add_metric([one.value], sum(node.readiness is one for node in beat.nodes))
        heard = GaugeMetricFamily(
            "fleet_agent_confirmed_age_seconds", "Since the API has answered a heartbeat."
        )
        if (age_s := self._confirmed_s_ago()) is not None:
            heard.add_metric([], age_s)
        return [said, heard]
