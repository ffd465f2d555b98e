"""Wishes for when a job is done, at 95 % load."""

import math
import random

from benchmarks.report import Result, Verdict
from benchmarks.schedule import simulate
from benchmarks.stage import Options
from comfy_fleet.planning.fleet import NodeGroup, planned
from comfy_fleet.planning.trace import TraceJob

LOAD, NODES, RUN_S, SPREAD = 0.95, 4, 6.0, 0.5
JOBS, SEEDS = 3000, 3
TARGET = 0.97
POLICIES = ("fair", "fifo", "leastconn", "edf")
SLACK = (2.0, 20.0)


def wishes(count: int, seed: int) -> list[TraceJob]:
    """Return jobs that wish to be done within 2 to 20 times their run."""
    chance = random.Random(seed)
    mean_s = RUN_S * math.exp(SPREAD**2 / 2)
    at, jobs = 0.0, []
    for number in range(count):
        at += chance.expovariate(LOAD * NODES / mean_s)
        run_s = RUN_S * chance.lognormvariate(0.0, SPREAD)
        jobs.append(
            TraceJob(id=str(number), submitted=at, run_s=run_s, finish_by=at + run_s * chance.uniform(*SLACK))
        )
    return jobs


async def measure(options: Options) -> Result:
    """Simulate; about half a minute of one core."""
    count, seeds = options.some(JOBS, 300), options.some(SEEDS, 1)
    fleet = planned([NodeGroup(count=NODES)])
    met = dict.fromkeys(POLICIES, 0)
    for seed in range(seeds):
        jobs = wishes(count, seed)
        for policy in POLICIES:
            options.say(f"{policy}, seed {seed}")
            met[policy] += simulate(policy, jobs, fleet, seed=seed).outcome.met
    share = {policy: number / (count * seeds) for policy, number in met.items()}
    return Result(
        name="schedule-wishes",
        title="Simulated: finish_by at 95 % load",
        verdicts=[
            Verdict(
                figure="simulated: finish_by met at 95 % load",
                target=f"≥ {TARGET:g} of the EDF oracle",
                ours=f"{share['fair']:.1%}",
                baseline=f"edf {share['edf']:.1%}, fifo {share['fifo']:.1%}",
                ratio=share["fair"] / share["edf"],
                met=share["fair"] >= TARGET * share["edf"],
            )
        ],
        columns=["policy", "met"],
        rows=[[policy, f"{one:.1%}"] for policy, one in share.items()],
        notes=[
            f"{count * seeds} jobs of one owner, {RUN_S:g} s in the median (log-normal), at random moments "
            f"on {NODES} nodes; "
            f"each wishes to be done within {SLACK[0]:g} to {SLACK[1]:g} times its run. No models.",
            "edf: the earliest deadline first, what can't be met any more last; it knows run times, fair's "
            "are off "
            "by a fifth.",
        ],
        data=share,
        quick=options.quick,
    )
