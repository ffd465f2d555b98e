"""When a part of the fleet was down, as the part itself said: from a fault until it is well again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from comfy_fleet.timeouts import Timeout

LOOK_S = 0.1
ANSWER_S = 2.0
STEADY = 2
"""So many looks in a row must find it well: a process that was killed may answer once more."""


@dataclass(kw_only=True)
class Outage:
    """A part is down.

    Attributes:
        part: Which.
        start: When the fault began (monotonic seconds).
        end: When the part was well again; infinite while it is not.
    """

    part: str
    start: float
    end: float = float("inf")


class Outages:
    """All outages of a run.

    Args:
        probes: By part: asks it, and returns whether it is well.
    """

    def __init__(self, probes: Mapping[str, Callable[[], Awaitable[bool]]]) -> None:
        self._probes = probes
        self._open: dict[str, Outage] = {}
        self._well = asyncio.Event()
        self._well.set()
        self._faults: dict[str, int] = dict.fromkeys(probes, 0)
        self.all: list[Outage] = []

    def begin(self, *parts: str) -> None:
        """Note that a fault begins; each is ended by :meth:`lift`."""
        for part in parts:
            self._faults[part] += 1
            if part not in self._open:
                outage = Outage(part=part, start=time.monotonic())
                self._open[part] = outage
                self._well.clear()
                self.all.append(outage)

    def lift(self, *parts: str) -> None:
        """Note that it is over; the outage lasts until the part is well."""
        for part in parts:
            self._faults[part] -= 1

    def covers(self, start: float, end: float) -> bool:
        """Return whether anything was down at some time between two moments."""
        return any(one.start <= end and start <= one.end for one in self.all)

    async def watch(self) -> None:
        """Look until canceled."""
        await asyncio.gather(*(self._watch(part) for part in self._probes))

    async def well(self) -> None:
        """Wait until all parts are well."""
        await self._well.wait()

    async def _watch(self, part: str) -> None:
        well = 0
        while True:
            await asyncio.sleep(LOOK_S)
            outage = self._open.get(part)
            if outage is None or self._faults[part]:
                well = 0
                continue
            try:
                async with Timeout(ANSWER_S):
                    fine = await self._probes[part]()
            except Exception:  # noqa: BLE001 - whatever it is, the part is not well
                fine = False
            if self._faults[part]:  # meanwhile
                fine = False
            well = well + 1 if fine else 0
            if well >= STEADY:
                outage.end = time.monotonic()
                del self._open[part]
                if not self._open:
                    self._well.set()
                well = 0
