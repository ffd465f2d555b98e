"""The nodes and their inventories, in memory: read from the store, never from the nodes.

Every process that places jobs has one. Equal nodes share one parsed inventory, and the answer for a placement
class is worked out only once until something changes.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.inventory import Inventory, reached
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes import eligibility
from comfy_fleet.domain.nodes.eligibility import Candidate, Requirements
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry

NOTHING = Requirements()
MOST_NAMED = 64
"""Nodes that a claim names at most for a class, of those that can run it or of those that can't."""
UNREAD_S = 10.0
"""A node that was just added gets no job for this long unless it was read; after that it decides itself."""


class NodeDirectory:
    """Which nodes can run what.

    Attributes:
        states: The nodes by name.
        candidates: The same, as eligibility sees them.
        unread: Nodes that were just added: they get no job before their inventory is known.

    Args:
        registry: Which nodes there are.
        store: Their inventories.
        clock: Unix seconds.
    """

    def __init__(
        self, registry: NodeRegistry, store: InventoryStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._registry = registry
        self._store = store
        self.states: Mapping[str, NodeState] = {}
        self.candidates: Sequence[Candidate] = ()
        self._digests: Mapping[str, Inventory] = {}
        self._needs: dict[str, Requirements] = {}
        self._able: dict[Placement, frozenset[str]] = {}
        self._pools: Mapping[str, frozenset[str]] = {}
        self._seen: object = None
        self._clock = clock
        self._looks = 0
        self._shown = 0
        self.unread: frozenset[str] = frozenset()

    @property
    def inventories(self) -> Sequence[Inventory]:
        """The fleet's inventories, each different one once."""
        return tuple(self._digests.values())

    @property
    def pools(self) -> Mapping[str, frozenset[str]]:
        """The nodes of every pool that has any."""
        return self._pools

    def pool_of(self, node: str) -> str:
        """Return a node's pool; empty if the node is not known."""
        state = self.states.get(node)
        return state.node.pool if state is not None else ""

    async def look(self) -> None:
        """Read the registry and new inventories; afterwards nothing older than this call is shown."""
        self._looks += 1
        look = self._looks
        states = await self._registry.states()
        digests: dict[str, Inventory] = {}
        for digest in {state.reading.inventory for state in states} - {""}:
            found = self._digests.get(digest) or await self._store.load(digest)
            if found is not None:
                digests[digest] = found
        if look < self._shown:  # another call began later and finished earlier
            return
        self._shown = look
        self.states = {state.node.name: state for state in states}
        # Two calls at once may both have loaded one; inventories are compared by identity, so the first is
        # kept.
        digests = {digest: self._digests.get(digest, found) for digest, found in digests.items()}
        self._digests = digests
        seen = []
        for state in states:
            reading = state.reading
            digest = reading.inventory if reading.inventory in digests else ""
            seen.append((state.node, digest, reading.comfyui, reading.vram_bytes))
        young = self._clock() - UNREAD_S
        unread = frozenset(
            state.node.name
            for state in states
            if digests and not state.reading.inventory and state.node.added_at > young
        )
        if seen == self._seen and unread == self.unread:
            return
        self._seen, self.unread = seen, unread
        self._able.clear()
        self.candidates = [
            Candidate(
                node=state.node,
                inventory=digests.get(state.reading.inventory),
                comfyui=state.reading.comfyui,
                vram_bytes=state.reading.vram_bytes,
            )
            for state in states
        ]
        pools: dict[str, set[str]] = {}
        for state in states:
            pools.setdefault(state.node.pool, set()).add(state.node.name)
        self._pools = {pool: frozenset(names) for pool, names in pools.items()}

    async def learn(self, placements: Iterable[Placement]) -> None:
        """Read the requirements of these placement classes."""
        for placement in tuple(placements):  # others may come while the store is asked
            if placement.needs and placement.needs not in self._needs:
                # The requirements are no longer stored: a node decides itself.
                self._needs[placement.needs] = await self._store.needs(placement.needs) or NOTHING

    def remember(self, needs: Requirements) -> None:
        """Take requirements that were just worked out, instead of reading them."""
        if needs.key:
            self._needs[needs.key] = needs

    def forget(self, placements: Iterable[Placement]) -> None:
        """Keep only the requirements of these placement classes."""
        kept = set(placements)
        needs = {placement.needs for placement in kept}
        self._needs = {key: value for key, value in self._needs.items() if key in needs}
        self._able = {placement: names for placement, names in self._able.items() if placement in kept}

    def keep_small(self, most: int) -> None:
        """Forget all placement classes once there are more than this; they are read again on demand."""
        if self.remembered >= most:
            self.forget(())

    @property
    def remembered(self) -> int:
        """How many placement classes have remembered facts."""
        return max(len(self._needs), len(self._able))

    def needs(self, placement: Placement) -> Requirements | None:
        """Return the requirements of a placement class, or None if they were not read."""
        return self._needs.get(placement.needs) if placement.needs else NOTHING

    def able(self, placement: Placement) -> frozenset[str]:
        """Return the nodes that may run jobs of a class; none until its requirements were read."""
        found = self._able.get(placement)
        if found is None:
            needs = self.needs(placement)
            if needs is None:
                return frozenset()
            found = eligibility.able(placement, needs, self.candidates) - self.unread
            self._able[placement] = found
        return found

    def able_names(self, placements: Iterable[Placement]) -> Mapping[Placement, Sequence[str]]:
        """Return the nodes that may run jobs of each class, where these are fewer than those that may not.

        Classes with more than :data:`MOST_NAMED` of them are left out.
        """
        return {
            placement: sorted(able)
            for placement, able, unable in self._divided(placements)
            if len(able) <= min(len(unable), MOST_NAMED)
        }

    def unable_names(self, placements: Iterable[Placement]) -> Mapping[Placement, Sequence[str]]:
        """Return the same of the nodes of a class's pools that may not, where these are fewer."""
        return {
            placement: sorted(unable)
            for placement, able, unable in self._divided(placements)
            if len(unable) < len(able) and len(unable) <= MOST_NAMED
        }

    def _divided(
        self, placements: Iterable[Placement]
    ) -> Iterator[tuple[Placement, frozenset[str], frozenset[str]]]:
        """Yield the nodes of each class's pools that may run it, and those that may not, if there are any."""
        for placement in placements:
            able, pools = self.able(placement), self.pools_of(placement)
            members = [self._pools.get(pool, frozenset()) for pool in pools]
            if len(able) < sum(map(len, members)):
                yield placement, able, frozenset().union(*members) - able

    async def free(self, placement: Placement, *, besides: str) -> bool:
        """Return True if some idle node, other than the given one, may run a job of a class."""
        await self.look()
        await self.learn([placement])
        others = (self.states[name] for name in self.able(placement) - {besides})
        return any(one.verdict == "up" and not one.node.cordoned and one.run is None for one in others)

    def able_in(self, placement: Placement, pool: str) -> frozenset[str]:
        """Return the nodes of one pool that may run jobs of a class."""
        return self.able(placement) & self._pools.get(pool, frozenset())

    def first_choice(self, placement: Placement) -> tuple[str, frozenset[str]]:
        """Return the first of a class's pools with any able nodes, and these; empty if there is none."""
        pools = ((pool, self.able_in(placement, pool)) for pool in self.pools_of(placement))
        return next((found for found in pools if found[1]), ("", frozenset()))

    def pools_of(self, placement: Placement) -> tuple[str, ...]:
        """Return the pools that a placement class may use, in their order."""
        return placement.pools(self._pools)

    def read(self, graph: Graph, node: str | None = None) -> frozenset[str]:
        """Return the nodes of a graph that some output reads, directly or indirectly: only those ever run.

        Args:
            graph: Its shape is sound; its links need not be.
            node: The node that runs it; None or unknown: any node that can run it.
        """
        known = None if node is None else self.inventory(node)
        classes = {entry["class_type"] for entry in graph.values()}
        may = [known] if known else [one for one in self.inventories if classes <= one.classes.keys()]
        return frozenset().union(*(reached(graph, one) for one in may)) if may else frozenset(graph)

    def inventory(self, node: str) -> Inventory | None:
        """Return a node's inventory; None if it is not known."""
        state = self.states.get(node)
        return None if state is None else self._digests.get(state.reading.inventory)

    def speed(self, node: str) -> float:
        """Return how fast a node computes, see :attr:`NodeState.speed`; 1.0 if it is not known."""
        state = self.states.get(node)
        return 1.0 if state is None else state.speed

    def ram_bytes(self, node: str) -> int:
        """Return a node's main memory; 0 if it is not known."""
        state = self.states.get(node)
        return 0 if state is None else state.reading.ram_bytes

    def vram_bytes(self, node: str) -> int:
        """Return the memory of a node's card; 0 if it is not known."""
        state = self.states.get(node)
        return 0 if state is None else state.reading.vram_bytes
