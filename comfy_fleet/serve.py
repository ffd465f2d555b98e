"""The process ``fleet serve``: the API and a dispatcher, each in a thread with an event loop of its own.

A request's body may be megabytes, and its JSON is read in one piece: beats and runs must not wait for that.
So both have their own connections to Redis, and neither calls the other but over its event loop.
"""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from comfy_fleet.adapters.telemetry import (
    LoggingTelemetry,
    Observers,
    PrometheusTelemetry,
    new_registry,
)
from comfy_fleet.api import main as api
from comfy_fleet.bootstrap import open_tracing
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.processes import dispatcher
from comfy_fleet.settings import Settings

logger = logging.getLogger(__name__)

SWITCH_S = 0.001
"""How long a thread computes before another one may. Python's own value, 5 ms, is as long as a trip."""


def serve(settings: Settings, *, name: str | None = None) -> None:
    """Run the API and a dispatcher until SIGTERM or SIGINT.

    The first signal stops claiming and waits for the runs in flight, at most ``stop_wait_s``; runs that are
    left are handed over to another dispatcher, and a second signal does so at once. Then the API ends.

    Raises:
        ConfigError: A setting is wrong, or a newer version works on this Redis.
    """
    api.prepare()
    sys.setswitchinterval(SWITCH_S)
    registry = new_registry()
    tracing = open_tracing("serve", registry)
    telemetry = Observers(LoggingTelemetry(), PrometheusTelemetry(registry), *([tracing] if tracing else []))
    companion = DispatcherThread(settings, name=name, registry=registry, telemetry=telemetry)
    uvloop.run(
        api.run(settings, registry=registry, telemetry=telemetry, tracing=tracing, companion=companion)
    )


def _new_loop() -> asyncio.AbstractEventLoop:
    return uvloop.Loop()


class DispatcherThread:
    """A dispatcher in a thread of its own; its methods are for the thread that makes it.

    Args:
        settings: The settings.
        name: The dispatcher's; None: of host and process.
        registry: The process's metrics.
        telemetry: Is told what happens to jobs and runs.
    """

    def __init__(
        self, settings: Settings, *, name: str | None, registry: CollectorRegistry, telemetry: Telemetry
    ) -> None:
        self._order = dispatcher.StopOrder()
        self._work: Callable[[], Coroutine[Any, Any, None]] = lambda: dispatcher.run(
            settings, self._order, name=name, registry=registry, telemetry=telemetry
        )
        self._runner = asyncio.Runner(loop_factory=_new_loop)
        self._outcome: Future[None] = Future()
        # A process whose main thread has broken off must end: its runs are taken over then.
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop claiming, end the runs in flight, and end; called again, hand them over at once."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._runner.get_loop().call_soon_threadsafe(self._order.give)

    async def ended(self) -> None:
        """Wait for its end.

        Raises:
            Exception: What ended it.
        """
        await asyncio.wrap_future(self._outcome)

    def _run(self) -> None:
        try:
            with self._runner as runner:
                runner.run(self._work())
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(None)
