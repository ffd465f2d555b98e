"""Remove a batch with its jobs and their files."""

import asyncio

from comfy_fleet.domain.errors import FleetError, NotFound
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.jobs.job_batch import JobBatch
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.batches import BatchStore
from comfy_fleet.ports.jobs import JobStore

PAGE = 100
AT_ONCE = 8


class BatchRemoval:
    """Removes batches that have ended, or are being canceled.

    Args:
        store: The batches.
        jobs: Their jobs.
        assets: The jobs' outputs.
    """

    def __init__(self, store: BatchStore, jobs: JobStore, assets: AssetStore) -> None:
        self._store = store
        self._jobs = jobs
        self._assets = assets

    async def remove(self, batch: JobBatch) -> int:
        """Remove a batch, its jobs and those that they repeat; return how many jobs. Safe to repeat.

        Raises:
            JobLive: One of its jobs waits or runs.
        """
        turns, count, last = asyncio.Semaphore(AT_ONCE), 0, None

        async def one(job: Job) -> None:
            async with turns:
                await self._remove(job)

        while items := await self._store.items(batch.id, (), after=last, limit=PAGE):
            last = items[-1]
            jobs = await self._with_earlier([item.job_id for item in items if item.job_id], batch.id)
            await asyncio.gather(*map(one, jobs))
            count += len(jobs)
            if await self._store.drop(batch.id, [item.number for item in items]):
                break
        return count

    async def _with_earlier(self, ids: list[str], batch_id: str) -> list[Job]:
        """Return jobs, and those of the same batch that they repeat."""
        found: list[Job] = []
        while ids:
            jobs = [job for job in await self._jobs.load(ids) if job is not None and job.batch_id == batch_id]
            found += (job for job in jobs if not job.removed)
            ids = [job.retry_of for job in jobs if job.retry_of]
        return found

    async def _remove(self, job: Job) -> None:
        try:
            await self._jobs.remove(job.owner, job.id)
        except NotFound:  # another request has removed it
            return
        if job.status.terminal:
            try:
                await self._assets.forget_job(job.id)
            except FleetError:  # dispatchers do it later
                return
