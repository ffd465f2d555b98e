"""Predict how much of a card's memory jobs need, and learn from how they end."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.memory_need import NO_NEED, FamilyMemory, MemoryNeed, need_of
from comfy_fleet.ports.memory import MemoryStore

logger = logging.getLogger(__name__)

FRESH_S = 1.0
"""What is known of a family is read again after this long."""
TOLD_S = 60.0
"""A success that says no more than another one is told again after this long."""
ALERT_S = 30.0
MOST_KEPT = 1000

K = TypeVar("K")
V = TypeVar("V")


class MemoryPrediction:
    """Predicts for one process. An estimate never stops a job: if the store does not answer, there is none.

    Args:
        store: What is known.
        keep_s: For how long a run's end counts, in seconds.
        now: Monotonic seconds.
    """

    def __init__(
        self, store: MemoryStore, *, keep_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._keep_s = max(1, int(keep_s))
        self._now = now
        self._known: dict[str, tuple[float, FamilyMemory]] = {}
        self._told: dict[tuple[str, str, int], tuple[float, float]] = {}
        self._failed_at = float("-inf")

    @property
    def alert(self) -> bool:
        """Whether a job has run out of memory here lately: submits may not know of it yet."""
        return self._now() - self._failed_at < ALERT_S

    async def need(self, workload: Workload | None, owner: str) -> MemoryNeed:
        """Return what an owner's job needs, as far as it is known."""
        if workload is None:
            return NO_NEED
        at, known = self._known.get(workload.family, (float("-inf"), FamilyMemory()))
        if self._now() - at >= FRESH_S:
            try:
                known = await self._store.known(workload.family)
            except FleetError as error:
                logger.warning("memory not predicted", extra={"error": str(error)})
                return NO_NEED
            _keep(self._known, workload.family, (self._now(), known))
        return need_of(workload, known, owner)

    async def succeeded(self, workload: Workload | None, owner: str, room: int) -> None:
        """Learn from a job that succeeded.

        Args:
            workload: The job's.
            owner: Whose it was.
            room: Bytes of its node's card; 0: unknown.
        """
        if workload is None or room <= 0:
            return
        told = (owner, workload.family, room)
        at, pixels = self._told.get(told, (float("-inf"), -1.0))
        if self._now() - at >= TOLD_S:
            pixels = -1.0
        if workload.pixels > pixels:
            _keep(self._told, told, (self._now(), workload.pixels))
            await self._note(workload, owner, room, fits=True)

    async def failed(self, workload: Workload | None, owner: str, room: int) -> None:
        """Learn from a job that ran out of memory.

        Args:
            workload: The job's.
            owner: Whose it was.
            room: Bytes that its node could use; 0: unknown.
        """
        if workload is None or room <= 0:
            return
        self._failed_at = self._now()
        await self._note(workload, owner, room, fits=False)
        self._known.clear()  # it may concern all families
        self._told.clear()  # what succeeds in spite of it is news

    async def _note(self, workload: Workload, owner: str, room: int, *, fits: bool) -> None:
        try:
            await self._store.note(workload, owner=owner, room=room, fits=fits, ttl_s=self._keep_s)
        except FleetError as error:
            logger.warning("memory not noted", extra={"error": str(error)})


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    if len(kept) >= MOST_KEPT and key not in kept:
        kept.clear()
    kept[key] = value
