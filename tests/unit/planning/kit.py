"""Small traces and fleets whose times can be worked out by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy_fleet.domain.schedule.model_set import NO_MODELS, ModelSet
from comfy_fleet.planning.conditions import Conditions
from comfy_fleet.planning.fleet import NodeGroup, PlannedNode, planned
from comfy_fleet.planning.outcome import Outcome
from comfy_fleet.planning.registry import CONTENDERS
from comfy_fleet.planning.simulation import Simulation
from comfy_fleet.planning.states import SimulatedRun
from comfy_fleet.planning.trace import ModelSets, TraceJob

GIB = 2**30
SETS = ModelSets()


def models(*files: str, gib: int = 10) -> ModelSet:
    """Return a set of files of one size."""
    return SETS.of([(file, gib * GIB) for file in files])


def job(
    name: str, at: float = 0.0, run_s: float = 10.0, *, loads: ModelSet = NO_MODELS, **more: Any
) -> TraceJob:
    return TraceJob(id=name, submitted=at, run_s=run_s, models=loads, **more)


def fleet(count: int = 1, *, vram_gib: int = 24, **more: Any) -> list[PlannedNode]:
    """Return nodes on which a file of 10 GiB takes 10 s from disk and 1 s from RAM, of 64 GiB."""
    return planned([group(count, vram_gib=vram_gib, **more)])


def group(count: int = 1, *, vram_gib: int = 24, **more: Any) -> NodeGroup:
    usual = {"ram": 64 * GIB, "disk_rate": 10 * GIB / 9, "ram_rate": 10.0 * GIB}
    return NodeGroup(**{"count": count, "vram": vram_gib * GIB, **usual, **more})


@dataclass
class Simulated:
    """What came out, and the runs in the order in which they ended."""

    outcome: Outcome
    runs: list[SimulatedRun] = field(default_factory=list)

    def started(self) -> dict[str, float]:
        """Return when each job's last run started, rounded to microseconds."""
        return {run.job.id: round(run.started, 6) for run in self.runs}

    def where(self) -> dict[str, str]:
        return {run.job.id: run.node for run in self.runs}


def simulate(
    jobs: Sequence[TraceJob], nodes: Sequence[PlannedNode], policy: str = "fifo", **conditions: Any
) -> Simulated:
    """Simulate without a gap between jobs, unless one is given."""
    runs: list[SimulatedRun] = []
    simulation = Simulation(
        nodes, CONTENDERS[policy], Conditions(**{"gap_s": 0.0, **conditions}), on_run=runs.append
    )
    return Simulated(simulation.run(jobs), runs)
