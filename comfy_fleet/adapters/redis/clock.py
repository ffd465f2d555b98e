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
_QUICK_S = 1.0
"""A step that is measured with a slower answer may be a delay."""


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
        self._asked_at = self._heard_at = float("-inf")
        self._told = False

    async def __call__(self) -> float:
        """Return Unix seconds."""
        asked = self._monotonic()
        if asked - self._heard_at > _ASK_AGAIN_S:
            at = float(await self._scripts.call("time"))
            if (
                self._told
            ):  # the fleet's time may stand still: what this process has measured is still to be told
                return at
            self._hear(at, asked)
        return self._was + self._monotonic() - self._heard_at

    def _hear(self, at: float, asked: float) -> None:
        self._was, self._asked_at, self._heard_at = at, asked, self._monotonic()

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
            asked = self._monotonic()
            known = (
                {"was": self._was, "passed": asked - self._heard_at, "most": asked - self._asked_at}
                if self._told
                else {}
            )
            at, measured = await self._scripts.call(
                "clock", **known, step=float(step) if step else None, alone=alone or None
            )
            if measured:
                if self._monotonic() - asked > _QUICK_S:
                    return False
                step = measured  # a delay is not measured twice
                continue
            if at and step:
                logger.warning("the clock of Redis was changed", extra={"seconds": float(step)})
            if at:
                self._hear(float(at), asked)
            self._told = bool(at)
            return self._told
