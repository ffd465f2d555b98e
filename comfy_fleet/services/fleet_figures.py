"""What metrics show of the whole fleet, read once however many ask."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from comfy_fleet.domain.disk_room import Room
from comfy_fleet.ports.estimates import EstimateStore
from comfy_fleet.ports.figures import Figures, FleetView
from comfy_fleet.ports.nodes import Hosts, NodeRegistry

KEPT_S = 0.9
"""For how long an answer serves others: less than any interval at which somebody asks."""


class FleetFigures:
    """Reads what metrics show of the whole fleet, and writes it as they are scraped.

    Args:
        nodes: The nodes.
        hosts: What their agents said last.
        figures: The rest of what is in Redis.
        estimates: What became of estimates.
        room: Reads the disk's state.
        clock: The fleet's time, Unix seconds.
        write: Writes a view as text.
    """

    def __init__(
        self,
        *,
        nodes: NodeRegistry,
        hosts: Hosts,
        figures: Figures,
        estimates: EstimateStore,
        room: Callable[[], Room],
        clock: Callable[[], Awaitable[float]],
        write: Callable[[FleetView], bytes],
    ) -> None:
        self._nodes = nodes
        self._hosts = hosts
        self._figures = figures
        self._estimates = estimates
        self._room = room
        self._clock = clock
        self._write = write
        self._reading = asyncio.Lock()
        self._kept = b""
        self._kept_at = float("-inf")

    async def text(self) -> bytes:
        """Return the text for a scrape.

        Raises:
            StoreDown: Redis does not answer.
            NoRoom: The disk can't be read.
        """
        async with self._reading:
            if time.monotonic() - self._kept_at > KEPT_S:
                self._kept = self._write(await self._look())
                self._kept_at = time.monotonic()
            return self._kept

    async def _look(self) -> FleetView:
        began = time.monotonic()
        return FleetView(
            nodes=await self._nodes.states(),
            hosts=await self._hosts.hosts(),
            store=await self._figures.read(),
            errors=await self._estimates.errors(),
            room=await asyncio.to_thread(self._room),
            at=await self._clock(),
            took_s=time.monotonic() - began,
        )
