"""Answers that no sound ComfyUI gives: they count against the node, and a node with too many is taken out."""

import asyncio
import logging

from comfy_fleet.domain.errors import FleetError, NodeFault
from comfy_fleet.ports import NodeRegistry

logger = logging.getLogger(__name__)


class NodeFaults:
    """Counts for one process; called with every fault.

    Args:
        registry: Where they are counted: those in a row, by all processes together.
        limit: With so many a node is quarantined.
    """

    def __init__(self, registry: NodeRegistry, *, limit: int) -> None:
        self._registry = registry
        self._limit = limit
        self._writing: dict[str, asyncio.Task[None]] = {}

    def __call__(self, node: str, fault: NodeFault) -> None:
        """Count one; those that come while the last one is still being written are one with it."""
        if node not in self._writing:
            task = asyncio.create_task(self._strike(node, fault.message), name=f"fault of {node}")
            self._writing[node] = task
            task.add_done_callback(lambda _: self._writing.pop(node, None))

    async def _strike(self, node: str, message: str) -> None:
        logger.warning("node at fault", extra={"node": node, "reason": message})
        reason = f"quarantined: {self._limit} unusable answers in a row, the last: {message[:200]}"
        try:
            out = await self._registry.strike(node, kind="answer", limit=self._limit, reason=reason)
        except FleetError as error:
            logger.warning("fault not counted", extra={"node": node, "reason": str(error)})
            return
        if out:
            logger.error("node quarantined", extra={"node": node, "reason": reason})
