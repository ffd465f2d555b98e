"""All jobs at once: how long everything takes, and how many models are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from benchmarks.report import Result, Verdict
from benchmarks.schedule import NODES, PATIENCE_S, POLICIES, SETS, nodes, set_jobs, simulate
from benchmarks.stage import Options
from comfy_fleet.planning.bounds import bounds

JOBS = 160
LOADS_S = (5.0, 10.0, 20.0, 30.0)
RUNS_S = (0.3, 2.0, 6.0)
CURVE_S = (5.0, 10.0, 20.0, 60.0)
CURVE_OF = (10.0, 2.0)
"""Load and run of the curve over T, in seconds."""
ORDERS = 10
MOST_TIME, MOST_LOADS = 1.15, 1.2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A policy in one case, means over all orders.

    Attributes:
        time: Makespan over that of the best assignment.
        loads: Model loads over the least.
        makespan_s: Seconds.
        longest_s: The longest wait.
    """

    time: float
    loads: float
    makespan_s: float
    longest_s: float


def case(policy: str, load_s: float, run_s: float, *, orders: int, patience_s: float = PATIENCE_S) -> Case:
    """Simulate a case in several orders of the same jobs."""
    fleet, (least_s, least_loads) = nodes(load_s), best(load_s, run_s)
    times, loads, spans, longest = [], [], [], []
    for order in range(orders):
        jobs = set_jobs(JOBS, run_s=run_s, seed=order)
        outcome = simulate(policy, jobs, fleet, patience_s=patience_s, seed=order).outcome
        times.append(outcome.makespan_s / least_s)
        loads.append(outcome.loads / least_loads)
        spans.append(outcome.makespan_s)
        longest.append(outcome.wait.most if outcome.wait else 0.0)
    return Case(time=fmean(times), loads=fmean(loads), makespan_s=fmean(spans), longest_s=fmean(longest))


@cache
def best(load_s: float, run_s: float) -> tuple[float, int]:
    """Return the best assignment's makespan and the least loads; they don't depend on the order."""
    found = bounds(set_jobs(JOBS, run_s=run_s), nodes(load_s))
    if found.makespan_s is None:
        raise AssertionError("8 sets on 4 nodes are few enough to try everything")
    return found.makespan_s, found.loads


async def measure(options: Options) -> Result:
    """Simulate; about two minutes of one core."""
    orders = options.some(ORDERS, 2)
    found: dict[tuple[str, float, float], Case] = {}
    for run_s in RUNS_S:
        for load_s in LOADS_S:
            for policy in POLICIES:
                options.say(f"{policy}, loads of {load_s:g} s, runs of {run_s:g} s")
                found[policy, load_s, run_s] = case(policy, load_s, run_s, orders=orders)
    curve = {}
    for patience_s in CURVE_S:
        options.say(f"T = {patience_s:g} s")
        curve[patience_s] = case("fair", *CURVE_OF, orders=orders, patience_s=patience_s)
    return Result(
        name="schedule",
        title="Simulated: all jobs at once",
        verdicts=[verdict for run_s in RUNS_S for verdict in _verdicts(found, run_s)],
        columns=["run, load", *(f"{policy}: time, loads" for policy in POLICIES)],
        rows=[
            [
                f"{run_s:g} s, {load_s:g} s",
                *(_cell(found[policy, load_s, run_s]) for policy in POLICIES),
            ]
            for run_s in RUNS_S
            for load_s in LOADS_S
        ]
        + [
            [f"T = {patience_s:g} s", f"{_cell(one)}; longest wait {one.longest_s:.0f} s", "", "", ""]
            for patience_s, one in curve.items()
        ],
        notes=[
            f"{JOBS} jobs of one owner over {SETS} model sets of 18 GiB, submitted at once in random order "
            f"to {NODES} "
            f"nodes of 24 GiB, which hold one set at a time; mean of {orders} orders. Time: makespan over "
            "the best "
            "assignment's, which an exhaustive search finds (each set on any nodes, its work cut "
            "anywhere); loads: "
            "over 8, one for each set.",
            f"fair passes a job over for at most T = {PATIENCE_S:g} s; the last rows show how T matters, "
            "with loads of "
            f"{CURVE_OF[0]:g} s and runs of {CURVE_OF[1]:g} s. Expected run times are off by a fifth.",
            "leastconn pushes jobs to the nodes' own queues at once. swarmui: SwarmUI's rule, by its source.",
        ],
        data={
            "cases": {f"{p} {load:g} {run:g}": vars(one) for (p, load, run), one in found.items()},
            "curve": {f"{t:g}": vars(one) for t, one in curve.items()},
        },
        quick=options.quick,
    )


def _cell(one: Case) -> str:
    return f"{one.time:.2f}, {one.loads:.2f}"


def _verdicts(found: dict[tuple[str, float, float], Case], run_s: float) -> Sequence[Verdict]:
    def worst(policy: str, what: str) -> float:
        return max(float(getattr(found[policy, load_s, run_s], what)) for load_s in LOADS_S)

    verdicts = []
    for what, words, most in (("time", "makespan", MOST_TIME), ("loads", "model loads", MOST_LOADS)):
        ours = worst("fair", what)
        others = ", ".join(f"{policy} {worst(policy, what):.2f}" for policy in POLICIES[1:])
        verdicts.append(
            Verdict(
                figure=(
                    f"simulated: {words}, {JOBS} jobs of {run_s:g} s at once, loads of 5 to 30 s, the worst"
                ),
                target=f"≤ {most:g} × the {'best' if what == 'time' else 'least'}",
                ours=f"{ours:.2f}",
                baseline=others,
                ratio=ours / worst("fifo", what),
                met=ours <= most,
            )
        )
    return verdicts
