"""Keep at what Redis does not answer: a finished GPU minute must not be lost to its restart."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from comfy_fleet.domain.errors import StoreDown

logger = logging.getLogger(__name__)

T = TypeVar("T")

GAP_S = (0.1, 2.0)  # the first and the longest, while Redis is away


async def insist(call: Callable[[], Awaitable[T]], *, extra: Mapping[str, str]) -> T:
    """Call until Redis answers, and return what the call did.

    Args:
        call: Safe to repeat.
        extra: Fields of the log lines that say that it is tried again.
    """
    gap, longest = GAP_S
    while True:
        try:
            return await call()
        except StoreDown as error:
            logger.warning("the store is asked again", extra={**extra, "error": str(error)})
            await asyncio.sleep(gap)
            gap = min(gap * 2, longest)
