"""What the nodes answer to small questions of ComfyUI's clients, remembered for some seconds.

A question goes to every node that is up, at most once in some seconds, however many clients ask. A node that
takes long, or has gone down, counts with what it said last, as long as it is registered.
"""

import asyncio
import logging
import time
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import orjson

from comfy_fleet.domain.errors import NodeError, NoNodes
from comfy_fleet.domain.graphs.object_info_union import version_order
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

T = TypeVar("T")

FRESH_S = 5.0
_FRESH_PER_NODE_S = 0.1
"""How long answers count, and how much longer in large fleets."""
_FIRST_S, _LATER_S = 5.0, 1.0
"""How long a request waits for the first answers, and for newer ones."""
_AT_ONCE, _AT_ONCE_A_NODE = 32, 4
_MOST_QUESTIONS = 256


class Listings(Protocol):
    """The part of :class:`comfy_fleet.ports.comfyui.NodeApi` that is needed here."""

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of one of ComfyUI's own lists; None if there is none. Raises NodeError."""


@dataclass
class _Question:
    """One question, and what is known of its answers: packed, because each node of hundreds has its own."""

    answers: dict[str, bytes] = field(default_factory=dict)
    asked_at: float = float("-inf")
    asking: asyncio.Task[None] | None = None
    made_of: Mapping[str, bytes] | None = None
    made: Any = None


class NodeAnswers:
    """Asks the nodes.

    Args:
        inventories: Which nodes there are.
        ask: Asks one of them.
        clock: Seconds, for intervals.
    """

    def __init__(
        self, inventories: NodeInventories, ask: Listings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inventories = inventories
        self._ask = ask
        self._clock = clock
        self._questions: OrderedDict[str, _Question] = OrderedDict()
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._busy: Counter[str] = Counter()

    async def states(self) -> list[NodeState]:
        """Return the nodes, those with the newest ComfyUI first. Raises NoNodes."""
        if not await self._inventories.any_node():
            raise NoNodes("no node is registered: there is nothing to list")
        found = sorted(self._inventories.states.values(), key=lambda state: state.node.name)
        return sorted(found, key=lambda state: version_order(state.reading.comfyui), reverse=True)

    async def together(
        self,
        path: str,
        combine: Callable[[Iterable[tuple[str, Any]]], T],
        *,
        fresh_s: float = FRESH_S,
        need: int = 1,
    ) -> T:
        """Return what all nodes answer to a GET, put together; only once as long as they say the same.

        Args:
            path: The path.
            combine: Puts nodes' answers together, those of the newest ComfyUIs first. A node that has
                nothing there, or was never reached, is not among them. It must always be the same function.
            fresh_s: How long answers count.
            need: Of how many nodes an answer must be known.

        Raises:
            NoNodes: No node is registered, or too few have answered yet.
        """
        states = await self.states()
        question = await self._asked(path, states, fresh_s)
        answers = {state.node.name: question.answers.get(state.node.name) for state in states}
        known = {name: packed for name, packed in answers.items() if packed is not None}
        if len(known) < need:
            raise NoNodes(f"no node has answered {path[:200]} yet: try again in some seconds")
        if question.made_of is None or list(known.items()) != list(question.made_of.items()):
            question.made = await asyncio.to_thread(lambda: combine(_unpacked(known)))
            question.made_of = known
        made: T = question.made
        return made

    async def _asked(self, path: str, states: list[NodeState], fresh_s: float) -> _Question:
        question = self._questions.setdefault(path, _Question())
        self._questions.move_to_end(path)
        while len(self._questions) > _MOST_QUESTIONS:
            self._questions.popitem(last=False)
        now = self._clock()
        fresh_s = max(fresh_s, _FRESH_PER_NODE_S * len(states))
        if (question.asking is None or question.asking.done()) and now - question.asked_at >= fresh_s:
            question.asked_at = now
            question.asking = start(self._all(path, question, states), name=f"ask nodes for {path[:80]}")
        if question.asking is not None and not question.asking.done():
            patience = _LATER_S if question.answers else _FIRST_S
            if (left := question.asked_at + patience - now) > 0:
                await asyncio.wait([question.asking], timeout=left)
        return question

    async def _all(self, path: str, question: _Question, states: list[NodeState]) -> None:
        names = {state.node.name for state in states}
        question.answers = {name: said for name, said in question.answers.items() if name in names}
        able = [state.node.name for state in states if state.verdict != "down"]
        await asyncio.gather(*(self._one(path, question, name) for name in able))

    async def _one(self, path: str, question: _Question, name: str) -> None:
        if self._busy[name] >= _AT_ONCE_A_NODE:  # it hangs: others are not held up
            return
        self._busy[name] += 1
        try:
            async with self._limit:
                answer = await self._ask.listing(name, path)
            packed = await asyncio.to_thread(_packed, answer)
        except NodeError as error:
            logger.debug("node not asked", extra={"node": name, "path": path, "error": error.message})
            return
        finally:
            self._busy[name] -= 1
            if not self._busy[name]:
                del self._busy[name]
        # Equal answers share their bytes.
        question.answers[name] = next((said for said in question.answers.values() if said == packed), packed)


_NOTHING = b""


def _packed(answer: Any) -> bytes:
    return _NOTHING if answer is None else zlib.compress(orjson.dumps(answer), 1)


def _unpacked(answers: Mapping[str, bytes]) -> Iterator[tuple[str, Any]]:
    for name, packed in answers.items():
        if packed != _NOTHING:
            yield name, orjson.loads(zlib.decompress(packed))
