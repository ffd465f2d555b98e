"""How throughput grows with the number of nodes."""

from benchmarks.figures.gpus import JOB_S, fleet_batch
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded
from benchmarks.stats import Computing

STEPS = (1, 2, 3, 4, 8)
FOUR_OVER_THREE = 1.3
LINEAR = 0.97


async def measure(options: Options) -> Result:
    """Measure; about a minute and a half."""
    each = options.some(40, 8)
    used: dict[int, Computing] = {}
    async with Stage(options) as stage, bounded(600, "the scaling figure"):
        urls = await stage.sims(max(STEPS), job_s=JOB_S)
        fleet = await stage.fleet(urls[:1])
        for count in STEPS:
            for number in range(max(used, default=1), count):
                await fleet.add(f"node-{number + 1}", urls[number])
            await fleet.until_up(count)
            used[count] = await fleet_batch(fleet.url, urls[:count], each * count, options.say)
            stage.check()
    rate = {count: one.jobs_per_s for count, one in used.items()}
    four = rate[4] / rate[3]
    linear = {count: rate[count] / (count * rate[1]) for count in STEPS}
    worst = min(linear, key=lambda count: linear[count])
    return Result(
        name="scaling",
        title="Throughput by number of nodes",
        verdicts=[
            Verdict(
                figure="throughput of 4 nodes over 3",
                target=f"≥ {FOUR_OVER_THREE}",
                ours=f"{four:.3f}",
                baseline="linear 1.333",
                ratio=four / (4 / 3),
                met=four >= FOUR_OVER_THREE,
            ),
            Verdict(
                figure=f"throughput over linear, worst of {', '.join(map(str, STEPS[1:]))} nodes",
                target=f"≥ {LINEAR}",
                ours=f"{linear[worst]:.3f} ({worst} nodes)",
                baseline="linear 1",
                ratio=linear[worst],
                met=linear[worst] >= LINEAR,
            ),
        ],
        columns=["nodes", "jobs/s", "over linear", "share computing", "gap ms"],
        rows=[
            [
                str(count),
                f"{rate[count]:.2f}",
                f"{linear[count]:.3f}",
                f"{one.share:.4f}",
                f"{one.gap_s * 1000:.1f}",
            ]
            for count, one in used.items()
        ],
        notes=[
            f"{each} jobs of {JOB_S} s for each node, all submitted at once, one dispatcher; nodes join the "
            "running fleet from step to step. Throughput: jobs over the window from the first start of a "
            "computation to the last end. Linear: that of one node times the nodes.",
        ],
        data={str(count): vars(one) for count, one in used.items()},
        quick=options.quick,
    )
