"""Which nodes and hosts there are, and what they have."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.nodes.eligibility import Requirements
from comfy_fleet.domain.nodes.host import Heartbeat, HostState, Joining, Orders
from comfy_fleet.domain.nodes.model_sizes import Folders
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading
from comfy_fleet.domain.nodes.pool import Pool


class NodeRegistry(Protocol):
    """Which nodes exist. A cordon is written here before anybody acts on it."""

    async def add(self, node: Node) -> Node:
        """Register a node.

        Raises:
            Conflict: The name or the URL is taken.
        """

    async def get(self, name: str) -> Node | None:
        """Return a node by name."""

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes by name."""

    async def states(self) -> Sequence[NodeState]:
        """Return all nodes with verdicts and leases."""

    async def state(self, name: str) -> NodeState | None:
        """Return a node with verdict and lease, or None."""

    async def cordon(self, name: str, *, reason: str) -> Node:
        """Stop new jobs on a node. Raises NotFound."""

    async def uncordon(self, name: str) -> Node:
        """Allow new jobs again. Raises NotFound."""

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Forget a node.

        Raises:
            NotFound: No such node.
            Conflict: Work is on it and ``force`` is not set.
        """

    async def report(self, name: str, *, verdict: str, why: str) -> None:
        """Record a node's state as HAProxy or an agent reports it."""

    async def errors(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Return the last errors of jobs on a node, the newest first: at, job, code, message."""

    async def models(self, name: str) -> Sequence[str]:
        """Return the model files that jobs on a node have used since it started or was freed, latest first.

        An unmodified ComfyUI does not report which models are in its memory; these may be.
        """

    async def cards(self, names: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """Return the model files, as ``FOLDER/NAME``, that are taken to be on nodes' cards, by node."""

    async def release(self, name: str) -> Sequence[str]:
        """Have a node's jobs given back to the queue; return the runs concerned.

        Runs that only fetch their outputs go on.
        """

    async def started(self, name: str) -> None:
        """Note that a node's ComfyUI was restarted: it is read again, and a quarantine ends.

        Raises:
            NotFound: No such node.
        """

    async def want_reading(self, name: str) -> None:
        """Have a node's inventory read again. Raises NotFound."""

    async def want_restart(self, name: str) -> None:
        """Have the agent that runs a node restart it, as soon as no job needs it. Raises NotFound."""

    async def freed(self, name: str) -> None:
        """Note that a node was told to unload its models; nothing happens if there is no such node."""

    async def record_failure(self, name: str, *, kind: str, limit: int, reason: str) -> bool:
        """Count a failure that is the node's fault; after ``limit`` in a row cordon it and return True.

        Args:
            name: The node.
            kind: ``oom``, ``gpu``, ``answer`` or ``frame``; each is counted separately, and a success resets
                all.
            limit: How many in a row lead to a cordon.
            reason: The cordon's reason.
        """

    def changes(self) -> AsyncGenerator[None, None]:
        """Yield whenever the registry has changed, and now and then without a change."""


class PoolStore(Protocol):
    """Settings of pools. Which nodes are in a pool is part of the nodes' records."""

    async def pools(self) -> Sequence[Pool]:
        """Return the pools that have a setting or a slot, by name."""

    async def get(self, name: str) -> Pool:
        """Return a pool, with empty fields if nothing is set."""

    async def set(self, pool: Pool) -> None:
        """Store a pool's settings, replacing the earlier ones; its slot is not touched."""

    async def change(self, name: str, settings: Mapping[str, Any]) -> None:
        """Change some of a pool's settings; what others set meanwhile stays.

        Args:
            name: The pool.
            settings: Fields of :class:`Pool` with their new values; None: not set any more.

        Raises:
            BadInput: The pool can't have such a name or value.
        """

    async def place(self, slots: Mapping[str, int]) -> None:
        """Store which pool has which of HAProxy's slots; all others have none."""


class Hosts(Protocol):
    """GPU hosts, as their agents report them. Times are Unix seconds."""

    async def admit(self, host: str, instance: str) -> None:
        """Make one start of an agent the only one that speaks for its host.

        Raises:
            Conflict: Another one does already.
        """

    async def beat(self, beat: Heartbeat, *, now: float) -> Orders:
        """Store a heartbeat and return the orders for its agent.

        Raises:
            Conflict: Another agent speaks for the host.
        """

    async def join(
        self, host: str, joining: Joining, *, now: float, most_nodes: int = ..., most_pools: int = ...
    ) -> Node:
        """Register a host's node, or move it; cordon, pool and counts stay.

        Raises:
            Conflict: The name or the URL belongs to a node that is not this host's, or the host would have
                too many nodes, or in too many pools.
        """

    async def hosts(self) -> Sequence[HostState]:
        """Return all hosts with a recent heartbeat, by name."""

    async def report(self, node: str) -> Mapping[str, Any] | None:
        """Return an agent's last report on a node, or None if it is too old."""


class InventoryStore(Protocol):
    """Inventories of nodes by content hash, requirements of placement classes, and cards that were too
    small."""

    async def claim(self, node: str, *, ttl_s: int) -> bool:
        """Return True if this process should ask the node now; no other process does so for that long."""

    async def unclaim(self, node: str, *, why: str = "") -> None:
        """Let another process ask the node; ``why`` says why it could not be read."""

    async def save(self, node: str, inventory: Inventory, reading: Reading) -> str:
        """Store a node's inventory; return ``unknown`` (no such node), ``same`` or ``changed``."""

    async def load(self, digest: str) -> Inventory | None:
        """Return the inventory with this content hash; None if it is missing or can't be read."""

    async def object_info(self, digest: str) -> Mapping[str, bytes] | None:
        """Return a node's complete description of its classes, tooltips included, as JSON by class.

        Lists of uploaded files are empty in it (:mod:`comfy_fleet.domain.graphs.object_info`).

        Args:
            digest: As :attr:`Reading.object_info` names it.

        Returns:
            None if it is no longer stored, or can't be read.
        """

    async def keep_needs(self, needs: Requirements) -> None:
        """Store requirements under :attr:`comfy_fleet.domain.nodes.eligibility.Requirements.key`."""

    async def needs(self, key: str) -> Requirements | None:
        """Return the requirements of a key, or None if they are no longer stored."""

    async def note_oom(self, profile: str, size: int, *, ttl_s: int) -> int:
        """Remember that a profile ran out of memory with this many bytes; return the largest known."""


@dataclass(frozen=True, kw_only=True)
class StoredSizes:
    """What nodes have said about the sizes of their model files.

    Attributes:
        folders: Bytes by folder and file; None: the same as the caller has.
        changed: When files ``FOLDER/NAME`` were changed last, in Unix seconds; with ``folders``.
        digest: Of both.
        of: Names the inventories of the nodes that were asked.
        at: When they were asked last, in Unix seconds.
    """

    folders: Folders | None
    digest: str
    of: str
    at: float
    changed: Mapping[str, float] = field(default_factory=dict)


class SizeStore(Protocol):
    """The sizes of model files, as one process has asked nodes for them and all know them."""

    async def claim(self, *, ttl_s: int) -> bool:
        """Return True if this process should ask the nodes now; no other process does so for that long."""

    async def load(self, known: str) -> StoredSizes | None:
        """Return what is stored; None if nothing is, or it can't be read.

        Args:
            known: The digest of what the caller has.
        """

    async def save(
        self, folders: Folders, *, of: str, at: float, changed: Mapping[str, float] | None = None
    ) -> str:
        """Store what nodes have said, in place of what was stored; return its digest."""
