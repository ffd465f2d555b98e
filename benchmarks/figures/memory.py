"""Out-of-memory attempts and lost jobs of one trace, through the fleet and by plain round-robin."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

from benchmarks import trace
from benchmarks.operations import FINAL, order
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded, sim_reset, sim_stats
from benchmarks.stats import median
from benchmarks.trace import Arrival, Trace

SEED = 1
JOB_S = 0.4
WORKFLOWS = 25
MODELS = 8
SHARE = 0.1  # of the baseline's attempts that may be left
UNLIKE_SHARE = 0.3  # the same if no job is like another
POLL_S = 0.05
POLLS = 10  # of more jobs each is asked less often: asking must not slow down what is measured
PATIENCE_S = 120.0


class Pace:
    """How often jobs are asked whether they have ended.

    Attributes:
        waiting: How many jobs are waited for.
    """

    def __init__(self) -> None:
        self.waiting = 0

    async def pause(self) -> None:
        """Wait until the next question about a job."""
        await asyncio.sleep(POLL_S * max(1.0, self.waiting / POLLS))


Send = Callable[[httpx.AsyncClient, Trace, Arrival, Pace], Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a trace.

    Attributes:
        attempts: Runs that ended out of memory, as the nodes counted them.
        by_node: The same by node.
        lost: Jobs that did not succeed.
        twice: Runs that succeeded beyond one for each job.
        ends: Jobs by how they ended.
        p50_s: Median time from a job's submit to its end.
        lasted_s: From the first submit to the last end.
        busy_s: Seconds that all GPUs worked, for failures too.
    """

    attempts: int
    by_node: list[int]
    lost: int
    twice: int
    ends: dict[str, int]
    p50_s: float
    lasted_s: float
    busy_s: float


async def measure(options: Options) -> Result:
    """Measure; about eight minutes."""
    jobs = options.some(500, 60)
    # Of one kind of job there are many, or none is like another.
    alike = f"{WORKFLOWS} workflows"
    traces = {
        alike: trace.draw(SEED, jobs=jobs, workflows=WORKFLOWS, job_s=JOB_S),
        "every job by itself": trace.draw(SEED, jobs=jobs, workflows=jobs, job_s=JOB_S),
        f"every size by itself, {MODELS} models": trace.draw(
            SEED, jobs=jobs, workflows=jobs, job_s=JOB_S, models=MODELS
        ),
    }
    found: dict[str, dict[str, Outcome]] = {}
    async with bounded(1200, "the figure of memory"):
        for name, one in traces.items():
            found[name] = await _both(options, name, one)
    verdicts = [
        _verdict(name, jobs, both, SHARE if name == alike else UNLIKE_SHARE) for name, both in found.items()
    ]
    return Result(
        name="memory",
        title="Out of memory",
        verdicts=verdicts,
        columns=["trace", "way", "out-of-memory attempts", "lost", "run twice", "p50 s", "lasted s", "GPU s"],
        rows=[
            [
                name,
                way,
                str(o.attempts),
                str(o.lost),
                str(o.twice),
                f"{o.p50_s:.2f}",
                f"{o.lasted_s:.0f}",
                f"{o.busy_s:.0f}",
            ]
            for name, both in found.items()
            for way, o in both.items()
        ],
        notes=[
            f"{jobs} jobs of {JOB_S} s that arrive at random, at {trace.LOAD:.0%} of what 4 simulated nodes "
            f"({', '.join(map(str, trace.CARDS_GIB))} GiB) can do. They need {trace.NEEDS_GIB[0]:g} to "
            f"{trace.NEEDS_GIB[1]:g} GiB; what their workflow declares differs from that by up to "
            f"{trace.ERROR:.0%}, and {trace.UNDECLARED:.0%} declare nothing. On the first card another "
            f"process takes {trace.FOREIGN_GIB:g} GiB for {trace.FOREIGN_FOR_S:g} s, every "
            f"{trace.FOREIGN_EVERY_S:g} s.",
            f"With {WORKFLOWS} workflows the jobs of one workflow are alike, and the fleet learns from a "
            "failure for all of them. In the second trace each job has a model file of its own, which is all "
            f"that it needs. In the third they share {MODELS} model files, and each has a picture size of "
            "its own.",
            "Round-robin: a client sends each job to the next node in turn, straight to its ComfyUI, and "
            "after an out-of-memory error to the node after that, until each node has failed once; then it "
            "is lost.",
            "Attempts and runs are the nodes' own counts; a job is lost if it did not succeed.",
        ],
        data={name: {way: vars(o) for way, o in both.items()} for name, both in found.items()},
        quick=options.quick,
    )


def _verdict(name: str, jobs: int, both: dict[str, Outcome], most: float) -> Verdict:
    ours, theirs = both["fleet"], both["round-robin"]
    share = ours.attempts / theirs.attempts if theirs.attempts else float(ours.attempts > 0)
    return Verdict(
        figure=f"{jobs} jobs on 24/24/16/12 GiB, {name}: out-of-memory attempts, lost jobs",
        target=f"≤ {most:g} of round-robin's; 0 lost",
        ours=f"{ours.attempts}; {ours.lost} lost",
        baseline=f"round-robin {theirs.attempts}; {theirs.lost} lost",
        ratio=share,
        met=share <= most and not ours.lost and not ours.twice,
    )


async def _both(options: Options, name: str, what: Trace) -> dict[str, Outcome]:
    """Run a trace both ways, on nodes of its own."""
    async with Stage(options) as stage:
        models, workflows = stage.folder / "models.json", stage.folder / "workflows"
        trace.write_models(models, what.needs)
        trace.write_workflows(workflows, what.needs)
        nodes = []
        for number, size in enumerate(trace.CARDS_GIB, start=1):
            more = ("--vram-gib", str(size), "--models", str(models))
            nodes += await stage.sims(1, job_s=JOB_S, name=f"sim-{number}", more=more)

        async def turn(http: httpx.AsyncClient, what: Trace, arrival: Arrival, pace: Pace) -> str:
            return await _in_turn(http, nodes, what, arrival, pace)

        def say(line: str, name: str = name) -> None:
            options.say(f"{name}: {line}")

        robin = await _run(nodes, what, turn, "round-robin", say)
        await sim_reset(nodes)
        fleet = await stage.fleet(nodes, workflows=workflows)
        await fleet.until_up(len(nodes))

        async def submit(http: httpx.AsyncClient, what: Trace, arrival: Arrival, pace: Pace) -> str:
            return await _through(http, fleet.url, what, arrival, pace)

        ours = await _run(nodes, what, submit, "fleet", say)
        stage.check()
    return {"fleet": ours, "round-robin": robin}


async def _run(
    nodes: Sequence[str], what: Trace, send: Send, way: str, say: Callable[[str], None]
) -> Outcome:
    ends: Counter[str] = Counter()
    took: list[float] = []
    pace = Pace()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(trust_env=False, timeout=30, limits=limits) as http:
        began = time.monotonic()

        async def one(arrival: Arrival) -> None:
            await asyncio.sleep(began + arrival.at_s - time.monotonic())
            sent = time.monotonic()
            pace.waiting += 1
            end = await send(http, what, arrival, pace)
            pace.waiting -= 1
            took.append(time.monotonic() - sent)
            ends[end] += 1
            say(f"{way}: {ends.total()} of {len(what.arrivals)} jobs ended")

        async with _foreigner(http, nodes[0], began), asyncio.TaskGroup() as group:
            for arrival in what.arrivals:
                group.create_task(one(arrival))
        lasted = time.monotonic() - began
    stats = await sim_stats(nodes)
    done = sum(one["done"] for one in stats)
    return Outcome(
        attempts=sum(one["failed"] for one in stats),
        by_node=[one["failed"] for one in stats],
        lost=len(what.arrivals) - ends["succeeded"],
        twice=max(0, done - ends["succeeded"]),
        ends=dict(ends),
        p50_s=median(took),
        lasted_s=lasted,
        busy_s=sum(one["busy_s"] for one in stats),
    )


@asynccontextmanager
async def _foreigner(http: httpx.AsyncClient, node: str, began: float) -> AsyncIterator[None]:
    """Let another process come and go on a node."""

    async def come_and_go() -> None:
        held = 0.0
        while True:
            wanted = trace.foreign(time.monotonic() - began)
            if wanted != held:
                answer = await http.post(f"{node}/sim/faults", json={"foreign_gib": wanted})
                answer.raise_for_status()
                held = wanted
            await asyncio.sleep(POLL_S)

    task = asyncio.create_task(come_and_go())
    try:
        yield
    finally:
        task.cancel()
        (results,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(results, Exception):
            raise results


async def _in_turn(
    http: httpx.AsyncClient, nodes: Sequence[str], what: Trace, arrival: Arrival, pace: Pace
) -> str:
    """Send a job to the next node in turn; after an error to the one after that, once round."""
    graph = trace.graph(what.needs[arrival.workflow], arrival.seed)
    for step in range(len(nodes)):
        node = nodes[(arrival.seed + step) % len(nodes)]
        run = str(uuid4())
        body = {"prompt": graph, "client_id": run, "prompt_id": run}
        (await http.post(f"{node}/prompt", json=body)).raise_for_status()
        until = time.monotonic() + PATIENCE_S
        while run not in (history := (await http.get(f"{node}/history/{run}")).json()):
            if time.monotonic() > until:
                return "unfinished"
            await pace.pause()
        if history[run]["status"]["status_str"] == "success":
            return "succeeded"
    return "failed"


async def _through(http: httpx.AsyncClient, base: str, what: Trace, arrival: Arrival, pace: Pace) -> str:
    """Submit a job to the fleet and wait for its end."""
    url = f"{base}/api/v1/workflows/{what.needs[arrival.workflow].name}/jobs"
    job = (await order(http, "POST", url, {"params": {"seed": arrival.seed}})).json()
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = (await http.get(f"{base}/api/v1/jobs/{job['id']}")).json()
        if found["status"] in FINAL:
            return str(found["status"])
        await pace.pause()
    return "unfinished"
