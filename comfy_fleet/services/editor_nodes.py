"""ComfyUI's editor for people: from which node each gets it, and what that node says about it.

A person keeps a node's editor as long as the node answers. If it does not, the next one takes over: what it
says is asked of that one, and the next time the page is opened, the person has its editor.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from comfy_fleet.domain.errors import EditorAway, NodeError, NoNodes
from comfy_fleet.domain.graphs.object_info_union import version_order
from comfy_fleet.domain.nodes.editor_choice import editor_order, may_serve
from comfy_fleet.domain.nodes.extension_lists import (
    FRONTEND,
    OWN,
    NodeScripts,
    lacking,
    listed,
    package_of,
    scripts,
)
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.services.editor_files import EditorFile, EditorFiles
from comfy_fleet.services.editor_pages import EditorPages
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.node_answers import NodeAnswers
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

MOST_TRIED = 4
"""Nodes that are asked for one thing before the answer is that none has an editor now."""
PAGE_S = 15.0
"""How long all of them together have for the editor's page."""
LOOK_S = 30.0
"""How old notes for operators may be."""
EXTENSIONS = "/extensions"
_AWAY = (
    "no node that serves ComfyUI's editor answers now: `fleet node ls` says why. Jobs are kept; "
    "try again in some seconds"
)


class EditorNodes:
    """Chooses nodes, and asks them.

    Args:
        inventories: Which nodes there are.
        answers: What all of them list.
        files: What one of them has.
        clock: Seconds, for intervals.
    """

    def __init__(
        self,
        inventories: NodeInventories,
        answers: NodeAnswers,
        files: EditorFiles,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inventories = inventories
        self._answers = answers
        self._files = files
        self._pages = EditorPages(files, clock=clock)
        self._clock = clock
        self._notes: list[str] = []
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def any_node(self) -> bool:
        """Return whether a node is registered that may serve the editor, whether or not it answers now."""
        return any(map(may_serve, await self._states()))

    async def order(self, kept: str | None = None) -> list[NodeState]:
        """Return the nodes to ask, the one that the person has first, if it has one.

        Raises:
            EditorAway: None seems to answer.
        """
        found = editor_order(await self._states(), kept)
        if not found:
            raise EditorAway(_AWAY, retry_after_s=2)
        return found

    async def page(self, owner: str, kept: str | None = None) -> EditorFile:
        """Return the editor's page (``/``), and whose it is.

        Args:
            owner: Who asks.
            kept: The node whose editor the person has.

        Raises:
            EditorAway: No node gives it.
            Busy: The owner waits for it many times already.
        """
        order = (await self.order(kept))[:MOST_TRIED]
        try:
            async with Timeout(PAGE_S):
                found = await self._page(owner, order)
        except TimeoutError:
            found = None
        if found is None:
            raise EditorAway(_AWAY, retry_after_s=2)
        return found

    async def _page(self, owner: str, order: Sequence[NodeState]) -> EditorFile | None:
        for state in order:
            try:
                found = await self._pages.get(owner, state)
            except NodeError as error:
                _log(state, error)
                continue
            if found is not None and found.content_type.partition(";")[0].strip() == "text/html":
                return found
            logger.warning("node has no editor", extra={"node": state.node.name})
        return None

    async def answer(self, owner: str, path: str, kept: str | None = None) -> EditorFile | None:
        """Return an editor's JSON; None if it has nothing there.

        Without a real node, a simulated one is asked: it has no editor, but answers its questions.

        Args:
            owner: Who asks.
            path: The path.
            kept: The node whose editor the person has.

        Raises:
            EditorAway: No node answers.
            Busy: The owner waits for many answers already.
        """
        states = await self._states()
        return await self._first(owner, path, editor_order(states, kept) or _stand_ins(states))

    async def scripts(self, kept: str | None = None) -> list[str]:
        """Return the paths of all scripts of extensions.

        Raises:
            NoNodes: No node has said anything yet.
        """
        return listed(await self._listed(kept))

    async def file(self, owner: str, path: str, kept: str | None = None) -> EditorFile | None:
        """Return a file of an extension, from the first node that has its package; None if there is none.

        Args:
            owner: Who asks.
            path: As it stands in the request.
            kept: The node whose editor the person has.

        Raises:
            EditorAway: No node answers.
            Busy: The owner waits for many files already.
        """
        package = package_of(path)
        if package in ("", OWN) or not await self.any_node():
            return None
        order = await self.order(kept)
        if package != FRONTEND:
            try:
                having = {one.node for one in await self._listed(kept) if package in one.packages}
            except NoNodes:
                having = set()
            order = [state for state in order if state.node.name in having] or order[:1]
        return await self._first(owner, path, order)

    async def notes(self) -> list[str]:
        """Return what an operator should know about who serves the editor, as of the last minute.

        Health checks ask for it all the time: none of them waits for nodes.
        """
        if self._looking is None or (self._looking.done() and self._clock() - self._looked_at >= LOOK_S):
            self._looked_at = self._clock()
            self._looking = start(self._look(), name="look at who serves the editor")
        return list(self._notes)

    async def _look(self) -> None:
        states = await self._states()
        order = editor_order(states)
        found = (_older(order[0], states), await self._lacking(order[0])) if order else ()
        self._notes = [f"editor: node {order[0].node.name}, which serves it, {one}" for one in found if one]

    async def _lacking(self, chosen: NodeState) -> str:
        try:
            missing = lacking(await self._listed(), chosen.node.name)
        except NoNodes:
            return ""
        if not missing:
            return ""
        named = ", ".join(f"{name} ({nodes[0]})" for name, nodes in list(missing.items())[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        return (
            f"lacks packages with scripts: {named}{more}. The scripts come from the nodes that have them; "
            "translations, templates and blueprints don't"
        )

    async def _states(self) -> Sequence[NodeState]:
        await self._inventories.any_node()
        return list(self._inventories.states.values())

    async def _listed(self, kept: str | None = None) -> list[NodeScripts]:
        """Return the scripts of the nodes that may be asked, in their order."""
        states = await self._states()
        order = [state.node.name for state in editor_order(states, kept) or _stand_ins(states)]
        found = {one.node: one for one in await self._answers.together(EXTENSIONS, scripts)}
        return [found[name] for name in order if name in found]

    async def _first(self, owner: str, path: str, order: Sequence[NodeState]) -> EditorFile | None:
        for state in order[:MOST_TRIED]:
            try:
                return await self._files.get(owner, state, path)
            except NodeError as error:
                _log(state, error)
        raise EditorAway(_AWAY, retry_after_s=2)


def _stand_ins(states: Iterable[NodeState]) -> list[NodeState]:
    """Return the simulated nodes, which have no editor but answer its questions."""
    found = [state for state in states if state.simulated and state.verdict != "down"]
    return sorted(found, key=lambda state: state.node.name)


def _older(chosen: NodeState, states: Iterable[NodeState]) -> str:
    real = [state for state in states if not state.simulated and state.verdict != "down"]
    newest = max(real, key=_version, default=chosen)
    if _version(newest) <= _version(chosen):
        return ""
    return (
        f"has ComfyUI {chosen.reading.comfyui}, and {newest.node.name} has {newest.reading.comfyui}: what is "
        "new there may look wrong in the older editor. Name a newer node for it (`fleet node add --editor`)"
    )


def _version(state: NodeState) -> tuple[int, ...]:
    return version_order(state.reading.comfyui)


def _log(state: NodeState, error: NodeError) -> None:
    logger.info("editor not got from node", extra={"node": state.node.name, "error": error.message})
