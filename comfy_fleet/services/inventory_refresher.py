"""Keep inventories fresh: ask nodes for ``/object_info`` and ``/system_stats``.

A node is asked when it is new, when it has come back, on request (by an operator, or a dispatcher whose graph
it refused), and now and then. Any number of processes may do this: the store lets only one of them ask.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from comfy_fleet.domain.errors import FleetError, StoreDown
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.nodes.system_stats import reading_of
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

AT_ONCE = 8  # nodes that are asked at the same time
READING_S = 20  # a process that dies while it asks blocks the node for this long
RETRY_S = 5.0
POLL_S = 0.05
NEW_AGAIN_S = (0.05, 0.05, 0.1, 0.2)  # how soon a node that just joined is asked again


class NodeInfo(Protocol):
    """The part of :class:`comfy_fleet.ports.comfyui.NodeApi` that is needed here."""

    async def inventory(self, node: str) -> Inventory:
        """Return the node's classes, without its version. Raises NodeError."""

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        """Return versions and memory. Raises NodeError."""

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of one of ComfyUI's own lists; None if there is none. Raises NodeError."""


class InventoryRefresher:
    """Asks nodes.

    Args:
        registry: Which nodes there are.
        store: Where answers are kept.
        ask: Asks a node.
        fresh_s: Age at which a node is asked again without any other reason.
        clock: Unix seconds.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        store: InventoryStore,
        ask: NodeInfo,
        *,
        fresh_s: float = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._store = store
        self._ask = ask
        self._fresh_s = fresh_s
        self._clock = clock
        self._tried: dict[str, tuple[float, str]] = {}
        self._verdicts: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[bool]] = {}
        self._limit = asyncio.Semaphore(AT_ONCE)

    @property
    def asking(self) -> frozenset[str]:
        """The nodes that are being asked."""
        return frozenset(self._asking)

    def follow(self, states: Collection[NodeState]) -> None:
        """Ask the nodes that are due; to be called whenever the registry was read.

        Args:
            states: All nodes.
        """
        self._verdicts = {state.node.name: state.verdict for state in states}
        self._tried = {name: at for name, at in self._tried.items() if name in self._verdicts}
        for state in states:
            if self._due(state):
                self._start(state.node.name)

    async def stop(self) -> None:
        """Stop asking."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self, names: Sequence[str], *, patience_s: float) -> frozenset[str]:
        """Ask nodes now, and wait; return the nodes that have answered in time.

        If another process is asking a node right now, its answer is waited for.
        """
        tasks = {name: self._start(name) for name in names}
        if not tasks:
            return frozenset()
        await asyncio.wait(tasks.values(), timeout=patience_s)
        return frozenset(name for name, task in tasks.items() if _answered(task))

    def _due(self, state: NodeState) -> bool:
        if state.verdict == "down":
            return False
        tried, verdict = self._tried.get(state.node.name, (float("-inf"), ""))
        if self._clock() - tried < RETRY_S and verdict == state.verdict:
            return False
        reading = state.reading
        return reading.wanted or self._clock() - reading.read_at >= self._fresh_s

    def _start(self, name: str) -> asyncio.Task[bool]:
        if (running := self._asking.get(name)) is not None:
            return running
        task = start(self._fetch(name), name=f"inventory {name}")
        self._asking[name] = task
        task.add_done_callback(partial(self._done, name))
        return task

    def _done(self, name: str, _: asyncio.Task[bool]) -> None:
        self._asking.pop(name, None)

    async def _fetch(self, name: str) -> bool:
        """Ask one node, a new one several times; False if it did not answer."""
        for pause_s in NEW_AGAIN_S:
            verdict = self._verdicts.get(name)  # the first try may have come before the node was up
            if await self._fetch_once(name):
                return True
            # HAProxy is just learning of it. A node that joins with many others is asked when it is up.
            if verdict != "new" or len(self._asking) > AT_ONCE:
                return False
            await asyncio.sleep(pause_s)
        return await self._fetch_once(name)

    async def _fetch_once(self, name: str) -> bool:
        verdict = self._verdicts.get(name, "")
        claimed = False
        try:
            async with self._limit:
                claimed = await self._store.claim(name, ttl_s=READING_S)
                outcome = await self._read(name) if claimed else ""
            if not claimed:  # the process that has it may have died: others are read meanwhile
                return await self._others_answer(name)
        except StoreDown as error:
            self._failed(name, verdict, error)
            return False
        except Exception as error:  # noqa: BLE001 - a node that can't be read must not harm the caller
            self._failed(name, verdict, error)
            if claimed:
                # A node that is down keeps its last inventory; it is asked again soon.
                await self._give_back(name, "" if verdict == "down" else _words(error))
            return False
        return outcome != "unknown"

    def _failed(self, name: str, verdict: str, error: Exception) -> None:
        self._tried[name] = self._clock(), verdict
        level = logging.DEBUG if isinstance(error, FleetError) else logging.WARNING
        logger.log(level, "no inventory", extra={"node": name, "error": _words(error)})

    async def _read(self, name: str) -> str:
        """Ask a node and store its inventory; return the store's answer."""
        stats = await self._ask.system_stats(name)
        parsed = await self._ask.inventory(name)
        outcome = await self._store.save(name, parsed, reading_of(stats))
        if outcome == "changed":
            logger.info("node read", extra={"node": name, "classes": len(parsed.classes)})
        return outcome

    async def _give_back(self, name: str, why: str) -> None:
        try:
            await self._store.unclaim(name, why=why)
        except StoreDown as error:
            logger.debug("reading not given back", extra={"node": name, "error": str(error)})

    async def _others_answer(self, name: str) -> bool:
        """Wait for the process that is asking this node."""
        before = await self._read_at(name)
        until = self._clock() + READING_S
        while self._clock() < until:
            await asyncio.sleep(POLL_S)
            now = await self._read_at(name)
            if now is None:
                return False
            if now != before:
                return True
        return False

    async def _read_at(self, name: str) -> float | None:
        state = await self._registry.state(name)
        return None if state is None else state.reading.read_at


def _answered(task: asyncio.Task[bool]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None and task.result()


def _words(error: Exception) -> str:
    if isinstance(error, FleetError):
        return error.message
    return f"{type(error).__name__}: {error}"[:300]
