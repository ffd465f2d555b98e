"""Batches of jobs, durable from the moment at which they exist."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from comfy_fleet.domain.jobs.job import NewJob
from comfy_fleet.domain.jobs.job_batch import BatchItem, ItemError, ItemState, JobBatch
from comfy_fleet.domain.webhooks.webhook import Webhook
from comfy_fleet.ports.jobs import Idempotency


@dataclass(frozen=True, kw_only=True)
class StagedItem:
    """An item that was checked: with its job, or with the reasons why it gets none.

    Attributes:
        was: In a retry, the job whose place the new one takes.
    """

    number: int
    custom_id: str
    job: NewJob | None = None
    errors: tuple[ItemError, ...] = ()
    was: str = ""


@dataclass(frozen=True, kw_only=True)
class NewBatch:
    """A batch whose items are staged.

    Attributes:
        jobs: How many of them are to be queued.
        total: How many there are.
        most_waiting: So many items of all batches may wait to be queued.
        webhook: Who is told when the last one has ended.
        quota: What is checked as it begins; None: nothing.
    """

    id: str
    owner: str
    jobs: int
    total: int
    most_waiting: int
    workflow: str = ""
    version: str = ""
    webhook: Webhook | None = None
    quota: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class BatchPage:
    """Some batches, newest first; ``cursor`` continues, None: these are the last."""

    batches: Sequence[JobBatch] = field(default_factory=tuple)
    cursor: str | None = None


@dataclass(frozen=True, kw_only=True)
class Queueing:
    """How far the items of a batch are queued.

    Attributes:
        left: How many still wait for it.
        full: Whether the queue has no room for them now.
    """

    left: int
    full: bool = False


class BatchStore(Protocol):
    """The batches, in Redis."""

    async def stage(self, batch_id: str, items: Sequence[StagedItem]) -> int:
        """Write items of a batch, or of a retry, that does not exist yet; they are kept for an hour.

        Returns:
            How many bytes those take that are to be queued.
        """

    async def discard(self, batch_id: str) -> None:
        """Forget items that were staged in vain."""

    async def begin(self, new: NewBatch, *, idempotency: Idempotency | None) -> str:
        """Let a batch exist, in one step; return its id, or that of the batch that the key has made.

        Raises:
            QueueFull: Too many items of batches wait to be queued.
            LimitReached: A limit of somebody's is used up.
            IdempotencyKeyReuse: The key came with another body.
            Busy: What was staged is no longer there.
        """

    async def begin_retry(self, new: NewBatch, *, list_id: str, idempotency: Idempotency | None) -> bool:
        """Let staged items (``list_id``) of a batch be queued again, in one step.

        Returns:
            False if the same request has done it before with other items: these are not queued.

        Raises:
            NotFound: There is no such batch.
            Conflict: Items of it still wait to be queued.
            FleetError: As :meth:`begin`.
        """

    async def made_by(self, idempotency: Idempotency) -> str | None:
        """Return the id of the batch (of the list, for a retry) that the same body with this key has made.

        Raises:
            IdempotencyKeyReuse: The key came with another body.
        """

    async def queue(self, batch_id: str, *, most: int) -> Queueing:
        """Queue some of the items that wait for it, as far as there is room."""

    async def cancel(self, batch_id: str, *, most: int, marked: bool = False) -> int:
        """Cancel some items, and mark the batch; with ``marked``, only if it is. Return how many are left."""

    async def tend(self, batch_id: str, *, first: int, most: int, ended: bool = False) -> int:
        """Compare items that have not ended, or those that have, with their jobs' records.

        Args:
            first: How many are left out.

        Returns:
            How many were looked at and are still there.
        """

    async def some(self, first: int, limit: int) -> Sequence[str]:
        """Return batches, the oldest first, leaving so many out."""

    async def drop(self, batch_id: str, numbers: Sequence[int]) -> bool:
        """Take items whose jobs are gone, or that had none, out of a batch; return whether it is gone."""

    async def live(self, limit: int) -> Sequence[tuple[str, float]]:
        """Return batches that are not completed, with the time at which they were looked after last."""

    async def busy(self, limit: int) -> Sequence[str]:
        """Return batches with items that are to be queued or canceled; whose turn was longest ago first."""

    async def get(self, batch_id: str) -> JobBatch | None:
        """Return a batch, or None."""

    async def find(self, owners: Collection[str] | None, *, limit: int, cursor: str | None) -> BatchPage:
        """Return some batches of these owners (None: of everybody).

        Raises:
            BadInput: The cursor is not one that was given out.
        """

    async def items(
        self, batch_id: str, states: Collection[ItemState], *, after: BatchItem | None = None, limit: int
    ) -> Sequence[BatchItem]:
        """Return items in some states (none named: in all) behind another one, by state and number."""

    async def last(self, batch_id: str, state: ItemState) -> str | None:
        """Return the job of the last item in a state; None if there is none."""

    async def names(self, batch_id: str, numbers: Sequence[int]) -> Mapping[int, str]:
        """Return what items are called, by their numbers."""

    def events(self, batch_id: str) -> AbstractAsyncContextManager[AsyncIterator[Mapping[str, Any]]]:
        """Yield what happens to a batch from now on: ``item``, ``job`` and ``status`` of an item."""
