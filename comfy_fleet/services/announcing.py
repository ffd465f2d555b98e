"""Says again and again where processes serve their metrics."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.networks import is_any, is_loopback
from comfy_fleet.ports.scrape_targets import ScrapeTarget, ScrapeTargets
from comfy_fleet.timeouts import Timeout

ANNOUNCE_S = 10.0
MOST_SAID = 2000
_LEAVE_S = 1.0


def target_of(process: str, *, machine: str, host: str, port: int, advertise: str | None) -> ScrapeTarget:
    """Return where a process serves its metrics.

    Args:
        process: As in :class:`ScrapeTarget`.
        machine: This machine's name.
        host: The address on which it listens.
        port: The port.
        advertise: The name by which others reach this machine, if it listens on all addresses; None: its own.
    """
    name = host
    if is_any(host):
        name = advertise or machine
    shown = f"[{name}]" if ":" in name else name
    only_on = machine if is_loopback(host) else ""
    return ScrapeTarget(process=process, host=machine, address=f"{shown}:{port}", only_on=only_on)


async def announce(targets: ScrapeTargets, target: Callable[[], ScrapeTarget | None]) -> None:
    """Say where this process is until canceled; then have it forgotten.

    Args:
        targets: Who remembers it.
        target: Where the metrics are now; None: nowhere.
    """
    said: ScrapeTarget | None = None
    try:
        while True:
            if (found := target()) is not None:
                with contextlib.suppress(FleetError):  # Redis is away: others say so
                    await targets.announce(found)
                    said = found
            await asyncio.sleep(ANNOUNCE_S)
    finally:
        if said is not None:
            with contextlib.suppress(FleetError, TimeoutError):
                async with Timeout(_LEAVE_S):
                    await targets.leave(said)


class AgentTargets:
    """Passes on where agents serve their metrics, as they say with each heartbeat.

    Args:
        targets: Who remembers it.
        clock: Seconds that never go back.
    """

    def __init__(self, targets: ScrapeTargets, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._targets = targets
        self._clock = clock
        self._said: dict[str, tuple[float, ScrapeTarget]] = {}

    async def heard(self, target: ScrapeTarget) -> None:
        """Have it remembered, unless that was said a moment ago."""
        said = self._said.get(target.host)
        if said is not None and said[1] == target and self._clock() - said[0] < ANNOUNCE_S:
            return
        if len(self._said) >= MOST_SAID:  # hosts come and go; who makes them up takes no more memory
            self._said.clear()
        self._said[target.host] = self._clock(), target
        with contextlib.suppress(FleetError):
            await self._targets.announce(target)
