"""Cut leases that nobody has on record: no run, and nobody who holds them ready.

Dispatchers write down a run before they begin it, and what they hold ready each 0.4 s. Between a grant and a
claim, or while a node rests after a run, a lease is on no record for a few seconds. One that stays so is
somebody's who has no right to it, or a dispatcher's that has lost it.
"""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.ports.ready_leases import ReadyLeaseStore

logger = logging.getLogger(__name__)

LOOK_S = 1.0
GRACE_S = 6.0
"""How long a lease may be on no record; a node rests for 3 s at most (``services/run_end.py``)."""
GAP_S = 3.0
"""After a longer time without a look, e.g. while Redis was away, nothing is known about the time before."""
TOLD_S = 60.0


@dataclass(kw_only=True)
class _Cut:
    count: int
    until: float


class StrayCuts:
    """Looks for such leases.

    Args:
        runtime: The broker's control socket.
        store: Says which nodes nobody has on record.
        now: Monotonic seconds.
    """

    def __init__(
        self, runtime: Runtime, store: ReadyLeaseStore, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._now = now
        self._looked = float("-inf")
        self._since: dict[str, float] = {}
        self._cuts: dict[str, _Cut] = {}

    async def look(self, taken: Collection[str]) -> None:
        """Cut those that have to go.

        Args:
            taken: Nodes whose slots HAProxy counts as taken.

        Raises:
            StoreDown: It is not known what is on record; nothing was cut.
            BrokerError: HAProxy does not answer.
        """
        now = self._now()
        if now - self._looked < LOOK_S:
            return
        strays = await self._store.unexplained(taken)
        if now - self._looked > GAP_S:
            self._since.clear()
        self._looked = now
        self._since = {node: self._since.get(node, now) for node in strays}
        due = {node for node, since in self._since.items() if now - since >= GRACE_S}
        if not due:
            return
        tunnels = await self._runtime.tunnels(older_than_s=GRACE_S)
        for node in sorted(due & tunnels.keys()):
            for session in tunnels[node]:
                await self._runtime.cut(session)
            count = self._cuts[node].count if self.told(node) else 0
            self._cuts[node] = _Cut(count=count + 1, until=now + TOLD_S)
            facts = {"node": node, "reason": "no run has it, and no dispatcher holds it ready"}
            logger.warning("stray lease cut", extra=facts)

    def told(self, node: str) -> str:
        """Return what an operator should know of a node; empty: nothing."""
        cut = self._cuts.get(node)
        if cut is None or cut.until < self._now():
            self._cuts.pop(node, None)
            return ""
        times = "a lease" if cut.count == 1 else f"{cut.count} leases"
        return f"{times} of nobody known cut here"
