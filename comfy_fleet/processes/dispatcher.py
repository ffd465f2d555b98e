"""The process ``fleet dispatch``."""

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import orjson
import uvloop
from prometheus_client import CollectorRegistry, Gauge

from comfy_fleet.adapters.comfyui.lease import LeaseClient
from comfy_fleet.adapters.redis.ahead import RedisAhead
from comfy_fleet.adapters.redis.dispatchers import LivingDispatcher
from comfy_fleet.adapters.redis.life_line import RedisLifeLine
from comfy_fleet.adapters.redis.rq_inbox import RedisRqInbox
from comfy_fleet.adapters.redis.rq_worker import RqWorker
from comfy_fleet.adapters.telemetry import (
    LoggingTelemetry,
    MetricsServer,
    Observers,
    PrometheusTelemetry,
    new_registry,
)
from comfy_fleet.bootstrap import (
    Stores,
    announcing,
    broker_secret,
    calm_collector,
    check_schema,
    open_assets,
    open_beats,
    open_moderation,
    open_nodes,
    open_secrets,
    open_stores,
    open_tracing,
)
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.jobs.run import RunLimits
from comfy_fleet.domain.people import Tenant
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.memory import give_memory_back
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.collector import OutputLimits
from comfy_fleet.services.dispatcher import Dispatcher, DispatchLimits
from comfy_fleet.services.failure_policy import FailureLimits
from comfy_fleet.services.job_tracing import JobTracing
from comfy_fleet.services.memory_prediction import MemoryPrediction
from comfy_fleet.services.store_retry import BACKOFF, Reminder
from comfy_fleet.settings import Settings
from comfy_fleet.tasks import forever
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

WORKER_BEAT_S = 1.0


class StopOrder:
    """Tells a dispatcher to stop; the second time, to hand its runs over at once.

    Attributes:
        given: Set by the first one.
        hurry: Called for each further one.
    """

    def __init__(self) -> None:
        self.given = asyncio.Event()
        self.hurry: Callable[[], None] = lambda: None

    def give(self) -> None:
        """Give the order, in the dispatcher's event loop."""
        if self.given.is_set():
            self.hurry()
        self.given.set()


def serve(settings: Settings, *, name: str | None = None) -> None:
    """Run a dispatcher until SIGTERM or SIGINT.

    The first signal stops claiming and waits for the runs in flight, at most ``stop_wait_s``; runs that are
    left are handed over to another dispatcher. A second signal hands over at once.
    """
    calm_collector()
    give_memory_back()
    uvloop.run(_serve(settings, name))


async def _serve(settings: Settings, name: str | None) -> None:
    order = StopOrder()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, order.give)
    registry = new_registry()
    metrics = MetricsServer(
        registry,
        host=settings.metrics_host,
        port=settings.dispatch_metrics_port,
        setting="FLEET_DISPATCH_METRICS_PORT",
    )
    tracing = open_tracing("dispatch", registry)
    telemetry = Observers(LoggingTelemetry(), PrometheusTelemetry(registry), *([tracing] if tracing else []))
    try:
        await metrics.start()
        await run(
            settings,
            order,
            name=name,
            registry=registry,
            telemetry=telemetry,
            metrics=metrics,
            tracing=tracing,
        )
    finally:
        await metrics.stop()


async def run(
    settings: Settings,
    order: StopOrder,
    *,
    name: str | None,
    registry: CollectorRegistry,
    telemetry: Telemetry,
    metrics: MetricsServer | None = None,
    tracing: JobTracing | None = None,
) -> None:
    """Run a dispatcher until the order to stop.

    Args:
        order: That order.
        name: The dispatcher's; None: of host and process.
        registry: Gets the gauge of its runs.
        telemetry: Is told what happens to jobs and runs.
        metrics: Serves the metrics, if it is not the API that does.
        tracing: Makes spans of jobs that have ended, if that is not done elsewhere in the process.

    Raises:
        ConfigError: A newer version works on this Redis.
    """
    async with (
        open_stores(settings) as stores,
        open_dispatcher(settings, stores, name=name, telemetry=telemetry) as dispatcher,
    ):
        in_flight = Gauge(
            "fleet_runs_in_flight", "Runs that this dispatcher sees through.", registry=registry
        )
        in_flight.set_function(lambda: len(dispatcher.flying))
        ready = Gauge(
            "fleet_leases_ready", "Idle nodes whose leases this dispatcher holds ready.", registry=registry
        )
        ready.set_function(lambda: len(dispatcher.snapshot().ready))
        await check_schema(stores)
        order.hurry = dispatcher.hurry
        inbox, jobs = RedisRqInbox(stores.redis), stores.jobs.telling(telemetry)

        async def stop(rq_id: str) -> None:
            if job_id := await inbox.stop(rq_id):
                await jobs.request_cancel(job_id)

        living = LivingDispatcher(stores.redis, dispatcher.name)
        worker = RqWorker(stores.redis, stores.events, dispatcher.name, stop=stop)
        background = [
            asyncio.create_task(forever(lambda: _beat(living), name="heartbeat")),
            asyncio.create_task(forever(lambda: _beat_worker(worker, dispatcher), name="RQ worker's record")),
            asyncio.create_task(forever(lambda: _listen(worker), name="RQ's commands")),
        ]
        if tracing is not None:
            tell = partial(tracing.run, stores.jobs)
            background.append(asyncio.create_task(forever(tell, name="spans of jobs")))
        if metrics is not None:
            background.append(announcing(settings, stores, "dispatch", metrics))
        try:
            await _run_once_store_answers(dispatcher, order.given)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            with contextlib.suppress(StoreDown):
                await living.leave()
                await worker.leave()


async def _run_once_store_answers(dispatcher: Dispatcher, stop: asyncio.Event) -> None:
    """Run it as soon as Redis answers: a start in any order must do."""
    reminder = Reminder()
    failures = 0
    while not stop.is_set():
        try:
            await dispatcher.run(stop)
        except StoreDown as error:  # it can't begin; once it has begun, it waits by itself
            failures += 1
            if reminder.due():
                logger.warning(
                    "dispatcher waits for Redis: start it, or correct FLEET_REDIS_URL",
                    extra={"dispatcher": dispatcher.name, "error": str(error)},
                )
        else:
            return
        with contextlib.suppress(TimeoutError):
            async with Timeout(BACKOFF.pause_s(failures)):
                await stop.wait()


async def _beat(living: LivingDispatcher) -> None:
    while True:
        try:
            await living.beat()
        except StoreDown as error:
            logger.warning("heartbeat not written", extra={"error": str(error)})
        await asyncio.sleep(WORKER_BEAT_S)


async def _beat_worker(worker: RqWorker, dispatcher: Dispatcher) -> None:
    while True:
        try:
            await worker.beat(busy=len(dispatcher.flying), done=dispatcher.done)
        except StoreDown as error:
            logger.warning("worker record not written", extra={"error": str(error)})
        await asyncio.sleep(WORKER_BEAT_S)


async def _listen(worker: RqWorker) -> None:
    while True:
        try:
            await worker.listen()
        except StoreDown as error:
            logger.warning("RQ's commands can't be heard", extra={"error": str(error)})
            await asyncio.sleep(1)


@asynccontextmanager
async def open_dispatcher(
    settings: Settings, stores: Stores, *, name: str | None = None, telemetry: Telemetry | None = None
) -> AsyncIterator[Dispatcher]:
    """Build a dispatcher on open stores; without ``telemetry``, events are only logged."""
    secrets = open_secrets(settings)
    telemetry = telemetry or Observers(LoggingTelemetry())

    def open_secret(sealed: bytes) -> Mapping[str, Any]:
        plain: dict[str, Any] = orjson.loads(secrets.open_sealed(sealed))
        return plain

    async def wakes() -> AsyncIterator[str]:
        async with stores.events.wakes() as queue:
            while True:
                yield (await queue.get()).decode()

    assets = open_assets(settings, stores)
    async with open_nodes(settings, stores) as nodes, open_beats(settings) as beats:
        yield Dispatcher(
            name=name or f"{socket.gethostname()}.{os.getpid()}",
            runs=stores.runs.telling(telemetry),
            beats=beats,
            ahead=RedisAhead(stores.redis),
            registry=stores.nodes,
            inventories=stores.inventories,
            memory=MemoryPrediction(stores.memory, keep_s=settings.oom_memory_s),
            pools=stores.pools,
            leases=LeaseClient(
                settings.lease_url,
                silence_s=settings.silence_s,
                max_frame_bytes=settings.node_frame_bytes,
                namespace=settings.namespace,
                secret=broker_secret(settings),
            ),
            ready_leases=stores.ready_leases,
            nodes=nodes,
            assets=assets,
            # A job's record says what its tenant wants.
            moderation=open_moderation(settings, assets, lambda user: Tenant(name=DEFAULT_TENANT), telemetry),
            open_secret=open_secret,
            line=RedisLifeLine(stores.events, stores.redis.keyspace, str(uuid4())),
            wakes=wakes,
            run_limits=RunLimits(
                outputs=settings.max_outputs + 1,
                silence_s=settings.silence_s,
                run_s=settings.run_timeout_s,
                pending_s=settings.pending_s,
            ),
            output_limits=OutputLimits(
                outputs=settings.max_outputs,
                output_bytes=settings.max_output_bytes,
                job_bytes=settings.max_job_bytes,
                output_s=settings.output_timeout_s,
            ),
            limits=DispatchLimits(
                lease_ttl_s=settings.lease_ttl_s,
                beat_s=settings.beat_s,
                stop_wait_s=settings.stop_wait_s,
                stage_ahead_bytes=settings.stage_ahead_bytes,
                ready_leases=settings.ready_leases,
            ),
            failure_limits=FailureLimits(
                faults=settings.quarantine_faults,
                ooms=settings.quarantine_ooms,
                oom_memory_s=settings.oom_memory_s,
                pools=settings.pool_defaults,
            ),
            files=FilePolicy.parse(settings.deny_classes, settings.free_paths, settings.allow_classes),
            telemetry=telemetry,
            now=time.monotonic,
            clock=stores.clock,
            new_id=lambda: str(uuid4()),
            chance=random.random,
        )
