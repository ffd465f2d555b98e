"""The answers about batches."""

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from comfy_fleet.api.answers import EstimateAnswer, JobErrorAnswer, OutputAnswer, Time, Url
from comfy_fleet.domain.jobs.job_batch import BatchStatus, ItemState


class ItemErrorAnswer(TypedDict):
    """Why an item can't be taken."""

    custom_id: str | None
    item: Annotated[int, Field(description="Its number, from 0.")]
    line: NotRequired[Annotated[int, Field(description="In CSV or JSON Lines.")]]
    field: str
    code: str
    message: str


class BatchUrlsAnswer(TypedDict):
    """URLs of a batch."""

    self: Url
    events: Url
    outputs: Annotated[Url, Field(description="A zip of all outputs that there are.")]
    cancel: Url
    retry: Url


class BatchAnswer(TypedDict):
    """A batch as it is now."""

    id: str
    owner: str
    status: BatchStatus
    workflow: Annotated[str | None, Field(description="Null if items have graphs of their own.")]
    workflow_version: str | None
    created_at: Time
    completed_at: Time | None
    total: Annotated[int, Field(description="How many items were sent.")]
    counts: Annotated[dict[str, int], Field(description="How many items are in each state.")]
    waiting: Annotated[
        int,
        Field(
            description="How many jobs are still to be queued. Those of items that run again are among them."
        ),
    ]
    round: Annotated[int, Field(description="1, and 1 more for each retry after its end.")]
    storing: Annotated[int, Field(description="Outputs of how many jobs wait for their store.")]
    not_stored: Annotated[int, Field(description="Outputs of how many jobs were not taken by their store.")]
    urls: BatchUrlsAnswer


class MadeBatchAnswer(BatchAnswer):
    """A batch that was just made."""

    errors: Annotated[list[ItemErrorAnswer], Field(description="Why items were left out; at most 100.")]
    more_errors: Annotated[int, Field(description="How many more errors there are.")]


class RetriedBatchAnswer(MadeBatchAnswer):
    """A batch of which items run again."""

    retried: Annotated[int, Field(description="How many.")]


class BatchItemAnswer(TypedDict):
    """An item of a batch."""

    item: Annotated[int, Field(description="Its number, from 0.")]
    custom_id: str
    status: ItemState
    job_id: Annotated[str | None, Field(description="Its job, or the last one that was made for it.")]
    job_url: Url | None
    error: JobErrorAnswer | None
    errors: Annotated[list[dict[str, Any]], Field(description="Why it was refused.")]
    outputs: list[OutputAnswer]


class BatchDetailAnswer(BatchAnswer):
    """A batch with a page of its items."""

    estimate: Annotated[EstimateAnswer | None, Field(description="Until its last item ends.")]
    items: list[BatchItemAnswer]
    next_cursor: str | None


class ItemEventAnswer(TypedDict):
    """An item has got another state."""

    custom_id: str
    item: int
    job_id: str
    status: ItemState


class BatchPageAnswer(TypedDict):
    """Some batches, newest first."""

    batches: list[BatchAnswer]
    next_cursor: str | None
