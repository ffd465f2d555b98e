"""Observers of what happens to jobs and runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.jobs.job import JobError, JobStatus, NewJob
from comfy_fleet.ports.runs import Claim


@dataclass(frozen=True, kw_only=True)
class EndedJob:
    """A job that no run has ended.

    Attributes:
        job_id: The job.
        status: Its final state.
        workflow: Its stored workflow; None: it was submitted as a graph.
        tenant: Its owner's tenant; empty: the default one.
        total_s: Seconds from its submit.
        error: Why, unless it was canceled.
        followed: Whether it waited for an equal job's run, and shares its end.
    """

    job_id: str
    status: JobStatus
    workflow: str | None
    total_s: float
    tenant: str = ""
    error: JobError | None = None
    followed: bool = False


class Telemetry(Protocol):
    """Observes what happens to jobs and runs. The code that makes something happen calls it.

    The caller waits, so every method must return at once. Exceptions do not harm the job
    (:class:`comfy_fleet.adapters.telemetry.Observers` catches them).
    """

    def submitted(self, new: NewJob) -> None:
        """A job is durable. Not called for a repeated request that got the earlier job."""

    def claimed(self, claim: Claim) -> None:
        """A job was claimed for a node."""

    def posted(self, claim: Claim) -> None:
        """The node has accepted the prompt."""

    def left(self, claim: Claim, *, busy_s: float) -> None:
        """A run has let its node go, after this many seconds; called once per run."""

    def ended(
        self, claim: Claim, status: JobStatus, *, error: JobError | None, duration_s: float, outputs: int
    ) -> None:
        """A run's job is over.

        Args:
            claim: The run.
            status: Its final state.
            error: Why, if it did not succeed.
            duration_s: How long the run took, without the wait for its outputs.
            outputs: How many outputs it has.
        """

    def given_back(self, claim: Claim, status: JobStatus, *, error: JobError, counts: bool) -> None:
        """A run ended and its job usually did not.

        Args:
            claim: The run.
            status: The job's state now: ``queued``, or a final one if its attempts are used up.
            error: Why.
            counts: Whether the attempt counts.
        """

    def ended_without_run(self, job: EndedJob) -> None:
        """A job is over without the end of a run.

        It was canceled or passed its deadline in the queue, its record can't be read, or it has succeeded
        with the result of an equal job.
        """

    def lease_refused(self, reason: str, *, node: str | None = None, detail: str = "") -> None:
        """No node was granted.

        Args:
            reason: HAProxy's reason (:attr:`NoLease.why`), or the store's for a node that HAProxy had granted
                (:attr:`Refused.why`).
            node: The node that the store refused.
            detail: The reason in words.
        """

    def staged_ahead(self, *, sent: int = 0, used: int = 0) -> None:
        """Files were put onto a busy node for the job that will probably be next there, or such a job began.

        Args:
            sent: How many files are there now.
            used: How many of those that were sent the run reads that begins.
        """

    def fetched(self, outcome: str) -> None:
        """A URL that jobs name as an input was asked for.

        Args:
            outcome: ``stored``; ``unchanged``: the file of before is still good; ``again``: it is asked for
                once more; ``refused``: by the fleet's rules, or by who judges; ``failed``: its jobs fail;
                ``no_room``: the fleet can't store it now, and tries again.
        """

    def judged(self, stage: str, outcome: str) -> None:
        """An operator's service was asked about content.

        Args:
            stage: ``prompt``, ``input`` or ``output``.
            outcome: ``allowed`` or ``refused``; ``unanswered_allowed`` and ``unanswered_refused`` where
                nobody answered and the operator's rule decided.
        """

    def webhook_tried(self, outcome: str) -> None:
        """A message to a webhook was tried to be delivered, and what came of it is written.

        Args:
            outcome: ``delivered``; ``again``: it is tried again later; ``failed``: it was given up;
                ``gone``: its receiver wants no more.
        """

    def stored(self, outcome: str, size_bytes: int) -> None:
        """An output was to be put into a store.

        Args:
            outcome: ``stored``; ``failed``: given up; ``again``: the store did not take it, and is asked once
                more; ``away``: the store takes nothing, and what waits for it waits on.
            size_bytes: How many bytes it has, if it is stored.
        """

    def store_retried(self, error: Exception, *, about: Mapping[str, str], tell: bool) -> None:
        """The store did not answer and is asked again.

        Args:
            error: The error.
            about: Fields of a log line about the run.
            tell: Whether to log it; not every try is logged while the store is away.
        """


class NullTelemetry:
    """Does nothing."""

    def submitted(self, new: NewJob) -> None:
        """See the port."""

    def claimed(self, claim: Claim) -> None:
        """See the port."""

    def posted(self, claim: Claim) -> None:
        """See the port."""

    def left(self, claim: Claim, *, busy_s: float) -> None:
        """See the port."""

    def ended(
        self, claim: Claim, status: JobStatus, *, error: JobError | None, duration_s: float, outputs: int
    ) -> None:
        """See the port."""

    def given_back(self, claim: Claim, status: JobStatus, *, error: JobError, counts: bool) -> None:
        """See the port."""

    def ended_without_run(self, job: EndedJob) -> None:
        """See the port."""

    def lease_refused(self, reason: str, *, node: str | None = None, detail: str = "") -> None:
        """See the port."""

    def staged_ahead(self, *, sent: int = 0, used: int = 0) -> None:
        """See the port."""

    def fetched(self, outcome: str) -> None:
        """See the port."""

    def judged(self, stage: str, outcome: str) -> None:
        """See the port."""

    def webhook_tried(self, outcome: str) -> None:
        """See the port."""

    def stored(self, outcome: str, size_bytes: int) -> None:
        """See the port."""

    def store_retried(self, error: Exception, *, about: Mapping[str, str], tell: bool) -> None:
        """See the port."""
