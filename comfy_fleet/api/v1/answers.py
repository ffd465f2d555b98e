"""The answers of ``/api/v1`` that not every surface shares."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from comfy_fleet.api.answers import (
    AttemptErrorAnswer,
    ErrorAnswer,
    JobAnswer,
    OutputAnswer,
    StoredAnswer,
    Url,
)
from comfy_fleet.domain.jobs.job import JobStatus

WaitTime = Annotated[int | None, Field(description="Whole seconds until the result; null if unknown.")]


class JobDetailAnswer(JobAnswer):
    """A job, with the parameters of its workflow."""

    workflow_version: str | None
    params: dict[str, Any]
    estimated_wait_time_sec: WaitTime


class JobOutputsAnswer(TypedDict):
    """A job's outputs so far."""

    status: JobStatus
    outputs: list[OutputAnswer]


class JobIdsAnswer(TypedDict):
    """Complete ids of jobs."""

    ids: list[str]


class QueueAnswer(TypedDict):
    """How many jobs wait."""

    queued: int


class WorkflowSummaryAnswer(TypedDict):
    """A stored workflow in the list."""

    name: str
    title: str
    description: str
    version: str
    folder: Annotated[str | None, Field(description="Where it is kept; null if it was published.")]
    parameters: Annotated[list[str], Field(description="Their names.")]
    allowed: Annotated[bool, Field(description="Whether the caller's limits let them run it.")]


class WorkflowListAnswer(TypedDict):
    """The stored workflows."""

    workflows: list[WorkflowSummaryAnswer]
    broken: Annotated[dict[str, str], Field(description="Why files can't be used, by name.")]


class ModelFileAnswer(TypedDict):
    """A model file that a workflow loads."""

    file: str
    folder: str
    source: str
    optional: bool


class RequirementsAnswer(TypedDict):
    """What a workflow requires of a node."""

    comfyui: str
    models: list[ModelFileAnswer]
    vram_gb: float | None
    pool: str | None
    prefer_pool: str | None
    spill_to: list[str]
    zone: str
    labels: dict[str, str]
    note: str


class WorkflowAnswer(TypedDict):
    """A stored workflow."""

    name: str
    title: str
    description: str
    version: str
    folder: Annotated[str | None, Field(description="Where it is kept; null if it was published.")]
    parameters: Annotated[dict[str, Any], Field(description="JSON Schema of its parameters.")]
    requires: RequirementsAnswer
    broken: Annotated[str | None, Field(description="Why its files are not in use; an older version is.")]


class ProblemAnswer(TypedDict):
    """Why a node can't run a workflow."""

    kind: str
    message: str
    node_id: str
    class_type: str
    field: str
    value: Any
    only_with: Annotated[str, Field(description="The choice that meets it; empty: every job does.")]


class UnreachableAnswer(TypedDict):
    """Why a node could not be asked."""

    kind: Literal["unreachable"]
    message: str


class NodeCheckAnswer(TypedDict):
    """Whether one node can run a workflow."""

    node: str
    comfyui: str
    ok: bool
    problems: list[ProblemAnswer | UnreachableAnswer]


class WorkflowCheckAnswer(TypedDict):
    """Which nodes can run a workflow."""

    workflow: str
    version: str
    broken: str | None
    nodes: list[NodeCheckAnswer]


class AcceptedTaskAnswer(TypedDict):
    """An accepted task."""

    task_id: str
    status: Literal["queued"]
    estimated_wait_time_sec: WaitTime
    status_url: Url


class SubmittedTaskAnswer(TypedDict):
    """An accepted task."""

    task_id: str
    status: Literal["submitted"]
    estimated_wait_time_sec: WaitTime
    status_url: Url


class ImageAnswer(TypedDict):
    """A picture that a task has made."""

    url: Url
    id: str
    name: str
    content_type: str
    size_bytes: int
    stored: Annotated[StoredAnswer | None, Field(description="Its way into a store; null: it goes to none.")]


class TaskFields(TypedDict):
    """A task, but for its status in the words of one kind of client."""

    task_id: str
    job_status: JobStatus
    image_url: Url | None
    images: list[ImageAnswer]
    error: AttemptErrorAnswer | None
    queue_position: int | None
    progress: Annotated[float | None, Field(description="0 to 1.")]
    estimated_wait_time_sec: WaitTime
    node: str | None
    simulated: bool


class TaskStatusAnswer(TaskFields):
    """A task, for who waits for `completed`."""

    status: Literal["queued", "processing", "completed", "failed"]


class TaskResultAnswer(TaskFields):
    """A task, for who waits for `success`."""

    status: Literal["queued", "processing", "success", "failed"]


class ShortTaskAnswer(TaskFields):
    """A task, for who waits for `done`: it says only that the task has ended."""

    status: Literal["pending", "done"]


class WorkAnswer(TypedDict):
    """A run that still needs a node."""

    run: str
    job: str
    phase: str


class WorkDetailAnswer(WorkAnswer):
    """A run that still needs a node, and how far it is."""

    workflow: str | None
    progress: float | None
    message: str | None


class _NodeFields(TypedDict):
    name: str
    url: str
    credentials: Annotated[bool, Field(description="Whether it is reached with user and password.")]
    pool: str
    weight: int
    zone: str
    labels: dict[str, str]
    cordoned: bool
    cordon_reason: str
    simulated: bool
    editor: Annotated[
        bool | None,
        Field(description="Whether it serves ComfyUI's editor; null: if no node is named for it."),
    ]
    agent: str | None
    added_at: Annotated[float, Field(description="Unix seconds.")]
    verdict: Annotated[str, Field(description="`up`, `drain`, `down` or `new`.")]
    why: str
    run: str | None
    job: str | None
    done: int
    failed: int
    quarantined: bool
    weight_by_gpu: bool
    speed: float | None
    gpu: str
    vram_bytes: int
    comfyui: str
    inventory: str
    starts: int
    trouble: str


class NodeAnswer(_NodeFields):
    """A node and its state."""

    work: list[WorkAnswer]


class ListedNodeAnswer(NodeAnswer, total=False):
    """A node in the list."""

    sealed: Annotated[str, Field(description="With `sealed=true`: its user and password, encrypted.")]
    free_idle_s: Annotated[float, Field(description="Idle seconds after which it unloads its models.")]


class PoolAnswer(TypedDict):
    """A pool; what is null is not set for it."""

    name: str
    slot: int | None
    nodes: int
    up: int
    free_idle_s: float | None
    free_on_oom: bool | None
    patience_s: float | None
    silence_s: float | None


class PoolListAnswer(TypedDict):
    """The pools."""

    pools: list[PoolAnswer]


class NodeErrorAnswer(TypedDict, total=False):
    """An error of a job on a node."""

    at: float
    job: str
    code: str
    message: str


class NodeDetailAnswer(_NodeFields):
    """Everything that is known of a node."""

    work: list[WorkDetailAnswer]
    pytorch: str
    python: str
    read_at: float | None
    models: list[str]
    errors: list[NodeErrorAnswer]
    report: Annotated[dict[str, Any] | None, Field(description="What its agent saw last.")]


class NodeListAnswer(TypedDict):
    """The nodes."""

    nodes: list[ListedNodeAnswer]


class NodeDifferenceAnswer(TypedDict):
    """One thing that not all nodes have alike."""

    kind: Annotated[str, Field(description="version, gpu, setting, pack, class or file.")]
    what: str
    nodes: Annotated[dict[str, str], Field(description="What each has; `yes`, or empty: it lacks it.")]
    classes: Annotated[list[str], Field(description="Of a pack, its classes in which nodes differ.")]


class NodeDifferencesAnswer(TypedDict):
    """What differs between nodes."""

    nodes: list[str]
    unread: list[str]
    differences: list[NodeDifferenceAnswer]


class HostAnswer(TypedDict):
    """A GPU host; beside these fields it has what its agent told."""

    host: str
    seen_at: float
    alive: bool


class HostListAnswer(TypedDict):
    """The GPU hosts."""

    hosts: list[HostAnswer]


class AgentTokenAnswer(TypedDict):
    """An agent's token, without its text."""

    id: str
    host: str
    central: Annotated[bool, Field(description="Whether its agent may be the central one.")]
    created_at: Annotated[float, Field(description="Unix seconds.")]


class NewAgentTokenAnswer(AgentTokenAnswer):
    """A token that was just made."""

    token: Annotated[str, Field(description="What the agent shows; in no other answer.")]


class AgentTokenListAnswer(TypedDict):
    """The agents' tokens."""

    tokens: list[AgentTokenAnswer]


class OrderedNodeAnswer(TypedDict):
    """A node of the host, as it is registered."""

    name: str
    url: str
    pool: str
    weight: int
    weight_by_gpu: bool
    speed: float | None
    cordoned: bool
    cordon_reason: str
    free_idle_s: float | None


class SeatAnswer(TypedDict):
    """Where another agent's node computes on one of the host's GPUs."""

    gpu: str
    running: bool
    pids: list[int]
    own: int | None
    used: int | None
    age_s: float


class ModelOrderAnswer(TypedDict):
    """A model file that an agent has to fetch, or to give to others."""

    id: str
    url: str
    folder: str
    name: str
    sha256: str
    pickles: bool
    nodes: list[str]
    canceled: bool
    wait: bool
    serve: bool
    neighbours: list[str]
    ticket: str


class OrdersAnswer(TypedDict):
    """What an agent has to do."""

    nodes: list[OrderedNodeAnswer]
    joined: list[str]
    refused: dict[str, str]
    explained: list[str]
    clear: list[str]
    delete: list[str]
    restart: list[str]
    neighbours: dict[str, SeatAnswer]
    store: str
    fetches: list[ModelOrderAnswer]


class ApiHealthAnswer(TypedDict):
    """This process answers."""

    status: str
    name: str
    version: str
    url: Annotated[str | None, Field(description="The fleet, where ComfyUI's clients and the editor go.")]
    console_url: Annotated[str | None, Field(description="The console, for operators and publishing.")]


class ReasonAnswer(TypedDict):
    """A part that keeps jobs from running."""

    part: str
    why: str


class _ReadyFields(TypedDict):
    ready: bool
    reasons: list[ReasonAnswer]


class ReadyAnswer(_ReadyFields, total=False):
    """A job could run."""

    notes: Annotated[list[str], Field(description="What an operator should know even so.")]


class NotReadyAnswer(_ReadyFields):
    """No job could run now."""

    error: ErrorAnswer


class ScrapeTargetAnswer(TypedDict):
    """A page of metrics, as Prometheus' HTTP service discovery reads it."""

    targets: Annotated[list[str], Field(description="One: `HOST:PORT`.")]
    labels: Annotated[
        dict[str, str],
        Field(
            description="`job`, `instance`, `host` and `__metrics_path__`; for relabelling "
            "`__meta_fleet_namespace`, `__meta_fleet_process` and `__meta_fleet_host`."
        ),
    ]
