"""The inbox of RQ's own clients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from comfy_fleet.domain.jobs.job import Progress
from comfy_fleet.domain.jobs.rq_entry import RqEntry


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What there is to do.

    Attributes:
        turn: Whether this process looks after the inbox.
        idle: Whether there is nothing in it.
        more: Whether there may be more new entries.
        dropped: Ids of entries that can't be told of anything, and why.
        entries: Entries to check.
    """

    turn: bool = True
    idle: bool = False
    more: bool = False
    dropped: Sequence[tuple[str, str]] = ()
    entries: Sequence[RqEntry] = ()


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be done for a live job.

    Attributes:
        what: ``cancel``: its client wishes it; ``ended``: RQ is to be told; ``progress``: the same.
        entry: The entry; of ``fields``, one that has ended has all but ``data``, progress has ``meta``.
        stopped: Whether RQ's command has stopped it.
        progress: The progress; None if it can't be read.
        noted: The same as it is stored.
    """

    what: str
    entry: RqEntry
    stopped: bool = False
    progress: Progress | None = None
    noted: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Callback:
    """A call for a client's own workers: ``function(*args)`` in their queue."""

    queue: str
    function: str
    args: Sequence[Any]
    timeout_s: int


class RqInbox(Protocol):
    """What RQ's clients enqueue, and what they are told."""

    async def waiting(self) -> int:
        """Return how many entries are in RQ's list, those included that only show what waits."""

    async def take(self, *, new: bool, most_data: int) -> Taken:
        """Take entries, or, without ``new``, return only those that were taken before.

        Args:
            new: Whether new ones are taken.
            most_data: Bytes of data that are read of one.

        Raises:
            Outdated: A newer version works on this Redis.
            StoreDown: No answer.
        """

    async def changes(self) -> Sequence[Change]:
        """Compare RQ's records of live jobs with the fleet's, and return what is to be done."""

    async def end(
        self,
        entry: RqEntry,
        status: str,
        *,
        checked: bool = False,
        ttl_s: int,
        result: Mapping[str, Any] | None = None,
        why: str = "",
        callback: Callback | None = None,
    ) -> None:
        """Tell RQ of an entry's end, and enqueue what waited for it; safe to repeat.

        Args:
            entry: The entry.
            status: RQ's: ``finished``, ``failed``, ``stopped`` or ``canceled``.
            checked: Whether the entry was only checked. Nothing is told if another process has made a job
                of it meanwhile.
            ttl_s: How long RQ keeps it; negative: for ever.
            result: The return value.
            why: The exception's text.
            callback: What is called then.
        """

    async def progress(self, change: Change, meta: bytes) -> None:
        """Write a live job's progress into its client's meta, unless the client has just changed it."""
