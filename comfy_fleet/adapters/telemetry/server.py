"""``/metrics`` for Prometheus and ``/health``, on a separate port of each process."""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from comfy_fleet.adapters.telemetry.text import RegistryText
from comfy_fleet.connections import close

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONNECTION_S = 10.0
"""Longest connection: a scrape takes milliseconds, and idle clients must not hold connections."""


class MetricsServer:
    """Serves a registry's metrics. If the port is taken, that is logged and the process goes on without it.

    Args:
        registry: The metrics.
        host: Address to listen on.
        port: Port; 0 lets the kernel choose; None: nothing is served.
        setting: What sets the port, for the log.
        more: Further paths, as aiohttp writes them, and who answers a GET there.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        host: str,
        port: int | None,
        setting: str,
        more: Mapping[str, Handler] | None = None,
    ) -> None:
        self._text = RegistryText(registry)
        self._host = host
        self._port = port
        self._setting = setting
        guards = [_last_of_its_connection, *([_own_names] if _is_own(host) else [])]
        app = web.Application(middlewares=guards)
        handlers = {"/metrics": self._metrics, "/health": _health, **(more or {})}
        app.add_routes([web.get(path, handler) for path, handler in handlers.items()])
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int | None:
        """The port that it listens on; None while it does not listen."""
        if self._server is None or not self._server.sockets:
            return None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen, if the port can be had."""
        if self._port is None:
            return
        await self._runner.setup()
        connections, loop = self._runner.server, asyncio.get_running_loop()
        if connections is None:
            raise RuntimeError("aiohttp has set nothing up")

        def connection() -> asyncio.BaseProtocol:
            made = connections()
            loop.call_later(CONNECTION_S, _drop, made)
            return made

        try:
            self._server = await loop.create_server(connection, self._host, self._port)
        except OSError as error:
            logger.warning(
                "metrics not served",
                extra={
                    "host": self._host,
                    "port": self._port,
                    "setting": self._setting,
                    "reason": error.strerror or str(error),
                    "way_out": f"{self._setting}: another port, 0 for any that is free, or none",
                },
            )
        else:
            logger.info("metrics served", extra={"host": self._host, "port": self.port})

    async def stop(self) -> None:
        """Stop listening; open requests get no answer."""
        if self._server is not None:
            await close(self._server, _Open(self._runner))
            await self._server.wait_closed()
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=self._text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Open:
    """The open connections of a server at each scrape."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner

    def _now(self) -> list[asyncio.Transport]:
        server = self._runner.server
        found = [one.transport for one in server.connections] if server is not None else []
        return [one for one in found if one is not None]

    def __iter__(self) -> Iterator[asyncio.Transport]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __contains__(self, one: object) -> bool:
        return one in self._now()


def _drop(connection: web.RequestHandler) -> None:
    if connection.transport is not None:
        connection.transport.abort()


@web.middleware
async def _last_of_its_connection(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    response.force_close()
    return response


@web.middleware
async def _own_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse the name of a page in a browser that was made to lead to loopback."""
    if not _is_own(request.host):
        raise web.HTTPForbidden(text="this is served to programs of this machine: ask at 127.0.0.1\n")
    return await handler(request)


def _is_own(host: str) -> bool:
    """Return whether a host, with or without a port, is this machine by its name or address."""
    name = host.strip("[]") if host.count(":") > 1 and "]:" not in host else host.rpartition("]")[0][1:]
    name = name or host.partition(":")[0]
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _health(_: web.Request) -> web.StreamResponse:
    return web.Response(text="ok\n")
