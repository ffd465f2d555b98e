"""How good estimates of jobs' ends are at their submits, against an average of the last ones."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.report import Result, Verdict
from benchmarks.schedule import RUN_ERROR
from benchmarks.stage import Options
from comfy_fleet.planning.conditions import Conditions
from comfy_fleet.planning.estimates import Estimates
from comfy_fleet.planning.fleet import NodeGroup, PlannedNode, planned
from comfy_fleet.planning.generated import Generated, generate
from comfy_fleet.planning.judged_estimates import EstimateQuality
from comfy_fleet.planning.registry import CONTENDERS
from comfy_fleet.planning.simulation import Simulation
from comfy_fleet.planning.trace import TraceJob, read

GIB = 2**30
BY_P50, BY_P90 = (0.45, 0.55), (0.85, 0.95)
MOST_ERROR = 0.5
RUN_S, SPREAD = 6.0, 0.8
JOBS, OWNERS, SETS = 8000, 6, 8
LENGTHS_S = (2.0, 6.0, 20.0, 60.0)
TRACE_LOAD = 0.8


@dataclass(frozen=True, kw_only=True)
class Case:
    """Jobs on nodes.

    Attributes:
        jobs: In the order of their submits.
    """

    name: str
    jobs: Sequence[TraceJob]
    nodes: Sequence[PlannedNode]


def fleet(*groups: tuple[int, float]) -> list[PlannedNode]:
    """Return nodes of 24 GiB: how many, and their speed."""
    usual = NodeGroup(vram=24 * GIB, ram=64 * GIB, disk_rate=2 * GIB, ram_rate=8 * GIB)
    return planned([replace(usual, count=count, speed=speed) for count, speed in groups])


def made_up(
    nodes: Sequence[PlannedNode], load: float, jobs: int, run_s: float = RUN_S, **more: float
) -> list[TraceJob]:
    """Return jobs of several owners whose lengths differ much, for a load by computing alone."""
    mean_s = run_s * math.exp(SPREAD**2 / 2)
    rate = load * sum(each.node.speed for each in nodes) / mean_s
    wanted = Generated(
        jobs=jobs,
        rate=rate,
        owners=OWNERS,
        sets=SETS,
        run_s=run_s,
        run_spread=SPREAD,
        beside=0,
        burst=more.get("burst", 1.0),
        seed=round(more.get("seed", 1)),
    )
    return list(generate(wanted))


def cases(jobs: int, trace: Path | None) -> list[Case]:
    """Return the cases; a trace in a file comes last."""
    four, many, mixed = fleet((4, 1.0)), fleet((16, 1.0)), fleet((2, 1.0), (2, 0.5))
    found = [
        Case(name=f"{load:.0%} load, 4 nodes", jobs=made_up(four, load, jobs), nodes=four)
        for load in (0.6, 0.8, 0.95)
    ]
    found += [
        Case(name="80% load, 16 nodes", jobs=made_up(many, 0.8, jobs), nodes=many),
        Case(name="80% load, nodes of speed 1 and 0.5", jobs=made_up(mixed, 0.8, jobs), nodes=mixed),
        Case(name="80% load, bursts of 10", jobs=made_up(four, 0.8, jobs, burst=10.0), nodes=four),
        Case(name="85% load, owners from 2 to 60 s, bursts", jobs=by_owner(many, jobs), nodes=many),
    ]
    if trace is not None:
        with trace.open("rb") as file:
            real = [replace(job, pool="default", memory=0) for job in read(file, str(trace))]
        span = max(1.0, real[-1].submitted - real[0].submitted) if real else 1.0
        nodes = fleet((max(1, round(sum(job.run_s for job in real) / span / TRACE_LOAD)), 1.0))
        found.append(Case(name=f"{trace.name}, {len(nodes)} nodes", jobs=real, nodes=nodes))
    return found


def by_owner(nodes: Sequence[PlannedNode], jobs: int) -> list[TraceJob]:
    """Return jobs of owners of whom each sends one length, in bursts, for equal parts of the load."""
    found = []
    total = sum(1 / each for each in LENGTHS_S)
    for number, run_s in enumerate(LENGTHS_S):
        some = made_up(
            nodes, 0.85 / len(LENGTHS_S), round(jobs / run_s / total), run_s, burst=8.0, seed=number
        )
        found += [replace(job, id=f"{number}-{job.id}", owner=f"owner-{number}") for job in some]
    return sorted(found, key=lambda job: job.submitted)


def judged(case: Case) -> EstimateQuality:
    """Simulate a case."""
    conditions = Conditions(
        estimates=Estimates(run_error=RUN_ERROR, memory_error=None, seed=1), estimate_ends=True
    )
    quality = Simulation(case.nodes, CONTENDERS["fair"], conditions).run(case.jobs).estimates
    if quality is None:
        raise AssertionError(f"{case.name}: nothing was estimated")
    return quality


async def measure(options: Options) -> Result:
    """Simulate; about a minute of one core."""
    found: dict[str, EstimateQuality] = {}
    for case in cases(options.some(JOBS, 1500), options.trace):
        options.say(case.name)
        found[case.name] = judged(case)
    verdicts = []
    for name, one in found.items():
        verdicts += [
            Verdict(
                figure=f"simulated: jobs that end by p50 and p90, {name}",
                target="45 to 55 %, 85 to 95 %",
                ours=f"{one.by_p50:.1%}, {one.by_p90:.1%}",
                baseline="",
                ratio=None,
                met=BY_P50[0] <= one.by_p50 <= BY_P50[1] and BY_P90[0] <= one.by_p90 <= BY_P90[1],
            ),
            Verdict(
                figure=f"simulated: median error of p50, {name}",
                target=f"≤ {MOST_ERROR:g} × EWMA",
                ours=f"{one.error_s:.1f} s",
                baseline=f"EWMA {one.ewma_error_s:.1f} s",
                ratio=one.error_s / one.ewma_error_s,
                met=one.error_s <= MOST_ERROR * one.ewma_error_s,
            ),
        ]
    return Result(
        name="estimates",
        title="Simulated: estimates of jobs' ends",
        verdicts=verdicts,
        columns=["case", "jobs", "end by p50", "by p90", "p50 off by", "EWMA", "EWMA of waits"],
        rows=[
            [
                name,
                f"{one.jobs:,}",
                f"{one.by_p50:.1%}",
                f"{one.by_p90:.1%}",
                f"{one.error_s:.1f} s",
                f"{one.ewma_error_s:.1f} s",
                f"{one.ewma_wait_error_s:.1f} s",
            ]
            for name, one in found.items()
        ],
        notes=[
            "Each job's end is estimated once, at its submit, by the fleet's own code, and held against what "
            f"happens. {OWNERS} owners with very different numbers of jobs, {SETS} model sets of 12 GiB, "
            f"6 s of computing in the median (90 % from 1.6 to 22 s), expected within a fifth. "
            "The load is that of computing alone.",
            "Off by: medians. EWMA: a moving average of the times from submit to end, each job counting "
            "a tenth. EWMA of waits: such an average of waits, and the job's own expected loading and "
            "computing, which knows as much of the job as the fleet does.",
        ],
        data={name: asdict(one) for name, one in found.items()},
        quick=options.quick,
    )
