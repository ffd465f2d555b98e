"""Jobs that arrive at 60 and 80 % load: how long they wait."""

from benchmarks.report import Result, Verdict
from benchmarks.schedule import PATIENCE_S, POLICIES, nodes, set_jobs, simulate
from benchmarks.stage import Options
from comfy_fleet.planning.outcome import Outcome

LOADS = (0.6, 0.8)
LOAD_S, RUN_S = 5.0, 6.0
JOBS = 4000
P50, NODES = 0.2, 4


async def measure(options: Options) -> Result:
    """Simulate; about a minute of one core."""
    count = options.some(JOBS, 400)
    found: dict[tuple[str, float], Outcome] = {}
    for load in LOADS:
        jobs = set_jobs(count, run_s=RUN_S, gap_s=RUN_S / (load * NODES), seed=1)
        for policy in POLICIES:
            options.say(f"{policy} at {load:.0%}")
            found[policy, load] = simulate(policy, jobs, nodes(LOAD_S), seed=1).outcome
    verdicts = []
    for load in LOADS:
        ours, fifo, least = (found[policy, load].wait for policy in ("fair", "fifo", "leastconn"))
        if ours is None or fifo is None or least is None:
            raise AssertionError("every job has waited")
        verdicts += [
            Verdict(
                figure=f"simulated: wait at {load:.0%} load, p50",
                target=f"≤ {P50:g} × FIFO",
                ours=f"{ours.p50:.1f} s",
                baseline=f"fifo {fifo.p50:.1f} s, leastconn {least.p50:.1f} s",
                ratio=ours.p50 / fifo.p50 if fifo.p50 else None,
                met=ours.p50 <= P50 * fifo.p50,
            ),
            Verdict(
                figure=f"simulated: wait at {load:.0%} load, p99",
                target="≤ FIFO + T + one load + one run",
                ours=f"{ours.p99:.0f} s",
                baseline=f"fifo {fifo.p99:.0f} s, leastconn {least.p99:.0f} s",
                ratio=ours.p99 / fifo.p99 if fifo.p99 else None,
                met=ours.p99 <= fifo.p99 + PATIENCE_S + LOAD_S + RUN_S,
            ),
        ]
    return Result(
        name="schedule-waits",
        title="Simulated: waits of jobs that arrive at random",
        verdicts=verdicts,
        columns=["load, policy", "p50 s", "p90 s", "p99 s", "longest s", "loads a job", "computing"],
        rows=[_row(policy, load, outcome) for (policy, load), outcome in found.items()],
        notes=[
            f"{count} jobs of {RUN_S:g} s over 8 model sets of 18 GiB, at random moments (Poisson) on 4 "
            "nodes of 24 GiB; "
            f"a load takes {LOAD_S:g} s. The load is that of computing alone: whoever loads a model for "
            "nearly every job needs almost twice as much, so fifo and leastconn fall behind at both.",
        ],
        data={f"{policy} {load:g}": vars(one.wait) for (policy, load), one in found.items() if one.wait},
        quick=options.quick,
    )


def _row(policy: str, load: float, outcome: Outcome) -> list[str]:
    wait = outcome.wait
    cells = [] if wait is None else [f"{one:.1f}" for one in (wait.p50, wait.p90, wait.p99, wait.most)]
    share = outcome.computing_s / (outcome.nodes * outcome.makespan_s)
    return [f"{load:.0%}, {policy}", *cells, f"{outcome.loads / outcome.jobs:.2f}", f"{share:.0%}"]
