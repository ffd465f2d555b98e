"""Cut leases held ready whose holder is silent, or whose node gets no more leases."""

import logging

from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.ports.ready_leases import ReadyLeaseStore

logger = logging.getLogger(__name__)


class ReadyCuts:
    """Looks for such leases.

    A living holder gives them back itself, mostly before this. A stopped one can't, and HAProxy would wait
    for its pings for 20 s.

    Args:
        runtime: The broker's control socket.
        store: Who holds what.
    """

    def __init__(self, runtime: Runtime, store: ReadyLeaseStore) -> None:
        self._runtime = runtime
        self._store = store

    async def look(self) -> None:
        """Cut those that have to go. Raises StoreDown and BrokerError."""
        expired = await self._store.expired()
        if not expired:
            return
        # Tunnels that are open before the lease is given up: what comes later is somebody else's.
        tunnels = await self._runtime.tunnels()
        for node in sorted(await self._store.give_up(expired)):
            logger.info("ready lease cut", extra={"node": node, "run_id": expired[node]})
            for session in tunnels.get(node, ()):
                await self._runtime.cut(session)
