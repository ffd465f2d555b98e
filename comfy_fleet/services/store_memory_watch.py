"""Says in the log when the fleet's store comes near the end of its memory, or may throw jobs away."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.store_memory import StoreMemory

logger = logging.getLogger(__name__)

LOOK_S = 60.0
AGAIN_S = 3600.0
"""What goes on is said once an hour."""


class StoreMemoryWatch:
    """Looks now and then.

    Args:
        ask: Asks the store.
        clock: Seconds that only ever grow.
        look_s: Seconds between two looks.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[StoreMemory]],
        *,
        clock: Callable[[], float] = time.monotonic,
        look_s: float = LOOK_S,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._look_s = look_s
        self._said_at: float | None = None

    async def run(self) -> None:
        """Look, until canceled."""
        while True:
            try:
                self.look(await self._ask())
            except FleetError as error:  # it is away, which others report, or its user may not ask
                logger.debug("the store's memory is not known", extra={"error": str(error)})
            await asyncio.sleep(self._look_s)

    def look(self, memory: StoreMemory) -> None:
        """Log what is new."""
        now = self._clock()
        if not memory.trouble:
            if self._said_at is not None:
                logger.info("the store has room again")
            self._said_at = None
        elif self._said_at is None or now - self._said_at >= AGAIN_S:
            self._said_at = now
            logger.warning(
                "the store's memory",
                extra={"reason": memory.trouble, "used": memory.used_bytes, "most": memory.most_bytes},
            )
