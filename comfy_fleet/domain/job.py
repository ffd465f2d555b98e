"""A job: what a client asked for, from submit to its one final state.

The states are those of Comfy API v2 (``spec/openapi.yaml`` of comfy-sdk):

    queued ─▶ running ─▶ succeeded | failed | expired
       │         │
       └─────────┴─▶ canceling ─▶ canceled

A *run* is one attempt on one node; it has an id of its own, which ComfyUI knows as
``prompt_id`` and ``clientId``. The job's id is also its id in RQ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

MIN_PRIORITY = -1_000_000
MAX_PRIORITY = 1_000_000
DEFAULT_POOL = "default"


class JobStatus(StrEnum):
    """Where a job is; the last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    CANCELED = "canceled"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether the job will never change again."""
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.CANCELED, JobStatus.FAILED, JobStatus.EXPIRED})
LIVE = frozenset(JobStatus) - TERMINAL


class OutputKind(StrEnum):
    """Comfy API v2's normalised kinds of output."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    TEXT = "text"
    FILE = "file"
    LATENT = "latent"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A whole snapshot of how far a run is: one is enough to catch up.

    Attributes:
        value: Overall fraction, 0 to 1, weighted by nodes and sampler steps.
        nodes_done: Nodes that finished or came from the cache.
        nodes_total: Nodes that this run will visit.
        current_node: Id of the node that computes now.
        current_node_class: Its class, e.g. ``KSampler``.
        step: Step inside the current node, 1-based.
        steps: Steps that the current node will take.
    """

    value: float
    nodes_done: int
    nodes_total: int
    current_node: str | None = None
    current_node_class: str | None = None
    step: int | None = None
    steps: int | None = None

    @property
    def message(self) -> str | None:
        """A line for people, e.g. ``KSampler 21/50``."""
        if self.current_node is None:
            return None
        name = self.current_node_class or f"node {self.current_node}"
        return f"{name} {self.step}/{self.steps}" if self.steps and self.steps > 1 else name


@dataclass(frozen=True, kw_only=True)
class Output:
    """One committed output: an asset, and the place in the graph that it came from.

    Attributes:
        asset_id: The asset that holds the bytes.
        node_id: The output node in the graph.
        key: The key it stood under in the node's output, e.g. ``images``.
        index: Its place in that list; (node_id, key, index) is unique in a run.
        name: File name as the node gave it, e.g. ``ComfyUI_00001_.png``.
        kind: Normalised kind.
        content_type: MIME type.
        size_bytes: Length of the content.
        hash: ``blake3:<hex>`` of the content.
        temporary: True for previews (ComfyUI's type ``temp``).
    """

    asset_id: str
    node_id: str
    key: str
    index: int
    name: str
    kind: OutputKind
    content_type: str
    size_bytes: int
    hash: str
    temporary: bool = False


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job did not succeed.

    Codes: ``node_execution_error``, ``out_of_memory``, ``invalid_workflow``, ``node_lost``,
    ``output_lost``, ``run_timeout``, ``deadline_exceeded``, ``internal_error``.
    """

    code: str
    message: str
    node_id: str | None = None
    class_type: str | None = None
    traceback: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a job asks of a node.

    Attributes:
        pool: The lease backend that it queues for.
        nodes: Able nodes by name; empty means every node of the pool.
        without: Nodes that refused it; they never get it again.
    """

    pool: str = DEFAULT_POOL
    nodes: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """Name of the placement class: jobs with the same key can run on the same nodes."""
        if not self.nodes and not self.without:
            return self.pool
        return f"{self.pool}:{' '.join(sorted(self.nodes))}:{' '.join(sorted(self.without))}"

    @classmethod
    def parse(cls, key: str) -> "Placement":
        """Read :attr:`key` back."""
        pool, nodes, without = [*key.split(":"), "", ""][:3]
        return cls(pool=pool, nodes=frozenset(nodes.split()), without=frozenset(without.split()))

    def able(self, pool_nodes: Iterable[str]) -> frozenset[str]:
        """Return which of the pool's nodes may run it."""
        return frozenset(
            n for n in pool_nodes if (not self.nodes or n in self.nodes) and n not in self.without
        )


Metadata: TypeAlias = str | Mapping[str, str] | None


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job that passed validation and is about to be written.

    Attributes:
        id: UUID, drawn by the caller.
        owner: Whose it is; nobody else can see it.
        graph: API-format graph as submitted (asset references and all), JSON bytes.
        graph_hash: ``blake3:<hex>`` of ``graph``: equal graphs are stored once.
        workflow: Name of the stored workflow, if it came from one.
        workflow_version: Content hash of that workflow.
        params: Values bound into it, drawn seeds included.
        profile: What its duration is remembered under: the workflow's name, or a hash of the graph's classes.
        assets: Ids of assets the graph needs; they are kept until the job is final.
        uploads: Asset id by ``NODE_ID/INPUT``: what is staged on the node and put in that place.
        secret: Encrypted ``extra_data``, opaque here; stored apart and erased with the run.
        deadline_at: Unix seconds after which it must not start any more.
        expires_in_s: Retention after the end.
    """

    id: str
    owner: str
    graph: bytes
    graph_hash: str
    created_at: float
    expires_in_s: float
    priority: int = 0
    metadata: Metadata = None
    workflow: str | None = None
    workflow_version: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "graph"
    placement: Placement = field(default_factory=Placement)
    assets: frozenset[str] = frozenset()
    uploads: Mapping[str, str] = field(default_factory=dict)
    secret: bytes | None = None
    deadline_at: float | None = None
    max_attempts: int = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the record in Redis has it. Times are Unix seconds.

    Attributes:
        attempt: Attempts that counted so far (see :mod:`comfy_fleet.domain.retry`).
        run: The current or last run's id.
        node: The node of that run.
        seq: Sequence number of its last event.
        waiting_for: While queued, what it waits for, in words.
        has_secret: Whether encrypted ``extra_data`` was submitted with it.
        bust: Nodes whose cached outputs named files that are gone; they must run anew.
    """

    id: str
    owner: str
    status: JobStatus
    created_at: float
    expires_at: float
    graph_hash: str
    priority: int = 0
    metadata: Metadata = None
    workflow: str | None = None
    workflow_version: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "graph"
    placement: Placement = field(default_factory=Placement)
    uploads: Mapping[str, str] = field(default_factory=dict)
    started_at: float | None = None
    completed_at: float | None = None
    deadline_at: float | None = None
    attempt: int = 0
    max_attempts: int = 3
    run: str | None = None
    node: str | None = None
    cancel_requested: bool = False
    progress: Progress | None = None
    outputs: tuple[Output, ...] = ()
    error: JobError | None = None
    seq: int = 0
    waiting_for: str | None = None
    has_secret: bool = False
    bust: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs a listing wants, newest first.

    Attributes:
        owner: None lists everybody's (operators only).
        metadata: Labels that must all be there with exactly these values.
        cursor: What an earlier page returned as ``next_cursor``.
    """

    owner: str | None
    statuses: frozenset[JobStatus] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    workflow: str | None = None
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """One page of a listing; ``next_cursor`` is None on the last."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job, in the order of ``seq`` within it.

    Attributes:
        type: ``status``, ``progress``, ``preview`` or ``output``.
        run: The run it belongs to; consumers drop events of other runs than the current.
        data: ``status``: {status, node?, queue_position?}; ``progress``: Progress's fields;
            ``preview``: {node_id, content_type, data_base64}; ``output``: Output's fields.
    """

    job_id: str
    seq: int
    type: str
    run: str | None
    data: Mapping[str, Any]
