"""The process ``fleet autoscale``."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import uvloop

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.adapters.providers.commands import CommandProvider, SwarmProvider
from comfy_fleet.adapters.providers.local import LocalProvider
from comfy_fleet.adapters.redis.audit import RedisAudit
from comfy_fleet.adapters.redis.figures import RedisFigures
from comfy_fleet.adapters.redis.scaling import RedisScaling
from comfy_fleet.adapters.telemetry import MetricsServer, new_registry
from comfy_fleet.adapters.telemetry.autoscale import AutoscaleFigures
from comfy_fleet.bootstrap import Stores, announcing, check_schema, open_stores
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.scaling.scaling_file import (
    ProviderKind,
    ScaledPoolSpec,
    ScalingFile,
    read_scaling_file,
)
from comfy_fleet.ports.scaling import NodeProvider, ScalingState
from comfy_fleet.services.autoscaler import Autoscaler, PoolReport
from comfy_fleet.settings import Settings
from comfy_fleet.timeouts import Timeout

MOST_BYTES = 1_000_000
"""Largest file of rules."""


def read_file(path: Path) -> ScalingFile:
    """Read the file of pools and rules.

    Raises:
        BadInput: It can't be read; the message says why.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            raw = file.read(MOST_BYTES + 1)
        if found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid()):
            raise BadInput(
                f"--file {path} names programs that are run, and others than root and the fleet's user may "
                f"change it: chown it to one of them, and chmod go-w {path}",
                details={"field": "file"},
            )
        if len(raw) > MOST_BYTES:
            raise BadInput(f"{path} has more than {MOST_BYTES} bytes", details={"field": "file"})
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"--file {path} can't be read: {why}", details={"field": "file"}) from error
    file_ = read_scaling_file(text, str(path))
    for spec in file_.pools.values():
        if spec.provider.comfyui:
            _checkout(spec)
    return file_


def serve(settings: Settings, file: ScalingFile) -> None:
    """Scale until SIGTERM or SIGINT. Nodes stay as they are then."""
    uvloop.run(_serve(settings, file))


def look_once(settings: Settings, file: ScalingFile) -> list[PoolReport] | None:
    """Look once, act, and wait until that is done; None if another autoscaler is active.

    Raises:
        StoreDown: Redis does not answer.
    """
    return uvloop.run(_look_once(settings, file))


def say(settings: Settings, file: ScalingFile, show: Callable[[PoolReport], None], *, once: bool) -> None:
    """Look, and tell what would be done; nothing is changed.

    Args:
        settings: The settings.
        file: The pools and their rules.
        show: Is told of each pool, at each look.
        once: Whether one look is enough; else until SIGTERM or SIGINT.
    """
    uvloop.run(_say(settings, file, show, once=once))


def stored(settings: Settings) -> tuple[ScalingState, float]:
    """Return what is stored, and the fleet's time.

    Raises:
        StoreDown: Redis does not answer.
    """

    async def read() -> tuple[ScalingState, float]:
        async with open_stores(settings) as stores:
            return await RedisScaling(stores.redis).state(), await stores.clock()

    return uvloop.run(read())


def _stopped() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _serve(settings: Settings, file: ScalingFile) -> None:
    stop = _stopped()
    registry = new_registry()
    metrics = MetricsServer(
        registry,
        host=settings.metrics_host,
        port=settings.autoscale_metrics_port,
        setting="FLEET_AUTOSCALE_METRICS_PORT",
    )
    async with open_stores(settings) as stores:
        await check_schema(stores)
        announced = announcing(settings, stores, "autoscale", metrics)
        try:
            async with opened(settings, file) as autoscaler:
                registry.register(AutoscaleFigures(lambda: autoscaler.active, autoscaler.counted))
                await metrics.start()
                await autoscaler.run(stop)
        finally:
            announced.cancel()
            await asyncio.gather(announced, return_exceptions=True)
            await metrics.stop()


async def _look_once(settings: Settings, file: ScalingFile) -> list[PoolReport] | None:
    async with opened(settings, file, patience_s=None) as autoscaler:
        return list(autoscaler.reports) if await autoscaler.look() else None


async def _say(
    settings: Settings, file: ScalingFile, show: Callable[[PoolReport], None], *, once: bool
) -> None:
    stop = _stopped()
    async with opened(settings, file, dry=True) as autoscaler:
        while not stop.is_set():
            await autoscaler.look()
            for report in autoscaler.reports:
                show(report)
            if once:
                return
            with contextlib.suppress(TimeoutError):
                async with Timeout(file.every_s):
                    await stop.wait()


@asynccontextmanager
async def opened(
    settings: Settings, file: ScalingFile, *, dry: bool = False, patience_s: float | None = 5.0
) -> AsyncIterator[Autoscaler]:
    """Open an autoscaler, and let another one be active at the end.

    Args:
        settings: The settings.
        file: The pools and their rules.
        dry: Whether it only says what it would do.
        patience_s: How long the end waits for providers; None: until they are done.
    """
    async with open_stores(settings) as stores:
        autoscaler = Autoscaler(
            file,
            {pool: provider_of(pool, spec, settings, stores) for pool, spec in file.pools.items()},
            store=RedisScaling(stores.redis),
            nodes=stores.nodes,
            hosts=stores.hosts,
            figures=RedisFigures(stores.redis),
            audit=RedisAudit(stores.redis),
            clock=stores.clock,
            holder=f"{socket.gethostname()}.{os.getpid()}.{uuid4().hex[:8]}",
            dry=dry,
        )
        try:
            yield autoscaler
        finally:
            await autoscaler.close(patience_s=patience_s)


def provider_of(pool: str, spec: ScaledPoolSpec, settings: Settings, stores: Stores) -> NodeProvider:
    """Return where a pool's nodes come from."""
    if spec.provider.kind is ProviderKind.COMMAND:
        return CommandProvider(spec.provider, pool=pool, prefix=spec.prefix)
    if spec.provider.kind is ProviderKind.SWARM:
        return SwarmProvider(spec.provider)
    return LocalProvider(
        spec.provider,
        pool=pool,
        prefix=spec.prefix,
        data=settings.data.resolve() / "autoscale" / settings.namespace,
        env={
            "FLEET_API_HOST": settings.api_host,
            "FLEET_API_PORT": str(settings.api_port),
            "FLEET_NAMESPACE": settings.namespace,
        },
        tokens=stores.agent_tokens,
        clock=stores.clock,
    )


def _checkout(spec: ScaledPoolSpec) -> Checkout:
    provider = spec.provider
    return Checkout.find(Path(provider.comfyui), python=provider.python or None, args=provider.comfyui_args)
