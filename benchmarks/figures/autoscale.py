"""A day of bursty load: what the rules of `fleet autoscale` bring beside fixed fleets and an oracle."""

import math

from benchmarks.report import Result, Verdict
from benchmarks.scaled_days import DAY_S, HOUR_S, LONG_S, SHORT_S, bursty_day, mean_load
from benchmarks.stage import Options
from comfy_fleet.domain.scaling.rules import GrowRule, GrowSignal, ScalingRules
from comfy_fleet.planning.scaled_pool import ScaledOutcome, ScaledPool, oracle

BOOT_S = 90.0
MAXIMUM = 12
PATIENCE_S = 30.0
DEFAULT = ScalingRules(minimum=1, maximum=MAXIMUM)
QUICK = ScalingRules(
    minimum=1,
    maximum=MAXIMUM,
    cool_down_s=60.0,
    grow=(
        GrowRule(signal=GrowSignal.WAIT, above=15.0, for_s=15.0, add=2),
        GrowRule(signal=GrowSignal.BACKLOG, above=50.0, for_s=15.0, add=6),
    ),
)


async def measure(options: Options) -> Result:
    """Simulate; some seconds of one core."""
    day_s = DAY_S / 10 if options.quick else DAY_S
    jobs = bursty_day(seed=1, day_s=day_s)
    rules = {"rules as they are": DEFAULT, "sooner and more": QUICK}
    found: dict[str, ScaledOutcome] = {}
    for name, one in rules.items():
        options.say(name)
        found[name] = ScaledPool(one, boot_s=BOOT_S).run(jobs, until=day_s)
    ours = found["rules as they are"]
    as_many = max(1, math.ceil(ours.gpu_s / day_s))
    for count in sorted({as_many - 1 or 1, as_many, as_many + 2, MAXIMUM}):
        options.say(f"{count} nodes")
        fixed = ScalingRules(minimum=count, maximum=count, shrink=None)
        found[_fixed(count)] = ScaledPool(fixed, boot_s=BOOT_S).run(jobs, until=day_s)
    found["an oracle"] = oracle(
        jobs, boot_s=BOOT_S, patience_s=PATIENCE_S, minimum=1, maximum=MAXIMUM, until=day_s
    )
    known = found["an oracle"]
    beside = found[_fixed(as_many)]
    if ours.wait is None or beside.wait is None or known.wait is None:
        raise AssertionError("every job has waited")
    verdicts = [
        Verdict(
            figure="simulated: turns within the cool-down in a day of bursty load",
            target="none",
            ours=str(turns := sum(found[name].turns(one.cool_down_s) for name, one in rules.items())),
            baseline=f"{len(ours.changes)} changes in all",
            ratio=None,
            met=turns == 0,
        ),
        Verdict(
            figure="simulated: jobs whose node was removed under them",
            target="none",
            ours=str(cut := sum(found[name].interrupted for name in rules)),
            baseline=f"{len(jobs)} jobs",
            ratio=None,
            met=cut == 0,
        ),
        Verdict(
            figure="simulated: wait of nine of ten jobs, p90",
            target="≤ a fixed fleet that costs as much",
            ours=f"{ours.wait.p90:.0f} s for {ours.gpu_s / HOUR_S:.0f} GPU hours",
            baseline=f"{_fixed(as_many)}: {beside.wait.p90:.0f} s for {beside.gpu_s / HOUR_S:.0f}; "
            f"oracle {known.wait.p90:.0f} s for {known.gpu_s / HOUR_S:.0f}",
            ratio=ours.wait.p90 / beside.wait.p90 if beside.wait.p90 else None,
            met=ours.wait.p90 <= beside.wait.p90,
        ),
    ]
    return Result(
        name="autoscale",
        title="Simulated: a day of bursty load on a pool that grows and shrinks",
        verdicts=verdicts,
        columns=["pool", "p50 s", "p90 s", "p99 s", "longest s", "GPU hours", "at work", "most", "changes"],
        rows=[_row(name, outcome) for name, outcome in found.items()],
        notes=[
            f"{len(jobs)} jobs in {day_s / HOUR_S:g} h, four of five of {SHORT_S:g} s, the others of "
            f"{LONG_S:g} s: up to one in three seconds in the afternoon, none at night, and about every 40 "
            f"minutes 20 to 200 at once. They keep {mean_load(jobs, day_s):.1f} nodes at work on average.",
            f"A node takes {BOOT_S:g} s to boot; GPU hours count from the order to the end. Pools have 1 to "
            f"{MAXIMUM} nodes. Rules as they are: a wait over 30 s for 2 min adds one, a backlog over 50 "
            "for 5 min two, less than 30 % at work over 10 min removes one, cool-down 2 min. Sooner and "
            "more: 15 s for 15 s adds two, 50 for 15 s six, cool-down 1 min.",
            f"The oracle knows all jobs: nodes are there the moment they are needed, so that no job waits "
            f"over {PATIENCE_S:g} s unless {MAXIMUM} nodes are not enough.",
            "Jobs are taken in their order and load no models. The longest waits are those of a burst's "
            "first minutes, until a rule's time and a boot are over. A higher minimum shortens them.",
        ],
        data={
            name: {**vars(one.wait), "gpu_s": one.gpu_s, "changes": len(one.changes)}
            for name, one in found.items()
            if one.wait
        },
        quick=options.quick,
    )


def _fixed(count: int) -> str:
    return f"{count} fixed"


def _row(name: str, outcome: ScaledOutcome) -> list[str]:
    wait = outcome.wait
    cells = [] if wait is None else [f"{one:.0f}" for one in (wait.p50, wait.p90, wait.p99, wait.most)]
    return [
        name,
        *cells,
        f"{outcome.gpu_s / HOUR_S:.0f}",
        f"{outcome.work_s / outcome.gpu_s:.0%}",
        str(outcome.most),
        str(len(outcome.changes)),
    ]
