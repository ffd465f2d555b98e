"""The agent's figures for Prometheus, and a health check for containers, on a port of its own."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from comfy_fleet.agent.listening import listen, port_of
from comfy_fleet.connections import close
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.host import Heartbeat
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_HEAD_LIMIT = 8192
_TIMEOUT_S = 5.0

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


class _Figures(Collector):
    """Makes figures of the newest heartbeat whenever Prometheus asks."""

    def __init__(self, beat: Callable[[], Heartbeat]) -> None:
        self._beat = beat

    def collect(self) -> list[Metric]:
        beat = self._beat()
        word = GaugeMetricFamily("fleet_node_verdict", "1 for the agent's word.", labels=["node", "word"])
        vram = GaugeMetricFamily("fleet_node_vram_bytes", "GPU memory by owner.", labels=["node", "of"])
        flags = {
            name: GaugeMetricFamily(f"fleet_node_{name}", text, labels=["node"])
            for name, text in (
                ("busy", "Whether anything runs or waits on it."),
                ("orphans", "Prompts on it that no run explains."),
                ("restarts", "Restarts of its process."),
                ("host_memory_bytes", "Host memory of its own."),
            )
        }
        for node in beat.nodes:
            for one in Readiness:
                word.add_metric([node.name, one.value], float(node.word is one))
            for of in _VRAM:
                _add(vram, [node.name, of], node.facts.get("vram", {}).get(of))
            for name, family in flags.items():
                _add(family, [node.name], node.facts.get(name))
        gpus = [_gpu_family(name, text, key, beat.gpus) for key, (name, text) in _GPU.items()]
        return [word, vram, *flags.values(), *gpus]


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


class MetricsServer:
    """``GET /metrics``, ``GET /health`` and ``GET /health/NODE`` (200 only while it may get jobs)."""

    def __init__(
        self,
        beat: Callable[[], Heartbeat],
        words: Callable[[str], tuple[Readiness, str] | None],
        *,
        host: str,
        port: int,
    ) -> None:
        """Describe the server; nothing is opened before :meth:`start`.

        Args:
            beat: What the agent would say now.
            words: Its word on a node, and why.
            host: Address to listen on.
            port: Port; 0 lets the kernel choose.
        """
        self._registry = CollectorRegistry()
        self._registry.register(_Figures(beat))
        self._words = words
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.WriteTransport] = set()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return port_of(self._server, self._port)

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The port is taken.
        """
        opening = asyncio.start_server(  # noqa: TID251
            self._serve, self._host, self._port, limit=_HEAD_LIMIT
        )
        way_out = "name a free port: --metrics-port"
        self._server = await listen(opening, self._host, self._port, way_out=way_out)
        logger.info("metrics served", extra={"host": self._host, "port": self.port})

    async def stop(self) -> None:
        """Stop listening; who still asks gets no answer."""
        if self._server is not None:
            await close(self._server, self._open)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer.transport)
        try:
            async with Timeout(_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._answer(head.split(b"\r\n", 1)[0].decode("ascii", "replace"))
                length = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close"
                writer.write(f"HTTP/1.1 {status}\r\n{length}\r\n\r\n".encode() + body)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.transport.abort()
            self._open.discard(writer.transport)

    def _answer(self, line: str) -> tuple[str, str, bytes]:
        match line.split(" "):
            case ["GET", "/metrics", _]:
                return "200 OK", CONTENT_TYPE_LATEST, generate_latest(self._registry)
            case ["GET", "/health", _]:
                return "200 OK", "text/plain", b"ok\n"
            case ["GET", path, _] if path.startswith("/health/"):
                said = self._words(path.removeprefix("/health/"))
                if said is None:
                    return "404 Not Found", "text/plain", b"no such node here\n"
                word, why = said
                text = f"{word.value}: {why}\n" if why else f"{word.value}\n"
                status = "200 OK" if word is Readiness.READY else "503 Service Unavailable"
                return status, "text/plain", text.encode()
            case _:
                return "404 Not Found", "text/plain", b"/metrics, /health, /health/NODE\n"
