"""Cancel all jobs of one owner's."""

from dataclasses import dataclass

from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.jobs import JobStore


@dataclass(frozen=True, kw_only=True)
class CanceledJobs:
    """What became of an owner's jobs.

    Attributes:
        ended: How many waited, and are canceled.
        ending: How many ran, and end within moments.
    """

    ended: int
    ending: int


async def cancel_all(jobs: JobStore, owner: str, *, waiting_only: bool = False) -> CanceledJobs:
    """Cancel the owner's jobs that wait, then those that run; safe to repeat.

    Jobs that are submitted meanwhile may or may not be among them.

    Args:
        jobs: The jobs.
        owner: Whose.
        waiting_only: Whether those that run go on.

    Raises:
        StoreDown: Redis does not answer; some may be canceled.
    """
    live = await jobs.live(owner)
    known = {job.id for job in live}
    ended = await jobs.withdraw(owner, [job.id for job in live if job.status is JobStatus.QUEUED])
    ending = 0
    if not waiting_only:
        # What follows another job ends by itself; a leader that is canceled first would hand its run over.
        for job in sorted(await jobs.live(owner), key=lambda one: not one.follows):
            if job.id not in known:
                continue  # it has just come
            now = await jobs.request_cancel(job.id)
            if now is not None and now.status is JobStatus.CANCELED:
                ended += 1
            elif now is not None and now.status is JobStatus.CANCELING:
                ending += 1
    return CanceledJobs(ended=ended, ending=ending)
