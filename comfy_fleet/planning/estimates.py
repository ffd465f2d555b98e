"""What a scheduler believes of a job before it runs, and how far that is off."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from comfy_fleet.domain.schedule.waiting_job import WaitingJob
from comfy_fleet.planning.trace import TraceJob


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """How wrong estimates are.

    Attributes:
        run_error: Spread of the expected run time: the standard deviation of its logarithm; 0.2 is wrong by
            about a fifth.
        memory_error: Largest relative error of the predicted memory; None: memory is not predicted.
        ageing_s: What one point of priority is worth, in seconds of waiting.
        seed: Decides the errors.
    """

    run_error: float = 0.0
    memory_error: float | None = 0.0
    ageing_s: float = 60.0
    seed: int = 0


class JobEstimator:
    """Turns jobs as they are into jobs as a policy sees them.

    Args:
        estimates: How wrong.
        largest: Bytes of the largest card by pool: more is never predicted, as it could run nowhere.
        oracle: Whether this policy knows everything.
    """

    def __init__(self, estimates: Estimates, largest: Mapping[str, int], *, oracle: bool = False) -> None:
        self._run_error = 0.0 if oracle else estimates.run_error
        self._memory_error = 0.0 if oracle else estimates.memory_error
        self._ageing_s = estimates.ageing_s
        self._largest = largest
        # One each, so that all policies see the same errors, whether memory is predicted for them or not.
        self._run_chance = random.Random(f"run {estimates.seed}")  # noqa: S311 - a simulation, no secret
        self._memory_chance = random.Random(f"memory {estimates.seed}")  # noqa: S311

    def seen(self, job: TraceJob) -> WaitingJob:
        """Return the job as a policy sees it."""
        run_s, memory = job.run_s, 0
        if self._run_error:
            run_s *= math.exp(self._run_chance.gauss(0.0, self._run_error))
        error = self._memory_error
        if error is not None and job.memory:
            factor = 1.0 + self._memory_chance.uniform(-error, error) if error else 1.0
            memory = min(round(job.memory * factor), self._largest[job.pool])
        return WaitingJob(
            id=job.id,
            owner=job.owner,
            tenant=job.tenant,
            place=job.pool,
            tier=int(job.tier),
            rank=job.submitted - job.priority * self._ageing_s,
            models=job.models,
            run_s=run_s,
            memory=memory,
            submitted=job.submitted,
            start_by=None if job.ttl_s is None else job.submitted + job.ttl_s,
            finish_by=job.finish_by,
        )
