"""Files of the nodes' editors and their extensions, kept in memory for some seconds.

Whoever opens the editor asks for dozens of them at once, and everybody for the same.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from comfy_fleet.domain.errors import Busy, NodeError
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.ports.comfyui import NodeCalls
from comfy_fleet.services.kept_answers import KeptAnswers
from comfy_fleet.timeouts import Timeout
from comfy_fleet.turns import FairTurns, NoTurn

MOST_KEPT_BYTES = 64 * 1024 * 1024
"""Of all that are kept, and of the largest a sixteenth."""
KEPT_S = 10.0
ANSWER_S = 8.0
"""How long a node has for one of them: then it counts as away."""
_AT_ONCE, _AT_ONCE_EACH = 16, 12
_LINE_EACH = 512
_WAIT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class EditorFile:
    """A file, or a JSON answer, of a node's editor.

    Attributes:
        node: Whose it is.
        content_type: As the node says.
        tag: Changes with the body.
    """

    node: str
    content_type: str
    body: bytes
    tag: str


class EditorFiles:
    """Asks nodes for files.

    Args:
        ask: Asks one of them.
        clock: Seconds, for intervals.
    """

    def __init__(self, ask: NodeCalls, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._kept = KeptAnswers[EditorFile](MOST_KEPT_BYTES, size=lambda file: len(file.body), clock=clock)
        self._turns = FairTurns(_AT_ONCE, each=_AT_ONCE_EACH, line=_LINE_EACH, wait_s=_WAIT_S)

    async def get(self, owner: str, state: NodeState, path: str) -> EditorFile | None:
        """Return what a node answers to a GET; None if it has nothing there.

        Args:
            owner: Who asks: owners take turns.
            state: The node; after a restart it is asked anew.
            path: As it stands in the request.

        Raises:
            NodeError: It does not answer, or with an error.
            Busy: The owner waits for many already.
        """
        key = (state.node.name, state.node.url, str(state.reading.starts), path)
        if (kept := self._kept.get(key)) is not None:
            return kept.value
        try:
            async with self._turns.of(owner):
                if (kept := self._kept.get(key)) is not None:  # another request has asked meanwhile
                    return kept.value
                found = await self.fresh(state.node.name, path)
        except NoTurn:
            raise Busy(
                "many of the editor's files are waited for already: ask for fewer at a time", retry_after_s=2
            ) from None
        self._kept.put(key, found, keep_s=KEPT_S, most=MOST_KEPT_BYTES / 16)
        return found

    async def fresh(self, node: str, path: str, *, most: int | None = None) -> EditorFile | None:
        """Do the same now, without remembering it or taking turns; ``most``: bytes. Raises NodeError."""
        try:
            async with Timeout(ANSWER_S):
                answer = await self._ask.raw(node, "GET", path, most=most)
        except TimeoutError:
            message = f"node {node} does not answer within {ANSWER_S:g} s"
            raise NodeError(message, details={"node": node}) from None
        if 400 <= answer.status < 500:
            return None
        if answer.status != 200:
            raise NodeError(f"node {node} answered with {answer.status}", details={"node": node})
        return EditorFile(
            node=node,
            content_type=answer.headers.get("content-type", "application/octet-stream"),
            body=answer.body,
            tag=hashlib.sha256(answer.body).hexdigest()[:32],
        )
