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

QUEUED_AT_ONCE = 10
"""Items of one call, for whose time nodes that ask for jobs wait, too."""
LOOK_S = 1.0
ROOM_S = 0.1
"""So often a full queue is asked for room: jobs end meanwhile, and no node shall wait for the next ones."""
TEND_S = 60.0
TENDED_AT_ONCE = 200
SWEPT = 20
"""So many batches that are completed are looked at each minute."""
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
        self._full = False
        self._swept = 0
        self._broken: set[str] = set()

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
                async with Timeout(ROOM_S if self._full else LOOK_S):
                    await self._news.wait()

    async def work(self) -> bool:
        """Give each batch that has something to do one turn; return whether more can be done at once."""
        more = self._full = False
        busy = await self._store.busy(_BATCHES)
        self._broken.intersection_update(busy)
        for batch_id in busy:
            asked = time.monotonic()
            try:
                queued = await self._store.queue(batch_id, most=QUEUED_AT_ONCE)
                left = await self._store.cancel(batch_id, most=QUEUED_AT_ONCE, marked=True)
            except FleetError:
                raise
            except Exception:  # what can't be read of one batch holds no other up
                if batch_id not in self._broken:
                    self._broken.add(batch_id)
                    logger.exception("batch can't be queued", extra={"batch_id": batch_id})
                continue
            self._fetch()
            self._full = self._full or queued.full
            more = more or left > 0 or (queued.left > 0 and not queued.full)
            await asyncio.sleep(time.monotonic() - asked)  # others want something, too
        return more

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch, and return when nothing of it waits any more."""
        left = await self._store.cancel(batch_id, most=QUEUED_AT_ONCE)
        while left:
            queued = await self._store.queue(batch_id, most=QUEUED_AT_ONCE)
            if queued.full:  # it was begun again meanwhile: what is canceled needs no room
                break
            left = queued.left + await self._store.cancel(batch_id, most=QUEUED_AT_ONCE, marked=True)
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
        await self._sweep()

    async def _sweep(self) -> None:
        """Look at some batches that are completed, those of the minutes before left out."""
        some = await self._store.some(self._swept, SWEPT)
        self._swept = self._swept + len(some) if len(some) == SWEPT else 0
        for batch_id in some:
            await self._store.tend(batch_id, first=0, most=TENDED_AT_ONCE, ended=True)
