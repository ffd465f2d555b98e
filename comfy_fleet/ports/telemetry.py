"""Who is told what happens to a job and a run."""

from typing import Protocol

from comfy_fleet.domain.jobs.job import JobError, JobStatus, NewJob
from comfy_fleet.ports.runs import Claim


class Telemetry(Protocol):
    """Is told what happens to jobs and runs, by whoever has just made it happen.

    It is told in the middle of a job's way: it returns at once. What it raises hurts no job
    (:class:`comfy_fleet.adapters.telemetry.Observers` sees to that).
    """

    def submitted(self, new: NewJob) -> None:
        """Take note that a job is durable; not of a repeated request that got the earlier job."""

    def claimed(self, claim: Claim) -> None:
        """Take note that a job has its node."""

    def posted(self, claim: Claim) -> None:
        """Take note that the node has accepted the prompt."""

    def left(self, claim: Claim, *, busy_s: float) -> None:
        """Take note that a run has let its node go, after so many seconds; told once of each run."""

    def ended(
        self, claim: Claim, status: JobStatus, *, error: JobError | None, duration_s: float, outputs: int
    ) -> None:
        """Take note that a run's job is over.

        Args:
            claim: The run.
            status: How it ended.
            error: Why, if it did not succeed.
            duration_s: What the run took, without the wait for its outputs.
            outputs: How many it has.
        """

    def given_back(self, claim: Claim, status: JobStatus, *, error: JobError, counts: bool) -> None:
        """Take note that a run ended and its job did not, as a rule.

        Args:
            claim: The run.
            status: The job's state now: ``queued``, or a final one if its attempts are used up.
            error: Why.
            counts: Whether the attempt counts.
        """

    def expired(self, count: int) -> None:
        """Take note that so many jobs passed their deadlines in the queue."""

    def lease_refused(self, reason: str, *, node: str | None = None, detail: str = "") -> None:
        """Take note that no node was granted.

        Args:
            reason: HAProxy's (:attr:`NoLease.why`), or the store's for a node that HAProxy had granted
                (:attr:`Refused.why`).
            node: The node that the store refused.
            detail: The reason in words.
        """

    def store_retried(self, error: Exception, *, about: dict[str, str], tell: bool) -> None:
        """Take note that the store did not answer and is asked again.

        Args:
            error: What it said.
            about: Fields of a log line: the run.
            tell: Whether to tell people: not of each try while it is away.
        """
