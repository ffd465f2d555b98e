"""Queues the items of batches, and cancels those of batches that were canceled: every API process does.

A batch that has begun is durable: if the process that took it dies, any other one goes on.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from comfy_fleet.domain.errors import FleetError
from comfy_fleet.ports.batches import BatchStore
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

QUEUED_AT_ONCE = 20
"""Items of one call: a few milliseconds of the server's time."""
LOOK_S = 1.0
TEND_S = 60.0
TENDED_AT_ONCE = 200
_BATCHES = 100


class BatchKeeper:
    """Sees batches through.

    Args:
        store: The batches.
        clock: The store's time, in Unix seconds.
        fetch: Called when jobs may wait for URLs.
    """

    def __init__(
        self, store: BatchStore, *, clock: Callable[[], Awaitable[float]], fetch: Callable[[], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._fetch = fetch
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Look at once."""
        self._news.set()

    async def run(self) -> None:
        """See to them for ever."""
        tended = time.monotonic()
        while True:
            self._news.clear()
            try:
                while await self.work():
                    pass
                if time.monotonic() - tended >= TEND_S:
                    tended = time.monotonic()
                    await self.tend()
            except FleetError as error:
                logger.warning("batches wait", extra={"error": str(error)})
            with contextlib.suppress(TimeoutError):
                async with Timeout(LOOK_S):
                    await self._news.wait()

    async def work(self) -> bool:
        """Give each batch that has something to do one turn; return whether there is more."""
        more = False
        for batch_id in await self._store.busy(_BATCHES):
            asked = time.monotonic()
            left = await self._store.queue(batch_id, most=QUEUED_AT_ONCE)
            left += await self._store.cancel(batch_id, most=QUEUED_AT_ONCE, marked=True)
            self._fetch()
            more = more or left > 0
            await asyncio.sleep(time.monotonic() - asked)  # others want something, too
        return more

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch, and return when nothing of it waits any more."""
        left = await self._store.cancel(batch_id, most=QUEUED_AT_ONCE)
        while left:
            left = await self._store.queue(batch_id, most=QUEUED_AT_ONCE)
            left += await self._store.cancel(batch_id, most=QUEUED_AT_ONCE, marked=True)
        self.wake()

    async def tend(self) -> None:
        """Compare live batches with their jobs, which a version without batches may have changed."""
        live = await self._store.live(_BATCHES)
        now = await self._clock() if live else 0.0
        for batch_id, looked_at in live:
            if now - looked_at < TEND_S:
                continue
            first = 0
            while found := await self._store.tend(batch_id, first=first, most=TENDED_AT_ONCE):
                first += found
