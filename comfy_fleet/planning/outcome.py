"""What a simulation counts, and what it found."""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from comfy_fleet.planning.judged_estimates import EstimateQuality
from comfy_fleet.planning.spread import Spread, seconds


@dataclass(frozen=True, kw_only=True)
class OwnerOutcome:
    """What one owner got.

    Attributes:
        jobs: Jobs that succeeded.
        wait: From submit to the start of the run that succeeded, in seconds.
        done: From submit to the end.
        gpu_s: Seconds of GPUs, loading included.
    """

    jobs: int
    wait: Spread | None
    done: Spread | None
    gpu_s: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a trace on a fleet.

    Attributes:
        policy: The policy's name.
        jobs: How many were submitted; each ended in one of the next five ways.
        starved: Jobs that the policy left waiting for ever.
        wait: From submit to the start of the run that succeeded, in seconds.
        done: From submit to the end.
        owners: By owner.
        nodes: How many there were.
        arrivals_s: From the first submit to the last one.
        makespan_s: From the first submit to the last end.
        computing_s: GPU seconds of computing, of all nodes together.
        loading_s: GPU seconds of loading models.
        down_s: Seconds in which nodes were down.
        loads: Runs that had to load a model file.
        disk_reads: Files that were read from disk.
        out_of_memory: Attempts that ran out of memory.
        node_failures: Runs that ended because their node died.
        wished: Jobs with ``finish_by`` that were not canceled.
        met: Those of them that were done by then.
        cost: What the nodes cost from the first submit to the last end.
        took_s: How long the simulation took, on the caller's clock.
        estimates: How good estimates of ends were; None if none were made.
    """

    policy: str
    jobs: int
    succeeded: int
    failed: int
    expired: int
    canceled: int
    starved: int
    wait: Spread | None
    done: Spread | None
    owners: Mapping[str, OwnerOutcome]
    nodes: int
    arrivals_s: float
    makespan_s: float
    computing_s: float
    loading_s: float
    down_s: float
    loads: int
    disk_reads: int
    out_of_memory: int
    node_failures: int
    wished: int
    met: int
    cost: float
    took_s: float = 0.0
    estimates: EstimateQuality | None = None

    @property
    def idle_s(self) -> float:
        """GPU seconds in which a node was up and neither loaded nor computed."""
        return max(0.0, self.nodes * self.makespan_s - self.computing_s - self.loading_s - self.down_s)

    @property
    def met_share(self) -> float | None:
        """Share of wishes that were met; None without any."""
        return self.met / self.wished if self.wished else None


@dataclass(slots=True)
class _OwnerTally:
    wait: "array[float]" = field(default_factory=seconds)
    done: "array[float]" = field(default_factory=seconds)
    gpu_s: float = 0.0


class Tally:
    """Counts while a simulation runs."""

    def __init__(self) -> None:
        self.jobs = self.failed = self.expired = self.canceled = self.starved = 0
        self.loads = self.disk_reads = self.out_of_memory = self.node_failures = 0
        self.wished = self.met = 0
        self.computing_s = self.loading_s = self.down_s = 0.0
        self.first = self.last_submit = self.last = 0.0
        self._owners: dict[str, _OwnerTally] = {}

    def submitted(self, at: float) -> None:
        """Count a job."""
        if not self.jobs:
            self.first = self.last = at
        self.jobs += 1
        self.last_submit = at

    def used(self, owner: str, load_s: float, run_s: float) -> None:
        """Count what a run used, whatever became of it."""
        self.loading_s += load_s
        self.computing_s += run_s
        self._of(owner).gpu_s += load_s + run_s

    def succeeded(self, owner: str, *, wait_s: float, done_s: float) -> None:
        """Count a job that succeeded."""
        tally = self._of(owner)
        tally.wait.append(wait_s)
        tally.done.append(done_s)

    def finish_wished(self, finish_by: float | None, done_at: float | None) -> None:
        """Count whether a job that has ended was done in time; None: it never was."""
        if finish_by is not None:
            self.wished += 1
            self.met += done_at is not None and done_at <= finish_by

    def outcome(self, policy: str, *, nodes: int, prices: Iterable[float]) -> Outcome:
        """Return what was found."""
        makespan_s = self.last - self.first
        owners = {
            name: OwnerOutcome(
                jobs=len(tally.wait),
                wait=Spread.of(tally.wait),
                done=Spread.of(tally.done),
                gpu_s=tally.gpu_s,
            )
            for name, tally in self._owners.items()
        }
        return Outcome(
            policy=policy,
            jobs=self.jobs,
            succeeded=sum(owner.jobs for owner in owners.values()),
            failed=self.failed,
            expired=self.expired,
            canceled=self.canceled,
            starved=self.starved,
            wait=Spread.of(one for tally in self._owners.values() for one in tally.wait),
            done=Spread.of(one for tally in self._owners.values() for one in tally.done),
            owners=owners,
            nodes=nodes,
            arrivals_s=self.last_submit - self.first,
            makespan_s=makespan_s,
            computing_s=self.computing_s,
            loading_s=self.loading_s,
            down_s=self.down_s,
            loads=self.loads,
            disk_reads=self.disk_reads,
            out_of_memory=self.out_of_memory,
            node_failures=self.node_failures,
            wished=self.wished,
            met=self.met,
            cost=sum(prices) * makespan_s / 3600,
        )

    def _of(self, owner: str) -> _OwnerTally:
        found = self._owners.get(owner)
        if found is None:
            found = self._owners[owner] = _OwnerTally()
        return found
