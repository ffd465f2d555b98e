"""Repeat calls until Redis answers: a restart of it must not cost a finished GPU minute."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.ports.telemetry import Telemetry

T = TypeVar("T")

BACKOFF = Backoff(first_s=0.1, longest_s=2.0)  # pauses while Redis is away
REPORT_EVERY_S = 30.0  # the disk of the logs may be the full one


async def retry_while_store_down(
    call: Callable[[], Awaitable[T]], *, about: Mapping[str, str], telemetry: Telemetry
) -> T:
    """Call until Redis answers, and return what the call did.

    Args:
        call: Safe to repeat.
        about: Fields for the log lines about retries.
        telemetry: Told about each retry.
    """
    reminder = Reminder()
    failures = 0
    while True:
        try:
            return await call()
        except StoreDown as error:
            telemetry.store_retried(error, about=about, tell=reminder.due())
            failures += 1
            await asyncio.sleep(BACKOFF.pause_s(failures))


class Reminder:
    """Decides when to report a continuing problem again."""

    def __init__(self) -> None:
        self._at = float("-inf")

    def due(self) -> bool:
        """Return False if it was reported a moment ago; else count it as reported and return True."""
        now = asyncio.get_running_loop().time()
        if now - self._at < REPORT_EVERY_S:
            return False
        self._at = now
        return True
