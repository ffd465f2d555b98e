"""An observer that writes log lines."""

import logging
from collections.abc import Mapping
from typing import Any

from comfy_fleet.domain.jobs.job import JobError, JobStatus, NewJob
from comfy_fleet.ports.runs import Claim
from comfy_fleet.ports.telemetry import EndedJob

logger = logging.getLogger(__name__)

USUAL = frozenset({"busy", "nothing"})


class LoggingTelemetry:
    """Writes a line for each event that people search for; the port describes the events."""

    def submitted(self, new: NewJob) -> None:
        """Log that a job is durable."""
        facts: dict[str, Any] = {"job_id": new.id, "owner": new.owner, "workflow": new.workflow}
        facts |= {"priority": new.priority, "assets": len(new.assets)}
        if new.tenant:
            facts["tenant"] = new.tenant
        if new.traceparent:
            facts["traceparent"] = new.traceparent
        logger.info("job accepted", extra=facts)

    def claimed(self, claim: Claim) -> None:
        """Log where a job will run."""
        facts: dict[str, Any] = {"attempt": claim.attempt}
        if claim.rule:
            facts |= {"rule": claim.rule, "load_s": round(claim.load_s, 3)}
        if claim.merged is not None:
            facts["merged"] = str(claim.merged)
        logger.info("job claimed", extra={**claim.log_fields, **facts})

    def posted(self, claim: Claim) -> None:
        """Log that the node has accepted the prompt."""
        logger.info("prompt accepted", extra=claim.log_fields)

    def left(self, claim: Claim, *, busy_s: float) -> None:
        """Do nothing: the end of the job follows."""

    def ended(
        self, claim: Claim, status: JobStatus, *, error: JobError | None, duration_s: float, outputs: int
    ) -> None:
        """Log how a job ended."""
        facts = {"status": str(status), "duration_s": round(duration_s, 3), "outputs": outputs}
        if error is not None:
            facts["error"] = error.message
        logger.info("job ended", extra={**claim.log_fields, **facts})

    def given_back(self, claim: Claim, status: JobStatus, *, error: JobError, counts: bool) -> None:
        """Log why a job did not end with this run."""
        facts = {"status": str(status), "counts": counts, "error": error.message}
        logger.warning("job given back", extra={**claim.log_fields, **facts})

    def ended_without_run(self, job: EndedJob) -> None:
        """Log how a job ended."""
        facts: dict[str, Any] = {"job_id": job.job_id, "status": str(job.status)}
        facts["total_s"] = round(job.total_s, 3)
        if job.tenant:
            facts["tenant"] = job.tenant
        if job.error is not None:
            facts["error"] = job.error.message
        logger.info("job ended", extra=facts)

    def lease_refused(self, reason: str, *, node: str | None = None, detail: str = "") -> None:
        """Log unusual reasons; that all nodes are busy, or none of the jobs worth its load, is usual."""
        if reason in USUAL:
            return
        if node is not None:
            logger.info("node refused", extra={"node": node, "why": reason})
        else:
            logger.warning("no lease", extra={"why": reason, "detail": detail})

    def staged_ahead(self, *, sent: int = 0, used: int = 0) -> None:
        """Do nothing: who searches for a file finds its job's lines."""

    def fetched(self, outcome: str) -> None:
        """Nothing: whoever fetches says what is wrong."""

    def judged(self, stage: str, outcome: str) -> None:
        """Nothing: a refusal has a line of its own."""

    def webhook_tried(self, outcome: str) -> None:
        """Nothing: whoever sends it says what came of it."""

    def stored(self, outcome: str, size_bytes: int) -> None:
        """Nothing: what went wrong has a line of its own."""

    def store_retried(self, error: Exception, *, about: Mapping[str, str], tell: bool) -> None:
        """Log now and then that Redis is asked again."""
        if tell:
            logger.warning("the store is asked again", extra={**about, "error": str(error)})
