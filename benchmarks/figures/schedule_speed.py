"""How long `fleet simulate` takes: a thousand nodes, an hour of 600 jobs a second."""

import resource
import time

from benchmarks.report import Result, Verdict
from benchmarks.schedule import GIB
from benchmarks.stage import Options
from comfy_fleet.planning.conditions import Conditions
from comfy_fleet.planning.estimates import Estimates
from comfy_fleet.planning.fleet import NodeGroup, planned
from comfy_fleet.planning.generated import Generated, generate
from comfy_fleet.planning.registry import CONTENDERS
from comfy_fleet.planning.simulation import Simulation

NODES, RATE, HOUR_S, TARGET_S = 1000, 600.0, 3600, 300.0
POLICIES = ("fair", "fifo")


async def measure(options: Options) -> Result:
    """Simulate; up to ten minutes of one core."""
    duration_s = options.some(HOUR_S, 60)
    wanted = Generated(
        rate=RATE,
        duration_s=duration_s,
        owners=200,
        sets=40,
        set_bytes=(6 * GIB, 12 * GIB),
        run_s=1.1,
        seed=1,
    )
    rows, took = [], {}
    for policy in POLICIES:
        options.say(policy)
        simulation = Simulation(
            planned([NodeGroup(count=NODES)]),
            CONTENDERS[policy],
            Conditions(estimates=Estimates(run_error=0.2, memory_error=0.1)),
        )
        began, cpu = time.perf_counter(), time.process_time()
        outcome = simulation.run(generate(wanted))
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        took[policy] = cpu_s
        share = outcome.computing_s / (NODES * outcome.makespan_s)
        rows.append(
            [
                policy,
                f"{outcome.jobs:,}",
                f"{cpu_s:.0f}",
                f"{wall_s:.0f}",
                f"{cpu_s / outcome.jobs * 1e6:.0f}",
                f"{share:.0%}",
            ]
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Result(
        name="schedule-speed",
        title="How long a simulation takes",
        verdicts=[
            Verdict(
                figure=f"simulating {NODES:,} nodes, {duration_s} s of {RATE:.0f} jobs/s",
                target=f"≤ {TARGET_S * duration_s / HOUR_S:g} s of one core",
                ours=f"{took['fair']:.0f} s",
                baseline=f"fifo {took['fifo']:.0f} s",
                ratio=took["fair"] / took["fifo"],
                met=took["fair"] <= TARGET_S * duration_s / HOUR_S,
            )
        ],
        columns=["policy", "jobs", "CPU s", "wall s", "µs a job", "computing"],
        rows=rows,
        notes=[
            "Jobs of 1.1 s in the median over 40 model sets of 200 owners, made up meanwhile; one thread. "
            f"Memory at most {peak:.1f} GiB, jobs that wait included.",
        ],
        data=took,
        quick=options.quick,
    )
