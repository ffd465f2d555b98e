"""What a submit needs to know of the nodes: which can run this graph, why others can't, what a job waits for.

The answers come from memory. Only before a graph is refused, the nodes are asked again: a model may have been
added just now.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from comfy_fleet.domain.errors import FleetError, InvalidWorkflow
from comfy_fleet.domain.graphs import graph_problems
from comfy_fleet.domain.graphs.file_check import Declared
from comfy_fleet.domain.graphs.graph import Graph, sinks
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.missing import MissingPart, PartKind
from comfy_fleet.domain.jobs.job import ANY_POOL, DEFAULT_POOL, Job, JobStatus, Placement
from comfy_fleet.domain.nodes import eligibility, waiting_reason
from comfy_fleet.domain.nodes.eligibility import Candidate, PlacementRequest, Requirements
from comfy_fleet.domain.nodes.memory_need import too_small
from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.domain.nodes.refusal import UnableNode, refusal
from comfy_fleet.domain.schedule import waiting_words
from comfy_fleet.domain.text import natural
from comfy_fleet.ports.jobs import Waits
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry
from comfy_fleet.services.input_lists import InputLists
from comfy_fleet.services.inventory_refresher import InventoryRefresher, NodeInfo
from comfy_fleet.services.large_graphs import has_many_inputs, worked
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

MOST_PLACEMENTS = 1000  # placement classes kept for answers to "what does this job wait for?"
MOST_ABLE = 8  # nodes that a submit names of those that can run the job
_LARGE_NODES = 500  # comparing graphs with more nodes is work for a thread
_RECENT_S = 1.0  # no message announces that a node becomes busy or free
_AGAIN_S, _AGAIN_PER_NODE_S = 5.0, 0.5  # how often clients can have all nodes asked again
_AGAIN_PATIENCE_S = 2.0
_POLL_S = 0.1
_ABSENT_S = 300.0
"""A node that has not answered since it was added, for so long, is no reason to take a graph."""
_KEEP_NEEDS_S = 3600.0  # requirements are written again this often, so that they outlive every job


class NodeInventories:
    """The fleet's nodes, as the API knows them.

    Args:
        registry: Which nodes there are.
        store: What they have.
        ask: Asks a node.
        recheck_s: Age from which an inventory is too old to refuse a graph.
        patience_s: How long a submit waits for nodes to answer again.
        clock: Unix seconds.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        store: InventoryStore,
        ask: NodeInfo,
        *,
        recheck_s: float = 2.0,
        patience_s: float = 3.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._store = store
        self._directory = NodeDirectory(registry, store, clock=clock)
        self.refresher = InventoryRefresher(registry, store, ask, clock=clock)
        self._files = InputLists(ask, lambda: self._directory.states)
        self._recheck_s = recheck_s
        self._patience_s = patience_s
        self._clock = clock
        self._kept: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._declared = Declared()
        self._states: tuple[float, Sequence[NodeState]] = (float("-inf"), ())
        self._rechecked = float("-inf")
        self._rechecking: asyncio.Task[None] | None = None
        self._able: dict[Placement, tuple[frozenset[str], Mapping[str, NodeState], tuple[str, ...]]] = {}

    async def run(self) -> None:
        """Keep nodes and inventories fresh until canceled."""
        try:
            while True:
                try:
                    async with aclosing(self._registry.changes()) as changes:
                        async for _ in changes:
                            await self.look()
                            self.refresher.follow(self._directory.states.values())
                except Exception as error:  # noqa: BLE001 - Redis is away: what is known is good enough
                    logger.warning("node registry unreachable", extra={"error": str(error)})
                    await asyncio.sleep(1)
        finally:
            await self.refresher.stop()

    async def look(self) -> None:
        """Read the registry now."""
        await self._directory.look()
        self._states = float("-inf"), ()  # the next question sees what this look was for
        if self._directory.inventories != self._declared.inventories:
            self._declared = Declared(self._directory.inventories)
        self._asked = {name: at for name, at in self._asked.items() if name in self._directory.states}

    async def any_node(self) -> bool:
        """Return whether a node is registered at all."""
        if not self._directory.states:
            await self.look()
        return bool(self._directory.states)

    def simulated(self, name: str | None) -> bool:
        """Return whether a node is known to be a simulated one."""
        state = self._directory.states.get(name or "")
        return state is not None and state.simulated

    def declared(self) -> Declared:
        """Return how the nodes' classes declare their inputs."""
        return self._declared

    async def with_files(self, classes: Collection[str], *, age_s: float) -> Declared:
        """Return these classes with the files that they list; see :meth:`InputLists.declared`."""
        return await self._files.declared(classes, age_s=age_s)

    def read(self, graph: Graph) -> frozenset[str]:
        """Return the nodes of a graph that some output reads; all nodes while no inventory is known."""
        return self._directory.read(graph)

    def output_nodes(self, graph: Graph) -> tuple[str, ...]:
        """Return the nodes of a graph whose class is an output node's on some node, in its order.

        While no inventory is known, those that no other node reads.
        """
        known = self._directory.inventories
        if not known:
            return sinks(graph)
        return tuple(
            node_id
            for node_id, node in graph.items()
            if any((info := one.classes.get(node["class_type"])) and info.output_node for one in known)
        )

    @property
    def remembered(self) -> int:
        """How many placement classes are remembered."""
        return self._directory.remembered

    @property
    def known(self) -> frozenset[str]:
        """The nodes whose inventory is known."""
        return frozenset(c.node.name for c in self._directory.candidates if c.inventory is not None)

    # -- who can run it -------------------------------------------------------------------------------

    async def placement(self, graph: Graph, request: PlacementRequest) -> Placement:
        """Return a job's requirements and the pools it may use.

        A node whose inventory is not known counts as able: it decides itself. A node that is down or drained
        counts as able, too: the job waits for it. One that never answered, and was not added just now, does
        not count.

        Raises:
            InvalidWorkflow: No node of its pools can run it; details say why, per graph node and per server.
        """
        if not await self.any_node():
            return Placement(pool=request.pool or request.prefer or DEFAULT_POOL)
        wanted = self._pools(request)
        needs, bad = await self._judged(graph, request, wanted)
        if bad and self._nobody_else(wanted, bad):
            # Before refusing, look at the present state: a model may have been added.
            await self._settle(bad)
            wanted = self._pools(request)
            needs, bad = await self._judged(graph, request, wanted)
            if bad and self._nobody_else(wanted, bad):
                others = {one.node.name for one in self._members(wanted)} - bad.keys()
                raise refusal(graph, needs, bad, absent=others)
        # Problems that requirements can't express (an input's range, a missing input) are about these nodes.
        without = frozenset(
            name for name, found in bad.items() if not eligibility.why_not(needs, found.candidate)
        )
        await self._keep(needs)
        self._directory.keep_small(MOST_PLACEMENTS)
        self._directory.remember(needs)
        return replace(wanted, without=without, needs=needs.key)

    def large_enough(self, placement: Placement, least: int) -> Placement:
        """Return a placement, as it was just found, for a job that needs this much of a card.

        Args:
            placement: Where the job may run.
            least: Bytes; smaller cards are left out, but never the largest one.
        """
        if not least:
            return placement
        able = self._directory.able(placement)
        above = too_small((self._directory.vram_bytes(name) for name in able), least)
        return replace(placement, above=above) if above > placement.above else placement

    def able_nodes(self, placement: Placement) -> tuple[str, ...]:
        """Return some nodes that can run jobs of a placement, up to :data:`MOST_ABLE`, as it was just found.

        They are spread evenly over all such nodes; those that are up go first.
        """
        able, states = self._directory.able(placement), self._directory.states
        kept = self._able.get(placement)
        if kept is not None and kept[0] is able and kept[1] is states:
            return kept[2]
        up = [name for name in able if (state := states.get(name)) and state.verdict == "up"]
        chosen = _spread(up or able)
        if len(self._able) >= MOST_PLACEMENTS:
            self._able.clear()
        self._able[placement] = able, states, chosen
        return chosen

    def versions(self, placement: Placement) -> tuple[str, ...]:
        """Return the versions of ComfyUI on the nodes of a placement, as it was just found."""
        able = self._directory.able(placement)
        states = self._directory.states
        return tuple(sorted({states[name].reading.comfyui for name in able if name in states} - {""}))

    def _pools(self, request: PlacementRequest) -> Placement:
        if request.pool is not None:
            wanted = Placement(pool=request.pool, spill=tuple(dict.fromkeys(request.spill_to)))
        elif request.prefer is not None:
            wanted = Placement(pool=request.prefer, spill=(ANY_POOL,))
        else:
            wanted = Placement()
        if request.node:
            wanted = replace(wanted, nodes=frozenset({request.node}))
        if not any(pool in self._directory.pools for pool in self._directory.pools_of(wanted)):
            have = ", ".join(sorted(self._directory.pools))
            raise InvalidWorkflow(
                f"no node is in pool {wanted.pool}: name one of {have}",
                details={"field": "pool", "value": wanted.pool, "node_errors": {}},
            )
        return wanted

    def _members(self, wanted: Placement) -> list[Candidate]:
        pools = self._directory.pools_of(wanted)
        members = [candidate for candidate in self._directory.candidates if candidate.node.pool in pools]
        return [one for one in members if wanted.able([one.node.name])] if wanted.nodes else members

    def _nobody_else(self, wanted: Placement, bad: Collection[str]) -> bool:
        """Return whether no other node of a job's pools can be hoped for."""
        return all(one.node.name in bad or self._never_answered(one.node) for one in self._members(wanted))

    def _never_answered(self, node: Node) -> bool:
        """Return whether a node has been away since it was added, some minutes ago."""
        state = self._directory.states[node.name]
        away = state.verdict in ("down", "new") and not state.reading.read_at
        return away and node.added_at <= self._clock() - _ABSENT_S

    async def _judged(
        self, graph: Graph, request: PlacementRequest, wanted: Placement
    ) -> tuple[Requirements, dict[str, UnableNode]]:
        """Check a graph; a large one in a thread, which is safe because inventories are replaced and never
        changed."""
        large = len(graph) > _LARGE_NODES or has_many_inputs(graph)
        return await worked(large, lambda: self._unable(graph, request, wanted))

    def _unable(
        self, graph: Graph, request: PlacementRequest, wanted: Placement
    ) -> tuple[Requirements, dict[str, UnableNode]]:
        """Return the requirements, and the nodes that can't run it; checked once for each inventory."""
        checked = {id(one): graph_problems.findings(graph, one) for one in self._directory.inventories}
        differ = any(checked.values())
        needs = eligibility.needs_of(graph, request, ())
        if not differ and not needs.key:
            return needs, {}  # true for most jobs; saves asking a thousand nodes
        members = self._members(wanted)
        if differ:
            near = {id(one): one for candidate in members if (one := candidate.inventory)}
            known = self._directory.inventories
            needs = eligibility.needs_of(graph, request, known, near=list(near.values()))
        bad: dict[str, UnableNode] = {}
        for candidate in members:
            found = checked.get(id(candidate.inventory), []) if candidate.inventory else []
            problems = [problem for problem in found if not problem.doubtful]
            reasons = eligibility.why_not(needs, candidate)
            if problems or reasons:
                bad[candidate.node.name] = UnableNode(candidate, problems, reasons)
        return needs, bad

    async def _settle(self, names: Collection[str]) -> None:
        """Ask nodes again whose inventories are too old to refuse a graph."""
        now = self._clock()
        old = [
            name
            for name in names
            if now - self._asked.get(name, float("-inf")) >= self._recheck_s
            and now - self._directory.states[name].reading.read_at >= self._recheck_s
        ]
        self._asked.update(dict.fromkeys(old, now))
        if old:
            await self.refresher.refresh(old, patience_s=self._patience_s)
            await self.look()

    async def _keep(self, needs: Requirements) -> None:
        now = self._clock()
        if needs.key and now - self._kept.get(needs.key, float("-inf")) > _KEEP_NEEDS_S:
            await self._store.keep_needs(needs)
            if len(self._kept) > 10_000:
                self._kept.clear()
            self._kept[needs.key] = now

    # -- what it waits for ----------------------------------------------------------------------------

    async def waiting_for(self, job: Job, waits: Waits | None = None) -> str | None:
        """Return what a job waits for; None if it does not wait, or if a node is free for it.

        Args:
            job: The job.
            waits: What Redis knows about that, if it was asked.
        """
        if job.status is not JobStatus.QUEUED:
            return job.waiting_for
        states, able = await self._able_nodes(job.placement)
        needs = self._directory.needs(job.placement) or Requirements()
        reasons = (
            {}
            if able
            else {
                candidate.node.name: eligibility.why_not(needs, candidate)
                for candidate in self._members(job.placement)
            }
        )
        why = waiting_reason.waiting_for(able, states, reasons)
        usable = {one.node.name for one in states if waiting_reason.takes_jobs(one)}.intersection(able)
        if not usable or waits is None:
            return why
        if why is None and waits.results_on:
            return waiting_reason.for_results(waits.results_on, waits.results_s)
        if why is None and waits.gathers_s:
            return waiting_reason.for_others(waits.gathers_s)
        return why if waits.place is None else waiting_words.words(waits.place, usable=usable, busy=why)

    async def usable(self, placement: Placement | None) -> Sequence[NodeState]:
        """Return the nodes that take jobs of a class, now or once they are free; None: of any class."""
        if placement is None:
            return [state for state in await self._recent() if waiting_reason.takes_jobs(state)]
        states, able = await self._able_nodes(placement)
        return [one for one in states if one.node.name in able and waiting_reason.takes_jobs(one)]

    async def able(self, placement: Placement) -> frozenset[str]:
        """Return the nodes that can run jobs of a class, whether they are up or not."""
        return (await self._able_nodes(placement))[1]

    async def _able_nodes(self, placement: Placement) -> tuple[Sequence[NodeState], frozenset[str]]:
        """Return the nodes as of at most a second ago, and which of them can run jobs of a class."""
        states = await self._recent()
        self._directory.keep_small(MOST_PLACEMENTS)
        await self._directory.learn([placement])
        return states, self._directory.able(placement)

    async def requirements(self, placement: Placement) -> Requirements:
        """Return what a job of this placement needs of a node; nothing if that is no longer known."""
        self._directory.keep_small(MOST_PLACEMENTS)
        await self._directory.learn([placement])
        return self._directory.needs(placement) or Requirements()

    async def _recent(self) -> Sequence[NodeState]:
        """Return the nodes as of at most a second ago; announced changes are included at once."""
        known = self._states
        if self._clock() - known[0] <= _RECENT_S:
            return known[1]
        at = self._clock()
        states = await self._registry.states()
        if self._states is known:  # nothing was announced meanwhile
            self._states = at, states
        return states

    # -- for whoever looks at what there is -----------------------------------------------------------

    @property
    def states(self) -> Mapping[str, NodeState]:
        """The nodes by name, as of the last look: another mapping whenever they were looked at."""
        return self._directory.states

    @property
    def inventories(self) -> Sequence[Inventory]:
        """The fleet's inventories, each different one once."""
        return self._directory.inventories

    async def recheck(self) -> None:
        """Have nodes asked again that were not asked for some seconds, and wait a moment for their answers.

        Somebody may have added a model just now, and looks for it. However many do so, every node is asked
        once in five seconds at most, and less often in a large fleet: two nodes a second.
        """
        now = self._clock()
        states = self._directory.states
        every = max(_AGAIN_S, _AGAIN_PER_NODE_S * len(states))
        if now - self._rechecked >= every:
            self._rechecked = now
            old = [
                name
                for name, state in states.items()
                if state.verdict not in ("down", "new")
                and name not in self.refresher.asking
                and now - max(state.reading.read_at, self._asked.get(name, 0.0)) >= every
            ]
            if old:
                self._asked.update(dict.fromkeys(old, now))
                self._rechecking = start(self._reread(old), name="recheck nodes")
        if self._rechecking is not None and not self._rechecking.done():
            await asyncio.wait([self._rechecking])

    async def _reread(self, names: Sequence[str]) -> None:
        try:
            await self.refresher.refresh(names, patience_s=_AGAIN_PATIENCE_S)
            await self.look()
        except FleetError as error:
            logger.warning("nodes not asked again", extra={"error": error.message})

    async def first_answers(self, patience_s: float) -> None:
        """Wait until some node has told what it has, if one is being asked."""
        until = self._clock() + patience_s
        while self._clock() < until and not any(s.reading.object_info for s in self.states.values()):
            await asyncio.sleep(_POLL_S)
            await self.look()

    # -- for operators --------------------------------------------------------------------------------

    async def refresh(self, name: str) -> bool:
        """Read a node now; False if it did not answer in time."""
        answered = await self.refresher.refresh([name], patience_s=15.0)
        await self.look()
        return name in answered

    async def with_parts(self, parts: Iterable[MissingPart]) -> list[tuple[list[str], list[str]]]:
        """Return which nodes have each class or file now, and which lack it, by name.

        Nodes whose inventory is not known are in neither, and neither are those that take any file's name.
        """
        nodes = sorted((await self.by_node()).items(), key=lambda one: natural(one[0]))
        return [_with_part(part, nodes) for part in parts]

    async def by_node(self) -> Mapping[str, Candidate]:
        """Return every node with its present inventory."""
        await self.look()
        return {candidate.node.name: candidate for candidate in self._directory.candidates}


def _spread(names: Collection[str]) -> tuple[str, ...]:
    """Return up to :data:`MOST_ABLE` of these, evenly over their order."""
    ordered = sorted(names, key=natural)
    count = min(MOST_ABLE, len(ordered))
    return tuple(ordered[len(ordered) * index // count] for index in range(count))


def _with_part(part: MissingPart, nodes: Iterable[tuple[str, Candidate]]) -> tuple[list[str], list[str]]:
    having, lacking = list[str](), list[str]()
    for name, candidate in nodes:
        if candidate.inventory is None:
            continue
        info = candidate.inventory.classes.get(part.class_type)
        has = info is not None
        if info is not None and part.kind is PartKind.FILE:
            offered = eligibility.offers(info, part.input, part.name)
            if offered is None:
                continue
            has = offered
        (having if has else lacking).append(name)
    return having, lacking
