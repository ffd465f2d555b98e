"""What the figures about scheduling share: cases for the simulator, and how they are run."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from comfy_fleet.planning.conditions import Conditions
from comfy_fleet.planning.contenders import PolicySettings
from comfy_fleet.planning.estimates import Estimates
from comfy_fleet.planning.fleet import NodeGroup, PlannedNode, planned
from comfy_fleet.planning.outcome import Outcome
from comfy_fleet.planning.registry import CONTENDERS
from comfy_fleet.planning.simulation import Simulation
from comfy_fleet.planning.states import SimulatedRun
from comfy_fleet.planning.trace import ModelSets, TraceJob

GIB = 2**30
PATIENCE_S = 60.0
RUN_ERROR = 0.2
"""How far expected run times are off in all figures; the oracle knows them."""
SETS, SET_GIB, CARD_GIB, NODES = 8, 18, 24, 4
POLICIES = ("fair", "fifo", "leastconn", "swarmui")


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What came out, and every run in the order of their ends."""

    outcome: Outcome
    runs: Sequence[SimulatedRun]


def simulate(
    policy: str,
    jobs: Iterable[TraceJob],
    nodes: Sequence[PlannedNode],
    *,
    patience_s: float = PATIENCE_S,
    weights: Mapping[str, float] | None = None,
    memory_error: float | None = 0.0,
    seed: int = 0,
) -> Simulated:
    """Simulate a policy."""
    runs: list[SimulatedRun] = []
    conditions = Conditions(
        estimates=Estimates(run_error=RUN_ERROR, memory_error=memory_error, seed=seed),
        settings=PolicySettings(patience_s=patience_s, weights=weights or {}),
    )
    simulation = Simulation(nodes, CONTENDERS[policy], conditions, on_run=runs.append)
    return Simulated(outcome=simulation.run(jobs), runs=runs)


def nodes(load_s: float, count: int = NODES) -> list[PlannedNode]:
    """Return nodes of 24 GiB on which a set of 18 GiB takes ``load_s``, wherever it is."""
    rate = SET_GIB * GIB / load_s
    return planned([NodeGroup(count=count, vram=CARD_GIB * GIB, ram=0, disk_rate=1e30, ram_rate=rate)])


def set_jobs(
    count: int, *, run_s: float, spread: float = 0.0, gap_s: float = 0.0, seed: int = 0
) -> list[TraceJob]:
    """Return jobs of one owner over all sets, equally many of each, in random order.

    Args:
        count: How many.
        run_s: Median seconds of computing.
        spread: Standard deviation of its logarithm.
        gap_s: Mean time between two submits (Poisson); 0: all at once.
        seed: Decides order, moments and lengths.
    """
    chance = random.Random(seed)
    sets = ModelSets()
    models = [sets.of([(f"set-{number}", SET_GIB * GIB)]) for number in range(SETS)]
    order = [number % SETS for number in range(count)]
    chance.shuffle(order)
    at, jobs = 0.0, []
    for number, which in enumerate(order):
        at += chance.expovariate(1 / gap_s) if gap_s else 0.0
        length = run_s * chance.lognormvariate(0.0, spread) if spread else run_s
        jobs.append(TraceJob(id=str(number), submitted=at, run_s=length, models=models[which]))
    return jobs
