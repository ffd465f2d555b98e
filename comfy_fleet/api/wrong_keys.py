"""Wrong keys: they are logged with the address that they came from, and many from one are answered slowly.

A right key works meanwhile, from that address too: others may be behind the same proxy.
"""

import asyncio
import ipaddress
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from comfy_fleet.api.errors import HttpError

logger = logging.getLogger(__name__)

EVERY_S, AT_ONCE = 0.05, 100
"""Of one address, so many are answered at once, and one more in each such time."""
LONGEST_S = 2.0
"""Whoever would have to wait for longer is refused instead."""
_WAITING = 32  # of all addresses: each holds a place of a request meanwhile
_LOG_S = 10.0
_ADDRESSES = 10_000
_KEYS = re.compile(r"/k/[^/]*")


class WrongKeys:
    """Those of this process.

    Args:
        monotonic: A clock.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._next: OrderedDict[str, float] = OrderedDict()
        """When an address would be even again, by address: the one that was seen last at the end."""
        self._told: dict[str, tuple[float, int]] = {}
        self._waiting = 0

    async def seen(self, address: str, path: str) -> None:
        """Wait, if there were too many.

        Args:
            address: Whose it was.
            path: What was asked for, without any key.

        Raises:
            HttpError: 429 ``too_many_wrong_keys``.
        """
        self._tell(address, path)
        if wait_s := self.wait_s(address):
            self._waiting += 1
            try:
                await asyncio.sleep(wait_s)
            finally:
                self._waiting -= 1

    def wait_s(self, address: str) -> float:
        """Count one more wrong key, and return for how long its answer has to wait.

        Raises:
            HttpError: As :meth:`seen`.
        """
        block, now = _block(address), self._monotonic()
        even = max(now, self._next.pop(block, 0.0)) + EVERY_S
        wait_s = even - now - AT_ONCE * EVERY_S
        refused = wait_s > LONGEST_S or (wait_s > 0 and self._waiting >= _WAITING)
        self._next[block] = even - EVERY_S if refused else even
        while len(self._next) > _ADDRESSES:
            gone, _ = self._next.popitem(last=False)
            self._told.pop(gone, None)
        if refused:
            raise HttpError(
                429,
                "too_many_wrong_keys",
                "too many wrong keys came from this address: send a right one, which works at once",
                headers={"Retry-After": str(round(AT_ONCE * EVERY_S))},
            )
        return max(0.0, wait_s)

    def _tell(self, address: str, path: str) -> None:
        block, now = _block(address), self._monotonic()
        last, more = self._told.get(block, (-_LOG_S, 0))
        if now - last < _LOG_S:
            self._told[block] = last, more + 1
            return
        self._told[block] = now, 0
        # The first key was taken off; behind it there may be another one, and a right one.
        shown = _KEYS.sub("/k/***", path)[:200]
        logger.warning("wrong key", extra={"address": address, "path": shown, "more_before": more})


def _block(address: str) -> str:
    """Return what counts as one address: of IPv6, what one customer gets."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if found.version == 4:
        return address
    return str(ipaddress.ip_network((found.packed[:8] + bytes(8), 64)))
