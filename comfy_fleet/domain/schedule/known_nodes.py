"""The nodes: which queues they serve, which model families they hold, and when they are free."""

from collections.abc import Iterable, Iterator
from math import inf

from comfy_fleet.domain.schedule.backlog import WaitingQueue, card_class
from comfy_fleet.domain.schedule.model_set import ModelSet
from comfy_fleet.domain.schedule.ordered_index import OrderedIndex
from comfy_fleet.domain.schedule.scheduled_node import ScheduledNode
from comfy_fleet.domain.schedule.warmth import Warmth

HELD = 8
"""Most families that a node counts as a holder of: files of its last set that others may begin with."""
IDLE = -1.0
"""When an idle node is free: before all others."""
ASKED = 4
"""Most holders that are looked at for the one that is free first."""


class Kind:
    """Nodes that serve the same queues.

    Attributes:
        places: The placement classes.
        card: The largest class of cards whose queues they serve.
        queues: The queues in which jobs wait, and which they serve.
        clocks: Virtual times by level: the least tags that one of them has seen at a choice.
        nodes: How many they are.
        calm_until: Until when a look in vain counts for all of them.
        turn: Counts choices, so that all of many queues get theirs.
    """

    __slots__ = ("calm_until", "card", "clocks", "nodes", "places", "queues", "turn")

    def __init__(self, places: frozenset[str], card: int) -> None:
        self.places = places
        self.card = card
        self.queues: list[WaitingQueue] = []
        self.clocks: dict[str, float] = {}
        self.calm_until = 0.0
        self.nodes = 0
        self.turn = 0

    def saw(self, level: str, tag: float) -> None:
        """Note a tag: virtual time never goes back."""
        if tag > self.clocks.get(level, 0.0):
            self.clocks[level] = tag

    def serves(self, queue: WaitingQueue) -> bool:
        """Whether these nodes serve a queue."""
        return queue.card <= self.card and queue.place in self.places


class KnownNode:
    """A node.

    Attributes:
        facts: What it is.
        kind: Nodes that serve the same queues.
        warmth: Its model files.
        held: The families that it is a holder of, least recently used first.
        runs: The job that it runs.
        passes_until: Until when it would be busy with the last job that it has passed over, had it taken it.
        free_at: When it is probably free; :data:`IDLE` if it is.
    """

    __slots__ = ("facts", "free_at", "held", "kind", "passes_until", "runs", "warmth")

    def __init__(self, facts: ScheduledNode, kind: Kind) -> None:
        self.facts = facts
        self.kind = kind
        self.warmth = Warmth(facts)
        self.held: dict[str, None] = {}
        self.runs: str | None = None
        self.passes_until = 0.0
        self.free_at = IDLE

    def free_in_s(self, now: float) -> float:
        """Return in how many seconds it is free: one that is late takes as long again."""
        return 0.0 if self.runs is None else abs(self.free_at - now)


class KnownNodes:
    """All nodes that take jobs."""

    def __init__(self) -> None:
        self._nodes: dict[str, KnownNode] = {}
        self._kinds: dict[tuple[frozenset[str], int], Kind] = {}
        self._holders: dict[str, OrderedIndex] = {}  # by family: nodes by the time when they are free
        self._counts: dict[str, dict[Kind, int]] = {}  # by family: holders of each kind

    @property
    def size(self) -> tuple[int, int]:
        """How many nodes there are, and how many families they hold."""
        return len(self._nodes), len(self._holders)

    def get(self, name: str) -> KnownNode | None:
        """Return a node, or None if it takes no jobs."""
        return self._nodes.get(name)

    def serve(self, queue: WaitingQueue) -> bool:
        """Whether any node serves a queue."""
        return any(kind.serves(queue) for kind in self._kinds.values())

    def up(self, facts: ScheduledNode, queues: Iterator[WaitingQueue]) -> None:
        """Note a node, or new facts about a known one, which keeps what it holds."""
        known = self._nodes.get(facts.name)
        key = (facts.places, card_class(facts.vram_bytes))
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(*key)
            kind.queues = [queue for queue in queues if kind.serves(queue)]
        if known is None:
            kind.nodes += 1
            self._nodes[facts.name] = KnownNode(facts, kind)
            return
        if known.kind is not kind:
            held = list(known.held)
            for family in held:
                self._let_go(known, family)
            for level, clock in known.kind.clocks.items():
                kind.saw(level, clock)
            self._leave(known.kind)
            known.kind = kind
            kind.nodes += 1
            for family in held:
                self._hold(known, family)
        known.facts = facts
        known.warmth.resize(facts)

    def down(self, name: str) -> None:
        """Note that a node takes no jobs any more; it is cold if it comes back."""
        node = self._nodes.pop(name, None)
        if node is None:
            return
        for family in list(node.held):
            self._let_go(node, family)
        self._leave(node.kind)

    def opened(self, queue: WaitingQueue) -> None:
        """Note a queue in which a job waits."""
        for kind in self._kinds.values():
            if kind.serves(queue):
                kind.queues.append(queue)

    def closed(self, queue: WaitingQueue) -> None:
        """Note that no job waits in a queue any more."""
        for kind in self._kinds.values():
            if kind.serves(queue):
                kind.queues.remove(queue)

    def clock(self, queue: WaitingQueue, level: str, index: OrderedIndex) -> float:
        """Return the virtual time of a queue at a level: nobody who waits there has a lower tag.

        Args:
            queue: The queue.
            level: As :mod:`comfy_fleet.domain.schedule.tenants` calls it.
            index: Who waits there, of that level.
        """
        first = index.first()
        latest = first[0] if first is not None else 0.0
        for kind in self._kinds.values():
            if kind.clocks.get(level, 0.0) > latest and kind.serves(queue):
                latest = kind.clocks[level]
        return latest

    def holder_count(self, family: str, queue: WaitingQueue) -> int:
        """Return how many nodes that serve a queue hold a family."""
        counts = self._counts.get(family)
        return sum(count for kind, count in counts.items() if kind.serves(queue)) if counts else 0

    def holders(self, family: str) -> list[tuple[float, KnownNode]]:
        """Return the holders of a family that are free first, a few, and when."""
        index = self._holders.get(family)
        return [(at, self._nodes[name]) for at, name in index.head(ASKED)] if index is not None else []

    def soonest_s(self, family: str, queue: WaitingQueue, other: KnownNode, now: float) -> float:
        """Return in how many seconds a holder of a family, other than one, is free; infinite if unknown."""
        index = self._holders.get(family)
        if index is not None:
            for at, name in index.head(ASKED):
                node = self._nodes[name]
                if node is not other and node.kind.serves(queue):
                    return 0.0 if at == IDLE else abs(at - now)  # one that is late takes as long again
        return inf

    def held_in_s(self, family: str, queue: WaitingQueue, now: float) -> float:
        """Return in how many seconds a holder of a family is free that serves a queue; 0 if one is."""
        for _, node in self.holders(family):
            if node.kind.serves(queue):
                return node.free_in_s(now)
        return 0.0

    def serving(self, queue: WaitingQueue) -> list[KnownNode]:
        """Return the nodes that serve a queue, those that are idle first, then by when they are free."""
        able = [node for node in self._nodes.values() if node.kind.serves(queue)]
        return sorted(able, key=lambda node: (node.runs is not None, node.free_at))

    def beside(self, queue: WaitingQueue, queues: Iterable[WaitingQueue]) -> list[WaitingQueue]:
        """Return the other queues that some node serves, too."""
        kinds = [kind for kind in self._kinds.values() if kind.serves(queue)]
        return [each for each in queues if each is not queue and any(kind.serves(each) for kind in kinds)]

    def started(self, node: KnownNode, job_id: str, models: ModelSet, free_at: float) -> None:
        """Note a run: its models are on the card from now on."""
        node.runs, node.free_at = job_id, free_at
        held, family = node.held, models.family
        for file in node.warmth.use(models):
            if file in held:
                self._let_go(node, file)
        if family in held:
            del held[family]
            held[family] = None
        elif models.files:
            self._hold(node, family)
            if len(held) > HELD:
                self._let_go(node, next(iter(held)))
        self._list(node)

    def idle(self, node: KnownNode) -> None:
        """Note that a node found nothing to run; until then it is listed as it was."""
        if node.free_at != IDLE:
            node.free_at = IDLE
            self._list(node)

    def _list(self, node: KnownNode) -> None:
        """List a node by the time when it is free."""
        name, at = node.facts.name, node.free_at
        for family in node.held:
            self._holders[family].put(name, at)

    def _hold(self, node: KnownNode, family: str) -> None:
        node.held[family] = None
        self._holders.setdefault(family, OrderedIndex()).put(node.facts.name, node.free_at)
        counts = self._counts.setdefault(family, {})
        counts[node.kind] = counts.get(node.kind, 0) + 1
        self._changed(node.kind, family, 1)

    def _let_go(self, node: KnownNode, family: str) -> None:
        del node.held[family]
        index, counts = self._holders[family], self._counts[family]
        index.discard(node.facts.name)
        counts[node.kind] -= 1
        if not counts[node.kind]:
            del counts[node.kind]
        if not len(index):
            del self._holders[family], self._counts[family]
        self._changed(node.kind, family, -1)

    @staticmethod
    def _changed(kind: Kind, family: str, by: int) -> None:
        """Count a holder in the queues that its kind serves."""
        for queue in kind.queues:
            waiting = queue.by_family.get(family)
            if waiting is not None:
                waiting.holders += by
                queue.pressure.put(family, waiting.pressure)

    def _leave(self, kind: Kind) -> None:
        kind.nodes -= 1
        if not kind.nodes:
            del self._kinds[kind.places, kind.card]
