"""Answers that no healthy ComfyUI gives: they count against the node, and too many take it out."""

import asyncio
import logging

from comfy_fleet.domain.errors import FleetError, NodeFault
from comfy_fleet.ports.nodes import NodeRegistry
from comfy_fleet.services.failure_policy import PATIENCE

logger = logging.getLogger(__name__)


class NodeFaults:
    """Counts for one process; called with every fault.

    An answer about a run may be too large because of the run's own texts. So a fault counts once per run, and
    it takes many runs in a row to blame the node. Otherwise one user's graph could take all nodes out.

    Args:
        registry: Counts faults in a row, over all processes.
        limit: The number at which a node is quarantined.
    """

    def __init__(self, registry: NodeRegistry, *, limit: int) -> None:
        self._registry = registry
        self._limit = limit
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._run: dict[str, str] = {}  # the last one that counted, by node

    def __call__(self, node: str, fault: NodeFault) -> None:
        """Count a fault; faults that come while the last one is being written count as the same."""
        run = str(fault.details.get("run") or "") if fault.details.get("limit") else ""
        if run and self._run.get(node) == run:
            return
        if node not in self._writing:
            self._run[node] = run
            task = asyncio.create_task(self._strike(node, fault.message, run), name=f"fault of {node}")
            self._writing[node] = task
            task.add_done_callback(lambda _: self._writing.pop(node, None))

    async def _strike(self, node: str, message: str, run: str) -> None:
        logger.warning("node at fault", extra={"node": node, "reason": message})
        limit, what = (self._limit * PATIENCE, "runs") if run else (self._limit, "unusable answers")
        kind = "frame" if run else "answer"
        reason = f"quarantined: {limit} {what} in a row, the last: {message[:200]}"
        try:
            out = await self._registry.record_failure(node, kind=kind, limit=limit, reason=reason)
        except FleetError as error:
            logger.warning("fault not counted", extra={"node": node, "reason": str(error)})
            return
        if out:
            logger.error("node quarantined", extra={"node": node, "reason": reason})
