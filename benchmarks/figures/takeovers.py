"""How soon another dispatcher has the runs of one that died or was frozen, and how many of them run again."""

import asyncio
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
from redis.asyncio import Redis

from benchmarks.operations import all_ended, audit, kill, submit, until
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded, pid_of, sim_stats
from benchmarks.stats import TIMES, Spread
from comfy_fleet.cli.up.supervisor import Supervised
from comfy_fleet.domain.backoff import Backoff

RUNS = 200
JOB_S = 60.0
KILLED_S, LATE_S = 3.0, 2.0  # the targets; a frozen dispatcher has its TTL besides
ADOPTED = 0.95
LOOK_S = 0.02
WATCH_S = 30.0
SUBMITS = 16  # at once
VICTIM, OTHER = "dispatch-1", "dispatch-2"
NEVER = Backoff(first_s=3600, longest_s=3600)  # nobody starts the victim again


@dataclass(frozen=True, kw_only=True)
class TakenOver:
    """What became of one dispatcher's runs.

    Attributes:
        runs: How many it had.
        took_s: For each run that the other one got: how long after the death, in seconds.
        again: Jobs that had more than one run.
        twice: Runs that succeeded on a node beyond one for each job.
        lost: Jobs that did not end.
        failed: Jobs that did not succeed.
    """

    runs: int
    took_s: Sequence[float]
    again: int
    twice: int
    lost: int
    failed: int

    @property
    def kept(self) -> float:
        """The share of the runs that went on."""
        return 1 - self.again / self.runs

    def meets(self, bound_s: float) -> bool:
        """Return whether all were taken in time, and nearly all went on."""
        whole = len(self.took_s) == self.runs and not (self.twice or self.lost or self.failed)
        return whole and max(self.took_s) <= bound_s and self.kept >= ADOPTED

    def words(self) -> str:
        """Return it in a few words."""
        times = Spread.of(self.took_s).words() if self.took_s else "none taken over"
        return (
            f"{times}; {len(self.took_s)} of {self.runs} taken over, {self.kept:.1%} without a second run; "
            f"{self.lost} lost, {self.twice} run twice"
        )


async def measure(options: Options) -> Result:
    """Measure; about four minutes."""
    runs = options.some(RUNS, 20)
    killed, _ = await _once(options, runs, frozen=False)
    frozen, ttl_s = await _once(options, runs, frozen=True)
    bound_s = ttl_s + LATE_S
    return Result(
        name="takeovers",
        title="A dispatcher that dies",
        verdicts=[
            Verdict(
                figure=f"kill -9 of 1 dispatcher of 2, with {runs} runs → the other one has them",
                target=f"≤ {KILLED_S:g} s, every run; ≥ {ADOPTED:.0%} in one run",
                ours=killed.words(),
                baseline="",
                ratio=None,
                met=killed.meets(KILLED_S),
            ),
            Verdict(
                figure=f"SIGSTOP of 1 dispatcher of 2, with {runs} runs → the other one has them",
                target=f"≤ {bound_s:g} s (TTL + {LATE_S:g} s), every run; ≥ {ADOPTED:.0%} in one run",
                ours=frozen.words(),
                baseline="",
                ratio=None,
                met=frozen.meets(bound_s),
            ),
        ],
        columns=["what", *TIMES],
        rows=[
            [what, *Spread.of(one.took_s).row(3)]
            for what, one in (("kill -9 → taken over", killed), ("SIGSTOP → taken over", frozen))
            if one.took_s
        ],
        notes=[
            f"{runs} simulated nodes, and a job of {JOB_S:g} s on each; the second dispatcher starts when "
            "all of them run. The time is from the signal to the first look at which Redis names the other "
            f"dispatcher as the run's; a look comes every {LOOK_S:g} s. The killed one is not started again. "
            "The frozen one goes on once everything was taken over, before the jobs end.",
            "A second run is one that the job's record names besides the one that was taken over, or that a "
            "node counted.",
        ],
        data={"killed": vars(killed), "frozen": vars(frozen), "ttl_s": ttl_s},
        quick=options.quick,
    )


async def _once(options: Options, runs: int, *, frozen: bool) -> tuple[TakenOver, float]:
    what = "SIGSTOP" if frozen else "kill -9"
    stage_options = replace(options, backoff=NEVER)
    async with Stage(stage_options) as stage, bounded(JOB_S + 420, f"the figure of take-overs ({what})"):
        options.say(f"{what}: {runs} nodes start")
        urls = await stage.sims(runs, job_s=JOB_S)
        fleet = await stage.fleet(urls)
        await fleet.until_up(runs)
        ttl_s = fleet.settings.lease_ttl_s
        store: Any = Redis.from_url(fleet.settings.redis_url, decode_responses=True)
        async with store, httpx.AsyncClient(trust_env=False, timeout=60) as http:
            options.say(f"{what}: {runs} jobs begin")
            began = time.monotonic()
            ids = await _submitted(http, fleet.url, runs)
            jobs = await _all_run(http, urls, store)
            victim = fleet.dispatchers[0]
            await stage.dispatcher(fleet, OTHER)
            await works(store, OTHER)
            await asyncio.sleep(ttl_s + 1)  # for so long it takes nothing over
            if time.monotonic() - began + ttl_s + 2 * LATE_S > JOB_S:  # the first ones would end meanwhile
                raise BenchError(f"{runs} runs were under way too late: this machine is too slow")
            options.say(f"{what}: {runs} runs are under way")
            at = time.monotonic()
            if frozen:
                os.kill(pid_of(victim), signal.SIGSTOP)
            else:
                kill(pid_of(victim))
            took = await taken(store, set(jobs.values()), OTHER, at)
            if frozen:
                os.kill(pid_of(victim), signal.SIGCONT)
            options.say(f"{what}: {len(took)} runs taken over; waiting until they end")
            records = await all_ended(
                http, fleet.url, ids, within_s=3 * JOB_S + 60, tell=lambda n: options.say(f"{n} jobs ended")
            )
            found = audit(ids, records, sum(one["done"] for one in await sim_stats(urls)))
            last = {job: await store.hget(f"fleet:job:{job}", "run") for job in jobs}
            ran = await _ran(urls)
        again = sum(last[job] != run for job, run in jobs.items())
        counted = len(ran - set(jobs.values()))
        _check(stage, victim, frozen=frozen)
    return (
        TakenOver(
            runs=runs,
            took_s=took,
            again=max(again, counted),
            twice=found.twice,
            lost=found.lost,
            failed=found.failed,
        ),
        ttl_s,
    )


def _check(stage: Stage, victim: Supervised, *, frozen: bool) -> None:
    """Say so when another process ended than the one that was killed."""
    stage.check(but=() if frozen else (victim,))


async def works(store: Any, dispatcher: str) -> None:
    """Wait until a dispatcher is on record as one of those that share the idle nodes.

    Raises:
        BenchError: It is not in time.
    """

    async def there() -> bool:
        return await store.zscore("fleet:ready:holders", dispatcher) is not None

    await until(f"{dispatcher} works", there, within_s=120)


async def _submitted(http: httpx.AsyncClient, base: str, count: int) -> list[str]:
    turns = asyncio.Semaphore(SUBMITS)

    async def one() -> str:
        async with turns:
            return await submit(http, base)

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def _all_run(http: httpx.AsyncClient, urls: Sequence[str], store: Any) -> Mapping[str, str]:
    """Wait until every node computes; return the jobs' runs."""
    await all_compute(http, urls)
    found = {}
    for run, (job, dispatcher) in (await runs_on_record(store)).items():
        if dispatcher != VICTIM:
            raise BenchError(f"run {run} is {dispatcher}'s")
        found[job] = run
    if len(found) != len(urls):
        raise BenchError(f"{len(urls)} nodes compute, and {len(found)} runs are on record")
    return found


async def all_compute(http: httpx.AsyncClient, urls: Sequence[str]) -> None:
    """Wait until every node computes.

    Raises:
        BenchError: They don't in time.
    """
    deadline = time.monotonic() + WATCH_S
    idle = list(urls)
    while idle:
        if time.monotonic() > deadline:
            raise BenchError(f"{len(idle)} of {len(urls)} nodes got no job in {WATCH_S:g} s")
        idle = [url for url in idle if not (await http.get(f"{url}/queue")).json()["queue_running"]]


async def runs_on_record(store: Any) -> dict[str, tuple[str, str]]:
    """Return job and dispatcher of each run that is under way."""
    found = {}
    for run in await store.zrange("fleet:runs", 0, -1):
        record = await store.hgetall(f"fleet:run:{run}")
        if record:  # else it has just ended
            found[run] = record["job"], record["dispatcher"]
    return found


async def taken(store: Any, runs: Collection[str], other: str, at: float) -> list[float]:
    """Wait until another dispatcher has these runs, or for long enough.

    Returns:
        When it got each that it got, in seconds after ``at`` (monotonic).
    """
    left, took = set(runs), list[float]()
    while left and time.monotonic() - at < WATCH_S:
        asked = sorted(left)
        async with store.pipeline(transaction=False) as pipe:
            for run in asked:
                pipe.hget(f"fleet:run:{run}", "dispatcher")
            owners = await pipe.execute()
        now = time.monotonic() - at
        for run, owner in zip(asked, owners, strict=True):
            if owner == other:
                left.discard(run)
                took.append(now)
        await asyncio.sleep(LOOK_S)
    return took


async def _ran(urls: Sequence[str]) -> set[str]:
    """Return the runs that ended on nodes, as those counted them."""
    return {run for one in await sim_stats(urls) for _, _, run in one["intervals"]}
