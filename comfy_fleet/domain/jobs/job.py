"""A job: what a client asked for, from submit to its one final state.

The states are those of Comfy API v2 (``spec/openapi.yaml`` of comfy-sdk):

    queued ─▶ running ─▶ succeeded | failed | expired
       │         │
       └─────────┴─▶ canceling ─▶ canceled

A *run* is one attempt on one node; it has an id of its own, which ComfyUI knows as
``prompt_id`` and ``clientId``. The job's id is also its id in RQ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeAlias

from comfy_fleet.domain.jobs.batch_part import BatchPart
from comfy_fleet.domain.jobs.input_fetch import InputFetch
from comfy_fleet.domain.jobs.merge_key import MergeKey
from comfy_fleet.domain.jobs.result_keys import ResultKeys
from comfy_fleet.domain.jobs.run_times import RunTimes
from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.stores.output_plan import OutputPlace, OutputPlan, StoredObject
from comfy_fleet.domain.webhooks.webhook import Webhook

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
    """A complete snapshot of a run's progress: the latest one is enough to catch up.

    Attributes:
        value: Overall fraction, 0 to 1, weighted by nodes and sampler steps.
        nodes_done: Nodes that finished or came from the cache.
        nodes_total: Nodes that this run will execute.
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

    @classmethod
    def complete(cls, nodes: int) -> "Progress":
        """Return the progress of a run that has succeeded."""
        return cls(value=1.0, nodes_done=nodes, nodes_total=nodes)


@dataclass(frozen=True, kw_only=True)
class Output:
    """One committed output: an asset, and the place in the graph that it came from.

    Attributes:
        asset_id: The asset that holds the bytes.
        node_id: The output node in the graph.
        key: Its key in the node's output, e.g. ``images``.
        index: Its place in that list; (node_id, key, index) is unique in a run.
        name: File name, e.g. ``ComfyUI_00042_.png``. That of a saved file is unique in its owner's folder.
        kind: Normalised kind.
        content_type: MIME type.
        size_bytes: Length of the content.
        hash: ``blake3:<hex>`` of the content.
        temporary: True for previews (ComfyUI's type ``temp``).
        saved: Whether ``GET /view`` knows it by its name: a file, and neither a text nor a picture from a
            frame. Outputs of versions that drew no names are not.
        subfolder: The folder in which its owner sees a saved file.
        withheld: Whether it may not be given out: a placeholder is stored, and the file itself nowhere.
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
    saved: bool = False
    subfolder: str = ""
    withheld: bool = False


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job did not succeed.

    Codes: ``node_execution_error``, ``out_of_memory``, ``invalid_workflow``, ``node_lost``,
    ``output_lost``, ``frame_too_large``, ``output_limit``, ``run_timeout``, ``deadline_exceeded``,
    ``gpu_fault``, ``missing_asset``, ``input_not_fetched``, ``released``, ``node_busy``, ``internal_error``.
    """

    code: str
    message: str
    node_id: str | None = None
    class_type: str | None = None
    traceback: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def without_story(self) -> "JobError":
        """Return the error without the story of the run, which is long, in its details."""
        return replace(self, details={name: one for name, one in self.details.items() if name != "story"})


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of a job that is over. Times are Unix seconds.

    Attributes:
        run: The run's id.
        node: Where it ran.
        started_at: When the job was claimed for the node.
        ended_at: When the run ended, in whatever way.
        counted: Whether it counts towards ``max_attempts``.
        error: Why it did not succeed: code and message, both shortened. None for a success, and for a run
            that was canceled.
        times: Where its time went; None: unknown.
    """

    run: str
    node: str
    started_at: float
    ended_at: float
    counted: bool = False
    error: JobError | None = None
    times: RunTimes | None = None


ANY_POOL = "*"
"""In a list of pools to spill into: every other pool."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a job may run. It names the job's queue.

    Attributes:
        pool: The pool that is tried first.
        spill: Pools that are tried next, in this order, while there is no free node; :data:`ANY_POOL` at the
            end means every other.
        nodes: Able nodes by name; empty means every node of the pools. Only jobs that warm a node name it.
        without: Nodes that refused it or failed at it; they never get it again.
        needs: Key of what a node must have, or empty
            (:attr:`comfy_fleet.domain.nodes.eligibility.Requirements.key`).
        above: Memory in bytes of the largest card on which it ran out of memory; 0: none yet.
    """

    pool: str = DEFAULT_POOL
    spill: tuple[str, ...] = ()
    nodes: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    needs: str = ""
    above: int = 0

    @property
    def key(self) -> str:
        """Name of the placement class: jobs with the same key can run on the same nodes.

        ``POOL>SPILL...:NODES:WITHOUT:NEEDS:ABOVE``, or only the pools if nothing else is set.
        """
        pools = ">".join((self.pool, *self.spill))
        if not (self.nodes or self.without or self.needs or self.above):
            return pools
        nodes, without = " ".join(sorted(self.nodes)), " ".join(sorted(self.without))
        if not self.needs and not self.above:
            return f"{pools}:{nodes}:{without}"
        return f"{pools}:{nodes}:{without}:{self.needs}:{self.above}"

    @classmethod
    def parse(cls, key: str) -> "Placement":
        """Read :attr:`key` back.

        Raises:
            ValueError: It has a part that this version does not know.
        """
        if key.count(":") > 4:
            raise ValueError(f"placement {key[:200]} has more parts than are known")
        pools, nodes, without, needs, above = [*key.split(":"), "", "", "", ""][:5]
        pool, *spill = pools.split(">")
        return cls(
            pool=pool,
            spill=tuple(spill),
            nodes=frozenset(nodes.split()),
            without=frozenset(without.split()),
            needs=needs,
            above=int(above or 0),
        )

    @property
    def gives_way(self) -> bool:
        """Whether its jobs start only where no job of another class waits: they warm the nodes named."""
        return bool(self.nodes)

    def able(self, pool_nodes: Iterable[str]) -> frozenset[str]:
        """Return which of these nodes its names allow; needs are not looked at."""
        return frozenset(
            n for n in pool_nodes if (not self.nodes or n in self.nodes) and n not in self.without
        )

    def pools(self, known: Iterable[str]) -> tuple[str, ...]:
        """Return the pools that it may use, in order of preference.

        Args:
            known: All pools that have nodes.
        """
        named = (self.pool, *(pool for pool in self.spill if pool != ANY_POOL))
        if ANY_POOL not in self.spill:
            return named
        return (*named, *sorted(frozenset(known).difference(named)))


Metadata: TypeAlias = str | Mapping[str, str] | None


@dataclass(frozen=True, kw_only=True)
class PromptFields:
    """What ComfyUI's ``POST /prompt`` says about a job besides its graph.

    Attributes:
        prompt_id: What the client calls the job; empty: as the job is called.
        client_id: Whose websockets are told of it, in the client's words; None: nobody's.
        number: Its place among the owner's waiting jobs, the lowest first; None: behind all others.
        front: Without a number: before all others.
        targets: The output nodes that are to run; empty: all.
    """

    prompt_id: str = ""
    client_id: str | None = None
    number: float | None = None
    front: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job that passed validation and is about to be written.

    Attributes:
        id: UUID, drawn by the caller.
        owner: Whose it is; nobody else can see it.
        graph: API-format graph as submitted, asset references included, as JSON bytes.
        graph_hash: ``blake3:<hex>`` of ``graph``: equal graphs are stored once.
        workflow: Name of the stored workflow, if it came from one.
        workflow_version: Content hash of that workflow.
        params: Values bound into it, drawn seeds included.
        profile: Key of its statistics (duration, memory): the workflow's name, or a hash of the graph's
            classes.
        assets: Ids of assets the graph needs; they are kept until the job is final.
        uploads: Asset id by ``NODE_ID/INPUT``: the file is staged on the node and its name put in that place.
        extra_data: What the node gets in addition to the graph, and its owner can read again.
        secret: The rest of it, encrypted and opaque here; stored apart and erased with the run.
        prompt: What its client said in ComfyUI's own form.
        output_nodes: The graph's nodes that are to return outputs.
        editor: Key of the editor that it comes from; empty: it is no editor's.
        patience_s: For how long an editor's job leaves other nodes to other jobs at most, while one node has
            its graph's results.
        deadline_s: Seconds after it is written; later it must not start.
        expires_in_s: Retention after the end.
        traceparent: The caller's trace, as W3C Trace Context writes it.
        excerpt: The beginning of its prompt's text, for lists; empty if it has none.
        retry_of: The job that it repeats.
        tier: Of one owner's jobs, lower tiers go first: 0 = an editor's run, 1 = a single submit, 2 = an item
            of a batch.
        finish_by: When its client wishes it to be done, in Unix seconds; for the order only.
        timeout_s: For how long a run of it may take at most, in seconds; None: as long as any.
        silence_s: Longest time of a run without a sign of progress, as its workflow says; None: the pool's.
        weight: Its owner's share of the GPUs' time, compared with 1, that of all others of its tenant.
        tenant: The owner's tenant; empty: the default one.
        tenant_weight: The tenant's share, compared with 1, that of all others.
        models: The model files that its graph loads: FOLDER/NAME and bytes.
        memory: How many bytes it probably needs on the card at most; 0: unknown.
        workload: What that follows from; None: it loads no model.
        able: Some nodes that can run it; what they have done since tells where its owner's share begins.
        merge: How it may be merged with other jobs; None: it runs alone.
        results: Whose result it may get, and who may get its own; None: it shares nothing.
        fetches: Files that it names by URL and that are not here yet: it can't start before they are.
        webhook: Who is told what becomes of it.
        quota: What is checked as it is written; None: nothing.
        bounds: How many jobs may run at once, by who is counted, if it is to start.
        rq_id: Its id in RQ, if one of RQ's clients has enqueued it; else empty.
        moderation: How its files are judged (:func:`comfy_fleet.domain.moderation.dump_mode`); empty: not.
        in_batch: The batch that it is in, the number of its item there, and what that is called, with blanks
            between them; empty: it is in none.
        output: Where its outputs are put besides; None: nowhere.
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
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    secret: bytes | None = None
    prompt: PromptFields = field(default_factory=PromptFields)
    output_nodes: tuple[str, ...] = ()
    editor: str = ""
    patience_s: float = 0.0
    deadline_s: float | None = None
    max_attempts: int = 3
    traceparent: str | None = None
    excerpt: str = ""
    retry_of: str | None = None
    tier: int = 1
    finish_by: float | None = None
    timeout_s: float | None = None
    silence_s: float | None = None
    weight: float = 1.0
    tenant: str = ""
    tenant_weight: float = 1.0
    models: tuple[tuple[str, int], ...] = ()
    memory: int = 0
    workload: Workload | None = None
    able: tuple[str, ...] = ()
    merge: MergeKey | None = None
    results: ResultKeys | None = None
    fetches: tuple[InputFetch, ...] = ()
    webhook: Webhook | None = None
    quota: Mapping[str, Any] | None = None
    bounds: Mapping[str, int] = field(default_factory=dict)
    rq_id: str = ""
    moderation: str = ""
    in_batch: str = ""
    output: OutputPlan | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the record in Redis has it. Times are Unix seconds.

    Attributes:
        attempt: Attempts that counted so far.
        attempts: The runs that are over, oldest first; only the last ones if there are very many.
        run: The current or last run's id.
        node: The node of that run.
        seq: Sequence number of its last event.
        claimed_at: When its latest run was claimed; None: none yet, or by an earlier version.
        waiting_for: What it waits for, in words: a node while queued, or room for its outputs at the end.
        has_secret: Whether encrypted ``extra_data`` was submitted with it.
        has_extra_data: Whether ``extra_data`` was submitted that its owner can read again.
        output_count: How many outputs it has; lists don't read the outputs themselves.
        rerun_nodes: Nodes whose cached outputs named files that are gone; they must run again.
        traceparent: The trace of whoever submitted it, as W3C Trace Context writes it.
        prompt_id: What its client calls it in ComfyUI's own interface: its id, or what the client chose.
        client_id: Whose websockets are told of it; None: nobody's.
        number: Its number there: counts up per owner, unless the client chose one.
        history_number: Its number in the history: its own, or the next one after those that ended before it.
            None: it has not ended, a version without such numbers listed it, or a list of jobs left it out.
        targets: The output nodes that are to run; empty: all.
        output_nodes: The graph's nodes that are to return outputs; empty in lists, and for older jobs.
        hidden: Whether its owner has deleted it from ComfyUI's history.
        workflow_id: The id that ComfyUI's editor gave the workflow whose graph it is.
        editor: Key of the editor that it comes from; empty: it is no editor's.
        excerpt: The beginning of its prompt's text; empty if it has none, or is older than that.
        retry_of: The job that it repeats; None for any other.
        kept: Whether its owner has exempted it from retention.
        removed: Whether its owner has removed it: it is gone for everybody, and what is left of it goes soon.
        tier: Of one owner's jobs, lower tiers go first: 0 = an editor's run, 1 = a single submit, 2 = an item
            of a batch.
        finish_by: When its client wishes it to be done, for the order only.
        timeout_s: For how long a run of it may take at most, in seconds; None: as long as any.
        silence_s: Longest time of a run without a sign of progress, as its workflow says; None: the pool's.
        memory: How many bytes it probably needs on the card at most; 0: unknown.
        workload: What that follows from; None: it loads no model.
        batch: Which pictures are its own, if it was one of a batch of several jobs.
        cached: Whether its outputs were not computed for it: it got those of an equal job.
        follows: Whether it waits, or has waited, for the result of an equal job, and is in no queue.
        moderation: How its files are judged before they are given out; empty: not at all.
        tenant: Its owner's tenant; empty: the default one.
        webhook: Who is told what becomes of it.
        batch_id: The batch that it was submitted with; empty: none.
        custom_id: What its item is called there.
        output: Where its outputs are put besides; None: nowhere.
        stored: What has become of that, by the outputs' places; empty before its success, and in lists.
        storing: Whether some of them wait for their store.
        stored_at: When the last of them was there or given up.
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
    claimed_at: float | None = None
    completed_at: float | None = None
    deadline_at: float | None = None
    attempt: int = 0
    attempts: tuple[Attempt, ...] = ()
    max_attempts: int = 3
    run: str | None = None
    node: str | None = None
    cancel_requested: bool = False
    progress: Progress | None = None
    outputs: tuple[Output, ...] = ()
    output_count: int = 0
    error: JobError | None = None
    seq: int = 0
    waiting_for: str | None = None
    has_secret: bool = False
    has_extra_data: bool = False
    rerun_nodes: frozenset[str] = frozenset()
    traceparent: str | None = None
    prompt_id: str = ""
    client_id: str | None = None
    number: float = 0.0
    history_number: float | None = None
    targets: tuple[str, ...] = ()
    output_nodes: tuple[str, ...] = ()
    hidden: bool = False
    workflow_id: str | None = None
    editor: str = ""
    excerpt: str = ""
    retry_of: str | None = None
    kept: bool = False
    removed: bool = False
    tier: int = 1
    finish_by: float | None = None
    timeout_s: float | None = None
    silence_s: float | None = None
    memory: int = 0
    workload: Workload | None = None
    batch: BatchPart | None = None
    cached: bool = False
    follows: bool = False
    moderation: str = ""
    tenant: str = ""
    webhook: Webhook | None = None
    batch_id: str = ""
    custom_id: str = ""
    output: OutputPlan | None = None
    stored: Mapping[OutputPlace, StoredObject] = field(default_factory=dict)
    storing: bool = False
    stored_at: float | None = None

    def stored_of(self, output: Output) -> StoredObject | None:
        """Return what has become of an output's way into a store; None if it goes nowhere."""
        return self.stored.get((output.node_id, output.key, output.index))


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs a listing wants, newest first.

    Attributes:
        owner: None lists the jobs of all owners (operators only), or of ``owners``.
        owners: With ``owner`` None: only these owners' jobs; empty for everybody's.
        metadata: Labels that a job must have with exactly these values.
        hidden: Whether jobs that are deleted from ComfyUI's history are listed, too.
        kept: Whether only jobs that are exempt from retention are listed.
        cursor: What an earlier page returned as ``next_cursor``.
    """

    owner: str | None
    owners: frozenset[str] = frozenset()
    statuses: frozenset[JobStatus] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    workflow: str | None = None
    hidden: bool = True
    kept: bool = False
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """One page of a listing, its jobs without outputs, parameters and runs' stories.

    Of a very long error, only code, message, node and class are there.

    Attributes:
        next_cursor: Where the next page begins; None on the last. A page before the last may have fewer jobs
            than requested, even none, because only a limited number is looked at for each page.
    """

    jobs: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job, in the order of ``seq`` within it.

    Attributes:
        type: ``status``, ``progress``, ``preview`` or ``output``.
        run: The run it belongs to; consumers drop events of any run but the current one.
        data: ``status``: {status, node?, queue_position?}; ``progress``: Progress's fields;
            ``preview``: {node_id, content_type, data_base64}; ``output``: Output's fields.
    """

    job_id: str
    seq: int
    type: str
    run: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OwnerEvent:
    """A job of an owner's was submitted, or has another status.

    Attributes:
        client_id: Whose websockets are told of it.
        prompt_id: What its client calls it.
        run: The run that it has now, if any.
        live: How many of the owner's jobs are not final.
    """

    job_id: str
    status: JobStatus
    client_id: str | None
    prompt_id: str
    run: str | None
    live: int
