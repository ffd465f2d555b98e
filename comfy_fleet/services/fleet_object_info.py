"""``/object_info`` of the whole fleet, from what the nodes told when they were last read.

Every registered node counts, also one that is down or drained: jobs for it are accepted and wait, and a
restart must not take classes out of open editors. It is put together once per set of answers, in a thread.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import orjson

from comfy_fleet.domain.errors import FleetError, NoNodes
from comfy_fleet.domain.graphs.choice_lists import lists_uploads
from comfy_fleet.domain.graphs.object_info_union import AlikeNodes, ObjectInfoUnion, ranked, version_order
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.ports.nodes import InventoryStore
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.object_info_answers import FleetClasses, ObjectInfoAnswers
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

_AGAIN_S = 2.0
"""Least time from one putting together to the next; at least four times what it takes."""
_LATER_S = 2.0
"""How long a request waits for newer classes, if some are known."""
_FIRST_S = 5.0
"""How long a request waits for the first answers of a fleet that has just started."""


_PACKS = "custom_nodes."


class FleetObjectInfo:
    """Keeps :class:`FleetClasses` up to date.

    Attributes:
        answers: What is sent of them.

    Args:
        inventories: The nodes, as they were last read.
        store: What they told.
        clock: Seconds, for intervals.
    """

    def __init__(
        self,
        inventories: NodeInventories,
        store: InventoryStore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inventories = inventories
        self._store = store
        self._clock = clock
        self.answers = ObjectInfoAnswers()
        self._states: object = None
        self._answers: list[AlikeNodes] = []
        self._made_of: list[AlikeNodes] | None = None
        self._made: FleetClasses | None = None
        self._not_before = float("-inf")
        self._making: asyncio.Task[None] | None = None
        self._trouble: FleetError | None = None

    async def classes(self) -> FleetClasses:
        """Return what the nodes have now.

        Nodes that were not asked for some seconds are asked again; one that takes long counts as before.

        Raises:
            NoNodes: There is no node, or none has answered yet.
            StoreDown: The store does not answer, and nothing is known from before.
        """
        await self._inventories.recheck()
        self._look()
        if not self._answers:
            if not await self._inventories.any_node():
                raise NoNodes("no node is registered: there is nothing that could run")
            await self._inventories.first_answers(_FIRST_S)
            self._look()
            if not self._answers:
                raise NoNodes("no node has told yet what it can run: try again in some seconds")
        if self._answers != self._made_of and (self._made is None or self._clock() >= self._not_before):
            if self._making is None or self._making.done():
                self._making = start(self._make(self._answers), name="object_info")
            # What was put together before is better than a long wait.
            await asyncio.wait([self._making], timeout=None if self._made is None else _LATER_S)
        if self._made is None:
            raise self._trouble or NoNodes(
                "what the nodes have told is not stored any more: try again in some seconds"
            )
        return self._made

    async def packs(self, classes: Mapping[str, str]) -> dict[str, str]:
        """Return the node packs that classes come from, by class; those of ComfyUI itself are left out.

        Args:
            classes: For each class, a node that has it.

        Raises:
            StoreDown: The store does not answer.
        """
        found: dict[str, str] = {}
        for node in sorted(set(classes.values())):
            state = self._inventories.states.get(node)
            digest = state.reading.object_info if state is not None else ""
            told = (await self._store.object_info(digest) if digest else None) or {}
            for name in (one for one, has in classes.items() if has == node and one in told):
                module = orjson.loads(told[name]).get("python_module")
                if isinstance(module, str) and module.startswith(_PACKS):
                    found[name] = module.removeprefix(_PACKS).partition(".")[0][:200]
        return found

    def _look(self) -> None:
        states = self._inventories.states
        if states is not self._states:
            self._states = states
            self._answers = _answers(states)

    async def _make(self, answers: Sequence[AlikeNodes]) -> None:
        began = self._clock()
        try:
            union, missing = await self._read(answers)
        except FleetError as error:  # what was put together before is good enough
            logger.warning("object info not put together", extra={"error": error.message})
            self._trouble = error
            return
        if missing < len(answers):
            self._made = await asyncio.to_thread(_finished, union)
        self._made_of = None if missing else list(answers)
        self._trouble = None
        took = self._clock() - began
        self._not_before = self._clock() + max(_AGAIN_S, 4 * took)
        logger.debug("object info put together", extra={"answers": len(answers), "took_s": round(took, 3)})

    async def _read(self, answers: Sequence[AlikeNodes]) -> tuple[ObjectInfoUnion, int]:
        """Return the answers together, and how many of them are not stored any more."""
        union = ObjectInfoUnion(answers, loads=orjson.loads)
        missing = 0
        for number, answer in enumerate(answers):
            told = await self._store.object_info(answer.digest)
            if told is None:
                missing += 1
                logger.warning("object info not stored", extra={"nodes": answer.nodes[:5]})
            else:
                await asyncio.to_thread(union.add, number, told)
        return union, missing


def _answers(states: Mapping[str, NodeState]) -> list[AlikeNodes]:
    """Return the nodes that are known, those with the same answer together, best first."""
    alike: dict[str, list[NodeState]] = defaultdict(list)
    for state in states.values():
        if state.reading.object_info:
            alike[state.reading.object_info].append(state)
    return ranked(
        AlikeNodes(
            digest=digest,
            comfyui=max((state.reading.comfyui for state in some), key=version_order),
            nodes=tuple(sorted(state.node.name for state in some)),
        )
        for digest, some in alike.items()
    )


def _finished(union: ObjectInfoUnion) -> FleetClasses:
    bodies = union.end()
    digest = blake2b(digest_size=16)
    for name, body in bodies.items():
        digest.update(name.encode(errors="replace") + b"\t" + body + b"\n")
    uploads = frozenset(name for name, body in bodies.items() if lists_uploads(name, body))
    return FleetClasses(digest=digest.hexdigest(), bodies=bodies, uploads=uploads)
