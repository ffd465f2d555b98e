"""How soon the job of a killed node runs elsewhere, under load, and that none is lost."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.operations import all_ended, audit, kill, submitting, until
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded, sim_stats
from benchmarks.stats import TIMES, Spread
from comfy_fleet.bootstrap import Stores, open_stores

NODES = 4
JOB_S = 0.4
LOAD = 0.7
KILLS = 12
TARGET_S = 2.0
ROUND_S = 3.0  # a killed node is back by then


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A run that was under way on a node when that was killed.

    Attributes:
        at: When, in Unix seconds.
    """

    job: str
    run: str
    node: str
    at: float


async def measure(options: Options) -> Result:
    """Measure; about a minute."""
    kills = options.some(KILLS, 3)
    rate = LOAD * NODES / JOB_S
    jobs = round(rate * kills * ROUND_S)
    killed: list[Killed] = []
    accounts: list[dict[str, Any]] = []
    async with Stage(options) as stage, bounded(300, "the figure of killed nodes"):
        sims = await stage.sims_apart(NODES, job_s=JOB_S)
        urls, children = [sim.url for sim in sims], [sim.child for sim in sims]
        fleet = await stage.fleet(urls)
        await fleet.until_up(NODES)
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=30, limits=limits) as http,
            open_stores(fleet.settings) as stores,
        ):
            async with submitting(http, fleet.url, jobs, rate) as submitted:
                for number in range(kills):
                    options.say(f"kill {number + 1} of {kills}")
                    victim = number % NODES
                    began = time.monotonic()
                    job, run = await _works(http, stores, f"node-{victim + 1}", urls[victim])
                    accounts += await sim_stats([urls[victim]])  # they die with it
                    at = kill(sims[victim].pid)
                    killed.append(Killed(job=job, run=run, node=f"node-{victim + 1}", at=at))
                    await stage.until_200(f"{urls[victim]}/system_stats", but=children)
                    await fleet.until_up(NODES)
                    await asyncio.sleep(max(0.0, began + ROUND_S - time.monotonic()))
                ids = await submitted
            records = await all_ended(
                http, fleet.url, ids, within_s=60, tell=lambda n: options.say(f"{n} of {jobs} jobs read")
            )
            ends = [await stores.jobs.get(one.job) for one in killed]
        accounts += await sim_stats(urls)
        stage.check(but=children)
    found = audit(ids, records, sum(one["done"] for one in accounts))
    started = {run: start for one in accounts for start, _, run in one["intervals"]}
    took = []
    for one, job_then in zip(killed, ends, strict=True):
        again = job_then.run if job_then is not None else None
        if again is not None and again != one.run and again in started:
            took.append(started[again] - one.at)
    if not took:
        raise BenchError("no killed run could be followed")
    spread = Spread.of(took)
    return Result(
        name="kills",
        title="A killed node",
        verdicts=[
            Verdict(
                figure=f"kill -9 of 1 node of {NODES} → its job runs elsewhere",
                target=f"< {TARGET_S:g} s, every time; 0 lost",
                ours=f"{spread.words()}; {found}",
                baseline="ComfyUI's own queue dies with it",
                ratio=None,
                met=spread.most < TARGET_S and found.clean,
            )
        ],
        columns=["what", *TIMES],
        rows=[["kill → its job computes on another node", *spread.row(3)]],
        notes=[
            f"{jobs} jobs of {JOB_S} s at {LOAD:.0%} of what {NODES} simulated nodes can do, each node a "
            f"process of its own; every {ROUND_S:g} s one of them is killed while a job computes on it, "
            f"{kills} in all, and started again. The figure is the time from the kill to the start of the "
            "computation elsewhere, as the other node counted it.",
            f"Of {found.jobs} jobs: {found}; {found.counted} attempts counted.",
        ],
        data={"took_s": took, "audit": vars(found)},
        quick=options.quick,
    )


async def _works(http: httpx.AsyncClient, stores: Stores, node: str, url: str) -> tuple[str, str]:
    """Wait until a node computes a job; return the job and the run."""
    found: list[tuple[str, str]] = []

    async def there() -> bool:
        state = next(s for s in await stores.nodes.states() if s.node.name == node)
        if state.run is None or state.job is None:
            return False
        queue = (await http.get(f"{url}/queue")).json()
        found[:] = [(state.job, state.run)]
        return any(item[1] == state.run for item in queue["queue_running"])

    await until(f"{node} works", there)
    return found[0]
