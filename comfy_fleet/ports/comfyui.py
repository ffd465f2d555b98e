"""ComfyUI servers: leases on them and questions to them."""

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
        why: ``busy``: no able node is free; ``error``: a node or the broker answered nonsense or too
            late; ``unreachable``: HAProxy did not answer.
        detail: The same in words.
    """

    why: Literal["busy", "error", "unreachable"]
    detail: str = ""


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

    def release(self) -> None:
        """Give the slot back at once; safe to call again."""


class Leases(Protocol):
    """HAProxy's lease frontend."""

    async def lease(self, *, run: str, pool: str, nodes: Sequence[str] = ()) -> Lease | NoLease:
        """Ask for a node, now.

        Args:
            run: The run's id; ComfyUI's ``clientId``.
            pool: The lease backend.
            nodes: Able nodes in order of preference, binding; empty means any of the pool. At most 64 count.
        """


class NodeApi(Protocol):
    """ComfyUI's HTTP API on a named node, through the broker's direct frontend."""

    async def post_prompt(
        self,
        node: str,
        *,
        graph: Mapping[str, Any],
        run: str,
        job: str,
        extra_data: Mapping[str, Any] | None = None,
    ) -> PostAnswered | PostUnknown:
        """Post a graph under the run's id. Never raises for what the node or the broker does."""

    async def queue_state(self, node: str, run: str) -> QueueAnswered | AskFailed:
        """Ask where the run is. Never raises for what the node or the broker does."""

    async def history(self, node: str, run: str) -> HistoryAnswered | AskFailed:
        """Ask for the run's history entry. Never raises for what the node or the broker does."""

    async def interrupt(self, node: str, run: str) -> bool:
        """Interrupt this run and no other; False if the node could not be told."""

    async def delete_pending(self, node: str, run: str) -> bool:
        """Delete this run from the node's queue; False if the node could not be told."""

    def view(self, node: str, ref: FileRef) -> AbstractAsyncContextManager[Content]:
        """Stream a file.

        Raises:
            OutputGone: The node has no such file.
            OutputRefused: The node gives no file of such a name or place.
            NodeError: The node could not be asked, or broke off; also while reading.
        """

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
            node: Where to.
            name: File name there.
            subfolder: Folder below the input folder; made if missing.
            content: The bytes.
            content_type: Their MIME type.
            size_bytes: How many they are, if that is known.

        Returns:
            What the node calls it.

        Raises:
            NodeError: The node could not be asked or refused the file.
            Exception: What ``content`` raises.
        """

    async def inventory(self, node: str) -> Inventory:
        """Return the node's classes, without its version. Raises NodeError."""

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        """Return versions and memory. Raises NodeError."""

    async def free(self, node: str) -> None:
        """Ask the node to unload its models once it is idle. Raises NodeError."""
