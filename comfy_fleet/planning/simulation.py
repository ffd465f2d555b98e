"""The event loop: jobs come, nodes load, compute and fail, and a policy chooses.

The same trace, fleet, policy and seed always give the same outcome.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.schedule.chooser import FairChooser
from comfy_fleet.domain.schedule.policy import JobChoice, Nothing, SchedulingPolicy
from comfy_fleet.planning import agenda
from comfy_fleet.planning.agenda import Agenda
from comfy_fleet.planning.conditions import Conditions
from comfy_fleet.planning.contenders import Contender
from comfy_fleet.planning.estimates import JobEstimator
from comfy_fleet.planning.fleet import PlannedNode
from comfy_fleet.planning.judged_estimates import JudgedEstimates
from comfy_fleet.planning.outcome import Outcome, Tally
from comfy_fleet.planning.retries import goes_back
from comfy_fleet.planning.states import SimulatedJob, SimulatedNode, SimulatedPool, SimulatedRun
from comfy_fleet.planning.trace import TraceJob

_PROGRESS_EVERY = 8192
_MOST_VAIN_LOOKS = 1000
"""By node: after so many without a start, while no node works, a policy leaves the rest waiting for ever."""


class Simulation:
    """One trace on one fleet under one policy.

    Args:
        fleet: The nodes.
        contender: The policy, and what it knows.
        conditions: What else is assumed.
        on_run: Is told of every run, in the order in which they end.
    """

    def __init__(
        self,
        fleet: Sequence[PlannedNode],
        contender: Contender,
        conditions: Conditions | None = None,
        *,
        on_run: Callable[[SimulatedRun], None] | None = None,
    ) -> None:
        self._conditions = conditions = conditions or Conditions()
        self._contender, self._on_run = contender, on_run
        self._policy: SchedulingPolicy = contender.make(conditions.settings)
        self._pools: dict[str, SimulatedPool] = {}
        self._nodes: dict[str, SimulatedNode] = {}
        for planned in fleet:
            pool = self._pools.setdefault(planned.pool, SimulatedPool())
            self._nodes[planned.node.name] = SimulatedNode(planned, pool)
        estimates = conditions.estimates
        if not contender.predicted:
            estimates = replace(estimates, memory_error=None)
        self._estimator = JobEstimator(
            estimates, {name: pool.largest for name, pool in self._pools.items()}, oracle=contender.oracle
        )
        self._judged = (
            JudgedEstimates(self._policy)
            if conditions.estimate_ends and isinstance(self._policy, FairChooser)
            else None
        )
        self._chance = random.Random(f"failures {conditions.seed}")  # noqa: S311 - a simulation, no secret
        self._agenda = Agenda()
        self._jobs: dict[str, SimulatedJob] = {}
        self._tally = Tally()
        self._busy = self._vain_looks = 0

    def run(self, jobs: Iterable[TraceJob], progress: Callable[[int, float], None] | None = None) -> Outcome:
        """Simulate until every job has ended.

        Args:
            jobs: In the order of their submits.
            progress: Is told every few thousand events how many jobs have come, and the trace's time.

        Raises:
            BadInput: A job is for a pool without nodes, or two jobs have one id.
        """
        coming = iter(jobs)
        job = next(coming, None)
        self._start(job.submitted if job else 0.0)
        coming_up, tally = self._agenda, self._tally
        events = coming_up.events
        handlers: Sequence[Callable[..., None]] = (
            self._free,
            self._come_up,
            self._go_down,
            self._cancel,
            self._expire,
            self._look,
            self._look_for,
        )
        steps = 0
        while True:
            if progress is not None:
                steps += 1
                if steps % _PROGRESS_EVERY == 0:
                    progress(tally.jobs, job.submitted if job is not None else tally.last)
            if job is not None and (not events or job.submitted <= events[0][0]):
                self._submit(job)
                job = next(coming, None)
                continue
            if not events or (job is None and self._over()):
                break
            now, kind, _, what, token = coming_up.pop()
            handlers[kind](now, what, token)
        self._give_up()
        outcome = tally.outcome(
            self._contender.name,
            nodes=len(self._nodes),
            prices=(node.planned.price for node in self._nodes.values()),
        )
        return outcome if self._judged is None else replace(outcome, estimates=self._judged.quality())

    def _over(self) -> bool:
        """Return whether nothing can happen any more but nodes that die and come back."""
        if not self._jobs:
            return True
        if self._busy or (self._agenda.looks and self._vain_looks < _MOST_VAIN_LOOKS * len(self._nodes)):
            return False
        return not self._agenda.changes_something()

    def _start(self, now: float) -> None:
        for node in self._nodes.values():
            self._policy.node_up(node.planned.node, now)
            node.pool.idle[node.name] = node
            self._plan_failure(node, now)

    def _give_up(self) -> None:
        """Account for jobs that the policy leaves waiting, and nodes that are still down."""
        tally = self._tally
        tally.starved = len(self._jobs)
        for job in self._jobs.values():
            tally.finish_wished(job.real.finish_by, None)
        tally.down_s += sum(
            max(0.0, tally.last - node.down_at) for node in self._nodes.values() if not node.up
        )

    # Jobs

    def _submit(self, real: TraceJob) -> None:
        now = real.submitted
        if real.pool not in self._pools:
            pools = ", ".join(sorted(self._pools))
            raise BadInput(f"job {real.id} is for pool {real.pool}, which has no nodes; there are {pools}")
        if real.id in self._jobs:
            raise BadInput(f"two jobs are called {real.id}: give each an id of its own")
        job = SimulatedJob(real, self._estimator.seen(real))
        self._jobs[real.id] = job
        self._tally.submitted(now)
        if job.seen.start_by is not None:
            self._agenda.add(job.seen.start_by, agenda.EXPIRE, job)
        if real.canceled_at is not None:
            self._agenda.add(real.canceled_at, agenda.CANCEL, job)
        self._policy.submitted(job.seen, now)
        if self._judged is not None:
            self._judged.submitted(job.seen, now)
        if self._pools[real.pool].idle:
            self._offer(job, now)

    def _offer(self, job: SimulatedJob, now: float) -> None:
        """Ask idle nodes because of a job that waits."""
        idle = self._pools[job.real.pool].idle
        while idle and job.node is None:
            found = self._policy.node_for(job.seen, idle.keys(), now)
            if isinstance(found, Nothing):
                if found.look_again_at is not None:
                    self._agenda.add(max(found.look_again_at, now), agenda.LOOK_FOR, job)
                return
            if not self._ask(self._nodes[found], now):
                return

    def _ask(self, node: SimulatedNode, now: float) -> bool:
        """Ask what an idle node is to do; return whether it starts something."""
        choice = self._policy.next_for(node.name, now)
        if isinstance(choice, JobChoice):
            self._begin(node, self._jobs[choice.job.id], now)
            return True
        if choice.look_again_at is not None:
            node.look += 1
            self._agenda.add(max(choice.look_again_at, now), agenda.LOOK, node, node.look)
        return False

    def _begin(self, node: SimulatedNode, job: SimulatedJob, now: float) -> None:
        node.pool.idle.pop(node.name, None)
        node.look += 1
        node.token += 1
        real, planned = job.real, node.planned.node
        load = node.memory.load(real.models, min(real.memory, planned.vram_bytes))
        node.oom = real.memory > planned.vram_bytes
        node.job, job.node = job, node
        job.attempts += 1
        node.started, node.load_s = now, load.seconds
        node.run_s = 0.0 if node.oom else real.run_s / planned.speed
        tally = self._tally
        if load.from_disk or load.from_ram:
            tally.loads += 1
            tally.disk_reads += load.from_disk
        self._busy += 1
        self._vain_looks = 0
        free = now + load.seconds + node.run_s + self._conditions.gap_s
        self._agenda.add(free, agenda.FREE, node, node.token)

    # Events

    def _free(self, now: float, node: SimulatedNode, token: int) -> None:
        """End a node's run, and ask what it is to do next."""
        if token != node.token:
            return
        job, load_s, run_s = node.job, node.load_s, node.run_s
        if job is None:
            raise AssertionError(f"{node.name} is free without a run")
        ok = not (node.oom or job.canceled)
        self._run_over(node, job, load_s, run_s, ok=ok, now=now)
        node.pool.idle[node.name] = node
        back = not ok and self._goes_back(job, node, now)
        self._ask(node, now)
        if back and job.node is None:
            self._offer(job, now)

    def _run_over(
        self, node: SimulatedNode, job: SimulatedJob, load_s: float, run_s: float, *, ok: bool, now: float
    ) -> None:
        """Account for a run."""
        tally, real = self._tally, job.real
        ended = node.started + load_s + run_s
        tally.last = max(tally.last, ended)
        tally.used(real.owner, load_s, run_s)
        self._busy -= 1
        node.job = job.node = None
        self._policy.ended(real.id, node.name, load_s=load_s, run_s=run_s, ok=ok, now=now)
        if self._on_run is not None:
            self._on_run(SimulatedRun(real, node.name, node.started, load_s, run_s, ok))
        if ok:
            if self._judged is not None:
                self._judged.ended(real.id, started=node.started, ended=ended)
            tally.succeeded(real.owner, wait_s=node.started - real.submitted, done_s=ended - real.submitted)
            self._close(job)
            tally.finish_wished(real.finish_by, ended)

    def _goes_back(self, job: SimulatedJob, node: SimulatedNode, now: float) -> bool:
        """Decide about a job whose run did not succeed; return whether it waits again."""
        tally, real = self._tally, job.real
        if node.oom and node.up:
            tally.out_of_memory += 1
        if job.canceled:
            tally.canceled += 1
            self._close(job)
            return False
        tally.node_failures += not node.up
        after_oom = self._contender.after_oom
        if not goes_back(job, node, after_oom, max_attempts=self._conditions.max_attempts):
            tally.failed += 1
            tally.finish_wished(real.finish_by, None)
            self._close(job)
            return False
        if job.seen.start_by is not None and job.seen.start_by < now:
            self._expired(job)
            return False
        self._policy.submitted(job.seen, now)
        return True

    def _go_down(self, now: float, node: SimulatedNode, _token: int) -> None:
        node.up, node.down_at = False, now
        node.pool.idle.pop(node.name, None)
        node.look += 1
        node.token += 1
        job, back = node.job, False
        if job is not None:
            load_s = min(node.load_s, now - node.started)
            run_s = min(node.run_s, now - node.started - load_s)
            self._run_over(node, job, load_s, run_s, ok=False, now=now)
        self._policy.node_down(node.name, now)
        if job is not None:
            back = self._goes_back(job, node, now)
        node.memory.clear()
        self._agenda.add(now + self._conditions.repair_s, agenda.UP, node)
        for other in list(node.pool.idle.values()):
            self._ask(other, now)  # a policy may have moved the node's own queue there
        if back and job is not None:
            self._offer(job, now)

    def _come_up(self, now: float, node: SimulatedNode, _token: int) -> None:
        node.up = True
        self._tally.down_s += max(0.0, min(now, self._tally.last) - node.down_at)
        self._policy.node_up(node.planned.node, now)
        node.pool.idle[node.name] = node
        self._plan_failure(node, now)
        self._ask(node, now)

    def _plan_failure(self, node: SimulatedNode, now: float) -> None:
        mean_s = self._conditions.mean_up_s
        if mean_s is not None:
            self._agenda.add(now + self._chance.expovariate(1 / mean_s), agenda.DOWN, node)

    def _cancel(self, now: float, job: SimulatedJob, _token: int) -> None:
        if job.over:
            return
        node = job.node
        if node is None:
            self._policy.withdrawn(job.real.id, now)
            self._tally.canceled += 1
            self._close(job)
            return
        job.canceled = True
        if node.oom:
            return  # it ends with its load anyway
        node.run_s = max(
            0.0, min(node.run_s, now - node.started - node.load_s)
        )  # loading can't be interrupted
        node.token += 1
        free = node.started + node.load_s + node.run_s + self._conditions.gap_s
        self._agenda.add(max(free, now), agenda.FREE, node, node.token)

    def _expire(self, now: float, job: SimulatedJob, _token: int) -> None:
        if not job.over and job.node is None:
            self._policy.withdrawn(job.real.id, now)
            self._expired(job)

    def _expired(self, job: SimulatedJob) -> None:
        self._tally.expired += 1
        self._tally.finish_wished(job.real.finish_by, None)
        self._close(job)

    def _close(self, job: SimulatedJob) -> None:
        job.over = True
        if self._judged is not None:
            self._judged.over(job.real.id)
        del self._jobs[job.real.id]

    def _look(self, now: float, node: SimulatedNode, token: int) -> None:
        self._vain_looks += not self._busy
        if token == node.look and node.job is None and node.up:
            self._ask(node, now)

    def _look_for(self, now: float, job: SimulatedJob, _token: int) -> None:
        self._vain_looks += not self._busy
        if not job.over and job.node is None:
            self._offer(job, now)
