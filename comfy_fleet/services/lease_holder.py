"""Hold leases that no run uses, so that HAProxy does not grant their nodes meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.ports.comfyui import Lease
from comfy_fleet.ports.runs import RunStore
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

LOOK_S = 0.25


class LeaseHolder:
    """The held leases of one dispatcher.

    Args:
        runs: Knows which run has a node.
        spawn: Starts a task that ends with the dispatcher.
        on_free: Called with a node's name once its lease was released.
    """

    def __init__(
        self,
        runs: RunStore,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        on_free: Callable[[str], None],
    ) -> None:
        self._runs = runs
        self._spawn = spawn
        self._on_free = on_free
        self._taken: set[str] = set()

    def rest(self, lease: Lease, seconds: float) -> None:
        """Keep new jobs away for a while from a node that no run has."""
        self._spawn(self._rested(lease, seconds))

    def park(self, lease: Lease, run: str) -> None:
        """Hold a second lease on a node until the run that really has the node is over.

        HAProxy has forgotten that run's tunnel (after a reload or restart): this one makes the slot count as
        taken.
        """
        if lease.node in self._taken:
            lease.release()
            return
        logger.warning("duplicate lease parked", extra={"node": lease.node, "run_id": run})
        self._taken.add(lease.node)
        self._spawn(self._parked(lease, run))

    async def _rested(self, lease: Lease, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            lease.release()
        self._on_free(lease.node)

    async def _parked(self, lease: Lease, run: str) -> None:
        try:
            closed = start(_drain(lease))
            while not closed.done() and await self._has(lease.node, run):
                await asyncio.wait({closed}, timeout=LOOK_S)
            closed.cancel()
        finally:
            self._taken.discard(lease.node)
            lease.release()
            self._on_free(lease.node)

    async def _has(self, node: str, run: str) -> bool:
        try:
            return await self._runs.lease_of(node) == run
        except StoreDown:  # unknown at the moment
            return True


async def _drain(lease: Lease) -> None:
    async for _ in lease.frames():
        pass
