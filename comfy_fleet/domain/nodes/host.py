"""A GPU host's heartbeat, sent by its agent, and the orders that the agent gets back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.node import Node, check_name

METRICS_HEADER = "Fleet-Metrics"
"""With a heartbeat: ``HOST:PORT`` where its agent serves its metrics."""

HOST_LABEL = "host"
"""Every node that an agent registers has its host's name under this label."""

STRAY = re.compile(r"preview3d_[0-9a-f]{32}\.[a-z0-9]{1,8}")
"""ComfyUI's ``Preview3D`` leaves a copy with such a random name in the root of ``output``."""
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    """Files that nobody needs any more: they may be deleted from the node.

    They are in ``fleet/JOB/RUN`` in its folders ``output`` and ``input``.

    Attributes:
        node: Where they are.
        job: The job that is over; for a file that graphs read, the first of its drawn folders.
        run: The job's run; for a file that graphs read, the second folder.
        strays: Files in ``output`` itself, with names that match :data:`STRAY`.
    """

    node: str
    job: str
    run: str
    strays: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("node", self.node)
        for what, value in (("job", self.job), ("run", self.run)):
            if not _ID.fullmatch(value):
                raise BadInput(f"{what} {value[:80]!r} is not a UUID", details={"field": what})
        for name in self.strays:
            if not STRAY.fullmatch(name):
                raise BadInput(
                    f"{name[:80]!r} is not a name that Preview3D draws", details={"field": "strays"}
                )

    @classmethod
    def parse(cls, text: str) -> "Cleanup":
        """Read ``NODE JOB RUN [STRAY ...]``.

        Raises:
            BadInput: It is something else.
        """
        words = text.split(" ")
        if len(words) < 3:
            raise BadInput(f"{text[:80]!r} is not NODE JOB RUN", details={"field": "delete"})
        return cls(node=words[0], job=words[1], run=words[2], strays=tuple(words[3:]))

    def __str__(self) -> str:
        return " ".join((self.node, self.job, self.run, *self.strays))


@dataclass(frozen=True, kw_only=True)
class GpuAllocation:
    """The GPU that a node uses and its memory there, for other agents with a node on that GPU.

    Attributes:
        gpu: The GPU's UUID, unique among all machines.
        running: Whether the node runs.
        pids: Its processes, with the numbers that its agent sees.
        own: Bytes that it counts as its own; None if it has not reported.
        used: Bytes of the card in use, by anybody, at the time of that report; None if unknown.
        age_s: Seconds since that report.
    """

    gpu: str
    running: bool = True
    pids: tuple[int, ...] = ()
    own: int | None = None
    used: int | None = None
    age_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """An agent's report on one node.

    Attributes:
        name: The node.
        readiness: Its answer to HAProxy.
        reason: The reason in words, empty with ``ready``.
        weight: Its weight with ``ready``.
        boot_id: Changes with every start of its process; empty if that is not known.
        freed_id: Changes whenever its models are unloaded.
        gpu_allocation: Its share of a GPU; None without a GPU of a known UUID.
        facts: All other observations, JSON-ready: memory by owner, process, version, queue.
        address: ``HOST:PORT`` that was observed.
        runs: Runs of the fleet that were in its queue just now; another node that shows one of them is the
            same ComfyUI.
    """

    name: str
    readiness: Readiness
    reason: str = ""
    weight: int = 0
    boot_id: str = ""
    freed_id: str = ""
    gpu_allocation: GpuAllocation | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    address: str = ""
    runs: Sequence[str] = ()


WRITTEN = {
    "readiness": "word",
    "reason": "why",
    "boot_id": "boot",
    "freed_id": "freed",
    "gpu_allocation": "seat",
    "cleans_up": "cleans",
}
"""Fields with other names in heartbeats and in Redis, as agents of earlier versions send them."""


def written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a report or a registration, named as in heartbeats and in Redis."""
    return {WRITTEN.get(name, name): value for name, value in fields.items()}


def read_written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a report or a registration, named as in their classes."""
    ours = {name: own for own, name in WRITTEN.items()}
    return {ours.get(name, name): value for name, value in fields.items()}


@dataclass(frozen=True, kw_only=True)
class Joining:
    """A node that an agent registers.

    Attributes:
        name: Stable across restarts of host, agent and ComfyUI.
        url: ``http://HOST:PORT`` as HAProxy reaches it; on its way to the API it includes user and password.
        agent: ``HOST:PORT`` of the agent, as HAProxy reaches it.
        pool: Its pool; None keeps the registry's.
        weight: Its weight; None keeps the registry's.
        zone: Its zone; None keeps the registry's.
        labels: Labels in addition to those in the registry.
        simulated: Whether it is a simulated node.
        cleans_up: Whether the agent can delete files of finished jobs.
        sealed: Its user and password, encrypted; empty if it needs none.
        editor: Whether it serves ComfyUI's editor; None keeps the registry's.
    """

    name: str
    url: str = field(repr=False)
    agent: str
    pool: str | None = None
    weight: int | None = None
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False
    cleans_up: bool = False
    sealed: str = field(default="", repr=False)
    editor: bool | None = None

    def applied(self, host: str, known: Node | None, *, now: float) -> Node:
        """Return the node as it should be registered.

        What an operator has set since then stays, unless the agent was started with another value.

        Args:
            host: The host's name.
            known: The node as it is registered now.
            now: Unix seconds.
        """
        base = known or Node(name=self.name, url=self.url, weight_by_gpu=True, added_at=now)
        return replace(
            base,
            url=self.url,
            agent=self.agent,
            pool=self.pool or base.pool,
            weight=self.weight or base.weight,
            weight_by_gpu=base.weight_by_gpu and self.weight is None,
            zone=base.zone if self.zone is None else self.zone,
            labels={**base.labels, **self.labels, HOST_LABEL: host},
            simulated=self.simulated,
            sealed=self.sealed,
            editor=base.editor if self.editor is None else self.editor,
        )


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What an agent sends every second.

    Attributes:
        host: The host's name.
        instance: Drawn when the agent started.
        central: Whether it answers for all nodes that have no agent of their own.
        version: The agent's version.
        agent: ``HOST:PORT`` where it answers agent-checks.
        gpus: Every GPU's state, JSON-ready.
        gpus_why: Why no GPU could be read; empty if one could.
        nodes: Its reports on its nodes.
        seen: Prompts that its nodes work on: which of them are runs of the fleet?
        leaving: Nodes that wait for a restart: does any run still need them?
        deleted: Deletions that were carried out.
    """

    host: str
    instance: str
    central: bool = False
    version: str = ""
    agent: str = ""
    gpus: Sequence[Mapping[str, Any]] = ()
    gpus_why: str = ""
    nodes: Sequence[NodeReport] = ()
    seen: Sequence[str] = ()
    leaving: Sequence[str] = ()
    deleted: Sequence[Cleanup] = ()


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The API's answer to a heartbeat.

    Attributes:
        nodes: The host's nodes as they are registered, with their cordons.
        explained: Those of the seen prompts that are runs of the fleet, runs with an expired lease included.
        clear: Those of the leaving nodes that no run needs now.
        delete: Files to delete.
        restart: Nodes that an operator wants restarted; listed until they were.
        neighbours: Nodes of other agents on this host's GPUs, by name.
        store: Identifies the store; if it changes, the store was emptied and the nodes must be registered
            again.
    """

    nodes: Sequence[Node] = ()
    explained: frozenset[str] = frozenset()
    clear: frozenset[str] = frozenset()
    delete: Sequence[Cleanup] = ()
    restart: frozenset[str] = frozenset()
    neighbours: Mapping[str, GpuAllocation] = field(default_factory=dict)
    store: str = ""


@dataclass(frozen=True, kw_only=True)
class HostState:
    """What is known of a host.

    Attributes:
        host: Its name.
        seen_at: Unix seconds of its last heartbeat.
        alive: Whether that is recent.
        record: The last heartbeat, JSON-ready; empty if it is too old.
    """

    host: str
    seen_at: float
    alive: bool
    record: Mapping[str, Any] = field(default_factory=dict)
