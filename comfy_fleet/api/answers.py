"""The API's answers: Comfy API v2's shapes, which all surfaces share, with the fleet's additions.

The types serve the type checker and the OpenAPI documents. Times are RFC 3339 in UTC.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from comfy_fleet.domain.jobs.job import JobStatus, OutputKind
from comfy_fleet.domain.stores.output_plan import StoreState

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Url = Annotated[str, WithJsonSchema({"type": "string", "format": "uri"})]
ANYTHING = WithJsonSchema({})
"""An object or a text: generated clients pass either on unchanged, but would wrap a union of both in a
class."""


class ErrorAnswer(TypedDict):
    """Why a request failed."""

    code: Annotated[str, Field(description="For programs, e.g. `invalid_parameter`.")]
    message: Annotated[str, Field(description="For people: names the field and the way out.")]
    details: Annotated[dict[str, Any] | None, Field(description="`field`, `node_errors` and the like.")]


class ErrorEnvelope(TypedDict):
    """The one form of every error."""

    error: ErrorAnswer


class ProgressAnswer(TypedDict):
    """A run's progress."""

    value: Annotated[float, Field(description="0 to 1.")]
    nodes_done: int
    nodes_total: int
    current_node: str | None
    current_node_class: str | None
    step: int | None
    steps: int | None
    message: str | None


class AttemptErrorAnswer(TypedDict):
    """Why a run ended without success."""

    code: str
    message: str


class AttemptAnswer(TypedDict):
    """A run of a job that is over."""

    run: str
    node: str
    started_at: Time
    ended_at: Time
    counted: Annotated[bool, Field(description="Whether it counts towards the limit of attempts.")]
    error: AttemptErrorAnswer | None


class StoredAnswer(TypedDict):
    """What has become of an output's way into a store."""

    store: str
    key: Annotated[str, Field(description="Its name there, below the store's prefix.")]
    state: StoreState
    url: Annotated[str | None, Field(description="Where it is; null until it is there.")]
    signed_url: Annotated[
        str | None, Field(description="Where it can be read without credentials for a while.")
    ]
    error: Annotated[str | None, Field(description="Why it is not there, or not yet.")]


class OutputAskAnswer(TypedDict):
    """Where a job's outputs are put, besides the fleet's own files."""

    store: str
    key: Annotated[str, Field(description="The template of their names.")]
    format: str | None
    on_conflict: str


class OutputAnswer(TypedDict):
    """A file that a job has made."""

    node_id: str
    name: str
    type: OutputKind
    content_type: str
    size_bytes: int
    id: Annotated[str, Field(description="The asset's id.")]
    hash: Annotated[str, Field(description="`blake3:` and 64 hexadecimal digits.")]
    url: Url
    url_expires_at: Time
    thumbnail_url: Annotated[Url | None, Field(description="A small WebP of a picture; else null.")]
    job_id: str
    temporary: Annotated[bool, Field(description="A preview.")]
    withheld: Annotated[bool, Field(description="It may not be given out; its content is a placeholder.")]
    stored: Annotated[
        StoredAnswer | None,
        Field(description="Its way into a store; null if it goes to none, or its job has not succeeded."),
    ]


class JobErrorAnswer(TypedDict):
    """Why a job did not succeed."""

    code: str
    message: str
    node_id: str | None
    class_type: str | None
    traceback: str | None
    details: dict[str, Any] | None


class JobMetricsAnswer(TypedDict):
    """How long a job took."""

    queue_ms: int | None
    execution_ms: int | None


class JobUrlsAnswer(TypedDict):
    """URLs of a job."""

    self: Url
    events: Url
    cancel: Url


class BatchPartAnswer(TypedDict):
    """Which pictures of a batch are a job's. The same seed in a batch of the same size makes them again."""

    seed: Annotated[int, Field(description="From which the noise of the whole batch was drawn.")]
    batch_index: Annotated[int, Field(description="The place of its first picture in the batch, from 0.")]
    count: Annotated[int, Field(description="How many are its own.")]
    batch_size: Annotated[int, Field(description="How many the batch has.")]


class JobFields(TypedDict):
    """The fields that every view of a job has."""

    id: str
    status: JobStatus
    user: Annotated[str, Field(description="Whose it is.")]
    created_at: Time
    started_at: Time | None
    completed_at: Time | None
    expires_at: Annotated[Time, Field(description="When the job and its outputs are deleted.")]
    queue_position: Annotated[
        int | None,
        Field(
            description="Its place by submit and priority, from 1; shares and models let others go first. "
            "Null if it does not wait."
        ),
    ]
    progress: ProgressAnswer | None
    outputs: list[OutputAnswer]
    output_count: int
    error: JobErrorAnswer | None
    metrics: JobMetricsAnswer
    urls: JobUrlsAnswer
    metadata: Annotated[dict[str, str] | str | None, ANYTHING, Field(description="As it was sent.")]
    priority: int
    tier: Annotated[
        str,
        Field(
            description="Of one owner's jobs, `editor` goes before `single`, that before `batch`. "
            "`warming`: it only warms a node, after everybody's jobs."
        ),
    ]
    start_by: Annotated[Time | None, Field(description="If it has not started by then, it expires.")]
    timeout_s: Annotated[float | None, Field(description="Longest time of one run in seconds, as sent.")]
    finish_by: Annotated[Time | None, Field(description="When it should be done: a wish.")]
    memory_bytes: Annotated[
        int | None, Field(description="How much of a GPU's memory it probably needs; null: unknown.")
    ]
    card_above_bytes: Annotated[
        int | None,
        Field(description="GPUs with no more memory are too small for it; null: any may do."),
    ]
    workflow: Annotated[str | None, Field(description="The stored workflow's name.")]
    node: str | None
    simulated: Annotated[bool, Field(description="Whether a simulated node runs it.")]
    attempt: Annotated[int, Field(description="How many attempts have counted.")]
    waiting_for: Annotated[str | None, Field(description="What it waits for, in words.")]
    kept: Annotated[bool, Field(description="Whether its owner has exempted it from retention.")]
    retry_of: Annotated[str | None, Field(description="The job that it repeats.")]
    batch: NotRequired[
        Annotated[BatchPartAnswer, Field(description="Only if it was merged with other jobs into one batch.")]
    ]
    batch_id: NotRequired[Annotated[str, Field(description="Only of an item of a batch: which batch.")]]
    custom_id: NotRequired[Annotated[str, Field(description="Only of an item of a batch: its name there.")]]
    cached: Annotated[bool, Field(description="Whether it got the result of an equal job.")]
    output: Annotated[
        OutputAskAnswer | None, Field(description="Where its outputs are put besides; null: nowhere.")
    ]
    storing: Annotated[bool, Field(description="Whether some of its outputs wait for their store.")]
    traceparent: NotRequired[Annotated[str, Field(description="The trace that its submit named.")]]


class EstimateAnswer(TypedDict):
    """When a job will have ended, in seconds from now, learned from what became of earlier estimates."""

    p50_s: Annotated[float, Field(description="Half of such jobs have ended by then.")]
    p90_s: Annotated[float, Field(description="Nine of ten such jobs have ended by then.")]


class JobAnswer(JobFields):
    """A job."""

    estimate: Annotated[
        EstimateAnswer | None,
        Field(description="Its probable end; null if it has ended, was just submitted, or nothing is known."),
    ]
    attempts: list[AttemptAnswer]


class ListedJobAnswer(JobFields):
    """A job in a list: without attempts, its last run's story, and outputs that were not asked for.

    Of a very long error, only code, message, node and class are there.
    """

    excerpt: Annotated[str, Field(description="The beginning of its prompt's text; empty if it has none.")]
    create_time: Time
    update_time: Time
    deployment_id: None


class JobPageAnswer(TypedDict):
    """A page of jobs, newest first."""

    jobs: list[ListedJobAnswer]
    next_cursor: Annotated[str | None, Field(description="Send it as `cursor` for the next page.")]


class JobWorkflowAnswer(TypedDict):
    """A job's graph as submitted."""

    workflow: Annotated[dict[str, Any], Field(description="The graph in ComfyUI's API format.")]
    format: str


class _AssetFields(TypedDict):
    id: str
    hash: Annotated[str, Field(description="`blake3:` and 64 hexadecimal digits.")]
    size_bytes: int
    content_type: str
    file_path: str
    tags: list[str]
    created_at: Time
    url: Url
    url_expires_at: Time
    expires_at: Time | None


class AssetAnswer(_AssetFields, total=False):
    """A file: an upload, or an output of a job."""

    job_id: Annotated[str, Field(description="The job that made it.")]
    created_new: Annotated[bool, Field(description="False if the caller had the same bytes already.")]


class UploadAnswer(TypedDict):
    """An upload that came in parts, or still does."""

    id: Annotated[str, Field(description="Of the upload, and of the asset that it becomes.")]
    length: Annotated[int, Field(description="Bytes of the whole file.")]
    offset: Annotated[int, Field(description="How many of them are here.")]
    file_path: str
    content_type: str
    created_at: Time
    expires_at: Annotated[Time, Field(description="When it is forgotten unless more comes; an asset stays.")]
    asset: Annotated[AssetAnswer | None, Field(description="Once all bytes are here, until it is deleted.")]


class StatusEventAnswer(TypedDict):
    """A stream's `status` event."""

    status: JobStatus
    queue_position: int | None
    estimate: NotRequired[
        Annotated[EstimateAnswer, Field(description="While it waits: its probable end, at most every 5 s.")]
    ]


class PreviewEventAnswer(TypedDict):
    """A stream's `preview` event."""

    node_id: str
    content_type: str
    data_base64: str


JOB_EVENTS: Mapping[str, Any] = {
    "status": StatusEventAnswer,
    "progress": ProgressAnswer,
    "preview": PreviewEventAnswer,
    "output": OutputAnswer,
}
"""The events of a job's stream: each one's data, by its name."""


class HealthAnswer(TypedDict):
    """This process answers."""

    status: str
