"""Shares of GPU time between owners, over any minute; and what a crowd does to another owner's single job."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.report import Result, Verdict
from benchmarks.schedule import simulate
from benchmarks.stage import Options
from comfy_fleet.domain.jobs.job import MAX_PRIORITY
from comfy_fleet.planning.fleet import NodeGroup, planned
from comfy_fleet.planning.states import SimulatedRun
from comfy_fleet.planning.trace import TraceJob

NODES, WINDOW_S, TARGET = 4, 60.0, 0.03
RUN_S = 0.32
POLICIES = ("fair", "fifo")
WEIGHTS = {"two": 2.0, "one": 1.0, "guest": 1.0}
CROWD, CROWD_S = 1000, 6.0

Active = Callable[[float], frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Jobs, and which owners have jobs that wait at a time.

    Attributes:
        jobs: Enough to keep all nodes busy until ``until``.
        active: Who should get a share at a time.
        until: Windows end here.
    """

    name: str
    jobs: Sequence[TraceJob]
    active: Active
    until: float


def cases(scale: float) -> list[Case]:
    """Return the cases; ``scale`` shortens them."""
    chance = random.Random(1)

    def jobs(
        owner: str,
        count: int,
        run_s: Callable[[], float],
        *,
        at: float = 0.0,
        canceled_at: float | None = None,
    ) -> list[TraceJob]:
        return [
            TraceJob(
                id=f"{owner}-{number}", submitted=at, run_s=run_s(), owner=owner, canceled_at=canceled_at
            )
            for number in range(count)
        ]

    def mixed() -> float:
        return min(10.0, 1.0 * chance.lognormvariate(0.0, 0.8))

    until = 600.0 * scale
    enough = round(until * NODES / RUN_S)
    both = frozenset({"two", "one"})
    joins, leaves = 0.33 * until, 0.66 * until

    def with_guest(at: float) -> frozenset[str]:
        return both | {"guest"} if joins <= at < leaves else both

    visit = [*jobs("two", enough, lambda: RUN_S), *jobs("one", enough, lambda: RUN_S)]
    # The guest's thousand are more than its share: it cancels what is left.
    guests = jobs("guest", round(enough * 0.2) + 1000, lambda: RUN_S, at=joins, canceled_at=leaves)
    return [
        Case(
            name="0.32 s each",
            jobs=[*jobs("two", enough, lambda: RUN_S), *jobs("one", enough, lambda: RUN_S)],
            active=lambda _: both,
            until=until,
        ),
        Case(
            name="0.1 to 10 s, mixed",
            jobs=[*jobs("two", round(enough * 0.35), mixed), *jobs("one", round(enough * 0.35), mixed)],
            active=lambda _: both,
            until=until * 0.75,
        ),
        Case(name="a third joins, and cancels 1,000", jobs=[*visit, *guests], active=with_guest, until=until),
    ]


def worst(runs: Sequence[SimulatedRun], case: Case) -> float:
    """Return the largest difference from an ideal share over any minute, as a part of all GPU time in it."""
    steps = int(case.until)
    used = {owner: [0.0] * (steps + 1) for owner in WEIGHTS}
    for run in runs:
        start, end = run.started, run.started + run.load_s + run.run_s
        for second in range(int(start), min(steps, int(end)) + 1):
            overlap = min(end, second + 1.0) - max(start, float(second))
            if overlap > 0:
                used[run.job.owner][second] += overlap
    ideal = {owner: [0.0] * (steps + 1) for owner in WEIGHTS}
    for second in range(steps + 1):
        active = case.active(second + 0.5)
        total = sum(WEIGHTS[owner] for owner in active)
        for owner in active:
            ideal[owner][second] = NODES * WEIGHTS[owner] / total
    found = 0.0
    width = int(WINDOW_S)
    for owner in WEIGHTS:
        for first in range(steps - width):
            got, wanted = sum(used[owner][first : first + width]), sum(ideal[owner][first : first + width])
            found = max(found, abs(got - wanted) / (NODES * WINDOW_S))
    return found


def behind_a_crowd(policy: str, at: float) -> float:
    """Return how long a single job waits behind a thousand of top priority."""
    jobs = [
        TraceJob(id=f"crowd-{n}", submitted=0.0, run_s=CROWD_S, owner="crowd", priority=MAX_PRIORITY)
        for n in range(CROWD)
    ]
    jobs.append(TraceJob(id="single", submitted=at, run_s=CROWD_S, owner="single"))
    found = simulate(policy, jobs, planned([NodeGroup(count=NODES)]))
    return next(run.started - run.job.submitted for run in found.runs if run.job.id == "single")


async def measure(options: Options) -> Result:
    """Simulate; about a minute of one core."""
    fleet = planned([NodeGroup(count=NODES)])
    found: dict[str, dict[str, float]] = {}
    for case in cases(0.3 if options.quick else 1.0):
        found[case.name] = {}
        for policy in POLICIES:
            options.say(f"{policy}, {case.name}")
            found[case.name][policy] = worst(simulate(policy, case.jobs, fleet, weights=WEIGHTS).runs, case)
    moments = (10.0, 33.3, 60.1)
    waits = {policy: max(behind_a_crowd(policy, at) for at in moments) for policy in POLICIES}
    return Result(
        name="schedule-shares",
        title="Simulated: shares of GPU time",
        verdicts=[
            *(
                Verdict(
                    figure=f"simulated: shares 2:1 over any 60 s, {name}",
                    target=f"within {TARGET:.0%}",
                    ours=f"{one['fair']:.1%}",
                    baseline=f"fifo {one['fifo']:.1%}",
                    ratio=None,
                    met=one["fair"] <= TARGET,
                )
                for name, one in found.items()
            ),
            Verdict(
                figure="simulated: a single job behind 1,000 of top priority of another owner",
                target="waits for one run at most",
                ours=f"{waits['fair']:.1f} s",
                baseline=f"fifo {waits['fifo']:.0f} s; a run {CROWD_S:g} s",
                ratio=waits["fair"] / CROWD_S,
                met=waits["fair"] <= CROWD_S,
            ),
        ],
        columns=["case", *(f"{policy}: most off" for policy in POLICIES)],
        rows=[[name, *(f"{one[policy]:.2%}" for policy in POLICIES)] for name, one in found.items()],
        notes=[
            "Two owners with weights 2 and 1 have jobs waiting at all times on 4 nodes, without models. "
            "Off: the most that "
            "an owner's GPU seconds differ from its share, in any window of 60 s, as a part of all GPU "
            "seconds in it. "
            "Expected run times are off by a fifth.",
            "The third owner, of weight 1, joins with more jobs than its share can run, and cancels what "
            "is left.",
        ],
        data={"off": found, "behind a crowd": waits},
        quick=options.quick,
    )
