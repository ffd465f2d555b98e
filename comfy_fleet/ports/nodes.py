"""Which nodes and hosts there are, and what they have."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.nodes.eligibility import Requirements
from comfy_fleet.domain.nodes.host import Heartbeat, HostState, Joining, Orders
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
        """Keep new jobs away. Raises NotFound."""

    async def uncordon(self, name: str) -> Node:
        """Let jobs come again. Raises NotFound."""

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Forget a node.

        Raises:
            NotFound: No such node.
            Conflict: Work is on it and ``force`` is not set.
        """

    async def report(self, name: str, *, verdict: str, why: str) -> None:
        """Record what HAProxy or an agent says of a node."""

    async def errors(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Return the last errors of jobs on a node, the newest first: at, job, code, message."""

    async def models(self, name: str) -> Sequence[str]:
        """Return the model files that jobs on a node used since it started or was freed, the latest first.

        An unmodified ComfyUI does not tell which models are in its memory; these may be.
        """

    async def release(self, name: str) -> Sequence[str]:
        """Have the jobs on a node given back to the queue; returns the runs that are asked for.

        Runs of which only outputs are still being fetched go on.
        """

    async def started(self, name: str) -> None:
        """Note that a node's ComfyUI has started anew: it is read again, and a quarantine ends.

        Raises:
            NotFound: No such node.
        """

    async def want_reading(self, name: str) -> None:
        """Have a node's inventory read again. Raises NotFound."""

    async def want_restart(self, name: str) -> None:
        """Have the agent that runs a node restart it, as soon as no job needs it. Raises NotFound."""

    async def strike(self, name: str, *, kind: str, limit: int, reason: str) -> bool:
        """Count a failure that is the node's fault; with ``limit`` in a row it is cordoned: then True.

        Args:
            name: The node.
            kind: ``oom``, ``gpu``, ``answer`` or ``frame``; each is counted apart, and a success ends both.
            limit: How many in a row are too many.
            reason: Why it is cordoned then.
        """

    def changes(self) -> AsyncGenerator[None, None]:
        """Yield whenever the registry changed, and now and then even if not."""


class PoolStore(Protocol):
    """What is set for pools. Which nodes are in one, the nodes say."""

    async def pools(self) -> Sequence[Pool]:
        """Return the pools that are set or have a slot, by name."""

    async def get(self, name: str) -> Pool:
        """Return a pool; with nothing set if nobody has."""

    async def set(self, pool: Pool) -> None:
        """Keep what is set of a pool, instead of what was; its slot is not touched."""

    async def place(self, slots: Mapping[str, int]) -> None:
        """Keep which pool has which of HAProxy's slots; all others have none."""


class Hosts(Protocol):
    """GPU hosts, as their agents tell of them. Times are Unix seconds."""

    async def admit(self, host: str, instance: str) -> None:
        """Let one start of an agent speak for a host.

        Raises:
            Conflict: Another one does.
        """

    async def beat(self, beat: Heartbeat, *, now: float) -> Orders:
        """Keep a heartbeat and return what its agent has to know.

        Raises:
            Conflict: Another agent speaks for the host.
        """

    async def join(self, host: str, joining: Joining, *, now: float) -> Node:
        """Register a host's node, or move it; cordon, pool and counts stay.

        Raises:
            Conflict: The name or the URL belongs to a node that is not this host's.
        """

    async def hosts(self) -> Sequence[HostState]:
        """Return all hosts that were heard of lately, by name."""

    async def report(self, node: str) -> Mapping[str, Any] | None:
        """Return what an agent last saw of a node, or None if that is too long ago."""


class InventoryStore(Protocol):
    """What nodes have, by content hash; what placement classes need; and which cards were too small."""

    async def claim(self, node: str, *, ttl_s: int) -> bool:
        """Return whether this process should ask the node now; nobody else does for that long."""

    async def unclaim(self, node: str, *, why: str = "") -> None:
        """Let another process ask the node; ``why`` it could not be read is shown with it."""

    async def save(self, node: str, inventory: Inventory, reading: Reading) -> str:
        """Keep what a node has; returns ``unknown`` (no such node), ``same`` or ``changed``."""

    async def load(self, digest: str) -> Inventory | None:
        """Return the inventory with this content hash; None if there is none that can be read."""

    async def keep_needs(self, needs: Requirements) -> None:
        """Keep what :attr:`comfy_fleet.domain.nodes.eligibility.Requirements.key` stands for."""

    async def needs(self, key: str) -> Requirements | None:
        """Return what a key stands for, or None if nobody knows any more."""

    async def note_oom(self, profile: str, size: int, *, ttl_s: int) -> int:
        """Remember that a profile ran out of memory with so many bytes; returns the largest known."""
