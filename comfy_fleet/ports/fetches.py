"""Which URLs of jobs' inputs are to be fetched, and who does it."""

from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import JobError


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """A URL that one process fetches, for all of an owner's jobs that wait for it.

    Attributes:
        id: Of this owner and this URL.
        token: Proves that the process has it; whoever takes it later gets another one.
        tries: How many times it has failed.
        asset_id: What it gave the last time; empty if that is not known, or gone.
        etag: That file's ``ETag``; empty if it had none.
        modified: Its ``Last-Modified``, likewise.
    """

    id: str
    owner: str
    url: str
    token: str
    tries: int = 0
    asset_id: str = ""
    etag: str = ""
    modified: str = ""


class FetchStore(Protocol):
    """The URLs that are to be fetched. A job's submit adds them.

    A process that has one says so every few seconds (:meth:`beat`); if it dies, another one takes it.
    """

    async def fresh(self, owner: str, url: str) -> str | None:
        """Return the id of the asset that a URL gave a moment ago, if it need not be fetched again yet."""

    async def take(self, *, each: int) -> Fetch | None:
        """Take a URL whose turn it is; owners take turns.

        Args:
            each: How many may be fetched for one owner at the same time, in the whole fleet.
        """

    async def beat(self, fetch: Fetch) -> bool:
        """Keep it for some more seconds; False if it is another process's now."""

    async def done(self, fetch: Fetch, asset: Asset, *, etag: str, modified: str, fresh_s: float) -> None:
        """Give a file to all jobs that wait for it. Those that wait for no other are in their queues then.

        Where a job does not take such a file, it ends ``failed``. If the asset is gone, it will be fetched
        again.
        """

    async def failed(self, fetch: Fetch, error: JobError) -> None:
        """End all jobs that wait for it."""

    async def again(self, fetch: Fetch, *, in_s: float, counts: bool) -> None:
        """Give it back, to be taken again after a while.

        Args:
            fetch: It.
            in_s: After how many seconds.
            counts: Whether this was a try that failed.
        """
