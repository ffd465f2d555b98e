"""The editor's page of each node: asked for once at a time, for everybody who waits for it.

The page is what people load again and again while a node is slow. So a node is asked once for all of them,
its answer and its failure are remembered for some seconds, and only so many requests wait.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from comfy_fleet.domain.errors import Busy, NodeError
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.services.editor_files import EditorFile, EditorFiles
from comfy_fleet.tasks import start

MOST_PAGE_BYTES = 2 * 1024 * 1024
"""Largest page that is read; ComfyUI's has some ten kB."""
PAGE_KEPT_S = 3.0
"""How long a node's page, or that there is none, is remembered: a node that has just died shows soon."""
MOST_WAITING_EACH = 8
"""Requests of one owner that may wait for pages."""
MOST_WAITING = 128
"""Requests of all owners together, a quarter of the edge's places."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a node said, or why it said nothing."""

    until: float
    page: EditorFile | None = None
    error: NodeError | None = None


class EditorPages:
    """Asks nodes for their pages.

    Args:
        files: Asks one of them.
        clock: Seconds, for intervals.
    """

    def __init__(self, files: EditorFiles, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._known: dict[tuple[str, ...], _Known] = {}
        self._asking: dict[tuple[str, ...], asyncio.Task[_Known]] = {}
        self._waiting: Counter[str] = Counter()

    async def get(self, owner: str, state: NodeState) -> EditorFile | None:
        """Return a node's page; None if it has none.

        Args:
            owner: Who asks.
            state: The node; after a restart it is asked anew.

        Raises:
            NodeError: It does not answer, with an error, or with too much.
            Busy: The owner, or everybody together, waits for many already.
        """
        key = (state.node.name, state.node.url, str(state.reading.starts))
        found = self._known.get(key)
        if found is None or self._clock() >= found.until:
            found = await self._asked(owner, key, state.node.name)
        if found.error is not None:
            raise NodeError(found.error.message, details=found.error.details)
        return found.page

    async def _asked(self, owner: str, key: tuple[str, ...], node: str) -> _Known:
        if self._waiting[owner] >= MOST_WAITING_EACH or self._waiting.total() >= MOST_WAITING:
            raise Busy(
                "the editor's page is being waited for already, and the node is slow: load it once, and "
                "give it some seconds",
                retry_after_s=2,
            )
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = start(self._ask(key, node), name="ask for the editor's page")
        self._waiting[owner] += 1
        try:
            return await asyncio.shield(task)  # who gives up does not end it for the others
        finally:
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner]

    async def _ask(self, key: tuple[str, ...], node: str) -> _Known:
        page: EditorFile | None = None
        failed: NodeError | None = None
        try:
            page = await self._files.fresh(node, "/", most=MOST_PAGE_BYTES)
        except NodeError as error:
            failed = error
        finally:
            del self._asking[key]
        now = self._clock()
        self._known = {one: known for one, known in self._known.items() if now < known.until}
        found = self._known[key] = _Known(until=now + PAGE_KEPT_S, page=page, error=failed)
        return found
