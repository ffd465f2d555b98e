"""One prompt on a node for several runs: each sees the node as if the prompt were its own.

Every member of a merged prompt is carried out like any other run, with its own claim, outputs and end. It
talks to the node through its :class:`PromptMember`, which posts all members' graphs as one, and gives each
the frames and the history that are about it. The first member's run has the node and follows the prompt for
real: what it asks the node to stop is stopped for all. When another one gives up, only its own results are
dropped.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.merging import MergeMode, batched, merged
from comfy_fleet.domain.jobs.member_view import MemberView
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    Binary,
    Frame,
    HistoryAnswered,
    PostAnswered,
    PostUnknown,
    QueueAnswered,
)
from comfy_fleet.ports.assets import Content
from comfy_fleet.ports.comfyui import Lease, RunNodes
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.large_graphs import LARGE_BYTES, worked

logger = logging.getLogger(__name__)

AHEAD = 256
"""Frames that may wait for one member before the others' wait, too."""


def view_of(claim: Claim, prompt: str) -> MemberView:
    """Return what a job sees of a merged prompt of which only the job itself is known.

    Args:
        claim: The job's: of a batch, or the first.
        prompt: The run under whose id the prompt was posted.

    Raises:
        ValueError: Its place in the batch is not known.
    """
    if claim.merged is not MergeMode.BATCH:
        return MemberView(run=claim.run, prompt=prompt, ids={id_: id_ for id_ in orjson.loads(claim.graph)})
    if claim.job.batch is None:
        raise ValueError(f"job {claim.job.id} has no place in its batch")
    return MemberView(run=claim.run, prompt=prompt, part=claim.job.batch)


class _NodeAsSeen:
    """A node's API that passes everything on."""

    def __init__(self, nodes: RunNodes) -> None:
        self.nodes = nodes

    async def post_prompt(
        self,
        node: str,
        *,
        graph: Mapping[str, Any],
        run: str,
        job: str,
        extra_data: Mapping[str, Any] | None = None,
        targets: Sequence[str] = (),
    ) -> PostAnswered | PostUnknown:
        return await self.nodes.post_prompt(
            node, graph=graph, run=run, job=job, extra_data=extra_data, targets=targets
        )

    async def queue_state(self, node: str, run: str) -> QueueAnswered | AskFailed:
        return await self.nodes.queue_state(node, run)

    async def history(self, node: str, run: str) -> HistoryAnswered | AskFailed:
        return await self.nodes.history(node, run)

    async def interrupt(self, node: str, run: str) -> bool:
        return await self.nodes.interrupt(node, run)

    async def delete_pending(self, node: str, run: str) -> bool:
        return await self.nodes.delete_pending(node, run)

    def view(self, node: str, ref: FileRef) -> AbstractAsyncContextManager[Content]:
        return self.nodes.view(node, ref)

    async def holds(self, node: str, ref: FileRef, *, size_bytes: int) -> bool:
        return await self.nodes.holds(node, ref, size_bytes=size_bytes)

    async def upload(
        self,
        node: str,
        *,
        name: str,
        subfolder: str,
        content: AsyncIterator[bytes],
        content_type: str,
        size_bytes: int | None = None,
    ) -> FileRef:
        return await self.nodes.upload(
            node,
            name=name,
            subfolder=subfolder,
            content=content,
            content_type=content_type,
            size_bytes=size_bytes,
        )


class TakenOverFirst(_NodeAsSeen):
    """The node, for the first run of a merged prompt that another dispatcher has left behind.

    The other jobs went back to their queue. Their results are in the prompt's history, too.

    Args:
        claim: The run.
        nodes: The node's API.
    """

    def __init__(self, claim: Claim, nodes: RunNodes) -> None:
        super().__init__(nodes)
        self._sees = view_of(claim, claim.run)

    async def history(self, node: str, run: str) -> HistoryAnswered | AskFailed:
        """Ask for the prompt's history, with the job's own results."""
        answer = await self.nodes.history(node, run)
        if not isinstance(answer, HistoryAnswered) or answer.entry is None:
            return answer
        return HistoryAnswered(self._sees.history(answer.entry))


class MergedPrompt:
    """A prompt of several runs.

    Attributes:
        members: One for each claim, in their order.

    Args:
        claim: The first job's; the others are in it.
        lease: Holds the node.
        nodes: The node's API.
        safe: Whether a run's lease certainly still holds.
    """

    def __init__(self, claim: Claim, lease: Lease, nodes: RunNodes, *, safe: Callable[[str], bool]) -> None:
        self.first = claim
        self.lease = lease
        self.nodes = nodes
        behind, pool = claim.jobs_behind, claim.pool
        others = [replace(other, jobs_behind=behind, pool=pool) for other in claim.others]
        if claim.merged is MergeMode.BATCH:  # their graphs differ in seeds only, and one seed is used
            others = [replace(other, graph=claim.graph) for other in others]
        self.members = tuple(PromptMember(self, at, one) for at, one in enumerate((claim, *others)))
        self._safe = safe
        self._changed = asyncio.Event()
        self._answer: asyncio.Future[PostAnswered | PostUnknown] = asyncio.get_running_loop().create_future()
        self._first_canceled = False
        self.lost = False

    async def pump(self) -> None:
        """Pass the frames on as they come, until the websocket ends."""
        try:
            async for frame in self.lease.frames():
                # The first comes last: when it sees the end, the others have it.
                for member in reversed(self.members):
                    await member.put(frame)
        finally:
            for member in self.members:
                member.shut(self.lease.close_reason, self.lease.limit)

    async def post(self) -> PostAnswered | PostUnknown:
        """Post the prompt as soon as all members have handed in their graphs, or are out."""
        await self._until(lambda: all(member.graph is not None or member.out for member in self.members))
        try:
            answer = await self._post()
        except BaseException as error:
            self._tell(PostUnknown(f"{type(error).__name__}: {error}"))
            raise
        self._tell(answer)
        return answer

    async def _post(self) -> PostAnswered | PostUnknown:
        if not self._safe(self.first.run):  # others' files may have taken long
            return PostUnknown("the lease was too old to post safely")
        graph = await self._merged()
        return await self.nodes.post_prompt(
            self.first.node, graph=graph, run=self.first.run, job=self.first.job.id
        )

    async def _merged(self) -> Graph:
        handed_in = [(one, one.graph) for one in self.members if one.graph is not None]
        graphs = [graph for _, graph in handed_in]
        large = len(self.first.graph) > LARGE_BYTES
        if self.first.merged is MergeMode.BATCH:
            for member in self.members:
                member.sees = view_of(member.claim, self.first.run)
            return await worked(large, partial(batched, graphs[0], len(self.members)))
        found = await worked(large, partial(merged, graphs))
        for (member, _), ids in zip(handed_in, found.members, strict=True):
            own = {name: node_id for node_id, name in ids.items()}
            member.sees = MemberView(run=member.claim.run, prompt=self.first.run, ids=own)
        return found.graph

    def _tell(self, answer: PostAnswered | PostUnknown) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)

    async def answer(self) -> PostAnswered | PostUnknown:
        """Wait for what the node said about the prompt."""
        return await asyncio.shield(self._answer)

    def note(self) -> None:
        """Take note of a member's change."""
        self._changed.set()
        if self._first_canceled and not self.needed:
            self._first_canceled = False
            self.members[0].on_stop()

    @property
    def needed(self) -> bool:
        """Whether others than the first want the prompt's results."""
        return any(not member.out for member in self.members[1:])

    def cancel_first(self) -> bool:
        """The first job is canceled: return whether nobody else needs the prompt; else it goes on."""
        self._first_canceled = self.needed
        return not self._first_canceled

    def close(self, *, complete: bool) -> None:
        """The first run follows the prompt no more.

        Args:
            complete: Whether the prompt has left the node in a way that gives all members their results.
        """
        self.lost = self.lost or not complete
        self._tell(PostAnswered(503))
        for member in self.members:
            member.shut("the first run is over")

    async def others_over(self) -> None:
        """Wait until all runs but the first are over: it holds the node, and a batch's files."""
        await self._until(lambda: all(member.over for member in self.members[1:]))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class PromptMember(_NodeAsSeen):
    """One run of a merged prompt: its lease on the node, and the node's API as it sees it.

    Attributes:
        claim: The run.
        node: The node's name.
        close_reason: Why no more frames come.
        limit: The limit that ended them, if one did.
        first: Whether its run has the node.
        graph: What it hands in; None: not yet.
        sees: What it sees of the prompt; None: nothing yet.
        out: Whether it wants no results.
        over: Whether its run is over.
        count: How many members the prompt has.
        on_stop: Called when the first run's job was canceled, and nobody else needs the prompt any more.
    """

    def __init__(self, prompt: MergedPrompt, at: int, claim: Claim) -> None:
        super().__init__(prompt.nodes)
        self.claim = claim
        self.node = claim.node
        self.close_reason = self.limit = ""
        self.first = at == 0
        self.count = 1 + len(prompt.first.others)
        self.graph: Graph | None = None
        self.sees: MemberView | None = None
        self.out = self.over = False
        self.on_stop: Callable[[], None] = lambda: None
        self._prompt = prompt
        self._frames: asyncio.Queue[Frame | Binary | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._shut = False

    # -- what its run tells it ------------------------------------------------------------------------

    def may_stop(self) -> bool:
        """Its job is canceled: return whether the prompt need not go on for others under its run."""
        return not self.first or self._prompt.cancel_first()

    async def end(self, *, complete: bool) -> None:
        """Its run is about to write its end: the first one's is the last.

        Args:
            complete: Whether the prompt has succeeded, and has left the node.
        """
        if self.first:
            self._prompt.close(complete=complete)
            await self._prompt.others_over()

    def finish(self) -> None:
        """Its run is over."""
        self.out = self.over = True
        if self.first:
            self._prompt.close(complete=False)
        self.shut("it is over")
        self._prompt.note()

    def _drop(self) -> None:
        """It wants no results any more: for its run, the prompt is interrupted."""
        if not self.out:
            self.out = True
            about = {"prompt_id": self.claim.run}
            self._frames.put_nowait(Frame("execution_interrupted", about))
            self._frames.put_nowait(Frame("executing", {**about, "node": None}))
            self.shut("it is interrupted")
            self._prompt.note()

    # -- its lease ------------------------------------------------------------------------------------

    async def put(self, frame: Frame | Binary) -> None:
        """Pass a frame on; wait while too many are there."""
        while self._frames.qsize() >= AHEAD and not self.out and not self._shut:
            self._room.clear()
            await self._room.wait()
        if self.out or self._shut:
            return
        try:
            seen = self.sees.frame(frame) if self.sees is not None else frame if self.first else None
        except Exception as error:  # noqa: BLE001 - nothing that a node sends may stop the others' frames
            logger.warning("frame not understood", extra={**self.claim.log_fields, "error": str(error)})
            return
        if seen is not None:
            self._frames.put_nowait(seen)

    def shut(self, reason: str, limit: str = "") -> None:
        """No more frames come, for this reason."""
        if not self._shut:
            self._shut = True
            self.close_reason, self.limit = reason, limit
            self._frames.put_nowait(None)
            self._room.set()

    async def frames(self) -> AsyncIterator[Frame | Binary]:
        """Yield its frames."""
        while (frame := await self._frames.get()) is not None:
            self._room.set()
            yield frame

    async def answers(self, within_s: float) -> bool:
        """Return whether the node answers a ping in time."""
        return await self._prompt.lease.answers(within_s)

    def release(self) -> None:
        """Give the node back, if it is the first one's; the others never had it."""
        if self.first:
            self._prompt.lease.release()

    # -- the node -------------------------------------------------------------------------------------

    async def post_prompt(
        self,
        node: str,
        *,
        graph: Mapping[str, Any],
        run: str,
        job: str,
        extra_data: Mapping[str, Any] | None = None,
        targets: Sequence[str] = (),
    ) -> PostAnswered | PostUnknown:
        """Hand in its graph; return what the node says about all of them together."""
        if extra_data or targets:
            raise ValueError(f"run {run} has data of its own: it can't be merged")
        self.graph = dict(graph)
        self._prompt.note()
        return await (self._prompt.post() if self.first else self._prompt.answer())

    async def queue_state(self, node: str, run: str) -> QueueAnswered | AskFailed:
        """Ask where the prompt is."""
        if self._gone:
            return QueueAnswered("absent")
        return await self._prompt.nodes.queue_state(node, self._prompt.first.run)

    async def history(self, node: str, run: str) -> HistoryAnswered | AskFailed:
        """Ask for the prompt's history, with its own results."""
        if self._gone:
            return HistoryAnswered(None)
        answer = await self._prompt.nodes.history(node, self._prompt.first.run)
        if not isinstance(answer, HistoryAnswered) or answer.entry is None or self.sees is None:
            return answer
        return HistoryAnswered(self.sees.history(answer.entry))

    @property
    def _gone(self) -> bool:
        return not self.first and (self.out or self._prompt.lost)

    async def interrupt(self, node: str, run: str) -> bool:
        """Stop the prompt, if it is the first one's; else drop its own results."""
        if self.first:
            return await self._prompt.nodes.interrupt(node, run)
        self._drop()
        return True

    async def delete_pending(self, node: str, run: str) -> bool:
        """Delete the prompt from the node's queue, if it is the first one's; else drop its own results."""
        if self.first:
            return await self._prompt.nodes.delete_pending(node, run)
        self._drop()
        return True
