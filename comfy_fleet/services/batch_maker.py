"""Make batches, and run items of them again: all is checked and written first, then it exists at once.

What is checked is staged in the store, some items at a time: a process that dies meanwhile leaves nothing
that anybody sees, and memory does not grow with what a batch holds.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from comfy_fleet.domain.errors import BadInput, Conflict, FleetError, InvalidBatch, StoreDown
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.jobs.job import Job, NewJob
from comfy_fleet.domain.jobs.job_batch import MOST_SHOWN, BatchItem, ItemError, ItemState, JobBatch
from comfy_fleet.domain.limits import ScopedLimits, script_quota
from comfy_fleet.domain.moderation import ContentRefused
from comfy_fleet.domain.webhooks.webhook import Webhook
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.batches import BatchStore, NewBatch, StagedItem
from comfy_fleet.ports.jobs import Idempotency, JobStore
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.retrying import Retry, Retrying

STAGED_AT_ONCE = 50
CHECKED_AT_ONCE = 8
HELD_S = 7200
"""For so long files are held for a batch that has not begun; then until all of it is queued."""
MOST_BYTES = 256 * 1024 * 1024
"""Bytes of a batch's items as they wait to be queued, with their graphs."""
TOLD_AT_ONCE = 100
PAGE = 100


@dataclass(frozen=True, kw_only=True)
class PlannedItem:
    """An item as it was sent.

    Attributes:
        number: Its place, from 0.
        line: Where it is in a file with a line for each; 0: there is none.
        make: Checks it and returns its job; None: it can't be taken, ``errors`` say why.
        was: In a retry, the job whose place the new one takes.
    """

    number: int
    custom_id: str
    make: Callable[[], Awaitable[NewJob]] | None
    errors: tuple[ItemError, ...] = ()
    line: int = 0
    was: str = ""


@dataclass(frozen=True, kw_only=True)
class AskedBatch:
    """What is asked of a batch, besides its items.

    Attributes:
        partial: Whether it is made without the items that can't be taken.
        quotas: The limits of who asks.
        workflow: The stored workflow of all items; None: each has a graph of its own.
    """

    partial: bool = False
    webhook: Webhook | None = None
    idempotency: Idempotency | None = None
    quotas: tuple[ScopedLimits, ...] = ()
    workflow: Workflow | None = None


@dataclass(kw_only=True)
class StagedBatch:
    """What was staged of a batch."""

    id: str
    jobs: int = 0
    refused: int = 0
    errors: list[ItemError] = field(default_factory=list)
    more: int = 0
    size: int = 0
    held: set[str] = field(default_factory=set)
    told: list[tuple[str, str | None, int, str | None, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many items there are."""
        return self.jobs + self.refused

    def check(self, *, partial: bool) -> None:
        """Raise InvalidBatch if items can't be taken; with ``partial`` only if none can."""
        if self.refused and (not partial or not self.jobs):
            raise refusal(self.errors, self.more, refused=self.refused, total=self.total)

    def refuse(self, errors: Sequence[ItemError]) -> None:
        """Note an item that can't be taken."""
        self.refused += 1
        room = MOST_SHOWN - len(self.errors)
        self.errors += errors[:room]
        self.more += max(0, len(errors) - room)


@dataclass(frozen=True, kw_only=True)
class MadeBatch:
    """A batch that exists.

    Attributes:
        errors: Why items were left out, the first of them; of ``more`` there are no details.
        jobs: How many are to be queued; 0 for a replay.
    """

    id: str
    jobs: int = 0
    errors: Sequence[ItemError] = ()
    more: int = 0
    replayed: bool = False


class BatchMaker:
    """Makes batches.

    Args:
        store: The batches.
        jobs: Reads the jobs that are run again.
        assets: Files are held for what is to be queued.
        retrying: Makes jobs that repeat others.
        telemetry: Is told of each job.
        most_waiting: So many items of all batches may wait to be queued.
        retry_after: Estimates the whole seconds until a full queue has room.
        wake: Called when a batch has begun.
    """

    def __init__(
        self,
        *,
        store: BatchStore,
        jobs: JobStore,
        assets: AssetStore,
        retrying: Retrying,
        telemetry: Telemetry,
        most_waiting: int,
        retry_after: Callable[[], Awaitable[int]],
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._assets = assets
        self._retrying = retrying
        self._telemetry = telemetry
        self._most_waiting = most_waiting
        self._retry_after = retry_after
        self._wake = wake

    async def make(self, owner: str, items: AsyncIterator[PlannedItem], asked: AskedBatch) -> MadeBatch:
        """Make a batch.

        Raises:
            InvalidBatch: Items can't be taken.
            QueueFull: Too many items of batches wait to be queued.
            LimitReached: A limit of somebody's is used up.
            FleetError: What concerns all items: see :meth:`Submitter.graph`.
        """
        staged = StagedBatch(id=str(uuid4()))
        try:
            await self._stage(staged, staged.id, owner, items)
            staged.check(partial=asked.partial)
            workflow = asked.workflow
            made = await self._store.begin(
                NewBatch(
                    id=staged.id,
                    owner=owner,
                    jobs=staged.jobs,
                    total=staged.total,
                    most_waiting=self._most_waiting,
                    workflow=workflow.name if workflow else "",
                    version=workflow.version if workflow else "",
                    webhook=asked.webhook,
                    quota=script_quota(asked.quotas),
                ),
                idempotency=asked.idempotency,
            )
        except BaseException as error:
            await self._give_up(staged, error)
            raise
        if made != staged.id:
            await self._forget(staged)
            return MadeBatch(id=made, replayed=True)
        await self._begun(staged, owner)
        return MadeBatch(id=made, jobs=staged.jobs, errors=staged.errors, more=staged.more)

    async def retry(
        self,
        batch: JobBatch,
        states: Collection[ItemState],
        how: Callable[[Job], Retry],
        asked: AskedBatch,
    ) -> MadeBatch:
        """Run items in these states again, under the same names.

        Raises:
            InvalidBatch: Some can't be run again, and ``partial`` is not asked for.
            Conflict: Items of the batch still wait to be queued.
            FleetError: As :meth:`make`.
        """
        staged = StagedBatch(id=str(uuid4()))
        try:
            await self._stage(staged, batch.id, batch.owner, self._again(batch, states, how))
            staged.check(partial=asked.partial)
            begun = True
            if staged.jobs:
                begun = await self._store.begin_retry(
                    NewBatch(
                        id=batch.id,
                        owner=batch.owner,
                        jobs=staged.jobs,
                        total=batch.total,
                        most_waiting=self._most_waiting,
                        quota=script_quota(asked.quotas),
                    ),
                    list_id=staged.id,
                    idempotency=asked.idempotency,
                )
        except BaseException as error:
            await self._give_up(staged, error)
            raise
        if not begun:
            await self._forget(staged)
            return MadeBatch(id=batch.id, replayed=True)
        await self._begun(staged, batch.owner)
        return MadeBatch(id=batch.id, jobs=staged.jobs, errors=staged.errors, more=staged.more)

    async def _again(
        self, batch: JobBatch, states: Collection[ItemState], how: Callable[[Job], Retry]
    ) -> AsyncIterator[PlannedItem]:
        last = None
        while items := await self._store.items(batch.id, states, after=last, limit=PAGE):
            last = items[-1]
            jobs = await self._jobs.load([one.job_id for one in items])
            for item, job in zip(items, jobs, strict=True):
                yield self._repeated(item, job, how)

    def _repeated(self, item: BatchItem, job: Job | None, how: Callable[[Job], Retry]) -> PlannedItem:
        if job is None or job.removed:
            error = ItemError(
                item=item.number,
                custom_id=item.custom_id,
                field="job_id",
                code="not_found",
                message=f"job {item.job_id} is past its retention",
            )
            return PlannedItem(
                number=item.number, custom_id=item.custom_id, make=None, errors=(error,), was=item.job_id
            )

        async def make(job: Job = job) -> NewJob:
            return await self._retrying.new_job(job, how(job))

        return PlannedItem(number=item.number, custom_id=item.custom_id, make=make, was=item.job_id)

    async def _stage(
        self, staged: StagedBatch, batch_id: str, owner: str, items: AsyncIterator[PlannedItem]
    ) -> None:
        turns = asyncio.Semaphore(CHECKED_AT_ONCE)
        some: list[PlannedItem] = []

        async def checked(item: PlannedItem) -> StagedItem:
            async with turns:
                return await self._checked(staged, batch_id, owner, item)

        async def write() -> None:
            found = await asyncio.gather(*map(checked, some))
            for one in found:
                if one.job is None:
                    staged.refuse(one.errors)
                else:
                    staged.jobs += 1
                    new = one.job  # texts only: the garbage collector would walk through thousands of jobs
                    assets = " ".join(new.assets)
                    staged.told.append((new.id, new.workflow, new.priority, new.traceparent, assets))
            kept = [one for one in found if one.job is not None or not one.was]
            staged.size += await self._store.stage(staged.id, kept)
            if staged.size > MOST_BYTES:
                raise _too_large(staged)
            some.clear()

        async for item in items:
            some.append(item)
            if len(some) == STAGED_AT_ONCE:
                await write()
        if some:
            await write()

    async def _checked(self, staged: StagedBatch, batch_id: str, owner: str, item: PlannedItem) -> StagedItem:
        errors = item.errors
        if item.make is not None:
            try:
                place = f"{batch_id} {item.number} {item.custom_id}"
                new = replace(await item.make(), quota=None, in_batch=place)
                if ids := new.assets - staged.held:
                    await self._hold(staged, owner, ids)
                return StagedItem(number=item.number, custom_id=item.custom_id, job=new, was=item.was)
            except (BadInput, ContentRefused, Conflict) as error:
                errors = item_errors(item, error)
        return StagedItem(number=item.number, custom_id=item.custom_id, errors=errors, was=item.was)

    async def _hold(self, staged: StagedBatch, owner: str, ids: Collection[str]) -> None:
        staged.held.update(ids)
        try:
            await self._assets.hold(owner=owner, asset_ids=sorted(ids), job_id=staged.id, seconds=HELD_S)
        except FleetError:
            staged.held.difference_update(ids)
            raise

    async def _begun(self, staged: StagedBatch, owner: str) -> None:
        self._wake()
        for number, (job_id, workflow, priority, traceparent, assets) in enumerate(staged.told):
            if number % TOLD_AT_ONCE == 0:
                await asyncio.sleep(0)
            self._telemetry.submitted(
                NewJob(
                    id=job_id,
                    owner=owner,
                    graph=b"",
                    graph_hash="",
                    created_at=0.0,
                    expires_in_s=0.0,
                    workflow=workflow,
                    priority=priority,
                    traceparent=traceparent,
                    assets=frozenset(assets.split()),
                )
            )

    async def _give_up(self, staged: StagedBatch, error: BaseException) -> None:
        if isinstance(error, StoreDown):
            return  # it may have begun; if not, all that was staged goes in an hour
        await self._forget(staged)
        if getattr(error, "code", "") in ("queue_full", "limit_reached") and not getattr(
            error, "estimated", False
        ):
            error.retry_after_s = await self._retry_after()  # type: ignore[attr-defined]

    async def _forget(self, staged: StagedBatch) -> None:
        await self._store.discard(staged.id)
        if staged.held:
            await self._assets.release(asset_ids=sorted(staged.held), job_id=staged.id)


def _too_large(staged: StagedBatch) -> InvalidBatch:
    return InvalidBatch(
        f"the first {staged.total} items with their graphs are larger than {MOST_BYTES >> 20} MiB: send "
        "fewer items at a time",
        details={"field": "items", "limit": MOST_BYTES, "value": staged.size},
    )


def item_errors(item: PlannedItem, error: FleetError) -> tuple[ItemError, ...]:
    """Return what is wrong with an item, each fault by itself."""
    faults = error.details.get("errors")
    rows = [one for one in faults if isinstance(one, dict)] if isinstance(faults, list) else []
    told = [
        (f"params.{one['parameter']}", str(one.get("message", error)))
        for one in rows
        if isinstance(one.get("parameter"), str)
    ]
    field_ = error.details.get("field") or error.details.get("parameter") or "params"
    return tuple(
        ItemError(
            item=item.number,
            custom_id=item.custom_id,
            line=item.line,
            field=name[:200],
            code=error.code,
            message=message[:500],
        )
        for name, message in told[:20] or [(str(field_), str(error))]
    )


def refusal(errors: Sequence[ItemError], more: int, *, refused: int, total: int) -> InvalidBatch:
    """Return the error for a batch with items that can't be taken."""
    first = errors[0]
    line = [f"line {first.line}"] if first.line else []
    name = [f"item {first.custom_id!r}"] if first.custom_id else [] if line else [f"items[{first.item}]"]
    says_field = first.message.startswith(first.field)
    where = ", ".join([*line, *name, first.message if says_field else f"{first.field}: {first.message}"])
    rest = len(errors) - 1 + more
    also = f"; and {rest} more" if rest else ""
    return InvalidBatch(
        f"{refused} of {total} items can't be taken, so none is queued: {where}{also}",
        details={
            "field": first.field,
            "errors": [one.shown() for one in errors],
            "more": more,
            "refused": refused,
            "total": total,
        },
    )
