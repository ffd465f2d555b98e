"""ComfyUI servers: leases on them, and calls to them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from comfy_fleet.domain.graphs.inventory import Inventory
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


@dataclass(frozen=True, kw_only=True)
class NoLease:
    """No node was granted.

    Attributes:
        why: ``busy``: no able node is free; ``error``: the answer of a node or the broker made no sense or
            came too late; ``unreachable``: HAProxy did not answer.
        detail: The same in words.
    """

    why: Literal["busy", "error", "unreachable"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    """A node's answer as it came.

    Attributes:
        headers: Those that may be passed on, by their names in lower case: about the body, never about whom
            it is for.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Lease(Protocol):
    """A granted node: an open websocket, which occupies the node's one slot until it is released.

    Attributes:
        node: Its name.
        close_reason: Why the websocket ended; empty while it is open.
        limit: The limit that ended it, if one did.
    """

    node: str
    close_reason: str
    limit: str

    def frames(self) -> AsyncIterator[Frame | Binary]:
        """Yield frames in order; ends when the websocket does, for whatever reason."""

    async def answers(self, within_s: float) -> bool:
        """Return whether the node answers a ping in time."""

    def release(self) -> None:
        """Give the slot back at once; safe to call again."""


class Leases(Protocol):
    """HAProxy's lease frontend."""

    async def lease(self, *, run: str, pool: str, nodes: Sequence[str] = ()) -> Lease | NoLease:
        """Ask for a node that is free now.

        Args:
            run: The run's id; ComfyUI's ``clientId``.
            pool: The pool, which is a backend of the broker.
            nodes: Able nodes in order of preference; no other node is granted. Empty means any of the pool.
                Only the first 64 count.
        """


class NodeCalls(Protocol):
    """Passes calls on to nodes."""

    async def raw(
        self,
        node: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        most: int | None = None,
    ) -> RawAnswer:
        """Pass a call on to a node, and return its answer, whatever it is.

        Args:
            node: The node.
            method: In upper case.
            path: Path and query as they stand in a request, checked by
                :func:`comfy_fleet.domain.node_paths.plain`.
            headers: About the body only.
            body: The request's body.
            most: Most bytes of the answer; None: as many as of any answer.

        Raises:
            NodeError: The node could not be reached, or its answer is too long or came too slowly.
        """


class RunNodes(Protocol):
    """What a run needs of ComfyUI's HTTP API on a named node, through the broker's direct frontend."""

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
        """Post a graph under the run's id. Never raises because of the node or the broker."""

    async def queue_state(self, node: str, run: str) -> QueueAnswered | AskFailed:
        """Ask where the run is. Never raises because of the node or the broker."""

    async def history(self, node: str, run: str) -> HistoryAnswered | AskFailed:
        """Ask for the run's history entry. Never raises because of the node or the broker."""

    async def interrupt(self, node: str, run: str) -> bool:
        """Interrupt this run and no other; False if the node could not be reached."""

    async def delete_pending(self, node: str, run: str) -> bool:
        """Delete this run from the node's queue; False if the node could not be reached."""

    def view(self, node: str, ref: FileRef) -> AbstractAsyncContextManager[Content]:
        """Stream a file.

        Raises:
            OutputGone: The node has no such file.
            OutputRefused: The node hands out no file with such a name or folder.
            NodeError: The node could not be reached, or broke off; also while reading.
        """

    async def holds(self, node: str, ref: FileRef, *, size_bytes: int) -> bool:
        """Return whether the node certainly has a file with this name and size; False if it can't say."""

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
        """Put a file into the node's input folder, replacing one of the same name.

        Args:
            node: The node.
            name: File name there.
            subfolder: Folder below the input folder; created if missing.
            content: The bytes.
            content_type: Their MIME type.
            size_bytes: Their number, if known.

        Returns:
            The node's name for it.

        Raises:
            NodeError: The node could not be reached, or refused the file.
            Exception: What ``content`` raises.
        """


class NodeApi(NodeCalls, RunNodes, Protocol):
    """ComfyUI's HTTP API on a named node, through the broker's direct frontend."""

    async def inventory(self, node: str) -> Inventory:
        """Return the node's classes, without its version. Raises NodeError."""

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        """Return versions and memory. Raises NodeError."""

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of one of ComfyUI's own lists; None if the node has nothing there.

        Args:
            node: The node.
            path: The path, not quoted.
            query: Its query.

        Raises:
            NodeError: The node could not be reached, or answered with neither.
        """

    async def preview(self, node: str, *, folder: str, index: int, name: str) -> bytes | None:
        """Return a model file's preview picture; None if it has none.

        Args:
            node: The node.
            folder: The folder of models.
            index: Which of the folder's places on the node holds the file.
            name: The file.

        Raises:
            NodeError: The node could not be reached, or answered with neither.
        """

    async def free(self, node: str, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Ask the node to unload its models once it is idle. Raises NodeError."""
