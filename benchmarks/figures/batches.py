"""How long many pictures take in one call, against single submits: one by one, or some at once."""

import asyncio
import time
from functools import partial

import httpx

from benchmarks.clients import trivial_graph
from benchmarks.figures.gpus import JOB_S, NODES, finished
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded, sim_intervals, sim_reset
from benchmarks.stats import Computing, computing, median

TARGET = 1.03
ROUNDS = 3
BATCH, LOOP, MANY = "one call", "a loop of single submits", "16 single submits at once"
WAYS = (BATCH, LOOP, MANY)
AT_ONCE = 16
WARMING = 8  # jobs of each way before it counts: every process has done everything once
POLL_S = 0.1
ANSWER_S = 120.0


async def measure(options: Options) -> Result:
    """Measure; about three and a half minutes."""
    jobs = options.some(200, 24)
    physical_s = jobs / NODES * JOB_S
    used: dict[str, list[Computing]] = {way: [] for way in WAYS}
    answers: dict[str, list[float]] = {way: [] for way in WAYS}
    async with Stage(options) as stage, bounded(600, "the figure of batches"):
        nodes = await stage.sims(NODES, job_s=JOB_S)
        fleet = await stage.fleet(nodes)
        await fleet.until_up(NODES)
        async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=ANSWER_S) as http:
            for way in WAYS:
                await _send(way, http, WARMING)
                await _ended(fleet, http, WARMING)
            for number in range(options.some(ROUNDS, 1)):
                for way in WAYS:
                    options.say(f"round {number + 1}: {way}")
                    await sim_reset(nodes)
                    started, clock = time.time(), time.perf_counter()
                    await _send(way, http, jobs)
                    answers[way].append(time.perf_counter() - clock)
                    await finished(nodes, jobs, partial(_say, options, way))
                    used[way].append(computing(await sim_intervals(nodes), submitted=started))
                    await _ended(fleet, http, jobs)
        stage.check()
    over = {way: median([one.makespan_s / physical_s for one in found]) for way, found in used.items()}
    return Result(
        name="batches",
        title="Many pictures by one call",
        verdicts=[
            Verdict(
                figure=f"{jobs} pictures of {JOB_S} s by one call on {NODES} nodes, over the physical time",
                target=f"≤ {TARGET}",
                ours=f"{over[BATCH]:.3f}",
                baseline=f"{LOOP} {over[LOOP]:.3f}, {MANY} {over[MANY]:.3f}",
                ratio=over[BATCH] / over[LOOP],
                met=over[BATCH] <= TARGET,
            )
        ],
        columns=["way", "over physical", "until the last end s", "until all are accepted s", "gap ms"],
        rows=[
            [
                way,
                f"{over[way]:.3f}",
                f"{median([one.makespan_s for one in found]):.2f}",
                f"{median(answers[way]):.2f}",
                f"{median([one.gap_s for one in found]) * 1000:.1f}",
            ]
            for way, found in used.items()
        ],
        notes=[
            f"Median of {options.some(ROUNDS, 1)} rounds, the ways in turn, each warmed once with {WARMING} "
            "jobs. From the moment at which the first request is sent to the end of the last computation, as "
            f"the nodes counted it, over {jobs} / {NODES} x {JOB_S} s. "
            "One call: POST /api/v2/batches, which answers once everything is checked and durable. The loop "
            f"sends each graph after the answer about the one before; {AT_ONCE} at once: on as many "
            "connections.",
        ],
        data={way: {"runs": [vars(one) for one in used[way]], "answers": answers[way]} for way in used},
        quick=options.quick,
    )


def _say(options: Options, way: str, done: int) -> None:
    options.say(f"{way}: {done} done")


async def _send(way: str, http: httpx.AsyncClient, jobs: int) -> None:
    if way == BATCH:
        items = [{"custom_id": str(number), "workflow": trivial_graph()} for number in range(jobs)]
        answer = await http.post("/api/v2/batches", json={"items": items})
        if answer.status_code != 201:
            raise BenchError(f"the batch was refused: {answer.text[:300]}")
        return
    left = iter(range(jobs))

    async def some() -> None:
        for _ in left:
            answer = await http.post("/api/v2/jobs", json={"workflow": trivial_graph()})
            if answer.status_code != 201:
                raise BenchError(f"a submit was refused: {answer.text[:300]}")

    await asyncio.gather(*(some() for _ in range(1 if way == LOOP else AT_ONCE)))


async def _ended(fleet: Fleet, http: httpx.AsyncClient, jobs: int) -> None:
    """Wait until nothing waits or runs, and check that all has succeeded."""
    while True:
        live = await http.get("/api/v1/jobs", params={"status": "queued,running", "limit": 1})
        if not live.json()["jobs"]:
            break
        await asyncio.sleep(POLL_S)
    bad = await http.get("/api/v1/jobs", params={"status": "failed,canceled,expired", "limit": 1})
    if bad.json()["jobs"]:
        raise BenchError(f"not all of {jobs} jobs at {fleet.url} have succeeded")
