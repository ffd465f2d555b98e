"""Warm idle nodes: submit a common prompt for each, so that its first real job finds models loaded."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from comfy_fleet.domain.errors import FleetError, NotFound, StoreDown
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.jobs.job import MIN_PRIORITY, JobFilter, JobStatus, Placement
from comfy_fleet.domain.nodes.eligibility import PlacementRequest
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.schedule.waiting_job import WARMING
from comfy_fleet.domain.schedule.warm_nodes import CommonPrompt, WarmNode, spread
from comfy_fleet.domain.text import natural
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.nodes import NodeRegistry
from comfy_fleet.ports.workflows import Catalog
from comfy_fleet.services.submitter import JobOptions, Submitter

PAGES, PAGE = 10, 100
"""So many of the newest jobs are looked at to know what is common."""
MOST_AT_ONCE = 100
"""Jobs of one request: each waits in a placement class of its own."""
START_S = 60.0
"""A run that warms starts within this time, or never: real jobs are warming the node by then."""
Work = Mapping[str, Mapping[str, float]]
"""Seconds that nodes spent on jobs, by pool and workflow."""


class NodesToWarm(Protocol):
    """Which nodes can run jobs."""

    async def look(self) -> None:
        """Look at the nodes anew."""

    async def able(self, placement: Placement) -> frozenset[str]:
        """Return the nodes that can run jobs of a class, whether they are up or not."""


@dataclass(frozen=True, kw_only=True)
class WarmRequest:
    """What is to be warmed.

    Attributes:
        nodes: Names; empty: all nodes.
        workflows: Stored workflows; empty: the most common ones of each pool's last jobs.
        pool: Only nodes of this pool.
        most: At most so many common workflows of a pool.
        wait_s: How long nodes that are busy, or not up, are waited for, in seconds; 0: they are left alone.
    """

    nodes: frozenset[str] = frozenset()
    workflows: tuple[str, ...] = ()
    pool: str | None = None
    most: int = 8
    wait_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WarmedNode:
    """What is done for a node.

    Attributes:
        workflow: The stored workflow; empty if there is none for it.
        models: The files that it loads.
        job: The job that warms it, if one was submitted.
        loaded: Whether the models are on its card already.
        why: Why nothing is done for it.
    """

    node: str
    pool: str
    workflow: str = ""
    models: tuple[str, ...] = ()
    job: str | None = None
    loaded: bool = False
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Warmed:
    """The answer to a request.

    Attributes:
        nodes: In their natural order.
        skipped: Why a workflow can't warm any node of a pool, by workflow and pool.
    """

    nodes: Sequence[WarmedNode]
    skipped: Mapping[tuple[str, str], str] = field(default_factory=dict)


class Warming:
    """Submits jobs that warm nodes.

    Args:
        submitter: Where they are submitted.
        jobs: Tells which workflows are common.
        nodes: The nodes.
        able: Which of them can run a job.
        catalog: The stored workflows.
    """

    def __init__(
        self,
        *,
        submitter: Submitter,
        jobs: JobStore,
        nodes: NodeRegistry,
        able: NodesToWarm,
        catalog: Catalog,
    ) -> None:
        self._submitter = submitter
        self._jobs = jobs
        self._nodes = nodes
        self._able = able
        self._catalog = catalog

    async def warm(self, owner: str, wanted: WarmRequest) -> Warmed:
        """Submit one job for each node that can be warmed, as jobs of this owner.

        Raises:
            NotFound: There is no such node, pool or workflow, or nothing is common yet.
        """
        states = {state.node.name: state for state in await self._nodes.states()}
        chosen = _chosen(states, wanted)
        known = {name: await self._catalog.get(name, owner) for name in wanted.workflows}
        await self._able.look()
        work = await self._work({name: one.node.pool for name, one in states.items()})
        if not known and not any(work.get(state.node.pool) for state in chosen):
            raise NotFound(
                "no stored workflow has run on these nodes lately: name one, as `fleet warm --workflow NAME`",
                details={"field": "workflows"},
            )
        rows = {one.node.name: _left_alone(one, wait=wanted.wait_s > 0) for one in chosen}
        skipped: dict[tuple[str, str], str] = {}
        for pool in sorted({state.node.pool for state in chosen}):
            idle = [one.node.name for one in chosen if one.node.pool == pool and not rows[one.node.name].why]
            if not idle:
                continue
            if known:
                shares = {name: work.get(pool, {}).get(name, 0.0) or 1.0 for name in known}
            else:
                common = sorted(work.get(pool, {}).items(), key=lambda one: -one[1])
                shares = dict(common[: wanted.most])
            prompts = await self._prompts(owner, pool, shares, known, skipped)
            # What a node that is not up had on its card is gone.
            up = [name for name, one in states.items() if one.node.pool == pool and one.verdict == "up"]
            plan = spread(prompts, idle, await self._nodes.cards(up))
            for name in idle:
                full = sum(row.job is not None for row in rows.values()) >= MOST_AT_ONCE
                rows[name] = await self._row(owner, name, pool, plan.get(name), wanted, full=full)
        return Warmed(nodes=sorted(rows.values(), key=lambda one: natural(one.node)), skipped=skipped)

    async def _work(self, pools: Mapping[str, str]) -> Work:
        """Return what the newest jobs took, by the pool that their node is in and by workflow."""
        found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        cursor: str | None = None
        for _ in range(PAGES):
            page = await self._jobs.find(
                JobFilter(owner=None, statuses=frozenset({JobStatus.SUCCEEDED}), limit=PAGE, cursor=cursor)
            )
            for job in page.jobs:
                pool = pools.get(job.node or "")
                if pool is None or job.workflow is None or job.tier == WARMING or job.cached:
                    continue
                if job.started_at is not None and job.completed_at is not None:
                    found[pool][job.workflow] += max(0.0, job.completed_at - job.started_at)
            if (cursor := page.next_cursor) is None:
                break
        return found

    async def _prompts(
        self,
        owner: str,
        pool: str,
        shares: Mapping[str, float],
        known: Mapping[str, Workflow],
        skipped: dict[tuple[str, str], str],
    ) -> list[CommonPrompt]:
        """Return the prompts that some node of a pool can run; notes why others can't."""
        found = []
        for name, work_s in shares.items():
            try:
                workflow = known.get(name) or await self._catalog.get(name, owner)
                if name in known and (why := _elsewhere(workflow, pool)):
                    skipped[name, pool] = why
                    continue
                made = await self._submitter.prepared(owner, workflow, PlacementRequest(pool=pool))
                able = await self._able.able(made.placement)
            except StoreDown:
                raise
            except FleetError as error:
                skipped[name, pool] = error.message
                continue
            files = frozenset(file for file, _ in made.models)
            found.append(CommonPrompt(workflow=name, files=files, work_s=work_s, able=able))
        return found

    async def _row(
        self,
        owner: str,
        name: str,
        pool: str,
        plan: WarmNode | None,
        wanted: WarmRequest,
        *,
        full: bool,
    ) -> WarmedNode:
        """Submit the job for one node, unless there are enough."""
        if plan is None:
            return WarmedNode(node=name, pool=pool, why="can run none of these workflows")
        about = WarmedNode(
            node=name, pool=pool, workflow=plan.prompt.workflow, models=tuple(sorted(plan.prompt.files))
        )
        if plan.loaded:
            return replace(about, loaded=True)
        if full:
            return replace(about, why=f"{MOST_AT_ONCE} nodes are warmed at a time: call again")
        options = JobOptions(
            priority=MIN_PRIORITY,
            ttl_s=max(START_S, wanted.wait_s),
            tier=WARMING,
            where=PlacementRequest(pool=pool, node=name),
        )
        try:
            done = await self._submitter.stored(owner, plan.prompt.workflow, {}, options)
        except StoreDown:
            raise
        except FleetError as error:
            return replace(about, why=error.message)
        return replace(about, job=done.job.id)


def _chosen(states: Mapping[str, NodeState], wanted: WarmRequest) -> list[NodeState]:
    if unknown := wanted.nodes - states.keys():
        raise NotFound(
            f"no node {min(unknown)[:80]!r}: `fleet node ls` lists them", details={"field": "nodes"}
        )
    found = [
        state
        for name, state in states.items()
        if (not wanted.nodes or name in wanted.nodes) and wanted.pool in (None, state.node.pool)
    ]
    if not found:
        where = f"in pool {wanted.pool[:80]!r}" if wanted.pool else "registered"
        what = "none of these nodes is" if wanted.nodes else "no node is"
        raise NotFound(f"{what} {where}: `fleet node ls` lists them", details={"field": "pool"})
    return found


def _left_alone(state: NodeState, *, wait: bool) -> WarmedNode:
    """Return a node's row, with the reason if it is not to be warmed now."""
    why = ""
    if state.node.cordoned:
        why = f"drained; `fleet node resume {state.node.name}`"
    elif not wait and state.verdict != "up":
        why = f"not up: {state.why or state.verdict}; --wait S waits for it"
    elif not wait and state.run is not None:
        why = "busy; --wait S waits for it"
    return WarmedNode(node=state.node.name, pool=state.node.pool, why=why)


def _elsewhere(workflow: Workflow, pool: str) -> str:
    """Return why a workflow's jobs never come to a pool; empty if they do."""
    needs = workflow.requires
    if needs.pool is None or pool in (needs.pool, *needs.spill_to):
        return ""
    return f"runs in pool {', '.join((needs.pool, *needs.spill_to))} only"
