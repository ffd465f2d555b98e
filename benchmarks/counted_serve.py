"""``fleet serve`` whose metrics can be switched off and on while it runs: SIGUSR1 off, SIGUSR2 on.

With its metrics off, neither jobs, runs nor requests are counted; the log stays as it is.
"""

import signal
import sys
from typing import Any

import uvloop

from comfy_fleet.adapters.telemetry import LoggingTelemetry, Observers, PrometheusTelemetry, new_registry
from comfy_fleet.api import main as api
from comfy_fleet.api.metrics import Metrics
from comfy_fleet.cli.processes import logging_as
from comfy_fleet.serve import SWITCH_S, DispatcherThread


class Switched:
    """Passes calls on while it is on."""

    on = True

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)

        def passed(*args: Any, **more: Any) -> None:
            if Switched.on:
                call(*args, **more)

        setattr(self, name, passed)
        return passed


def main() -> None:
    """Run until SIGTERM."""
    count = Metrics.count

    def counted(self: Metrics, handler: str, status: int, seconds: float | None) -> None:
        if Switched.on:
            count(self, handler, status, seconds)

    Metrics.count = counted  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, lambda *_: setattr(Switched, "on", False))
    signal.signal(signal.SIGUSR2, lambda *_: setattr(Switched, "on", True))
    settings = logging_as("serve")
    api.prepare()
    sys.setswitchinterval(SWITCH_S)
    registry = new_registry()
    telemetry: Any = Observers(LoggingTelemetry(), Switched(PrometheusTelemetry(registry)))
    companion = DispatcherThread(settings, name="counted", registry=registry, telemetry=telemetry)
    uvloop.run(api.run(settings, registry=registry, telemetry=telemetry, companion=companion))


if __name__ == "__main__":
    main()
