"""Polls one node: its queue, its memory, and that it answers at all."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from comfy_fleet.adapters.comfyui.direct_node import DirectNode, NodeSession
from comfy_fleet.adapters.comfyui.node_address import answers_as_fleet
from comfy_fleet.adapters.comfyui.system_stats import SystemStats
from comfy_fleet.domain.errors import NodeError, NodeFault
from comfy_fleet.domain.nodes.orphans import Prompt, Queue, read_queue

logger = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
_INTERRUPT_EVERY_S = 3.0
_NEWEST_AGAIN_S = 0.5
_NEWEST_SHARE = 0.1  # share of the idle time by which a short prompt may be noticed late
_QUEUE_EVERY_S = 0.45  # the answer contains whole graphs: asked less often than memory


class NodePoller:
    """Polls one ComfyUI over HTTP.

    Attributes:
        name: The node.
        url: Its base URL.
        credentials: Its ``USER:PASSWORD``; empty for none.
        queue: Its prompts, and which of them no run explains.
        stats: Its report on memory.
        heard_at: When it last answered; None: never.
        busy_at: When it was last known to work, or it answered for the first time.
        trouble: Why it did not answer the last time; empty if it did.
        faults: By call, answers that no healthy ComfyUI would give; removed by the next good answer.
        version: Its version of ComfyUI.
        freed: Whether it was asked to unload its models since it was last busy.
        frees: How often it was asked.
    """

    def __init__(
        self,
        name: str,
        url: str,
        session: NodeSession,
        *,
        credentials: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is asked yet.

        Args:
            name: The node.
            url: Base of its ComfyUI.
            session: Its connections.
            credentials: ``USER:PASSWORD``; empty for none.
            clock: Seconds, monotonic.
        """
        self.name = name
        self.url = url.rstrip("/")
        self.credentials = credentials
        self.queue = Queue()
        self.stats = SystemStats(self.url, session, credentials=credentials, clock=clock)
        self.heard_at: float | None = None
        self.busy_at: float | None = None
        self.looked_at: float | None = None
        self.trouble = ""
        self.version = ""
        self.freed = False
        self.frees = 0
        self.faults: dict[str, str] = {}
        self._node = DirectNode(self.url, session, credentials=credentials)
        self._clock = clock
        self._interrupted: dict[str, float] = {}
        self._asked_at: float | None = None
        self._newest: str | None = None
        self._newest_at = -_NEWEST_AGAIN_S

    def restarted(self) -> None:
        """Forget everything that a restart of the ComfyUI changes."""
        self.queue = Queue()
        self.heard_at = self.busy_at = self.looked_at = self._asked_at = None
        self.freed = False
        self.faults.clear()
        self._newest = None

    async def look(self) -> None:
        """Look once. Never raises for what the node does."""
        if self.heard_at is not None:
            await asyncio.gather(self._look_at_stats(), self._look_at_queue_if_due())
        elif await self._look_at_stats():  # while nothing answers, one request at a time is enough
            await self._look_at_queue_if_due()

    async def ready(self) -> bool:
        """Return whether it answers ``/object_info``, which means that all node classes are loaded."""
        try:
            await self._ask("/object_info/PreviewImage")
        except NodeError:
            return False
        self._heard()
        self.busy_at = self._clock()
        return True

    async def subscribe_log(self, client_id: str) -> bool:
        """Have it send what it logs to a websocket; False if it does not."""
        wanted = {"clientId": client_id, "enabled": True}
        try:
            await self._node.json(
                "/internal/logs/subscribe", timeout_s=_TIMEOUT_S, post=wanted, method="PATCH"
            )
        except NodeError:
            return False
        return True

    async def log(self) -> list[str]:
        """Return the last lines of its log as its own page shows them; none if it does not say."""
        try:
            answer = await self._node.json("/internal/logs/raw", timeout_s=_TIMEOUT_S)
        except NodeError:
            return []
        match answer:
            case {"entries": list(entries)}:
                texts = [one.get("m") for one in entries if isinstance(one, dict)]
                # An entry is one write: Python writes the head of a traceback in pieces.
                return "".join(text for text in texts if isinstance(text, str)).splitlines()
        return []

    async def stop_orphans(self) -> None:
        """Take the fleet's prompts that no run explains any more off the node."""
        now = self._clock()
        for prompt in self.queue.orphans:
            last = self._interrupted.get(prompt.id)
            if not prompt.ours or (last is not None and now - last < _INTERRUPT_EVERY_S):
                continue
            self._interrupted[prompt.id] = now
            path, body = _removal(prompt)
            facts = {"node": self.name, "run_id": prompt.id, "running": prompt.running}
            try:
                await self._ask(path, post=body)
                logger.warning("orphan taken off the node", extra=facts)
            except NodeError as error:
                logger.warning("orphan can't be taken off the node", extra={**facts, "reason": str(error)})
        self._interrupted = {id_: at for id_, at in self._interrupted.items() if id_ in self.queue.prompts}

    async def free_if_idle(self, idle_s: float) -> bool:
        """Ask it once to unload its models if it was idle for this long; return True if it was asked.

        Most prompts begin and end between two looks at the queue, but each one leaves an entry in the
        history.

        Args:
            idle_s: Seconds.
        """
        if self.busy_at is None or self.queue.busy:
            return False
        now, known = self._clock(), self._newest
        if now - self._newest_at < (_NEWEST_AGAIN_S if known is None else idle_s * _NEWEST_SHARE):
            return False
        self._newest_at, self._newest = now, await self._newest_prompt()
        if known is None or self._newest is None:  # it has just become idle, or did not answer
            return False
        if self._newest != known:
            self.busy_at, self.freed = now, False
        if self.freed or now - self.busy_at < idle_s:
            return False
        await self._free()
        return self.freed

    async def _newest_prompt(self) -> str | None:
        """Return the prompt that ended last; empty if there was none, None without an answer."""
        try:
            entries = await self._ask("/history", params={"max_items": 1})
        except NodeError:
            return None
        return next(reversed(entries), "") if isinstance(entries, dict) else None

    async def _free(self) -> None:
        """Ask it to unload its models, unless it has work. It does so only between two prompts."""
        await self._look_at_queue()
        if self.queue.busy or self.looked_at is None:
            return
        try:
            await self._ask("/free", post={"unload_models": True, "free_memory": True})
            self.freed = True
        except NodeError as error:
            logger.warning("node can't be freed", extra={"node": self.name, "reason": str(error)})
            return
        self.frees += self.freed
        logger.info("models unloaded", extra={"node": self.name})

    async def _look_at_queue_if_due(self) -> None:
        if self._asked_at is None or self._clock() - self._asked_at >= _QUEUE_EVERY_S:
            self._asked_at = self._clock()
            await self._look_at_queue()

    async def _look_at_queue(self) -> None:
        began_at = self._clock()  # a slow answer shows the state at that time
        try:
            prompts = read_queue(await self._ask("/queue"))
        except (NodeError, ValueError):
            return
        self._heard()
        now = self.looked_at = self._clock()
        self.queue = self.queue.look(prompts, began_at)
        if prompts or self.busy_at is None:
            self.busy_at = now
            self.freed = False
            if prompts:
                self._newest = None

    async def _look_at_stats(self) -> bool:
        """Ask for its memory; return True if anything but a fleet answered, even if it is not a ComfyUI."""
        stranger = self.heard_at is None
        failure: NodeError | None = None
        try:
            await self.stats.ask()
        except NodeError as error:
            failure = error
        self._note("/system_stats", failure)
        answered = failure is None or "url" not in failure.details
        # A fleet without keys answers as a ComfyUI does.
        if stranger and answered and await answers_as_fleet(self._node, timeout_s=_TIMEOUT_S):
            self.trouble = f"that is the fleet itself, no ComfyUI: {self.url}"
            return False
        if failure is not None:
            self.trouble = failure.message
            return answered
        self.trouble = ""
        self._heard()
        self.version = self.stats.version
        return True

    async def _ask(self, path: str, **more: Any) -> Any:
        """Ask the node, and note an answer that no healthy ComfyUI gives. Raises NodeError."""
        call = f"/{path.split('/')[1]}"
        try:
            answer = await self._node.json(path, timeout_s=_TIMEOUT_S, **more)
        except NodeError as error:
            self._note(call, error)
            raise
        self._note(call, None)
        return answer

    def _note(self, call: str, error: NodeError | None) -> None:
        if isinstance(error, NodeFault):
            self.faults[call] = error.message
        elif error is None:
            self.faults.pop(call, None)

    def _heard(self) -> None:
        self.heard_at = self._clock()


def _removal(prompt: Prompt) -> tuple[str, dict[str, Any]]:
    if prompt.running:
        return "/interrupt", {"prompt_id": prompt.id}
    return "/queue", {"delete": [prompt.id]}
