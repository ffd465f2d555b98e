"""What share of the time GPUs compute while a batch runs, against what one would build instead."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import rq_node
from benchmarks.loads import load
from benchmarks.report import Result, Verdict
from benchmarks.stage import (
    BenchError,
    Options,
    Stage,
    bounded,
    sim_done,
    sim_intervals,
    sim_reset,
)
from benchmarks.stats import Computing, computing

JOB_S = 0.32
NODES = 4
TARGET = 0.98
AT_ONCE = 16  # connections of the client that submits
PROXY_POLL_S = 0.1
LOOK_S = 0.25
BATCHES = 3  # of the fleet's: its share is within 0.01 of the target, which is what two batches differ by


async def measure(options: Options) -> Result:
    """Measure; about three minutes."""
    jobs = options.some(400, 60)
    used: dict[str, Computing] = {}
    async with Stage(options) as stage, bounded(600, "the figure of the GPUs' time"):
        nodes = await stage.sims(NODES, job_s=JOB_S)
        fleet = await stage.fleet(nodes)
        await fleet.until_up(NODES)
        batches = [
            await fleet_batch(fleet.url, nodes, jobs, options.say) for _ in range(options.some(BATCHES, 1))
        ]
        batches.sort(key=lambda one: one.share)
        used["fleet"] = batches[len(batches) // 2]
        stage.check()

        redis = await stage.redis("redis-rq")
        for number, node in enumerate(nodes, start=1):
            await stage.worker(number, node, redis.url)
        await asyncio.sleep(2)  # workers start with imports; their first jobs shall not wait for that
        await sim_reset(nodes)
        sent = await load("rq_submit_all", {"url": redis.url, "jobs": jobs})
        await finished(nodes, jobs, lambda done: options.say(f"stock RQ: {done} of {jobs}"))
        used["stock RQ worker per node"] = computing(await sim_intervals(nodes), submitted=sent["started"])
        stage.check()

        proxies = [await stage.proxy(node) for node in nodes]
        bases = [proxy.url for proxy in proxies]
        await sim_reset(nodes)
        sent = await load("submit_all", {"bases": bases, "jobs": jobs, "at_once": AT_ONCE})
        follow = {"bases": bases, "ids": sent["ids"], "poll_s": PROXY_POLL_S}
        states = await load("follow_all", follow, lambda done: options.say(f"proxies: {done} of {jobs}"))
        if states != {"succeeded": jobs}:
            raise BenchError(f"jobs behind the proxies ended as {states}")
        used["comfy-api-proxy per node"] = computing(await sim_intervals(nodes), submitted=sent["started"])
        stage.check()
    ours = used["fleet"]
    best = max((name for name in used if name != "fleet"), key=lambda name: used[name].share)
    rq = used["stock RQ worker per node"]
    return Result(
        name="gpus",
        title="Share of time the GPUs compute",
        verdicts=[
            Verdict(
                figure=f"share of time that {NODES} GPUs compute, {jobs} jobs of {JOB_S} s",
                target=f"≥ {TARGET}",
                ours=f"{ours.share:.3f} ({', '.join(f'{one.share:.3f}' for one in batches)})",
                baseline=f"stock RQ {rq.share:.3f}; {best} {used[best].share:.3f}"
                if best != "stock RQ worker per node"
                else f"stock RQ {rq.share:.3f}",
                ratio=ours.share / rq.share,
                met=ours.share >= TARGET,
            )
        ],
        columns=["way", "share", "share from submit", "gap ms", "window s", "jobs/s"],
        rows=[
            [
                name,
                f"{one.share:.4f}",
                f"{one.share_from_submit:.4f}",
                f"{one.gap_s * 1000:.1f}",
                f"{one.window_s:.2f}",
                f"{one.jobs_per_s:.2f}",
            ]
            for name, one in used.items()
        ],
        notes=[
            f"{jobs} jobs of {JOB_S} s on {NODES} simulated nodes, all submitted at once; intervals as the "
            "nodes counted them. Share: computing time over nodes x window, the window from the first start "
            "to the last end over all nodes; the second share counts from the first submit. Gap: median idle "
            "time between two jobs of a node.",
            f"The fleet ran {len(batches)} such batches, the others one each; shown is its median.",
            f"Stock RQ: one SimpleWorker (no fork) bound to each node, which posts and polls /history every "
            f"{rq_node.POLL_S} s, then reads the picture.",
            "comfy-api-proxy: the client deals the jobs out in turn, which is perfect for jobs of one length "
            "only; they wait in the memory of the ComfyUIs, and a node that dies takes its share of them "
            "along.",
        ],
        data={name: vars(one) for name, one in used.items()},
        quick=options.quick,
    )


async def fleet_batch(url: str, nodes: Sequence[str], jobs: int, say: Callable[[str], None]) -> Computing:
    """Run a batch through a fleet and account for it.

    Raises:
        BenchError: Not every job succeeded.
    """
    await sim_reset(nodes)
    sent = await load("submit_all", {"bases": [url], "jobs": jobs, "at_once": AT_ONCE})
    await finished(nodes, jobs, lambda done: say(f"fleet, {len(nodes)} nodes: {done} of {jobs}"))
    intervals = await sim_intervals(nodes)
    states: dict[str, Any] = await load("follow_all", {"bases": [url], "ids": sent["ids"], "poll_s": 0.05})
    if states != {"succeeded": jobs}:
        raise BenchError(f"the fleet's jobs ended as {states}")
    ran = sum(map(len, intervals))
    if ran != jobs:
        raise BenchError(f"{jobs} jobs made {ran} runs; one each was expected")
    return computing(intervals, submitted=sent["started"])


async def finished(nodes: Sequence[str], jobs: int, tell: Callable[[int], None]) -> None:
    """Wait until simulated nodes have finished this many prompts.

    Raises:
        BenchError: They do not get on any more.
    """
    last, since = -1, time.monotonic()
    while (done := await sim_done(nodes)) < jobs:
        if done != last:
            last, since = done, time.monotonic()
        elif time.monotonic() - since > 20:
            raise BenchError(f"nothing happens any more after {done} of {jobs} jobs")
        tell(done)
        await asyncio.sleep(LOOK_S)
