"""Jobs whose outputs wait for a store, durable from the step that ended them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.stores.output_plan import OutputPlace, StoredObject


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A job whose outputs are to be put into its store by whoever has this.

    Attributes:
        token: Shows that it is still theirs.
        fails: How many looks at the store have failed in a row.
    """

    job_id: str
    store: str
    token: str
    fails: int = 0


@dataclass(frozen=True, kw_only=True)
class StoreTraffic:
    """How a store's transfers stand.

    Attributes:
        waiting: Jobs with outputs that wait for it.
        bytes: How many bytes these are.
        failed: Jobs with outputs that were given up.
        error: Why it takes nothing now; empty: it does, as far as is known.
        since: Since when, in Unix seconds.
    """

    waiting: int = 0
    bytes: int = 0
    failed: int = 0
    error: str = ""
    since: float | None = None


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """An object that is to be deleted, because its job is.

    Attributes:
        job_id: Whose it was.
        since: Since when, in Unix seconds, as it was written.
    """

    store: str
    job_id: str
    key: str
    since: str


class Transfers(Protocol):
    """The queues of all stores, in Redis."""

    def wakes(self) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Yield something whenever a transfer begins."""

    async def take(self, *, most: int, each: int, lease_s: float) -> Sequence[Transfer]:
        """Take transfers that are due, each for a while; of a store at most ``each`` at a time."""

    async def note(
        self, one: Transfer, stored: Mapping[OutputPlace, StoredObject], *, lease_s: float
    ) -> bool:
        """Note what has become of outputs, and keep a transfer; False if it is somebody else's by now."""

    async def end(self, one: Transfer) -> None:
        """Nothing of it waits any more, and its store is well."""

    async def again(
        self,
        one: Transfer,
        error: str,
        *,
        after_s: float = 0.0,
        counts: bool = False,
        pause_s: float | None = None,
        most_age_s: float,
    ) -> int:
        """Leave what is left for another try; return how many transfers were given up.

        Args:
            one: It.
            error: Why.
            after_s: When it is tried again, at the earliest.
            counts: Whether this was a try of its own, and not one of its store.
            pause_s: For how long its store is left alone; None: the store is well.
            most_age_s: What has waited for so long is given up if the store has failed for so long.
        """

    async def tries(self, job_id: str) -> int:
        """Return how many tries of a job's own there were."""

    async def retry(self, job_id: str, owner: str | None) -> str:
        """Begin again with what was given up; return ``none``, ``waits``, ``nothing`` or ``ok``."""

    async def given_up(self, store: str, limit: int) -> Sequence[str]:
        """Return jobs with outputs that were given up, the oldest first."""

    async def traffic(self, stores: Sequence[str]) -> Mapping[str, StoreTraffic]:
        """Return how some stores' transfers stand."""

    async def waiting_bytes(self) -> int:
        """Return how many bytes wait for any store."""

    async def erasures(self, *, most: int, lease_s: float) -> Sequence[Erasure]:
        """Take objects that are to be deleted; what is not noted as erased is given out again later."""

    async def erase(self, one: Erasure) -> None:
        """Have an object deleted."""

    async def erased(self, one: Erasure) -> None:
        """Note that nothing is left to be done for an object."""

    async def tend(self) -> int:
        """Begin what an earlier version beside this one has left out; return how many."""
