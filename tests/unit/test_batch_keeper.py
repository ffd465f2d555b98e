"""Seeing batches through, where another request gets in between."""

import asyncio
from typing import Any, cast

from comfy_fleet.ports.batches import BatchStore, Queueing
from comfy_fleet.services.batch_keeper import BatchKeeper


class BegunAgain:
    """A batch that somebody begins again while it is canceled, and for which the queue has no room."""

    async def cancel(self, batch_id: str, *, most: int, marked: bool = False) -> int:
        await asyncio.sleep(0)
        return 0 if marked else 1

    async def queue(self, batch_id: str, *, most: int) -> Queueing:
        await asyncio.sleep(0)
        return Queueing(left=3, full=True)


async def test_canceling_ends_where_a_batch_is_begun_again() -> None:
    async def clock() -> float:
        raise AssertionError

    keeper = BatchKeeper(cast("BatchStore", cast("Any", BegunAgain())), clock=clock, fetch=lambda: None)
    async with asyncio.timeout(30):
        await keeper.cancel("b")
