"""Puts waiting jobs right, a little at a time.

What claims choose by follows from the jobs' records, and is made anew where it was lost. All live jobs are
looked at in rounds. Redis does nothing else while a script runs, so each call looks at a few.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from comfy_fleet.adapters.redis.scripts import Scripts

LOOKED_AT_ONCE = 200  # jobs of one call, or 20 that are put right: takes a few milliseconds on the server
CALM_S = 0.02
"""For so long one turn looks on if nothing is wrong, as far as calls take: 2 % of Redis' time."""
HURRY_S = 1.0
"""The same if something was."""


async def tend(scripts: Scripts, *, every_s: float, mirror: str) -> None:
    """Take a turn, unless another process has done so within ``every_s``; ``mirror`` is `FLEET_RQ_MIRROR`.

    Raises:
        Outdated: A newer version works on this Redis.
        StoreDown: It does not answer, or takes nothing now.
    """
    spent_s, goes_on, limits = 0.0, False, (0.0, CALM_S, HURRY_S)
    while True:
        asked = time.monotonic()
        _, found = await scripts.begin(
            "tend_queue",
            every_ms=round(every_s * 1000),
            goes_on=goes_on,
            most=LOOKED_AT_ONCE,
            mirror=mirror,
        )
        took_s = time.monotonic() - asked
        spent_s, goes_on = spent_s + took_s, True
        if spent_s >= limits[found]:
            return
        await asyncio.sleep(took_s)  # others want something, too


async def tend_flights(scripts: Scripts, *, every_s: float) -> AsyncIterator[Sequence[Any]]:
    """Look after equal jobs that share a run, as :func:`tend` does; go on while some of them end.

    Yields:
        What each call of the script has answered.
    """
    goes_on = False
    while True:
        asked = time.monotonic()
        rows = await scripts.begin("tend_flights", every_ms=round(every_s * 1000), goes_on=goes_on)
        yield rows
        if len(rows) == 1:
            return
        goes_on = True
        await asyncio.sleep(time.monotonic() - asked)  # others want something, too
