"""Nodes, pools and inventories in memory."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from comfy_fleet.adapters.redis.inventories import pack
from comfy_fleet.domain.errors import Conflict, NotFound
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.nodes.eligibility import Requirements
from comfy_fleet.domain.nodes.node import LIVE, Node, NodeState, Reading
from comfy_fleet.domain.nodes.pool import Pool
from tests.fakes.base import Fake, unplayed

_FRESH = vars(Node(name="any", url="http://any.test:1"))


class FakeNodeRegistry(Fake):
    """Nodes over a dict.

    Attributes:
        held: What is known of each node.
        strikes: Every strike: node, kind, limit.
        every_s: How often :meth:`changes` yields without a change.
        store: What tells this store from one that was emptied.
    """

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        super().__init__()
        self.held = {node.name: NodeState(node=node) for node in nodes}
        self.strikes: list[tuple[str, str, int]] = []
        self.every_s = 0.2
        self.store = "first"
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._listeners: set[asyncio.Event] = set()

    # -- what a test says -----------------------------------------------------------------------------

    def put(self, name: str, **facts: Any) -> None:
        """Change what is known of a node, and tell nobody; add it if it is not there."""
        had = self.held.get(name) or NodeState(node=Node(name=name, url=f"http://{name}.test:1"))
        self.held[name] = replace(had, **facts)

    def announce(self) -> None:
        """Have everybody look."""
        for listener in self._listeners:
            listener.set()

    async def change(self, name: str, **fields: Any) -> Node:
        """Change a node's own fields, such as its weight."""
        state = self._known(name)
        self.put(name, node=replace(state.node, **fields))
        self.announce()
        return self.held[name].node

    @property
    def told(self) -> Mapping[str, tuple[str, str]]:
        """What was reported last of each node: verdict and why."""
        return {name: (state.verdict, state.why) for name, state in self.held.items()}

    async def watch(self) -> AsyncGenerator[Sequence[Node], None]:
        """Be an agent's source, too."""
        async for _ in self.changes():
            if not self.down:
                yield await self.nodes()

    # -- the port -------------------------------------------------------------------------------------

    async def add(self, node: Node) -> Node:
        self.answer("add")
        if node.name in self.held:
            raise Conflict(f"node {node.name} exists already")
        if any(state.node.key == node.key for state in self.held.values()):
            raise Conflict(f"url {node.url} is a node already")
        self.put(node.name, node=replace(node, **{name: _FRESH[name] for name in LIVE}))
        self.announce()
        return node

    async def store_id(self) -> str:
        self.answer("store_id")
        return self.store

    async def get(self, name: str) -> Node | None:
        state = await self.state(name)
        return None if state is None else state.node

    async def nodes(self) -> Sequence[Node]:
        return [state.node for state in await self.states()]

    async def states(self) -> Sequence[NodeState]:
        self.answer("states")
        return [self.held[name] for name in sorted(self.held)]

    async def state(self, name: str) -> NodeState | None:
        self.answer("state")
        return self.held.get(name)

    async def cordon(self, name: str, *, reason: str) -> Node:
        self.answer("cordon")
        return await self._mark(name, cordoned=True, cordon_reason=reason)

    async def uncordon(self, name: str) -> Node:
        self.answer("uncordon")
        return await self._mark(name, cordoned=False, cordon_reason="")

    async def remove(self, name: str, *, force: bool = False) -> None:
        self.answer("remove")
        state = self._known(name)
        if state.run is not None and not force:
            raise Conflict(f"node {name} still works on run {state.run}")
        del self.held[name]
        self.announce()

    async def report(self, name: str, *, verdict: str, why: str) -> None:
        self.answer("report")
        if (had := self.held.get(name)) is None:
            return
        self.put(name, verdict=verdict, why=why)
        if verdict in ("up", "drain") and verdict != had.verdict and not had.reading.inventory:
            self.announce()

    async def want_reading(self, name: str) -> None:
        self.answer("want_reading")
        self.put(name, reading=replace(self._known(name).reading, wanted=True))
        self.announce()

    async def record_failure(self, name: str, *, kind: str, limit: int, reason: str) -> bool:
        self.answer("record_failure")
        self.strikes.append((name, kind, limit))
        self._in_a_row[name, kind] += 1
        if name not in self.held or self.held[name].node.cordoned or self._in_a_row[name, kind] < limit:
            return False
        await self.change(name, cordoned=True, cordon_reason=reason)
        self.put(name, quarantined=True)
        return True

    async def changes(self) -> AsyncGenerator[None, None]:
        heard = asyncio.Event()
        self._listeners.add(heard)
        try:
            while True:
                yield
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.every_s):
                        await heard.wait()
                heard.clear()
        finally:
            self._listeners.discard(heard)

    errors = freed = cards = models = release = started = want_restart = unplayed

    def _known(self, name: str) -> NodeState:
        if name not in self.held:
            raise NotFound(f"no node {name!r}")
        return self.held[name]

    async def _mark(self, name: str, **fields: Any) -> Node:
        found = await self.change(name, **fields)
        self.put(name, quarantined=False)
        for key in [key for key in self._in_a_row if key[0] == name]:
            del self._in_a_row[key]
        return found


class FakeInventoryStore(Fake):
    """Inventories, needs and the cards that were too small; what it keeps of a node stands in the registry.

    Attributes:
        inventories: By content hash, or by any other word that a reading names.
        requirements: By key.
        too_small: The largest card on which each profile ran out of memory, in bytes.
        reading: Nodes that are being read.
    """

    def __init__(self, registry: FakeNodeRegistry) -> None:
        super().__init__()
        self.registry = registry
        self.inventories: dict[str, Inventory] = {}
        self.requirements: dict[str, Requirements] = {}
        self.too_small: dict[str, int] = {}
        self.reading: set[str] = set()
        self.clock = time.time

    async def claim(self, node: str, *, ttl_s: int) -> bool:
        self.answer("claim")
        if node not in self.registry.held or node in self.reading:
            return False
        self.reading.add(node)
        self._note(node, wanted=False)
        return True

    async def unclaim(self, node: str, *, why: str = "") -> None:
        self.answer("unclaim")
        self.reading.discard(node)
        if why and node in self.registry.held:
            self._note(node, trouble=why)

    async def save(self, node: str, inventory: Inventory, reading: Reading) -> str:
        self.answer("save")
        if node not in self.registry.held:
            return "unknown"
        digest, _ = pack(inventory)
        had = self.registry.held[node].reading
        self.inventories[digest] = inventory
        self.reading.discard(node)
        now = self.clock()
        known = replace(reading, inventory=digest, read_at=now, wanted=had.wanted, changed_at=had.changed_at)
        if digest != had.inventory:
            known = replace(known, changed_at=now)
        self.registry.put(node, reading=known)
        if (had.inventory, had.comfyui, had.vram_bytes) == (digest, known.comfyui, known.vram_bytes):
            return "same"
        self.registry.announce()
        return "changed"

    async def load(self, digest: str) -> Inventory | None:
        self.answer("load")
        return self.inventories.get(digest)

    async def keep_needs(self, needs: Requirements) -> None:
        self.answer("keep_needs")
        if needs.key:
            self.requirements[needs.key] = needs

    async def needs(self, key: str) -> Requirements | None:
        self.answer("needs")
        return self.requirements.get(key)

    async def note_oom(self, profile: str, size: int, *, ttl_s: int) -> int:
        self.answer("note_oom")
        self.too_small[profile] = max(size, self.too_small.get(profile, 0))
        return self.too_small[profile]

    object_info = unplayed

    def _note(self, node: str, **facts: Any) -> None:
        self.registry.put(node, reading=replace(self.registry.held[node].reading, **facts))


class FakePoolStore(Fake):
    """What is set for pools, over a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, Pool] = {}
        self.slots: dict[str, int] = {}

    async def pools(self) -> Sequence[Pool]:
        self.answer("pools")
        return [self._pool(name) for name in sorted(self.held.keys() | self.slots.keys())]

    async def get(self, name: str) -> Pool:
        self.answer("get")
        return self._pool(name)

    async def set(self, pool: Pool) -> None:
        self.answer("set")
        if pool.is_set:
            self.held[pool.name] = pool
        else:
            self.held.pop(pool.name, None)

    async def change(self, name: str, settings: Mapping[str, Any]) -> None:
        self.answer("change")
        await self.set(replace(self._pool(name), **settings))

    async def place(self, slots: Mapping[str, int]) -> None:
        self.answer("place")
        self.slots = dict(slots)

    def _pool(self, name: str) -> Pool:
        return replace(self.held.get(name, Pool(name=name)), slot=self.slots.get(name))
