"""Deletes from stores what jobs have put there, once these are gone: any number of processes do."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from comfy_fleet.domain.errors import ObjectError, StoreDown
from comfy_fleet.domain.stores.named_store import OnDelete
from comfy_fleet.domain.stores.output_plan import JOB_LABEL
from comfy_fleet.ports.stores import ObjectStorage
from comfy_fleet.ports.transfers import Erasure, Transfers
from comfy_fleet.services.store_book import StoreBook

logger = logging.getLogger(__name__)

LOOK_S = 2.0
AT_ONCE = 50
AGAIN_S = 60.0
"""Until what a store did not do is tried again, and what a process that died had taken."""


class ObjectEraser:
    """Deletes objects that are due.

    Args:
        transfers: Where they wait.
        book: The stores.
        objects: Asks them.
        patience_s: For how long a store may fail before an object is left there.
        clock: Unix seconds.
    """

    def __init__(
        self,
        transfers: Transfers,
        book: StoreBook,
        objects: ObjectStorage,
        *,
        patience_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._transfers = transfers
        self._book = book
        self._objects = objects
        self._patience_s = patience_s
        self._clock = clock

    async def run(self) -> None:
        """Delete what is due, until canceled."""
        while True:
            with contextlib.suppress(StoreDown):
                while await self.look() == AT_ONCE:
                    pass
            await asyncio.sleep(LOOK_S)

    async def look(self) -> int:
        """Delete what is due now; return how many objects were looked at, and are not left for later."""
        away: set[str] = set()
        done = 0
        for one in await self._transfers.erasures(most=AT_ONCE, lease_s=AGAIN_S):
            if one.store in away:
                continue
            about = {"store": one.store, "job_id": one.job_id}
            try:
                await self._erase(one)
            except ObjectError as error:
                if self._clock() - float(one.since) < self._patience_s:
                    logger.warning("object not deleted yet", extra={**about, "reason": error.message})
                    if not error.alone:
                        away.add(one.store)
                    continue
                logger.error("object left in its store", extra={**about, "reason": error.message})
            await self._transfers.erased(one)
            done += 1
        return done

    async def _erase(self, one: Erasure) -> None:
        store = (await self._book.all()).get(one.store)
        if store is None or store.on_delete is not OnDelete.DELETE:
            return
        # What another job, or somebody else, has put under this name is theirs.
        if await self._objects.holds(store, one.key, metadata={JOB_LABEL: one.job_id}):
            await self._objects.delete(store, one.key)
