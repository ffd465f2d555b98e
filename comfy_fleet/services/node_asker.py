"""Ask HAProxy for a node that may run a class's jobs, and for a better one than the first granted."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.node_order import NodeOrder, Nodes
from comfy_fleet.ports.comfyui import Lease, Leases, NoLease
from comfy_fleet.ports.runs import RunStore
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.timeouts import Timeout

MAX_PREFERRED = 64  # most names in X-Fleet-Nodes; more cost HAProxy milliseconds
BETTER_TIMEOUT_S = 0.25  # time to ask about better nodes: one of them may be frozen
BETTER_GAPS_S = (0.001, 0.002, 0.004, *[0.008] * 7)  # a granted node is claimed for within these
UNAVAILABLE_S = 0.5  # how long a node that could not be had is not waited for again
LOADED_S = 3600.0  # how long after its last run with models a node counts as one that has them
EDITED_S = 300.0  # how long after its last run for an editor a node goes to others last

Granted: TypeAlias = tuple[Lease, str]
"""A lease, and its run's id."""


class NodeAsker:
    """Asks for nodes; one for each dispatcher.

    Args:
        directory: Which nodes can run what.
        runs: Which nodes are at work.
        leases: Where nodes are granted.
        order: The order in which able nodes are asked for.
        now: Monotonic seconds.
        new_id: Makes run ids.
        resting: Returns nodes that are asked for after others for now, because none of a class's jobs is
            worth it there.
        telemetry: Is told of nodes that were not granted.
    """

    def __init__(
        self,
        directory: NodeDirectory,
        runs: RunStore,
        leases: Leases,
        *,
        order: NodeOrder,
        now: Callable[[], float],
        new_id: Callable[[], str],
        resting: Callable[[Placement], frozenset[str]],
        telemetry: Telemetry,
    ) -> None:
        self._directory = directory
        self._runs = runs
        self._leases = leases
        self._order = order
        self._now = now
        self._new_id = new_id
        self._resting = resting
        self._telemetry = telemetry
        self._missed_until: dict[str, float] = {}
        self._edited_until: dict[str, float] = {}  # nodes whose last run of ours was an editor's
        self._loaded_until: dict[str, float] = {}  # nodes whose last run of ours has loaded models

    # -- nodes that are left to others ----------------------------------------------------------------

    def claimed(self, node: str, *, editor: bool, models: bool) -> None:
        """Note for whom a node runs a job now, and whether that loads models."""
        self._edited_until.pop(node, None)
        self._loaded_until.pop(node, None)
        if editor:
            self._edited_until[node] = self._now() + EDITED_S
        if models:
            self._loaded_until[node] = self._now() + LOADED_S

    def is_edited(self, node: str) -> bool:
        """Whether a node has results of an editor's, who will come back to it."""
        return self._now() < self._edited_until.get(node, 0.0)

    def spared(self, node: str, placement: Placement) -> bool:
        """Whether a node has results of an editor's, and the class's jobs have another one to wait for."""
        able = self._able_nodes(placement, self._directory.pool_of(node))
        up = [name for name, state in able.items() if state.verdict == "up"]
        return node in self._edited(able) and len(up) > 1

    def _edited(self, able: Nodes) -> frozenset[str]:
        now = self._now()
        self._edited_until = {node: until for node, until in self._edited_until.items() if now < until}
        return frozenset(self._edited_until.keys() & able.keys())

    def _loaded(self, able: Nodes) -> frozenset[str]:
        """Return the nodes whose models would have to go while others may have none.

        A job whose models an idle node has gets that one by name, and any other job should leave it them.
        """
        if len(able) > MAX_PREFERRED:  # not all could be named, and those that are may be at work
            return frozenset()
        now = self._now()
        self._loaded_until = {node: until for node, until in self._loaded_until.items() if now < until}
        loaded = frozenset(self._loaded_until.keys() & able.keys())
        return loaded if len(loaded) < len(able) else frozenset()

    # -- asking ---------------------------------------------------------------------------------------

    async def ask(self, placement: Placement, pool: str) -> Granted | None:
        """Ask a pool for an able node."""
        able = self._able_nodes(placement, pool)
        if not able:
            return None
        # A proxy in front of a node is sent the node's name, so the node must be chosen before HAProxy does.
        named = any(state.node.proxied for state in able.values())
        everyone = len(able) == len(self._directory.pools[pool])
        edited, loaded = self._edited(able), self._loaded(able)
        if self._order.as_haproxy and everyone and not named and not edited and not loaded:
            return await self.ask_for(pool, ())
        preferred, resting = self._order.preferred(placement, able), self._resting(placement)
        preferred.sort(key=lambda node: (node in edited, node in resting, node in loaded))
        return await self.ask_for(pool, preferred)

    def suited(self, placement: Placement, held: Collection[str]) -> str:
        """Return one of the nodes whose leases are held ready, if it is as good for a class as any other.

        Empty: none is, or HAProxy might grant a better one.
        """
        pool, _ = self._directory.first_choice(placement)
        able = self._able_nodes(placement, pool)
        left = self._edited(able) | self._loaded(able) | self._resting(placement)
        for node in self._order.preferred(placement, able):
            if node in held and node not in left:
                better = self._order.better(placement, node, [(pool, able)])
                return "" if any(better.values()) else node
        return ""

    async def ask_for(self, pool: str, preferred: Sequence[str]) -> Granted | None:
        """Ask a pool for the first free one of some nodes, or, if none is named, for any."""
        run = self._new_id()
        lease = await self._leases.lease(run=run, pool=pool, nodes=preferred[:MAX_PREFERRED])
        if not isinstance(lease, NoLease):
            return lease, run
        self._telemetry.lease_refused(lease.why, detail=lease.detail)
        return None

    async def ask_for_one(self, node: str) -> Granted | None:
        """Ask for one node; it may be frozen, so it has a moment to answer."""
        with contextlib.suppress(TimeoutError):
            async with Timeout(BETTER_TIMEOUT_S):
                return await self.ask_for(self._directory.pool_of(node), (node,))
        return None

    def _able_nodes(self, placement: Placement, pool: str) -> Nodes:
        states = self._directory.states
        return {name: states[name] for name in self._directory.able_in(placement, pool) if name in states}

    # -- a better one ---------------------------------------------------------------------------------

    async def prefer_better(self, placement: Placement, pools: Sequence[str], granted: Granted) -> Granted:
        """Return one of the better nodes if one is free by now; else the granted one.

        If HAProxy refuses a better node that no run has, it was granted a moment ago to another seeker or
        dispatcher, perhaps for the same job. Then this returns once that one has made its claim.

        Args:
            placement: Whose job is to get it.
            pools: The pools that were asked, the granted node's last.
            granted: It is released if another one is returned, and if this is cut short.
        """
        lease, _ = granted
        try:
            asked = [(pool, self._able_nodes(placement, pool)) for pool in pools]
            better = self._order.better(placement, lease.node, asked)
            pool, nodes = asked[-1]
            if lease.node in (edited := self._edited(nodes)):  # another may have become free meanwhile
                spared = [name for name in nodes if name not in edited and name not in better.get(pool, ())]
                better = {**better, pool: [*better.get(pool, ()), *spared[:MAX_PREFERRED]]}
            found = await self._await_better(placement, better)
        except BaseException:
            lease.release()
            raise
        if found is None:
            return granted
        lease.release()
        return found

    async def _await_better(
        self, placement: Placement, better: Mapping[str, Sequence[str]]
    ) -> Granted | None:
        """Return one of the nodes, or None once all are at work or it takes too long."""
        states, now = self._directory.states, self._now()
        self._missed_until = {name: until for name, until in self._missed_until.items() if now < until}
        passed = self._missed_until.keys() | self._resting(placement)
        left = {
            pool: [n for n in names if states[n].verdict == "up" and n not in passed]
            for pool, names in better.items()
        }
        with contextlib.suppress(TimeoutError):
            async with Timeout(BETTER_TIMEOUT_S):
                for gap in BETTER_GAPS_S:
                    occupied = await self._runs.occupied(list(chain.from_iterable(left.values())))
                    for pool, names in left.items():
                        left[pool] = [name for name in names if name not in occupied]
                    if not any(left.values()):
                        return None
                    for pool, names in left.items():
                        if names and (found := await self.ask_for(pool, names)):
                            return found
                    await asyncio.sleep(gap)
        # No run has them, and HAProxy does not grant them: they or their dispatcher may have frozen.
        self._missed_until |= dict.fromkeys(chain.from_iterable(left.values()), self._now() + UNAVAILABLE_S)
        return None
