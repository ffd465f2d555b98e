"""What the nodes have, kept in memory: nodes from the registry, classes and files from ``/object_info``.

Asking 300 nodes for half a megabyte each must not happen on a submit: a background task keeps the
answers fresh, and nodes that are alike share one parsed inventory, so that a graph is checked once for
each different node, not once for each node.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson
from blake3 import blake3

from comfy_fleet.domain import inventory
from comfy_fleet.domain.errors import FleetError, InvalidWorkflow
from comfy_fleet.domain.graph import Graph
from comfy_fleet.domain.inventory import Inventory, Problem
from comfy_fleet.domain.job import Placement
from comfy_fleet.domain.node import Node
from comfy_fleet.ports import NodeRegistry

logger = logging.getLogger(__name__)

_AT_ONCE = 4  # nodes that are asked side by side
_SHOWN = 20  # nodes that a refusal explains


class NodeInfo(Protocol):
    """The part of :class:`comfy_fleet.ports.NodeApi` that is needed here."""

    async def object_info(self, node: str) -> Mapping[str, Any]:
        """Return every node class with its inputs. Raises NodeError."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    inventory: Inventory
    at: float


class NodeInventories:
    """Inventories of all registered nodes.

    Args:
        nodes: Which nodes there are.
        ask: Asks a node.
        fresh_s: Age at which an answer is asked for anew.
        recheck_s: Age at which an answer is too old to refuse a graph on.
    """

    def __init__(
        self,
        nodes: NodeRegistry,
        ask: NodeInfo,
        *,
        fresh_s: float = 60.0,
        recheck_s: float = 2.0,
        patience_s: float = 3.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = nodes
        self._ask = ask
        self._fresh_s = fresh_s
        self._recheck_s = recheck_s
        self._patience_s = patience_s
        self._monotonic = monotonic
        self._nodes: Sequence[Node] = ()
        self._known: dict[str, _Known] = {}
        self._tried: dict[str, float] = {}
        self._shared: dict[bytes, Inventory] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._uploads: Mapping[str, frozenset[str]] | None = None

    async def run(self) -> None:
        """Keep nodes and inventories fresh until canceled."""
        try:
            while True:
                try:
                    async with aclosing(self._registry.changes()) as changes:  # type: ignore[type-var]
                        async for _ in changes:
                            await self._look()
                            self._refresh(self._fresh_s)
                except Exception as error:  # Redis away: what is known stays good enough for a while
                    logger.warning("node registry unreachable", extra={"error": str(error)})
                    await asyncio.sleep(1)
        finally:
            for task in self._asking.values():
                task.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def any_node(self) -> bool:
        """Return whether a node is registered at all."""
        if not self._nodes:
            await self._look()
        return bool(self._nodes)

    def simulated(self, name: str | None) -> bool:
        """Return whether a node is known to be a simulated one."""
        return any(node.simulated for node in self._nodes if node.name == name)

    def uploads(self) -> Mapping[str, frozenset[str]] | None:
        """Return which inputs name uploaded files, by class; None while no inventory is known."""
        return self._uploads

    async def placement(self, graph: Graph, *, pool: str) -> Placement:
        """Return which nodes of the pool can run a checked graph.

        A node whose inventory is not known counts as able: it decides by itself.

        Raises:
            InvalidWorkflow: No node of the pool can run it; details say why, per graph node and per server.
        """
        bad = self._unable(graph, pool)
        if bad and len(bad) == self._count(pool):
            # Before refusing make sure that this is how things are now: a model may have been added.
            await self._settle(list(bad))
            bad = self._unable(graph, pool)
            if bad and len(bad) == self._count(pool):
                raise _refusal(bad)
        if not bad:
            return Placement(pool=pool)
        able = frozenset(n.name for n in self._nodes if n.pool == pool) - bad.keys()
        if len(able) <= len(bad):
            return Placement(pool=pool, nodes=able)
        return Placement(pool=pool, without=frozenset(bad))

    def _count(self, pool: str) -> int:
        return sum(n.pool == pool for n in self._nodes)

    def _unable(self, graph: Graph, pool: str) -> dict[str, list[Problem]]:
        checked: dict[int, list[Problem]] = {}
        bad: dict[str, list[Problem]] = {}
        for node in self._nodes:
            known = self._known.get(node.name)
            if node.pool != pool or known is None:
                continue
            key = id(known.inventory)
            if key not in checked:
                checked[key] = inventory.problems(graph, known.inventory)
            if checked[key]:
                bad[node.name] = checked[key]
        return bad

    async def _look(self) -> None:
        self._nodes = await self._registry.nodes()
        names = {n.name for n in self._nodes}
        for gone in self._known.keys() - names:
            del self._known[gone]
            self._tried.pop(gone, None)

    def _refresh(self, age_s: float, only: Sequence[str] | None = None) -> list[asyncio.Task[None]]:
        now = self._monotonic()
        tasks = []
        for node in self._nodes:
            if only is not None and node.name not in only:
                continue
            if (running := self._asking.get(node.name)) is not None:
                tasks.append(running)
            elif now - self._tried.get(node.name, float("-inf")) >= age_s:
                self._tried[node.name] = now
                task = asyncio.create_task(self._fetch(node.name), name=f"inventory {node.name}")
                self._asking[node.name] = task
                task.add_done_callback(partial(self._done, node.name))
                tasks.append(task)
        return tasks

    def _done(self, name: str, _: asyncio.Task[None]) -> None:
        self._asking.pop(name, None)

    async def _settle(self, names: Sequence[str]) -> None:
        if tasks := self._refresh(self._recheck_s, names):
            await asyncio.wait(tasks, timeout=self._patience_s)

    async def _fetch(self, name: str) -> None:
        async with self._limit:
            try:
                answer = await self._ask.object_info(name)
                digest, parsed = await asyncio.to_thread(self._parse, answer)
            except FleetError as error:
                # A node that is down keeps its last inventory; it will be asked again soon.
                self._tried[name] = self._monotonic() - self._fresh_s + 5.0
                logger.debug("no inventory", extra={"node": name, "error": str(error)})
                return
        parsed = self._shared.setdefault(digest, parsed)
        self._known[name] = _Known(inventory=parsed, at=self._monotonic())
        in_use = {id(k.inventory) for k in self._known.values()}
        self._shared = {d: i for d, i in self._shared.items() if id(i) in in_use}
        uploads: dict[str, frozenset[str]] = {}
        for one in self._shared.values():
            for class_type, names in one.uploads.items():
                uploads[class_type] = uploads.get(class_type, frozenset()) | names
        self._uploads = uploads

    def _parse(self, answer: Mapping[str, Any]) -> tuple[bytes, Inventory]:
        digest = blake3(orjson.dumps(answer, option=orjson.OPT_SORT_KEYS)).digest()
        shared = self._shared.get(digest)
        return digest, shared if shared is not None else inventory.parse(answer)


def _refusal(bad: Mapping[str, list[Problem]]) -> InvalidWorkflow:
    """Explain with the node that has the fewest problems; the others in short."""
    best = min(bad, key=lambda name: len(bad[name]))
    errors: dict[str, list[dict[str, Any]]] = {}
    for problem in bad[best]:
        errors.setdefault(problem.node_id, []).append(
            {
                "field": problem.field or "class_type",
                "reason": problem.kind.value,
                "message": problem.message,
                "class_type": problem.class_type,
            }
        )
    first = bad[best][0].message
    rest = len(bad[best]) - 1
    more = f" (and {rest} more)" if rest else ""
    return InvalidWorkflow(
        f"no node can run this workflow: {first}{more}",
        details={
            "field": "workflow",
            "node_errors": errors,
            "nodes": {name: [p.message for p in found[:5]] for name, found in sorted(bad.items())[:_SHOWN]},
        },
    )
