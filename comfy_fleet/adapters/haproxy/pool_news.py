"""Log when a pool loses its last node, and when it has one again, unless an operator has ordered it."""

import logging
from collections.abc import Sequence

from comfy_fleet.adapters.system.child_processes import RUNS_AGAIN
from comfy_fleet.domain.nodes.node import Node

logger = logging.getLogger(__name__)

_LONGEST = 500


class PoolNews:
    """Remembers which pools had a node that is up."""

    def __init__(self) -> None:
        self._served: set[str] = set()
        self._lost: set[str] = set()

    def tell(self, verdicts: Sequence[tuple[Node, str, str]]) -> None:
        """Compare with the last time, and log what changed.

        Args:
            verdicts: Every node with its state in HAProxy, and why.
        """
        served = {node.pool for node, verdict, _ in verdicts if verdict == "up"}
        wanted = {node.pool for node, *_ in verdicts if not node.cordoned}
        for pool in sorted((self._served - served) & wanted):
            why = "; ".join(
                f"{node.name} {verdict}: {why}"
                for node, verdict, why in verdicts
                if node.pool == pool and not node.cordoned
            )
            logger.warning("pool has no node that is up", extra={"pool": pool, "reason": why[:_LONGEST]})
            self._lost.add(pool)
        for pool in sorted(self._lost & served):
            logger.info(RUNS_AGAIN, extra={"pool": pool})
        self._lost -= served
        self._served = served
