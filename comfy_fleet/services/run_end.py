"""End a run: decide from its result if the job is over or goes back to its queue, and write that."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from comfy_fleet.domain.errors import (
    BadInput,
    ConfigError,
    FleetError,
    LeaseLost,
    NoRoom,
    OutputGone,
    OutputLimit,
    OutputRefused,
)
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Placement, Progress
from comfy_fleet.domain.jobs.run_messages import RunResult
from comfy_fleet.domain.jobs.run_results import NODE_BUSY
from comfy_fleet.domain.schedule.waiting_job import WARMING
from comfy_fleet.ports.comfyui import RunNodes
from comfy_fleet.ports.runs import Claim, RunStore, StoredOutput
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.failure_policy import FailurePolicy
from comfy_fleet.services.run_metrics import Measured
from comfy_fleet.services.staging import StagingError
from comfy_fleet.services.store_retry import retry_while_store_down

logger = logging.getLogger(__name__)

T = TypeVar("T")

BUSY_REST_S = 3.0
"""A node that works for others gets no job for this long, in which its agent sees that and tells HAProxy."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """The job is over.

    Attributes:
        status: Its final state.
        error: Why, if it failed.
    """

    status: JobStatus
    error: JobError | None = None


@dataclass(frozen=True, kw_only=True)
class GivenBack:
    """The job goes back to its queue; if its attempts are used up, it ends there.

    Attributes:
        error: Why; what the user reads if it ends here.
        counts: Whether the attempt counts.
        placement: Its new placement; None keeps the present one.
        rest_s: For how long its node should get no other job.
    """

    error: JobError
    counts: bool
    placement: Placement | None = None
    rest_s: float = 0.0


class Ending:
    """Ends one run, and with it every job that it serves.

    Attributes:
        writing: Whether its end is being written. The run's lease may then be over without being lost.

    Args:
        claims: The jobs, each with a lease of its own. The first is the run on its node; the others share its
            end.
        runs: Where its end is written.
        failure_policy: Decides where a job goes after a failure.
        telemetry: Is told when Redis does not answer.
    """

    def __init__(
        self, claims: Sequence[Claim], *, runs: RunStore, failure_policy: FailurePolicy, telemetry: Telemetry
    ) -> None:
        self._claim, *self._others = claims
        self._runs = runs
        self._failure_policy = failure_policy
        self._telemetry = telemetry
        self._extra = self._claim.log_fields
        self.writing = False

    async def decide(
        self, verdict: RunResult, *, broken: Sequence[BaseException], released: bool, canceled: bool
    ) -> Over | GivenBack:
        """Return what happens to the job.

        Args:
            verdict: How the run ended.
            broken: Why outputs can't be fetched; empty if all are stored.
            released: Whether the run was to be taken off its node.
            canceled: Whether the job was to be canceled.
        """
        end = await self._decided(verdict, broken=broken, released=released, canceled=canceled)
        if self._claim.merged is not None and isinstance(end, Over) and end.status is JobStatus.FAILED:
            return _alone(end.error)
        if self._claim.job.tier == WARMING and isinstance(end, GivenBack):  # its node is not idle any more
            return Over(status=JobStatus.FAILED, error=end.error)
        return end

    async def _decided(
        self, verdict: RunResult, *, broken: Sequence[BaseException], released: bool, canceled: bool
    ) -> Over | GivenBack:
        for error in broken:
            # The next run would make them again. The run was stopped early for this; that is not a cancel.
            if isinstance(error, OutputLimit) and not canceled:
                return Over(status=JobStatus.FAILED, error=_about(error, "output_limit", str(error)))
        match verdict.kind:
            case "succeeded" if broken and canceled:
                return Over(status=JobStatus.CANCELED)
            case "succeeded" if broken:
                logger.warning("outputs can't be read", extra={**self._extra, "error": str(broken[0])})
                for error in broken:
                    if self._never(error):
                        why = f"an output can't be read, and computing it again would not help: {error}"
                        return Over(status=JobStatus.FAILED, error=_about(error, "output_lost", why))
                lost = _about(broken[0], "output_lost", f"an output can't be read: {broken[0]}")
                return GivenBack(error=lost, counts=not released)
            case "succeeded":
                return Over(status=JobStatus.SUCCEEDED)
            case "canceled" if released and not canceled:
                message = f"given back from node {self._claim.node}"
                return GivenBack(error=JobError(code="released", message=message), counts=False)
            case "canceled":
                return Over(status=JobStatus.CANCELED)
            case _:
                return await self._failed(verdict, released=released)

    def _never(self, error: BaseException) -> bool:
        """Whether another run would change nothing: the name is refused, or the node has run again
        already."""
        if isinstance(error, OutputGone):
            return error.details.get("node_id") in self._claim.job.rerun_nodes
        return isinstance(error, OutputRefused)

    async def _failed(self, verdict: RunResult, *, released: bool) -> Over | GivenBack:
        error = verdict.error or node_lost("the run ended without a reason")
        if self._claim.merged is not None:  # it says nothing about the job alone, nor about the node
            return _alone(error, rest_s=BUSY_REST_S if error.code == NODE_BUSY else 0.0)
        after = await self._insist(lambda: self._failure_policy.after(self._claim, verdict))
        if after is not None:
            if after.placement is None:
                return Over(status=JobStatus.FAILED, error=after.error)
            return GivenBack(
                error=after.error, counts=after.counts, placement=after.placement, rest_s=after.rest_s
            )
        if error.code == NODE_BUSY:
            return GivenBack(error=error, counts=False, rest_s=BUSY_REST_S)
        if released and verdict.kind == "lost":
            return GivenBack(error=error, counts=False)
        if verdict.retryable or verdict.kind == "lost":
            return GivenBack(error=error, counts=verdict.counts)
        return Over(status=JobStatus.FAILED, error=error)

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retry_while_store_down(call, about=self._extra, telemetry=self._telemetry)

    async def finish(
        self,
        end: Over,
        *,
        measured: Measured,
        duration_s: float,
        progress: Progress | None,
        ui: str,
        outputs: Sequence[StoredOutput] = (),
        times: str = "",
    ) -> JobStatus:
        """Write that the job is over; returns its final state.

        Args:
            end: How it ended.
            measured: What the run shows about its node.
            duration_s: How long it took; used only if it succeeded.
            progress: How far it came, as far as this dispatcher saw.
            ui: What the graph's nodes returned, as far as this dispatcher has seen.
            outputs: Those of the run on the node that are not committed yet.
            times: Where its time went, as :meth:`.RunTimes.dump` writes it; empty: unknown.
        """
        # Else its time is not that of one job, or of one that finds its node as jobs usually do.
        usual = self._claim.merged is None and self._claim.job.tier != WARMING
        took_s = duration_s if usual and end.status is JobStatus.SUCCEEDED else None
        return await self._each(
            lambda claim: self._runs.finish(
                claim,
                end.status,
                error=end.error,
                duration_s=took_s if claim is self._claim else None,
                speed=measured.speed if claim is self._claim else None,
                models=measured.models,
                ran_s=measured.ran_s if claim is self._claim else None,
                warm=measured.warm,
                reused=measured.reused,
                progress=progress,
                ui=ui,
                outputs=outputs if claim is self._claim else (),
                times=times,
            )
        )

    async def give_back(
        self,
        back: GivenBack,
        *,
        rerun_nodes: frozenset[str],
        progress: Progress | None,
        ui: str,
        times: str = "",
    ) -> JobStatus:
        """Write that the job goes back; returns its state.

        Args:
            back: Why it goes back, and where.
            rerun_nodes: Nodes of the graph that must not answer from ComfyUI's cache in the next run.
            progress: How far it came, as far as this dispatcher saw; kept if the job ends here.
            ui: What the graph's nodes returned, as far as this dispatcher has seen; kept if the job ends
                here.
            times: As for :meth:`finish`.
        """
        return await self._each(
            lambda claim: self._runs.requeue(
                claim,
                counts=back.counts,
                reason=back.error,
                rerun_nodes=rerun_nodes,
                placement=back.placement if claim is self._claim else None,
                progress=progress,
                ui=ui,
                times=times,
            )
        )

    async def _each(self, write: Callable[[Claim], Awaitable[JobStatus]]) -> JobStatus:
        """Write the end of each job, the first one's last; return that one's state.

        A job that another dispatcher has taken over meanwhile is left to that one.
        """
        self.writing = True
        for claim in self._others:
            with contextlib.suppress(LeaseLost):
                await self._insist(partial(write, claim))
        return await self._insist(partial(write, self._claim))


def _alone(error: JobError | None, *, rest_s: float = 0.0) -> GivenBack:
    """Give a job back that was merged with others: it runs alone, and this attempt does not count."""
    why = replace(error, message=f"merged with other jobs: {error.message}") if error else node_lost("")
    return GivenBack(error=why, counts=False, rest_s=rest_s)


def _about(error: BaseException, code: str, message: str) -> JobError:
    details = error.details if isinstance(error, FleetError) else {}
    return JobError(code=code, message=message, node_id=details.get("node_id"), details=details)


def unready(error: Exception, *, extra: Mapping[str, str]) -> RunResult:
    """Return the result of a run whose prompt could not be prepared.

    Args:
        error: Why.
        extra: Fields of the log line.
    """
    retryable = False
    match error:
        case BadInput():
            problem = JobError(code=error.code, message=str(error), details=error.details)
        case ConfigError():
            problem = JobError(code="internal_error", message=str(error))
        case NoRoom():
            logger.error("inputs can't be read", exc_info=error, extra=extra)
            retryable = True
            problem = JobError(code=error.code, message=f"the job's inputs can't be read now: {error}")
        case StagingError():
            logger.warning("staging failed", extra={**extra, "error": str(error)})
            retryable = not error.fatal
            problem = JobError(code="missing_asset" if error.fatal else "node_lost", message=str(error))
        case _:
            logger.error("run not made ready", exc_info=error, extra=extra)
            retryable = True
            why = f"the prompt could not be made ready: {type(error).__name__}"
            problem = JobError(code="internal_error", message=why)
    return RunResult(kind="failed", error=problem, counts=True, retryable=retryable)


def broken_off(error: Exception, *, extra: Mapping[str, str]) -> GivenBack:
    """Return what happens to a job if its run can't go on because of a failure in the fleet itself.

    Args:
        error: The exception.
        extra: Fields of the log line.
    """
    logger.error("run broke off", exc_info=error, extra=extra)
    why = f"the run could not be followed to its end: {type(error).__name__}"
    return GivenBack(error=JobError(code="internal_error", message=why), counts=True)


async def withdraw(claim: Claim, nodes: RunNodes) -> None:
    """Take a run's prompt off its node, whether it waits or runs; failures are ignored."""
    await nodes.delete_pending(claim.node, claim.run)
    await nodes.interrupt(claim.node, claim.run)


def node_lost(message: str) -> JobError:
    """Return the error of a lost run."""
    return JobError(code="node_lost", message=message)
