"""The fleet's time: Redis' own, without the steps of its clock (docs/adr/0059)."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import StoreDown

logger = logging.getLogger(__name__)

TELL_S = 1.0
"""How often a process tells how time passes."""
_ASK_AGAIN_S = 30.0
_ALONE_S, _LOOK_S = 1.5, 0.3


class ServerClock:
    """The fleet's time, read now and then and counted on from there, so that processes on several machines
    write times of one clock.

    Args:
        redis: The server.
        monotonic: The clock between two readings.
    """

    def __init__(self, redis: FleetRedis, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._scripts = Scripts(redis)
        self._monotonic = monotonic
        self._was = 0.0
        self._heard_at = float("-inf")
        self._told = False

    async def __call__(self) -> float:
        """Return Unix seconds."""
        if self._monotonic() - self._heard_at > _ASK_AGAIN_S:
            self._hear(float(await self._scripts.call("time")))
        return self._was + self._monotonic() - self._heard_at

    def _hear(self, at: float) -> None:
        self._was, self._heard_at = at, self._monotonic()

    async def begin(self) -> None:
        """Tell Redis of this process, and return once the fleet's time is known.

        That takes a second or two if nobody has told for some time: another process may know of a step.

        Raises:
            StoreDown: No answer.
        """
        began = self._monotonic()
        while True:
            if await self._tell(alone=self._monotonic() - began > _ALONE_S):
                return
            await asyncio.sleep(_LOOK_S)

    async def keep(self) -> None:
        """Tell Redis how time passes by this machine's own clock, until canceled."""
        while True:
            with contextlib.suppress(StoreDown):
                await (self._tell() if self._told else self.begin())
            await asyncio.sleep(TELL_S)

    async def _tell(self, *, alone: bool = False) -> bool:
        """Tell how time has passed; return whether the fleet's time is known."""
        step: bytes = b""
        while True:
            known = {"was": self._was, "passed": self._monotonic() - self._heard_at} if self._told else {}
            at, measured = await self._scripts.call(
                "clock", **known, step=float(step) if step else None, alone=alone or None
            )
            if at:
                if step:
                    logger.warning("the clock of Redis was changed", extra={"seconds": float(step)})
                self._hear(float(at))
                self._told = True
            if not measured:
                return bool(at)
            step = measured  # a delay is not measured twice
