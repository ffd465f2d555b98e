"""Jobs as clients see them: submit, read, list, cancel, watch."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.frames import RawFrame
from comfy_fleet.domain.jobs.job import Job, JobEvent, JobFilter, JobPage, NewJob, Output, OwnerEvent
from comfy_fleet.domain.jobs.output_names import SavedFile
from comfy_fleet.domain.schedule.standing import Standing
from comfy_fleet.domain.schedule.waiting_words import QueuePlace


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """A client's ``Idempotency-Key``.

    Attributes:
        key: As sent, 1 to 255 printable ASCII characters; scoped by ``scope`` (surface and owner).
        fingerprint: Hash of the request body, for surfaces that replay.
        replay: False (Comfy API v2): any reuse is refused. True (REST): the same body gets the same job.
    """

    scope: str
    key: str
    fingerprint: str = ""
    replay: bool = False


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The result of a submit.

    Attributes:
        replayed: Whether an earlier request with this key made the job.
        position: Its place in the queue at that moment; None if not requested.
    """

    job: Job
    replayed: bool = False
    position: int | None = None


@dataclass(frozen=True, kw_only=True)
class Waits:
    """What a job waits for.

    Attributes:
        results_on: The node that has its graph's results; empty if it waits for none.
        results_s: For how many seconds it waits for that node at most.
        place: Where it stands in its queue; None if it stands in none.
        standing: The same in numbers; None if it stands in none, or nothing is known of how long jobs take.
        gathers_s: For how many seconds it waits at most for others to share a prompt with; 0: it does not.
    """

    results_on: str = ""
    results_s: float = 0.0
    place: QueuePlace | None = None
    standing: Standing | None = None
    gathers_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """A job as it is now, with what its record does not have.

    Attributes:
        job: It.
        position: Its 1-based place in the queue, if it waits.
        preview: The latest preview event's data, if it runs.
    """

    job: Job
    position: int | None = None
    preview: Mapping[str, Any] | None = None


class JobStore(Protocol):
    """The jobs, as clients see them. Redis is the only source of truth."""

    async def submit(self, new: NewJob, *, idempotency: Idempotency | None, depth_limit: int) -> Submitted:
        """Write and enqueue a job in one step; when this returns, the job is durable.

        Raises:
            QueueFull: ``depth_limit`` jobs wait already, and the owner's are a tenth of that, or twice as
                many wait; the key stays unused.
            IdempotencyKeyReuse: The key made another job, or (replay) the same key came with another body.
            MissingAsset: An asset that it reads was removed, because it was held too long before.
            EntryEnded: It is what one of RQ's clients enqueued, which was refused or replaced meanwhile.
        """

    async def made_by(self, idempotency: Idempotency) -> str | None:
        """Return the id of the job that a key has made, or None."""

    async def replayed(self, idempotency: Idempotency) -> Submitted | None:
        """Return the job that the same body with this key has made, or None.

        Raises:
            IdempotencyKeyReuse: The same key came with another body.
        """

    async def get(self, job_id: str) -> Job | None:
        """Return the job with outputs, progress and error, or None."""

    async def load(self, ids: Sequence[str]) -> list[Job | None]:
        """Return several jobs as :meth:`get` does."""

    async def briefs(self, ids: Sequence[str]) -> list[Job | None]:
        """Return several jobs as a list shows them, without outputs; None for each that there is not."""

    async def first_outputs(self, ids: Sequence[str], each: int) -> Mapping[str, Sequence[Output]]:
        """Return the first outputs of some jobs, at most so many of each; those without any are left out."""

    async def graph(self, job: Job) -> bytes:
        """Return the graph as submitted.

        Raises:
            NotFound: The job is past its retention.
        """

    async def find(self, wanted: JobFilter) -> JobPage:
        """List jobs, newest first."""

    async def ids(self, owner: str | None, prefix: str) -> list[str]:
        """Return the ids with this prefix among an owner's newest 10,000 jobs (None: everybody's)."""

    async def request_cancel(self, job_id: str, *, running_only: bool = False) -> Job | None:
        """Ask for cancellation: queued jobs end at once, running ones become ``canceling``.

        Args:
            job_id: The job.
            running_only: Whether a queued job is left alone.
        """

    async def withdraw(self, owner: str, job_ids: Sequence[str]) -> int:
        """Cancel those of an owner's jobs that wait, and none that runs; return how many."""

    async def position(self, job: Job) -> int | None:
        """Return the 1-based place in the queue, or None if it does not wait."""

    async def positions(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        """Return the 1-based places in the queue of those of some jobs that wait."""

    async def remove(self, owner: str, job_id: str) -> None:
        """Take a job from its owner: no list and no question finds it any more.

        A job that is being canceled goes at its end. What is left of either, its files included, goes as if
        its retention had ended.

        Raises:
            NotFound: There is no such job of theirs.
            JobLive: It waits or runs: cancel it first.
        """

    async def keep(self, owner: str, job_id: str, *, keep: bool, most: int) -> None:
        """Exempt a job from retention, with its files and the uploads that it uses; or no longer.

        Then its retention begins anew. Uploads stay until their own end, and as long as the job.

        Args:
            owner: Whose job it is.
            job_id: The job.
            keep: Whether it is to be kept.
            most: How many jobs the owner may keep.

        Raises:
            NotFound: There is no such job of theirs, or its retention is over.
            Conflict: As many jobs as allowed are kept.
        """

    async def waits(self, job: Job, *, node: str | None = None) -> Waits:
        """Return what a queued job waits for; nothing for any other.

        Args:
            job: The job.
            node: Of the nodes that can run it, the one that is free first: what loading takes there counts.
        """

    async def depth(self) -> int:
        """Return how many jobs wait."""

    async def snapshot(self, job_id: str) -> JobSnapshot | None:
        """Return a job as it is now; None if there is none, or it is forgotten."""

    async def with_ui(self, job_id: str) -> tuple[Job | None, Mapping[str, Any]]:
        """Return the job as :meth:`get` does, and what the graph's nodes returned for the user interface.

        The latter is unchanged, by node id. ComfyUI tells it in ``executed`` and in its history: files by
        their names there, texts, and whatever else a node pack makes up. A node that hands over more than a
        job may keep is missing (:mod:`comfy_fleet.domain.jobs.raw_ui`). Empty until the prompt has left its
        node.
        """

    async def by_prompt(self, owner: str, prompt_id: str) -> str | None:
        """Return the id of the owner's newest job that its client calls so, or None.

        Only ids that a client chose are found; otherwise a prompt's id is the job's.
        """

    async def live(self, owner: str) -> Sequence[Job]:
        """Return the owner's jobs that are not final, as lists show them: those that run, then by number."""

    async def live_count(self, owner: str) -> int:
        """Return how many of the owner's jobs are not final."""

    async def made_since(self, owner: str, client_id: str, since: float) -> Sequence[str]:
        """Return the ids of a client's jobs since a time in Unix seconds, the oldest first.

        Among the owner's newest 10,000 jobs.
        """

    async def hide(self, owner: str, job_ids: Sequence[str]) -> int:
        """Delete final jobs of the owner's from ComfyUI's history, and from nothing else; return how many."""

    async def saved(self, owner: str, file: SavedFile) -> Asset | None:
        """Return the file that an owner's job saved under this name, or None.

        A 3D file is found in either folder, because what shows it does not say which it is in.
        """

    async def saved_files(self, owner: str, type_: str, *, limit: int) -> Sequence[tuple[str, float]]:
        """Return name and Unix seconds of an owner's newest files in a folder, the newest first.

        Args:
            owner: Whose.
            type_: The folder, ``output`` or ``temp``; files in its subfolders are not listed.
            limit: Most that are returned.
        """


class JobsAtBothEnds(Protocol):
    """The jobs that a look at the whole fleet shows."""

    async def briefs(self, ids: Sequence[str]) -> list[Job | None]:
        """Return several jobs as a list shows them, without outputs; None for each that there is not."""

    async def first_waiting(self, most: int) -> Sequence[str]:
        """Return the ids of so many jobs at the front of the queue, by submit and priority."""

    async def last_ended(self, most: int) -> Sequence[str]:
        """Return the ids of the jobs that ended last, the latest first; 200 at most are known."""

    async def waits(self, job: Job, *, node: str | None = None) -> Waits:
        """Return what a queued job waits for; see :meth:`JobStore.waits`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFrame:
    """A frame of one of a client's jobs."""

    job_id: str
    frame: RawFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTaken:
    """A client has a new websocket; earlier ones with its id get nothing more."""

    client_id: str
    socket: str


class ClientFeed(Protocol):
    """What happens to an owner's jobs, and frames of those whose clients are followed, in their order.

    It is quick and may lose something: the record is the truth.

    Attributes:
        lost: Whether something may have been left out: it was not taken in time, or the connection broke.
            Whoever reads it resets it.
    """

    lost: bool

    async def follow(self, client_id: str) -> None:
        """Follow a client; in force when this returns. Frames of its jobs come from their first on."""

    async def unfollow(self, client_id: str) -> None:
        """Follow a client no longer."""

    async def news(self) -> list[OwnerEvent | ClientFrame | ClientTaken]:
        """Wait for news, or for a loss, and return all there are."""


class Events(Protocol):
    """Live events. They are quick and may be lost; the record is the truth."""

    def subscribe(self, job_id: str) -> AbstractAsyncContextManager[AsyncIterator[JobEvent]]:
        """Yield the job's events from now on; subscribe first, then read the record."""

    def frames(self, job_id: str) -> AbstractAsyncContextManager[AsyncIterator[RawFrame]]:
        """Yield what the nodes of the job's runs send over their websockets, from now on.

        A frame that is too large, or beyond what one run may send in a second, is missing; so are the oldest
        for a slow reader. After a take-over no more of that run's come.
        """

    def clients(self, owner: str) -> AbstractAsyncContextManager[ClientFeed]:
        """Yield a feed of an owner's jobs, which follows no client yet.

        Of jobs that are no client's it has ``progress_state`` and text frames.
        """

    async def want_frames(self, job_ids: Iterable[str]) -> None:
        """Ask for the frames of jobs that run already: their newest state, and what comes."""

    async def take_client(self, owner: str, client_id: str, socket: str) -> None:
        """Tell all processes which websocket is a client's from now on."""


class Replays(Protocol):
    """What requests with an ``Idempotency-Key`` came to, kept for 24 h: REST's answers, and uploads.

    A submit is written in one step with its key and needs no mark; an upload has one while it goes on.
    """

    async def begin(self, scope: str, key: str) -> bool:
        """Mark a key as in progress; False if another request has marked it."""

    async def recall(self, scope: str, key: str) -> tuple[str, bytes] | None:
        """Return fingerprint and body of an earlier answer."""

    async def end(self, scope: str, key: str, *, answer: tuple[str, bytes] | None) -> None:
        """Remove the mark; store the answer, if there is one, unless another is kept already."""
