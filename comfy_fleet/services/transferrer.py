"""Puts outputs into stores: any number of processes do, and none of them leads."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import Busy, FleetError, ObjectError, StoreDown
from comfy_fleet.domain.jobs.job import Job, Output
from comfy_fleet.domain.jobs.stored_outputs import place_of
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.domain.stores.named_store import NamedStore
from comfy_fleet.domain.stores.output_plan import (
    JOB_LABEL,
    OutputPlan,
    StoredObject,
    StoreState,
    object_metadata,
)
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.stores import ObjectSource, ObjectStorage
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.ports.transfers import Erasure, Transfer, Transfers
from comfy_fleet.services.output_forms import QUALITY, OutputForm
from comfy_fleet.services.picture_forms import NoSuchForm
from comfy_fleet.services.picture_work import PictureWork
from comfy_fleet.services.store_book import StoreBook
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

ALONE_S = (2.0, 10.0, 60.0)
"""Pauses before the tries of an object that its store does not take, while it takes others."""
BUSY_S = 2.0
"""Until a picture is tried again for whose conversion there was no turn."""
AWAY = Backoff(first_s=1.0, longest_s=60.0)
"""Pauses of a store that fails: quick ones first."""
CONVERTER = "stores"
"""Who asks for conversions: they take turns with those that people wait for, all together as one."""


@dataclass(frozen=True, kw_only=True)
class TransferLimits:
    """How much one process does at once; times in seconds.

    Attributes:
        at_once: Transfers that it works on.
        each: Those of one store, from all processes together.
        lease_s: After this long without a sign, others may take a transfer.
        look_s: How often it looks for what is due, besides being told.
        tend_s: How often it looks for what earlier versions beside it left out.
        patience_s: For how long a store may fail before what waits for it is given up.
    """

    at_once: int = 8
    each: int = 16
    lease_s: float = 60.0
    look_s: float = 1.0
    tend_s: float = 60.0
    patience_s: float = 259_200.0


class Transferrer:
    """Takes transfers that are due, puts their outputs into stores, and notes what came of it.

    Args:
        transfers: The queues.
        jobs: Reads jobs.
        assets: Where their files are.
        book: The stores.
        objects: Asks them.
        pictures: Converts pictures.
        telemetry: Told what came of each output.
        limits: How much at once.
    """

    def __init__(
        self,
        *,
        transfers: Transfers,
        jobs: JobStore,
        assets: AssetStore,
        book: StoreBook,
        objects: ObjectStorage,
        pictures: PictureWork,
        telemetry: Telemetry,
        limits: TransferLimits,
    ) -> None:
        self._transfers = transfers
        self._jobs = jobs
        self._assets = assets
        self._book = book
        self._objects = objects
        self._pictures = pictures
        self._telemetry = telemetry
        self._limits = limits
        self._working: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Put into stores what is due, until canceled."""
        others = [
            start(self._listen(), name="transfers are due"),
            start(self._tend(), name="transfers of earlier versions"),
        ]
        try:
            while True:
                self._look.clear()
                try:
                    await self._take()
                except StoreDown as error:
                    logger.warning("transfers wait for Redis", extra={"error": str(error)})
                with contextlib.suppress(TimeoutError):
                    async with Timeout(self._limits.look_s):
                        await self._look.wait()
        finally:
            for task in (*others, *self._working):
                task.cancel()
            await asyncio.gather(*others, *self._working, return_exceptions=True)

    async def _take(self) -> None:
        free = self._limits.at_once - len(self._working)
        if free <= 0:
            return
        taken = await self._transfers.take(most=free, each=self._limits.each, lease_s=self._limits.lease_s)
        for one in taken:
            task = start(self._work(one), name="transfer")
            self._working.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._look.set()

    async def _work(self, one: Transfer) -> None:
        about = {"job_id": one.job_id, "store": one.store}
        beat = start(self._beat(one), name="a transfer's lease")
        try:
            await self._put_all(one)
        except StoreDown as error:  # it is taken again, and what was written counts as written
            logger.warning("transfer waits for Redis", extra={**about, "error": str(error)})
        except Exception:  # one job that can't be read holds nothing else up
            logger.exception("transfer failed", extra=about)
            with contextlib.suppress(FleetError):
                await self._again(one, "the fleet could not do this: see its log", counts=True, after_s=60.0)
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)

    async def _put_all(self, one: Transfer) -> None:
        job = await self._jobs.get(one.job_id)
        if job is None or job.output is None:
            await self._transfers.end(one)
            return
        store = (await self._book.all()).get(one.store) or (await self._book.all(fresh=True)).get(one.store)
        tries = await self._transfers.tries(one.job_id)
        later = ""
        for output in job.outputs:
            found = job.stored_of(output)
            if found is None or found.state is not StoreState.WAITING:
                continue
            try:
                last = tries >= len(ALONE_S)
                made = await self._try(one, job, job.output, store, output, found.key, last=last)
            except Busy as error:
                await self._again(one, error.message, after_s=BUSY_S)
                return
            except ObjectError as error:
                if not error.alone:
                    self._tell(one, "away", error.message)
                    await self._again(one, error.message, pause_s=AWAY.pause_s(one.fails + 1))
                    return
                later = error.message
                continue
            # If this is not noted, somebody else has it, or its owner has deleted the job.
            if not await self._transfers.note(one, {place_of(output): made}, lease_s=self._limits.lease_s):
                await self._undo(one, store, made)
                return
        if later:
            self._tell(one, "again", later)
            await self._again(one, later, counts=True, after_s=ALONE_S[tries])
        else:
            await self._transfers.end(one)

    async def _try(
        self,
        one: Transfer,
        job: Job,
        plan: OutputPlan,
        store: NamedStore | None,
        output: Output,
        key: str,
        *,
        last: bool,
    ) -> StoredObject:
        """Put an output into its store; return what has become of it for good.

        Raises:
            ObjectError: It is to be tried again.
            Busy: Its conversion has to wait, or the fleet has no room for it, or Redis does not answer.
        """
        if store is None:
            return self._failed(one, key, f"there is no store {one.store} any more")
        if not store.serves(job.tenant or DEFAULT_TENANT):  # it was allowed when the job was submitted
            return self._failed(one, key, f"the job's tenant may not use store {one.store} any more")
        try:
            await self._put(job, plan, store, output, key)
        except ObjectError as error:
            if error.alone and (last or not error.retryable):
                return self._failed(one, key, error.message)
            raise
        except NoSuchForm as error:
            return self._failed(one, key, str(error))
        except FileNotFoundError:
            return self._failed(one, key, "its file was deleted")
        except Busy:
            raise
        except Exception:  # its job must end nevertheless, and so must its batch
            about = {"job_id": one.job_id, "store": one.store}
            logger.exception("output not stored for a reason of the fleet's", extra=about)
            why = "the fleet could not do this: see its log"
            if last:
                return self._failed(one, key, why)
            raise ObjectError(why, alone=True) from None
        self._telemetry.stored("stored", output.size_bytes)
        return StoredObject(store=one.store, key=key, state=StoreState.STORED, url=store.url_of(key))

    async def _undo(self, one: Transfer, store: NamedStore | None, made: StoredObject) -> None:
        """Delete an object that was written while its job was being deleted."""
        if store is None or made.state is not StoreState.STORED:
            return
        job = await self._jobs.get(one.job_id)
        if job is not None and not job.removed:
            return
        try:
            if await self._objects.holds(store, made.key, metadata={JOB_LABEL: one.job_id}):
                await self._objects.delete(store, made.key)
        except ObjectError:
            # Tried again where objects go with their jobs; elsewhere it stays, as what was there before.
            since = f"{time.time():.3f}"
            await self._transfers.erase(
                Erasure(store=one.store, job_id=one.job_id, key=made.key, since=since)
            )

    def _failed(self, one: Transfer, key: str, why: str) -> StoredObject:
        self._tell(one, "failed", why)
        return StoredObject(store=one.store, key=key, state=StoreState.FAILED, error=why)

    async def _put(self, job: Job, plan: OutputPlan, store: NamedStore, output: Output, key: str) -> None:
        asset = await self._assets.get(output.asset_id)
        if asset is None:
            raise FileNotFoundError
        kind = plan.converts(output.kind, output.content_type)
        metadata = object_metadata(job.id, output.hash)
        replaces = plan.on_conflict == "replace"
        if kind:
            form = OutputForm(
                kind=kind,
                quality=plan.quality or QUALITY,
                width=plan.width or None,
                keeps=plan.metadata == "keep",
            )
            made = await self._pictures.rendered(asset, form, by=CONVERTER)
            try:
                source = ObjectSource(
                    content=made.data, size=len(made.data), content_type=form.content_type, metadata=metadata
                )
                await self._objects.put(store, key, source, replace=replaces)
            finally:
                made.done()
            return
        path = await self._assets.file(asset)
        if path is None:
            raise FileNotFoundError
        source = ObjectSource(
            content=path, size=asset.size_bytes, content_type=output.content_type, metadata=metadata
        )
        await self._objects.put(store, key, source, replace=replaces)

    async def _again(
        self,
        one: Transfer,
        error: str,
        *,
        after_s: float = 0.0,
        counts: bool = False,
        pause_s: float | None = None,
    ) -> None:
        given_up = await self._transfers.again(
            one,
            error,
            after_s=after_s,
            counts=counts,
            pause_s=pause_s,
            most_age_s=self._limits.patience_s,
        )
        if given_up:
            logger.error("transfers given up", extra={"store": one.store, "count": given_up, "reason": error})

    def _tell(self, one: Transfer, outcome: str, why: str) -> None:
        about = {"job_id": one.job_id, "store": one.store, "outcome": outcome, "reason": why}
        logger.warning("output not stored", extra=about)
        self._telemetry.stored(outcome, 0)

    async def _beat(self, one: Transfer) -> None:
        while True:
            await asyncio.sleep(self._limits.lease_s / 4)
            with contextlib.suppress(StoreDown):
                await self._transfers.note(one, {}, lease_s=self._limits.lease_s)

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(StoreDown):
                async with self._transfers.wakes() as wakes:
                    async for _ in wakes:
                        self._look.set()
            await asyncio.sleep(1.0)

    async def _tend(self) -> None:
        while True:
            try:
                if begun := await self._transfers.tend():
                    logger.info("transfers begun for an earlier version", extra={"count": begun})
            except FleetError as error:
                logger.warning("transfers of earlier versions not looked for", extra={"error": str(error)})
            await asyncio.sleep(self._limits.tend_s)
