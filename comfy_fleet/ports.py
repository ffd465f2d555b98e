"""What services need from the outside. Adapters implement it; nothing here does I/O.

Everything is async; every id is a string; every time is Unix seconds. It is long because it is the one list
of what the inside may ask of the outside; each Protocol is short.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import (
    Job,
    JobError,
    JobEvent,
    JobFilter,
    JobPage,
    JobStatus,
    NewJob,
    Output,
    Placement,
    Progress,
)
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
from comfy_fleet.domain.nodes.eligibility import Requirements
from comfy_fleet.domain.nodes.host import Heartbeat, HostState, Joining, Orders
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading
from comfy_fleet.domain.nodes.pool import Pool


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """A client's ``Idempotency-Key``.

    Attributes:
        key: As sent, 1 to 255 printable ASCII characters; scoped by ``scope`` (face and owner).
        fingerprint: Hash of the request body, for faces that replay.
        replay: False (Comfy API v2): any reuse is refused. True (REST): the same body gets the same job.
    """

    scope: str
    key: str
    fingerprint: str = ""
    replay: bool = False


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What a submit led to.

    Attributes:
        replayed: The key had made this job before.
        position: Its place in the queue right then; None if that was not asked.
    """

    job: Job
    replayed: bool = False
    position: int | None = None


class JobStore(Protocol):
    """The jobs, as clients see them. Redis is the only truth."""

    async def submit(self, new: NewJob, *, idempotency: Idempotency | None, depth_limit: int) -> Submitted:
        """Write and enqueue a job in one step; when this returns, the job is durable.

        Raises:
            QueueFull: ``depth_limit`` jobs wait already; the key stays free.
            IdempotencyKeyReuse: The key made another job, or (replay) the same key came with another body.
        """

    async def made_by(self, idempotency: Idempotency) -> str | None:
        """Return the id of the job that a key has made, or None."""

    async def replayed(self, idempotency: Idempotency) -> Submitted | None:
        """Return the job that the same body with this key has made, or None.

        Raises:
            IdempotencyKeyReuse: The same key came with another body.
        """

    async def get(self, job_id: str) -> Job | None:
        """Return the job with outputs, progress and error, or None."""

    async def graph(self, job: Job) -> bytes:
        """Return the graph as submitted.

        Raises:
            NotFound: The job is past its retention.
        """

    async def find(self, wanted: JobFilter) -> JobPage:
        """List jobs, newest first."""

    async def ids(self, owner: str | None, prefix: str) -> list[str]:
        """Return the ids that begin so, of an owner's (None: everybody's) newest 10,000 jobs."""

    async def request_cancel(self, job_id: str) -> Job | None:
        """Ask for cancellation: queued jobs end at once, running ones become ``canceling``."""

    async def position(self, job: Job) -> int | None:
        """Return the 1-based place in the queue, or None if it does not wait."""

    async def depth(self) -> int:
        """Return how many jobs wait."""

    async def preview(self, job_id: str) -> Mapping[str, Any] | None:
        """Return the latest preview event's data of a running job."""

    async def durations(self, profile: str) -> Sequence[float]:
        """Return the last measured run times of a profile in seconds, newest first, at most 50."""

    async def latest_runs(self) -> Sequence[tuple[float, str]]:
        """Return seconds and node of the last jobs that succeeded, newest first, at most 50."""


class Events(Protocol):
    """Live events. They hasten; the record stays the truth."""

    def subscribe(self, job_id: str) -> AbstractAsyncContextManager[AsyncIterator[JobEvent]]:
        """Yield the job's events from now on; subscribe first, then read the record."""


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
        """Tell whether this process should ask the node now; nobody else does for that long."""

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


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Bytes in a :class:`BlobStore`, as they were put.

    Attributes:
        key: What the store calls them.
        hash: ``blake3:<hex>`` of them.
    """

    key: str
    hash: str
    size_bytes: int


class BlobStore(Protocol):
    """Immutable bytes. It knows of no owners and no records; keys are its own words."""

    async def put(self, chunks: AsyncIterator[bytes], *, durable: bool) -> Blob:
        """Store a stream, hashed on the way, under a key that was never used before and holds the hash.

        The key shows nothing until all bytes are there.

        Args:
            chunks: The bytes.
            durable: They survive a power cut from the moment this returns.

        Raises:
            NoRoom: There is no room, or the store can't be written; nothing is kept.
            Exception: What ``chunks`` raises; nothing is kept.
        """

    async def open(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Return a range of the bytes, to the end if no length is given. Close it unless it is read up.

        Raises:
            FileNotFoundError: Nothing has this key.
            NoRoom: The store can't be read, or has fewer bytes. The iterator may raise it, too.
        """

    async def replace(self, key: str, *, by: str) -> None:
        """Move the bytes under the key ``by`` to ``key``, where the same bytes are or should be."""

    async def delete(self, key: str) -> None:
        """Delete bytes; those that are gone are no error. Raises NoRoom if the store can't be written."""

    async def url(self, key: str) -> str | None:
        """Return where a client may fetch the bytes itself for some minutes, if the store serves them."""

    def keys(self, *, age_s: float) -> AsyncGenerator[list[str], None]:
        """Walk the keys of all bytes that were put at least so many seconds ago, in batches."""

    async def tidy(self, *, age_s: float) -> int:
        """Remove what writers that died left half-written so many seconds ago; returns how many."""

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """See :meth:`AssetStore.check_room`."""


class Received(Protocol):
    """Bytes that are stored but belong to no record yet."""

    @property
    def hash(self) -> str:
        """``blake3:<hex>`` of them."""

    @property
    def size_bytes(self) -> int:
        """How many they are."""


class AssetStore(Protocol):
    """Files and their records."""

    def receive(self, chunks: AsyncIterator[bytes]) -> AbstractAsyncContextManager[Received]:
        """Store bytes while hashing; they are gone after the block unless :meth:`keep` took them.

        For callers that know name and type only after the bytes, as in a form.
        """

    async def keep(
        self,
        received: Received,
        *,
        owner: str,
        content_type: str,
        file_path: str,
        expected_hash: str | None = None,
        tags: tuple[str, ...] = (),
        expires_in_s: float | None = None,
    ) -> tuple[Asset, bool]:
        """Make an asset of received bytes; see :meth:`upload`."""

    async def upload(
        self,
        *,
        owner: str,
        chunks: AsyncIterator[bytes],
        content_type: str,
        file_path: str,
        expected_hash: str | None = None,
        tags: tuple[str, ...] = (),
        expires_in_s: float | None = None,
    ) -> tuple[Asset, bool]:
        """Store bytes while hashing; return the asset and whether the bytes are new to the owner.

        Raises:
            HashMismatch: ``expected_hash`` is not what came; nothing is kept.
        """

    async def from_hash(
        self,
        *,
        owner: str,
        hash_: str,
        file_path: str | None,
        tags: tuple[str, ...] = (),
        expires_in_s: float | None = None,
    ) -> tuple[Asset, bool]:
        """Make an asset over bytes that the owner has already; True if the record is new.

        Raises:
            BlobNotFound: The owner has no such bytes.
        """

    async def has_hash(self, *, owner: str, hash_: str) -> bool:
        """Return whether :meth:`from_hash` would work."""

    async def add_output(
        self,
        *,
        owner: str,
        job_id: str,
        chunks: AsyncIterator[bytes],
        name: str,
        content_type: str,
        expires_at: float,
    ) -> Asset:
        """Store one output of a job. The same bytes twice are stored once."""

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """Look whether so many bytes more may be stored; outputs of running jobs may use more of the disk.

        Raises:
            NoRoom: The disk is too full. Whatever stores bytes raises it too, and keeps nothing then.
        """

    async def get(self, asset_id: str) -> Asset | None:
        """Return a record; the caller checks the owner."""

    async def by_path(self, *, owner: str, file_path: str) -> Asset | None:
        """Return the owner's newest asset with this name, in any spelling of it."""

    async def delete(self, *, owner: str, asset_id: str) -> None:
        """Forget a record; the bytes go some hours after their last record.

        Raises:
            NotFound: No such asset of this owner.
            AssetInUse: A job that is not final needs it.
        """

    async def hold(self, *, owner: str, asset_ids: Sequence[str], job_id: str) -> None:
        """Keep assets for a job that is about to be submitted, until it is final.

        Raises:
            MissingAsset: One of them is not there (any more) or somebody else's; none is held then.
        """

    async def release(self, *, asset_ids: Sequence[str], job_id: str) -> None:
        """Let go of what was held for a job that was not submitted after all."""

    async def forget_job(self, job_id: str) -> bool:
        """Forget a job's outputs; False if a live job still needs one of them. Safe to repeat."""

    async def open(
        self, asset: Asset, start: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Return the bytes, or a range of them; see :meth:`BlobStore.open`."""

    async def url(self, asset: Asset) -> str | None:
        """Return where a client may fetch the bytes itself; see :meth:`BlobStore.url`."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A file on its way from a node.

    Attributes:
        chunks: Its bytes as they come.
        length: How many there will be, if the node said so.
    """

    chunks: AsyncIterator[bytes]
    length: int | None = None


class Catalog(Protocol):
    """The stored workflows."""

    def get(self, name: str) -> Workflow:
        """Return a workflow; raises NotFound, WorkflowBroken."""

    def list(self) -> Sequence[Workflow]:
        """Return all of them by name."""

    def errors(self) -> Mapping[str, ConfigError]:
        """Return what is wrong with a workflow's files, by its name."""


class Replays(Protocol):
    """Answers that a repeated request gets again (REST's ``Idempotency-Key``), kept for 24 h."""

    async def begin(self, scope: str, key: str) -> bool:
        """Mark a key as being worked on; False if somebody else works on it right now."""

    async def recall(self, scope: str, key: str) -> tuple[str, bytes] | None:
        """Return fingerprint and body of an earlier answer."""

    async def end(self, scope: str, key: str, *, answer: tuple[str, bytes] | None) -> None:
        """Take the mark away; remember the answer, if there is one."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job, claimed for one run on one node. ``token`` fences every later write.

    Attributes:
        graph: The job's graph as submitted, JSON bytes.
        behind: How many jobs of the same placement classes waited behind it.
    """

    job: Job
    graph: bytes
    behind: int = 0
    run: str
    node: str
    token: str
    attempt: int

    @property
    def log_fields(self) -> dict[str, str]:
        """Fields of every log line about this run."""
        fields = {"job_id": self.job.id, "run": self.run, "node": self.node}
        if self.job.traceparent:
            fields["traceparent"] = self.job.traceparent
        return fields


@dataclass(frozen=True, kw_only=True)
class Held:
    """A run lease of somebody's, as the store has it.

    Attributes:
        phase: ``claimed`` (nobody knows whether the node has it), ``accepted``, or ``left`` (only outputs
            are missing).
        manifest: With ``left``: the outputs still to be fetched (JSON-ready).
    """

    claim: Claim
    phase: str
    manifest: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How many jobs of one placement class wait, and what its head needs."""

    placement: Placement
    count: int
    head_score: float


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a beat learned.

    Attributes:
        lost: Leases that are gone.
        cancel: Runs whose job is to be canceled.
        release: Runs that are to be taken off their node, back into the queue.
    """

    lost: frozenset[str]
    cancel: frozenset[str]
    release: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a claim got no job.

    Attributes:
        why: ``leased`` (by ``run``), ``cordoned``, ``removed``, ``empty``, or ``broken``: the best job
            could not be read and has ended; others may wait behind it.
        run: Who has the node.
    """

    why: str
    run: str | None = None


class RunStore(Protocol):
    """The jobs, as dispatchers work on them. Every write is fenced by the claim's token.

    Every method that takes a claim raises LeaseLost if the token is not the current one.
    """

    async def waiting(self) -> Sequence[Waiting]:
        """Return the placement classes that have queued jobs, best head first."""

    async def check_schema(self) -> None:
        """Look whether this process may still take new work; raises Outdated if a newer version has come."""

    async def claim(
        self,
        *,
        node: str,
        placements: Sequence[Placement],
        run: str,
        token: str,
        dispatcher: str,
        ttl_s: float,
    ) -> Claim | Refused:
        """Take the best job of the given classes for a granted node, with node and run lease, in one step.

        Raises:
            Outdated: A newer version works on this store: nothing more may be claimed.
        """

    async def beat(self, dispatcher: str, claims: Sequence[Claim], *, ttl_s: float) -> Beat:
        """Renew run leases."""

    async def accepted(self, claim: Claim) -> None:
        """Note that the node took the prompt; the attempt may count from now on."""

    async def progress(self, claim: Claim, progress: Progress) -> None:
        """Store and publish a progress snapshot."""

    async def followed(self, claim: Claim) -> bool:
        """Tell whether anybody listens to the job's events."""

    async def preview(self, claim: Claim, data: Mapping[str, Any]) -> None:
        """Publish a preview, and keep it for a minute for who joins late; it does not survive the store."""

    async def output(self, claim: Claim, output: Output) -> None:
        """Commit one output; the same (node, key, index) twice is one output."""

    async def waits(self, claim: Claim, why: str | None) -> None:
        """Note what a run waits for on the fleet's own side, or that it goes on."""

    async def left(self, claim: Claim, manifest: Sequence[Mapping[str, Any]]) -> None:
        """Note that the prompt has left the node; the node's lease ends here."""

    async def finish(
        self,
        claim: Claim,
        status: JobStatus,
        *,
        error: JobError | None,
        duration_s: float | None,
        speed: float | None = None,
        models: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> JobStatus:
        """End the job and both leases; returns its final state (``canceling`` always ends ``canceled``).

        Args:
            claim: The run that ends here.
            status: How.
            error: Why, if it failed.
            duration_s: What it took, for estimates.
            speed: Natural logarithm of the node's speed in this run, see
                :mod:`comfy_fleet.domain.nodes.speed`.
            models: The model files that it used.
            progress: How far it came; None: as far as the record says.
        """

    async def requeue(
        self,
        claim: Claim,
        *,
        counts: bool,
        reason: JobError,
        bust: frozenset[str] = frozenset(),
        placement: Placement | None = None,
        progress: Progress | None = None,
    ) -> JobStatus:
        """Give the job back to its place in the queue, or end it when its attempts are used up.

        Args:
            claim: The run that ends here.
            counts: Whether this attempt counts towards ``max_attempts``.
            reason: What the job fails with if this was the last attempt.
            bust: Nodes that must not answer from ComfyUI's cache in the next run.
            placement: Where it goes from now on; None: where it came from.
            progress: How far it came, kept if it ends here; None: as far as the record says.
        """

    async def hand_over(self, claims: Sequence[Claim]) -> None:
        """Let these leases expire now, so that another dispatcher takes the runs over at once."""

    async def take_over(self, *, dispatcher: str, ttl_s: float, limit: int) -> Sequence[Held]:
        """Transfer expired run leases to this dispatcher: new token, same run, same attempt."""

    async def lease_of(self, node: str) -> str | None:
        """Return the run that occupies a node, or None."""

    async def occupied(self, nodes: Sequence[str]) -> frozenset[str]:
        """Return those of some nodes that a run occupies."""

    async def secret(self, claim: Claim) -> bytes | None:
        """Return the encrypted ``extra_data`` of the claimed job."""

    async def overdue(self, limit: int) -> int:
        """End queued jobs that are past their deadline as ``expired``; returns how many."""

    async def forgettable(self, limit: int) -> Sequence[str]:
        """Return ids of jobs that are past their retention."""

    async def postpone(self, job_id: str, *, seconds: float) -> None:
        """Let a job that can't be forgotten yet be forgettable again so much later."""

    async def forget(self, job_id: str) -> None:
        """Remove every trace of a job from the store; its files are gone already."""


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


class Telemetry(Protocol):
    """Is told what happens to jobs and runs, by whoever has just made it happen.

    It is told in the middle of a job's way: it returns at once. What it raises hurts no job
    (:class:`comfy_fleet.adapters.telemetry.Observers` sees to that).
    """

    def submitted(self, new: NewJob) -> None:
        """Take note that a job is durable; not of a repeated request that got the earlier job."""

    def claimed(self, claim: Claim) -> None:
        """Take note that a job has its node."""

    def posted(self, claim: Claim) -> None:
        """Take note that the node has accepted the prompt."""

    def left(self, claim: Claim, *, busy_s: float) -> None:
        """Take note that a run has let its node go, after so many seconds; told once of each run."""

    def ended(
        self, claim: Claim, status: JobStatus, *, error: JobError | None, duration_s: float, outputs: int
    ) -> None:
        """Take note that a run's job is over.

        Args:
            claim: The run.
            status: How it ended.
            error: Why, if it did not succeed.
            duration_s: What the run took, without the wait for its outputs.
            outputs: How many it has.
        """

    def given_back(self, claim: Claim, status: JobStatus, *, error: JobError, counts: bool) -> None:
        """Take note that a run ended and its job did not, as a rule.

        Args:
            claim: The run.
            status: The job's state now: ``queued``, or a final one if its attempts are used up.
            error: Why.
            counts: Whether the attempt counts.
        """

    def expired(self, count: int) -> None:
        """Take note that so many jobs passed their deadlines in the queue."""

    def lease_refused(self, reason: str, *, node: str | None = None, detail: str = "") -> None:
        """Take note that no node was granted.

        Args:
            reason: HAProxy's (:attr:`NoLease.why`), or the store's for a node that HAProxy had granted
                (:attr:`Refused.why`).
            node: The node that the store refused.
            detail: The reason in words.
        """

    def store_retried(self, error: Exception, *, about: dict[str, str], tell: bool) -> None:
        """Take note that the store did not answer and is asked again.

        Args:
            error: What it said.
            about: Fields of a log line: the run.
            tell: Whether to tell people: not of each try while it is away.
        """
