"""Batches: many jobs that were sent at once, and belong together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MOST_SHOWN = 100
"""Errors of items that one answer lists; of more, how many there are."""
MOST_CUSTOM_ID = 128


class ItemState(StrEnum):
    """Where an item is: its job's states, one before there is a job, and one of items that never get any."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REFUSED = "refused"


LIVE = (ItemState.PENDING, ItemState.QUEUED, ItemState.RUNNING, ItemState.CANCELING)
RETRIED = (ItemState.FAILED, ItemState.CANCELED, ItemState.EXPIRED)
"""What may be run again."""


class BatchStatus(StrEnum):
    """Where a batch is."""

    QUEUEING = "queueing"
    RUNNING = "running"
    CANCELING = "canceling"
    COMPLETED = "completed"


@dataclass(frozen=True, kw_only=True)
class ItemError:
    """Why an item can't be taken.

    Attributes:
        item: Its number in the batch, from 0.
        custom_id: What its client calls it; empty if that is what is wrong.
        field: What of it is wrong.
        line: Where it is in a file with a line for each item, from 1; 0: there is none.
    """

    item: int
    custom_id: str
    field: str
    code: str
    message: str
    line: int = 0

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "custom_id": self.custom_id or None,
            "item": self.item,
            **({"line": self.line} if self.line else {}),
            "field": self.field,
            "code": self.code,
            "message": self.message,
        }


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """An item of a batch.

    Attributes:
        number: Its place in the batch, from 0.
        custom_id: What its client calls it.
        job_id: Its job, or the last one that was made for it; empty: it has none.
        errors: Why it was refused.
    """

    number: int
    custom_id: str
    state: ItemState
    job_id: str = ""
    errors: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class JobBatch:
    """A batch as it is now. Times are Unix seconds.

    Attributes:
        total: How many items it has.
        counts: How many are in each state; those of which there are none are left out.
        waiting: How many jobs are still to be queued, those of a retry among them.
        workflow: The stored workflow; empty: its items have graphs of their own.
        canceled: Whether it was canceled.
        storing: How many jobs' outputs wait for their store; before it is completed, these end, too.
        not_stored: How many jobs' outputs their store did not take.
        completed_at: When the last item had ended.
        round: How often it has been run: 1, and 1 more for each retry after its end.
    """

    id: str
    owner: str
    created_at: float
    total: int
    counts: Mapping[ItemState, int] = field(default_factory=dict)
    waiting: int = 0
    workflow: str = ""
    version: str = ""
    canceled: bool = False
    storing: int = 0
    not_stored: int = 0
    completed_at: float | None = None
    round: int = 1

    @property
    def status(self) -> BatchStatus:
        """Where it is."""
        if self.completed_at is not None:
            return BatchStatus.COMPLETED
        if self.canceled:
            return BatchStatus.CANCELING
        return BatchStatus.QUEUEING if self.waiting else BatchStatus.RUNNING
