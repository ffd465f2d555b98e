"""Which files operators have put into the nodes' ``input`` folders: lists that no inventory keeps."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from comfy_fleet.domain.errors import ConfigError, NodeError
from comfy_fleet.domain.graphs import inventory
from comfy_fleet.domain.graphs.file_check import Declared
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

MOST_NODES, MOST_CLASSES = 64, 8
"""Beyond these nobody is asked: the nodes decide themselves."""
NEW_S, KEPT_S = 2.0, 60.0
"""How old an answer may be that says that no node has a file, and one that says that some node has it."""
SILENT_S = 30.0
"""How long nobody is asked again after a node did not answer in time: each submit would wait for it."""
_MOST_KEPT = 100


class NodeLists(Protocol):
    """The part of :class:`comfy_fleet.ports.comfyui.NodeApi` that is needed here."""

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of one of ComfyUI's own lists; None if there is none. Raises NodeError."""


class InputLists:
    """Asks nodes for the files that a class offers them.

    Args:
        ask: Asks a node.
        states: Returns the nodes by name.
        patience_s: How long the nodes have to answer.
        clock: Seconds.
    """

    def __init__(
        self,
        ask: NodeLists,
        states: Callable[[], Mapping[str, NodeState]],
        *,
        patience_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._states = states
        self._patience_s = patience_s
        self._clock = clock
        self._kept: dict[frozenset[str], tuple[float, Declared]] = {}
        self._asking: dict[frozenset[str], asyncio.Task[Declared]] = {}
        self._silent_at = float("-inf")

    async def declared(self, classes: Collection[str], *, age_s: float) -> Declared:
        """Return how these classes are declared now; nothing unless all nodes that are up say so soon.

        Args:
            classes: Their names.
            age_s: How old the answer may be.
        """
        key = frozenset(classes)
        at, found = self._kept.get(key, (float("-inf"), Declared()))
        if self._clock() - at <= age_s:
            return found
        if len(key) > MOST_CLASSES or self._clock() - self._silent_at <= SILENT_S:
            return Declared()
        asking = self._asking.get(key)
        if asking is None:  # however many requests want to know it
            asking = self._asking[key] = start(self._asked(key), name="ask nodes for their files")
            asking.add_done_callback(lambda _: self._asking.pop(key))
        return await asyncio.shield(asking)

    async def _asked(self, classes: frozenset[str]) -> Declared:
        nodes = [name for name, state in self._states().items() if state.verdict != "down"]
        if not nodes or len(nodes) > MOST_NODES:
            return Declared()
        try:
            async with Timeout(self._patience_s):
                answers = await asyncio.gather(
                    *(self._read(node, classes) for node in nodes), return_exceptions=True
                )
        except TimeoutError:
            self._silent_at = self._clock()
            return Declared()
        read = [one for one in answers if isinstance(one, inventory.Inventory)]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, NodeError | ConfigError):
                raise answer
        if len(read) < len(nodes):
            return Declared()
        found = Declared(read)
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[classes] = (self._clock(), found)
        return found

    async def _read(self, node: str, classes: Collection[str]) -> inventory.Inventory:
        bodies: dict[str, Any] = {}
        for class_type in sorted(classes):
            answer = await self._ask.listing(node, f"/object_info/{class_type}")
            if not isinstance(answer, dict | None):
                raise NodeError(f"node {node} does not describe {class_type}", details={"node": node})
            bodies.update(answer or {})
        return inventory.parse(bodies)
