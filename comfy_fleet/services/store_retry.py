"""Keep at what Redis does not answer: a finished GPU minute must not be lost to its restart."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from comfy_fleet.domain.errors import StoreDown

logger = logging.getLogger(__name__)

T = TypeVar("T")

GAP_S = (0.1, 2.0)  # the first and the longest, while Redis is away
SAY_EVERY_S = 30.0  # the disk that holds the log may be the trouble


async def retry_while_store_down(call: Callable[[], Awaitable[T]], *, extra: Mapping[str, str]) -> T:
    """Call until Redis answers, and return what the call did.

    Args:
        call: Safe to repeat.
        extra: Fields of the log lines that say that it is tried again.
    """
    gap, longest = GAP_S
    said = Said(extra)
    while True:
        try:
            return await call()
        except StoreDown as error:
            said("the store is asked again", error)
            await asyncio.sleep(gap)
            gap = min(gap * 2, longest)


class Said:
    """Says of one trouble that it goes on, now and then."""

    def __init__(self, extra: Mapping[str, str]) -> None:
        self._extra = extra
        self._at = float("-inf")

    def __call__(self, message: str, error: Exception) -> bool:
        """Log that it is tried again; False if that was said a moment ago."""
        now = asyncio.get_running_loop().time()
        if now - self._at < SAY_EVERY_S:
            return False
        self._at = now
        logger.warning(message, extra={**self._extra, "error": str(error)})
        return True
