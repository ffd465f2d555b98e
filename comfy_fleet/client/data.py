"""What the fleet answers, as types.

They are the fleet's own OpenAPI document in Python, field by field; a test compares both. Times are RFC 3339,
in UTC. A newer fleet may send further fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

JobState = Literal["queued", "running", "canceling", "succeeded", "canceled", "failed", "expired"]
"""Where a job is; :data:`FINAL` has those that are the last."""
OutputType = Literal["image", "video", "audio", "text", "file", "latent"]
BatchState = Literal["queueing", "running", "canceling", "completed"]
"""Where a batch is; ``completed`` is the last."""
ItemStatus = Literal[
    "pending", "queued", "running", "canceling", "succeeded", "failed", "canceled", "expired", "refused"
]
"""Where an item of a batch is: its job's states, one before there is a job, and one without any."""
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "canceled", "expired"})
"""The states of jobs that will never change again."""


class ProgressData(TypedDict):
    """A run's progress."""

    value: float
    nodes_done: int
    nodes_total: int
    current_node: str | None
    current_node_class: str | None
    step: int | None
    steps: int | None
    message: str | None


StoreState = Literal["waiting", "stored", "failed"]
"""How far an output is on its way into a store."""


class StoredData(TypedDict):
    """What has become of an output's way into a store."""

    store: str
    key: str
    state: StoreState
    url: str | None
    signed_url: str | None
    error: str | None


class OutputAskData(TypedDict):
    """Where a job's outputs are put, besides the fleet's own files."""

    store: str
    key: str
    format: str | None
    on_conflict: str


class OutputData(TypedDict):
    """A file that a job has made."""

    node_id: str
    name: str
    type: OutputType
    content_type: str
    size_bytes: int
    id: str
    hash: str
    url: str
    url_expires_at: str
    thumbnail_url: str | None
    job_id: str
    temporary: bool
    withheld: bool
    stored: StoredData | None


class JobErrorData(TypedDict):
    """Why a job did not succeed."""

    code: str
    message: str
    node_id: str | None
    class_type: str | None
    traceback: str | None
    details: dict[str, Any] | None


class AttemptErrorData(TypedDict):
    """Why a run ended without success."""

    code: str
    message: str


class AttemptData(TypedDict):
    """A run of a job that is over."""

    run: str
    node: str
    started_at: str
    ended_at: str
    counted: bool
    error: AttemptErrorData | None


class JobMetricsData(TypedDict):
    """How long a job took."""

    queue_ms: int | None
    execution_ms: int | None


class JobUrlsData(TypedDict):
    """URLs of a job."""

    self: str
    events: str
    cancel: str


class BatchPartData(TypedDict):
    """Which pictures of a batch are a job's. The same seed in a batch of the same size makes them again."""

    seed: int
    batch_index: int
    count: int
    batch_size: int


class EstimateData(TypedDict):
    """When a job will have ended, in seconds from now, learned from what became of earlier estimates."""

    p50_s: float
    p90_s: float


class JobFieldsData(TypedDict):
    """The fields that every view of a job has."""

    id: str
    status: JobState
    user: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    expires_at: str
    queue_position: int | None
    progress: ProgressData | None
    outputs: list[OutputData]
    output_count: int
    error: JobErrorData | None
    metrics: JobMetricsData
    urls: JobUrlsData
    metadata: Any
    priority: int
    tier: str
    start_by: str | None
    timeout_s: float | None
    finish_by: str | None
    memory_bytes: int | None
    card_above_bytes: int | None
    workflow: str | None
    node: str | None
    simulated: bool
    attempt: int
    waiting_for: str | None
    kept: bool
    retry_of: str | None
    batch: NotRequired[BatchPartData]
    cached: bool
    traceparent: NotRequired[str]
    output: OutputAskData | None
    storing: bool
    batch_id: NotRequired[str]
    custom_id: NotRequired[str]


class JobData(JobFieldsData):
    """A job."""

    estimate: EstimateData | None
    attempts: list[AttemptData]
    workflow_version: str | None
    params: dict[str, Any]
    estimated_wait_time_sec: int | None


class ListedJobData(JobFieldsData):
    """A job in a list: without its outputs and attempts."""

    excerpt: str
    create_time: str
    update_time: str
    deployment_id: str | None


class AssetData(TypedDict):
    """A file: an upload, or an output of a job."""

    id: str
    hash: str
    size_bytes: int
    content_type: str
    file_path: str
    tags: list[str]
    created_at: str
    url: str
    url_expires_at: str
    expires_at: str | None
    job_id: NotRequired[str]
    created_new: NotRequired[bool]


class ModelFileData(TypedDict):
    """A model file that a workflow loads."""

    file: str
    folder: str
    source: str
    optional: bool


class RequirementsData(TypedDict):
    """What a workflow requires of a node."""

    comfyui: str
    models: list[ModelFileData]
    vram_gb: float | None
    pool: str | None
    prefer_pool: str | None
    spill_to: list[str]
    zone: str
    labels: dict[str, str]
    note: str


class WorkflowSummaryData(TypedDict):
    """A stored workflow in the list."""

    name: str
    title: str
    description: str
    version: str
    folder: str | None
    parameters: list[str]
    allowed: bool


class WorkflowData(TypedDict):
    """A stored workflow."""

    name: str
    title: str
    description: str
    version: str
    folder: str | None
    parameters: dict[str, Any]
    requires: RequirementsData
    broken: str | None


class ItemErrorData(TypedDict):
    """Why an item can't be taken."""

    custom_id: str | None
    item: int
    line: NotRequired[int]
    field: str
    code: str
    message: str


class BatchUrlsData(TypedDict):
    """URLs of a batch."""

    self: str
    events: str
    outputs: str
    cancel: str
    retry: str


class BatchData(TypedDict):
    """A batch as it is now."""

    id: str
    owner: str
    status: BatchState
    workflow: str | None
    workflow_version: str | None
    created_at: str
    completed_at: str | None
    total: int
    round: int
    storing: int
    not_stored: int
    counts: dict[str, int]
    waiting: int
    urls: BatchUrlsData


class MadeBatchData(BatchData):
    """A batch that was just made."""

    errors: list[ItemErrorData]
    more_errors: int


class RetriedBatchData(MadeBatchData):
    """A batch of which items run again."""

    retried: int


class BatchItemData(TypedDict):
    """An item of a batch."""

    item: int
    custom_id: str
    status: ItemStatus
    job_id: str | None
    job_url: str | None
    error: JobErrorData | None
    errors: list[dict[str, Any]]
    outputs: list[OutputData]


class BatchDetailData(BatchData):
    """A batch with a page of its items."""

    estimate: EstimateData | None
    items: list[BatchItemData]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """An event of a job's or a batch's stream.

    Attributes:
        name: ``status``, ``progress``, ``preview`` or ``output`` of a job; ``batch`` or ``item`` of a batch.
        data: What it tells; of ``progress`` a :class:`ProgressData`, of ``output`` an :class:`OutputData`.
    """

    name: str
    data: Mapping[str, Any]
