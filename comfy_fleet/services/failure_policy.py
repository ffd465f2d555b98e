"""Where a job goes if its node could not run it, and what happens to the node.

Running out of memory is normal: the node is told to free its memory, the card's size is stored for the job's
profile, and the job goes to a larger card. A node on which every job fails is taken out until it has been
restarted.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from comfy_fleet.domain.errors import FleetError, NodeError, NotFound, StoreDown
from comfy_fleet.domain.graphs import graph_problems
from comfy_fleet.domain.graphs.graph import Graph, check, part
from comfy_fleet.domain.graphs.inventory import Inventory, spelled
from comfy_fleet.domain.jobs.job import JobError, Placement
from comfy_fleet.domain.jobs.run_messages import RunResult
from comfy_fleet.domain.nodes import eligibility
from comfy_fleet.domain.nodes.eligibility import PlacementRequest, Requirements, gib
from comfy_fleet.domain.nodes.memory_need import too_small
from comfy_fleet.domain.nodes.pool import Pool, PoolDefaults
from comfy_fleet.domain.nodes.system_stats import room_bytes
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry, PoolStore
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.memory_prediction import MemoryPrediction
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

PATIENCE = 4
REFUSALS = 2
"""After this many nodes with the same classes find the same kind of fault in a graph, skip all such nodes."""
_OF_THE_GRAPH = frozenset(
    {
        "bad_link",
        "invalid_input_type",
        "missing_input",
        "return_type_mismatch",
        "value_bigger_than_max",
        "value_smaller_than_min",
    }
)
"""Faults that depend only on a node's classes; others may be due to the files in its folders."""
REST_S = 1.0
"""If another program has taken memory, the agent needs this long to see it and to tell HAProxy. A job that
runs out of memory ends at once, and without a pause the next one would follow too early."""
PLACED_S = 0.5
"""A job that has come less than this ago was placed by what is known now."""
ASK_S = 3.0  # a node that has just failed may not answer, and its job must not wait for that


class FailingNode(Protocol):
    """The part of :class:`comfy_fleet.ports.comfyui.NodeApi` that is needed here."""

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        """Return versions and memory. Raises NodeError."""

    async def free(self, node: str) -> None:
        """Ask the node to unload its models once it is idle. Raises NodeError."""


@dataclass(frozen=True, kw_only=True)
class FailureLimits:
    """When a node is taken out, and how long failures are remembered.

    Attributes:
        faults: How many CUDA-like faults, or answers that break a limit, in a row.
        ooms: How many jobs in a row that ran out of memory on the largest card they can use. If there is a
            larger one, the card's size is the likelier reason, and it takes :data:`PATIENCE` times as many.
        oom_memory_s: Seconds until a card that was too small may be tried again.
        pools: Defaults of pools: whether a node unloads its models after a job ran out of memory on it.
    """

    faults: int = 2
    ooms: int = 5
    oom_memory_s: float = 86400.0
    pools: PoolDefaults = field(default_factory=PoolDefaults)


@dataclass(frozen=True, kw_only=True)
class Disposition:
    """What to do with a job whose run failed.

    Attributes:
        placement: Where it goes; None: it has finally failed.
        counts: Whether the attempt counts.
        error: Why; what the user reads if it ends here.
        rest_s: For how long its node should get no other job.
    """

    placement: Placement | None
    counts: bool
    error: JobError
    rest_s: float = 0.0


class FailurePolicy:
    """Decides for one dispatcher.

    Args:
        registry: Cordons nodes.
        store: Remembers failures and needs.
        nodes: Frees memory.
        directory: Which nodes can run what.
        pools: The pools' settings.
        memory: Learns from jobs that run out of it, and says which cards are too small.
        clock: Unix seconds.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        store: InventoryStore,
        nodes: FailingNode,
        directory: NodeDirectory,
        pools: PoolStore,
        memory: MemoryPrediction,
        limits: FailureLimits,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._store = store
        self._nodes = nodes
        self._directory = directory
        self._pools = pools
        self._memory = memory
        self._limits = limits
        self._clock = clock

    async def after(self, claim: Claim, verdict: RunResult) -> Disposition | None:
        """Return what to do after a failed run, or None for the usual handling."""
        error = verdict.error
        if error is None:
            return None
        if error.code == "out_of_memory":
            return await self._out_of_memory(claim, error)
        if error.code == "gpu_fault":
            return await self._gpu_fault(claim, error)
        if error.code == "frame_too_large":
            return await self._frame_too_large(claim, error)
        if verdict.exclude_node:
            return await self._rejected(claim, error, counts=verdict.counts)
        return None

    def inventory(self, node: str) -> Inventory | None:
        """Return a node's inventory; None if it is not known."""
        return self._directory.inventory(node)

    def changed(self, claim: Claim) -> Inventory | None:
        """Return the inventory of a job's node if it is newer than the job's check; else None."""
        node = self._directory.states.get(claim.node)
        if node is None or node.reading.changed_at <= claim.job.created_at:
            return None
        return self._directory.inventory(claim.node)

    def unseen(self, claim: Claim) -> Sequence[Inventory] | None:
        """Return the inventories for a new check of a job; None if it was checked against its node's."""
        if self._directory.inventory(claim.node) is None:
            return self._directory.inventories  # this node may read nodes of the graph that no other does
        changed = self.changed(claim)
        return None if changed is None else [changed]

    async def misfit(self, claim: Claim, graph: Graph) -> Placement | None:
        """Return a job's new placement if its node can't run it after all, or None if it can.

        A job is checked against the nodes at its submit. Only a node that has changed since is checked again.
        """
        placement = await self._larger_card(claim)
        known = self.changed(claim)
        if known is None or not graph_problems.problems(graph, known):
            return placement
        placement = placement or claim.job.placement
        await self._directory.learn([placement])
        needed = self._directory.needs(placement) or Requirements()
        found = eligibility.needs_of(graph, PlacementRequest(), self._directory.inventories)
        needs = replace(
            needed, classes=needed.classes | found.classes, choices=needed.choices | found.choices
        )
        await self._store.keep_needs(needs)
        moved = replace(placement, needs=needs.key)
        await self._directory.learn([moved])
        if claim.node in self._directory.able(
            moved
        ):  # something that requirements can't express, such as an input's range
            moved = _without(moved, claim.node)
        return moved

    async def _larger_card(self, claim: Claim) -> Placement | None:
        """Return the placement of a job that would run out of memory, by what is known now; None: it would
        not, or there is no larger card.

        Jobs that wait were placed by what was known at their submit.
        """
        card = self._directory.vram_bytes(claim.node)
        young = self._clock() - claim.job.created_at < PLACED_S
        if not card or (young and not self._memory.alert):
            return None
        least = (await self._memory.need(claim.job.workload, claim.job.owner)).least
        if least <= card:
            return None
        await self._directory.learn([claim.job.placement])
        able = self._directory.able(claim.job.placement)
        above = too_small((self._directory.vram_bytes(name) for name in able), least)
        return replace(claim.job.placement, above=above) if above >= card else None

    def fitted(self, claim: Claim, graph: Graph) -> Graph:
        """Return the graph for a job's node: only what some output reads, in the node's spelling.

        Raises:
            InvalidWorkflow: The node reads a part that no node read at the submit, and that part is not
                sound.
        """
        made = part(graph, self._directory.read(graph, claim.node))
        if self.unseen(claim) is not None:
            check(made)
        known = self._directory.inventory(claim.node)
        return spelled(made, known) if known else made

    async def _rejected(self, claim: Claim, error: JobError, *, counts: bool) -> Disposition:
        with contextlib.suppress(NotFound):  # it was removed meanwhile
            await self._registry.want_reading(claim.node)
        moved = _without(claim.job.placement, claim.node)
        alike = self._alike(claim.node)
        if len(alike & moved.without) >= REFUSALS and _is_of_the_graph(error):
            moved = replace(moved, without=moved.without | alike)
        left = await self._able(moved)
        return Disposition(placement=moved if left else None, counts=counts, error=error)

    def _alike(self, node: str) -> frozenset[str]:
        """Return the nodes with the same inventory."""
        state = self._directory.states.get(node)
        digest = state.reading.inventory if state else ""
        return frozenset(
            name
            for name, other in self._directory.states.items()
            if digest and other.reading.inventory == digest
        )

    async def _gpu_fault(self, claim: Claim, error: JobError) -> Disposition:
        await self._strike(
            claim.node,
            "gpu",
            self._limits.faults,
            f"quarantined: {self._limits.faults} GPU faults in a row, the last: {error.message[:200]}",
        )
        moved = _without(claim.job.placement, claim.node)
        # A restart may cure the node; on another one the job need not wait for that.
        left = await self._able(moved)
        return Disposition(placement=moved if left else claim.job.placement, counts=True, error=error)

    async def _frame_too_large(self, claim: Claim, error: JobError) -> Disposition:
        # The graph's own picture or text may be the cause: only many in a row point to the node.
        limit = self._limits.faults * PATIENCE
        await self._strike(
            claim.node, "frame", limit, f"quarantined: {limit} runs in a row, the last: {error.message[:200]}"
        )
        moved = _without(claim.job.placement, claim.node)
        left = await self._able(moved)
        return Disposition(placement=moved if left else None, counts=True, error=error)

    async def _out_of_memory(self, claim: Claim, error: JobError) -> Disposition:
        total, room = await self._freed(claim.node)
        shared = room < total * eligibility.CARD_TOLERANCE
        rest_s = REST_S if shared else 0.0
        if room:
            await self._store.note_oom(claim.job.profile, room, ttl_s=int(self._limits.oom_memory_s))
            await self._memory.failed(claim.job.workload, claim.job.owner, room)
        placement = claim.job.placement
        moved = replace(_without(placement, claim.node), above=max(placement.above, room))
        cards = {name: self._directory.vram_bytes(name) for name in await self._able(moved)}
        larger = [name for name, size in cards.items() if not size or size > room]
        limit = self._limits.ooms * (PATIENCE if larger else 1)
        await self._strike(claim.node, "oom", limit, f"quarantined: {limit} jobs in a row ran out of memory")
        if larger:
            # There are few steps to strictly larger cards, so they need not use up an attempt.
            grows = bool(total) and all(cards[name] > total for name in larger)
            return Disposition(placement=moved, counts=not grows, error=error, rest_s=rest_s)
        if room and placement.above < room and any(size >= room for size in cards.values()):
            # No larger card, but another one of this size: this node may be at fault. Tried once.
            return Disposition(placement=moved, counts=True, error=error, rest_s=rest_s)
        where = f"{claim.node} ({gib(total)})" if total else claim.node
        if shared:
            message = f"out of memory on {where}, of which others hold {gib(total - room)}: {error.message}"
            return Disposition(
                placement=placement, counts=True, error=replace(error, message=message), rest_s=rest_s
            )
        message = f"out of memory on {where}, the largest node that can run it: {error.message}"
        return Disposition(placement=None, counts=True, error=replace(error, message=message))

    async def _freed(self, node: str) -> tuple[int, int]:
        """Free a node if its pool says so; return its card's bytes, and those that were usable; 0:
        unknown."""
        total = self._directory.vram_bytes(node)
        room = 0
        try:
            async with Timeout(ASK_S):
                room = room_bytes(await self._nodes.system_stats(node))
                state = self._directory.states.get(node)
                if state is None or await self._unloads(state.node.pool):
                    await self._nodes.free(node)
        except (NodeError, TimeoutError) as error:
            logger.warning("node not freed", extra={"node": node, "error": str(error)})
        return max(total, room), min(room, total) if room and total else room or total

    async def _unloads(self, name: str) -> bool:
        try:
            pool = await self._pools.get(name)
        except StoreDown:
            pool = Pool(name=name)
        return self._limits.pools.on_oom(pool)

    async def _strike(self, node: str, kind: str, limit: int, reason: str) -> None:
        if await self._registry.record_failure(node, kind=kind, limit=limit, reason=reason):
            logger.error("node quarantined", extra={"node": node, "reason": reason})

    async def _able(self, placement: Placement) -> frozenset[str]:
        try:
            await self._directory.look()
        except FleetError as error:
            logger.warning("nodes not read", extra={"error": str(error)})
        await self._directory.learn([placement])
        return self._directory.able(placement)


def _without(placement: Placement, node: str) -> Placement:
    return replace(placement, without=placement.without | {node})


def _is_of_the_graph(error: JobError) -> bool:
    by_node = error.details.get("node_errors")
    defects = [defect for found in by_node.values() for defect in found] if isinstance(by_node, dict) else []
    return any(defect.get("reason") in _OF_THE_GRAPH for defect in defects)
