"""The process ``fleet haproxy run``."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web
from prometheus_client import Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from comfy_fleet.adapters.comfyui.broker_headers import PURPOSE as BROKER
from comfy_fleet.adapters.haproxy import build
from comfy_fleet.adapters.haproxy.certificate_watch import CertificateWatch
from comfy_fleet.adapters.haproxy.config_render import check_data
from comfy_fleet.adapters.haproxy.config_render import files as config_files
from comfy_fleet.adapters.haproxy.controller import Controller
from comfy_fleet.adapters.system.secret_box import NodeCredentials, SecretBox
from comfy_fleet.adapters.telemetry import MetricsServer, new_registry
from comfy_fleet.bootstrap import announcing, check_schema, open_stores
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.services.editor_ticket import PURPOSE as TICKETS
from comfy_fleet.settings import Settings
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

FIGURES_S = 5.0
"""Longest wait for HAProxy's own figures."""


def serve(settings: Settings) -> None:
    """Run both HAProxy processes until SIGTERM or SIGINT. SIGHUP renders the edge again and reloads it.

    Raises:
        ConfigError: HAProxy is missing or too old, a port is taken, a configuration is refused, or another
            controller works on the same folder.
    """
    build.require(settings.haproxy_bin)
    check_data(settings)
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()
    async with open_stores(settings) as stores:
        await check_schema(stores)
        controller = Controller(
            settings,
            stores.nodes,
            pools=stores.pools,
            ready_leases=stores.ready_leases,
            credentials=NodeCredentials(settings.secret_key_file),
            ticket_key=DerivedKey(settings.secret_key_file, TICKETS, without="editor's files stay closed"),
            broker_secret=BrokerSecret(settings.secret_key_file),
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

        def on_hangup() -> None:
            task = start(_reload(controller))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        registry, places = new_registry(), config_files(settings)
        ready = Gauge("fleet_haproxy_ready", "Whether broker and edge answer.", registry=registry)
        ready.set_function(controller.ready.is_set)
        registry.register(_Ends(controller.certificates))
        metrics = MetricsServer(
            registry,
            host=settings.metrics_host,
            port=settings.haproxy_metrics_port,
            setting="FLEET_HAPROXY_METRICS_PORT",
            more={
                "/metrics/broker": HaproxyFigures(places.broker_monitor).show,
                "/metrics/edge": HaproxyFigures(places.edge_monitor).show,
            },
        )
        announced = announcing(settings, stores, "haproxy", metrics)
        try:
            await metrics.start()
            await controller.run(stop)
        finally:
            announced.cancel()
            await asyncio.gather(announced, return_exceptions=True)
            await metrics.stop()


class HaproxyFigures:
    """Passes on what HAProxy itself counts, of its frontends and backends: one for each server would be many.

    Args:
        monitor: The socket where HAProxy answers; only this user can open it.
    """

    def __init__(self, monitor: Path) -> None:
        self._monitor = monitor

    async def show(self, _: web.Request) -> web.StreamResponse:
        """Answer a scrape."""
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(str(self._monitor)),
                    timeout=aiohttp.ClientTimeout(total=FIGURES_S),
                ) as session,
                session.get("http://haproxy/metrics?scope=frontend&scope=backend") as answer,
            ):
                text = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return web.Response(status=502, text=f"HAProxy does not answer: {error}\n")
        return web.Response(status=answer.status, body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Ends(Collector):
    """When the certificates end that the edge shows."""

    def __init__(self, watch: CertificateWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield a sample for each origin; without TLS, none."""
        family = GaugeMetricFamily(
            "fleet_certificate_ends_seconds",
            "When the certificate that an origin shows ends, in seconds since 1970.",
            labels=["origin"],
        )
        for origin, one in self._watch.shown.by_origin.items():
            family.add_metric([origin], one.expires_at)
        yield family


class DerivedKey:
    """Reads a key that is derived from the fleet's secret, which it never makes: the API does.

    Args:
        path: The secret's file.
        purpose: What the key is for.
        without: What happens meanwhile, for the log.
    """

    def __init__(self, path: Path, purpose: bytes, *, without: str) -> None:
        self._path = path
        self._purpose = purpose
        self._without = without
        self._known: bytes | None = None
        self._trouble = ""

    def __call__(self) -> bytes | None:
        """Return the key; None, with a log line, as long as it can't be known."""
        if self._known is None:
            try:
                self._known = self._read()
            except (ConfigError, OSError) as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    logger.warning(self._without, extra={"reason": str(error)})
        return self._known

    def _read(self) -> bytes:
        if not self._path.exists():
            raise ConfigError(
                f"{self._path} is missing: the API makes it; FLEET_SECRET_FILE names it for all processes"
            )
        return SecretBox.open(self._path).derive(self._purpose)


class BrokerSecret:
    """Reads what the broker's ports ask for, see :func:`comfy_fleet.bootstrap.broker_secret`."""

    def __init__(self, path: Path) -> None:
        self._key = DerivedKey(path, BROKER, without="broker's ports stay closed")

    def __call__(self) -> str | None:
        """Return it; None, with a log line, as long as it can't be known."""
        key = self._key()
        return None if key is None else key.hex()


async def _reload(controller: Controller) -> None:
    try:
        if not await controller.reload_edge():
            logger.info("edge unchanged")
    except ConfigError as error:
        logger.error("edge not reloaded", extra={"reason": error.message})
