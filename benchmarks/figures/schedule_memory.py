"""Jobs that need memory, no two alike: attempts that run out of it."""

import random

from benchmarks.report import Result, Verdict
from benchmarks.schedule import GIB, simulate
from benchmarks.stage import Options
from benchmarks.trace import CARDS_GIB, LOAD, NEEDS_GIB
from comfy_fleet.planning.fleet import NodeGroup, planned
from comfy_fleet.planning.trace import ModelSets, TraceJob

JOBS, RUN_S = 500, 6.0
ERRORS = (0.0, 0.1, 0.2, 0.3)
STATED = 0.2
TARGET = 0.3


def needs(count: int, seed: int) -> list[TraceJob]:
    """Return jobs whose one model is most of what they need."""
    chance = random.Random(seed)
    sets = ModelSets()
    at, jobs = 0.0, []
    for number in range(count):
        at += chance.expovariate(LOAD * len(CARDS_GIB) / RUN_S)
        memory = round(chance.uniform(*NEEDS_GIB) * GIB)
        models = sets.of([(f"model-{number}", round(memory * chance.uniform(0.6, 0.95)))])
        jobs.append(TraceJob(id=str(number), submitted=at, run_s=RUN_S, models=models, memory=memory))
    return jobs


async def measure(options: Options) -> Result:
    """Simulate; some seconds of one core."""
    count = options.some(JOBS, 100)
    jobs = needs(count, 1)
    fleet = planned(
        [NodeGroup(count=1, vram=gib * GIB, disk_rate=20.0 * GIB, ram_rate=20.0 * GIB) for gib in CARDS_GIB]
    )
    rows, attempts = [], {}
    for policy in ("round-robin", "leastconn", "fifo"):
        options.say(policy)
        outcome = simulate(policy, jobs, fleet).outcome
        attempts[policy] = outcome.out_of_memory
        rows.append([policy, str(outcome.out_of_memory), str(outcome.failed)])
    for error in ERRORS:
        options.say(f"fair, predictions off by {error:.0%}")
        outcome = simulate("fair", jobs, fleet, memory_error=error).outcome
        attempts[f"fair {error:g}"] = outcome.out_of_memory
        rows.append(
            [f"fair, predictions off by ≤ {error:.0%}", str(outcome.out_of_memory), str(outcome.failed)]
        )
    ours, theirs = attempts[f"fair {STATED:g}"], attempts["round-robin"]
    return Result(
        name="schedule-memory",
        title="Simulated: memory of jobs of which no two are alike",
        verdicts=[
            Verdict(
                figure=(
                    f"simulated: out-of-memory attempts of {count} jobs, predictions off by up to "
                    f"{STATED:.0%}"
                ),
                target=f"≤ {TARGET:g} of round-robin's",
                ours=str(ours),
                baseline=f"round-robin {theirs}, fifo {attempts['fifo']}",
                ratio=ours / theirs if theirs else None,
                met=ours <= TARGET * theirs,
            )
        ],
        columns=["policy", "out-of-memory attempts", "jobs that failed"],
        rows=rows,
        notes=[
            f"{count} jobs that need 6 to 20 GiB, at random moments on cards of 24, 24, 16 and 12 GiB. How "
            "far predictions "
            "are off is assumed here, not measured.",
            "round-robin and leastconn try another node after each failure; fifo, the fleet without "
            "predictions, goes to "
            "a larger card.",
        ],
        data=attempts,
        quick=options.quick,
    )
