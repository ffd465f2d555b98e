"""What becomes of a fleet that is asked for ten times as much as its nodes can compute."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from benchmarks.growth import Growth, growths
from benchmarks.loads import load
from benchmarks.people import Users
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded, sim_done
from benchmarks.stats import Spread
from benchmarks.vitals import TOLERANCES, Vitals, shown
from comfy_fleet.adapters.redis.keys import Keyspace

NODES, JOB_S = 4, 0.32
TIMES = 10
RATE = TIMES * NODES / JOB_S
USERS = 5
DEPTH = 1000  # the fleet's own default
TARGET_S = 0.25
DRAIN_S = 300.0
HELD = ("RSS", "files", "threads", "queued", "sessions")
"""First words of the series that are judged. Redis is not: it keeps each accepted job for a week."""


async def measure(options: Options) -> Result:
    """Measure; about seven minutes."""
    seconds = options.some(300, 30)
    async with Stage(options) as stage, bounded(seconds + DRAIN_S + 180, "the figure of overload"):
        users = Users.write(stage, USERS)
        nodes = await stage.sims(NODES, job_s=JOB_S)
        fleet = await stage.fleet(nodes, queue_depth=DEPTH, env=users.env)
        await fleet.until_up(NODES)
        vitals = Vitals(fleet, every_s=1.0)
        async with vitals.watching():
            arguments = {"url": fleet.url, "keys": [*users.keys.values()], "rate": RATE, "seconds": seconds}
            found = await load(
                "flood", arguments, lambda done: options.say(f"{done} of {RATE * seconds:.0f} submits")
            )
            over_s = vitals.now
            ended = await _ended(fleet, found["ids"], options)
        done = await sim_done(nodes)
        stage.check()
    # The queue is full after a moment; what comes before that is no overload yet.
    full_s = min(over_s / 3, DEPTH / (RATE * (1 - 1 / TIMES)) + 10)
    during = {
        name: [point for point in points if point[0] <= over_s]
        for name, points in vitals.series.items()
        if name.partition(" ")[0] in HELD and "Redis" not in name
    }
    return _result(found, ended, done, growths(during, TOLERANCES, warm_up_s=full_s), vitals, options)


async def _ended(fleet: Fleet, ids: Sequence[str], options: Options) -> dict[str, int]:
    """Wait until accepted jobs have ended; return how many did once, twice and not at all."""
    keys = Keyspace(fleet.settings.namespace)
    deadline = time.monotonic() + DRAIN_S
    async with Redis.from_url(fleet.settings.redis_url, decode_responses=True) as store:
        while waiting := await store.zcard(keys.queued) + await store.zcard(keys.runs):
            options.say(f"{waiting} accepted jobs wait or run")
            if time.monotonic() > deadline:
                raise BenchError(f"{waiting} accepted jobs have not ended {DRAIN_S:g} s after the overload")
            await asyncio.sleep(1)
        counted = {"succeeded": 0, "other": 0, "lost": 0, "twice": 0}
        for job_id in ids:
            status = await store.hget(keys.job(job_id), "status")
            ends = await store.xlen(keys.rq_results(job_id))
            counted["twice"] += ends > 1
            if status is None or ends == 0:
                counted["lost"] += 1
            else:
                counted["succeeded" if status == "succeeded" else "other"] += 1
    return counted


def _result(
    found: Any, ended: dict[str, int], done: int, grown: dict[str, Growth], vitals: Vitals, options: Options
) -> Result:
    if not found["accepted"]:
        raise BenchError(f"nothing was accepted: {found['answers']}, {found['wrong']}")
    accepted, wrong = Spread.of(found["accepted"]), sum(found["wrong"].values())
    refused = Spread.of(found["refused"]) if found["refused"] else None
    lost = ended["lost"] + ended["other"]
    twice = max(ended["twice"], done - ended["succeeded"])
    worst = [name for name, one in grown.items() if not one.level]
    memory = {name: one for name, one in grown.items() if name.startswith("RSS")}
    store = [value for _, value in vitals.series["memory Redis"]]
    each_kib = (max(store) - store[0]) / len(found["ids"]) / 1024
    most = max(value for _, value in vitals.series["queued"])
    total = sum(found["answers"].values()) + wrong
    return Result(
        name="overload",
        title="Ten times as much as the nodes can compute",
        verdicts=[
            Verdict(
                figure=f"{RATE:.0f} submits a second: accepted submits, p99",
                target=f"< {TARGET_S * 1000:.0f} ms",
                ours=accepted.words_ms(),
                baseline=f"refused: {refused.words_ms()}" if refused else "",
                ratio=accepted.p99 / refused.p99 if refused else None,
                met=accepted.p99 < TARGET_S,
            ),
            Verdict(
                figure="memory, open files, threads and sessions while the queue is full",
                target="level",
                ours="level" if not worst else f"more and more: {', '.join(worst)}",
                baseline=f"at most {most:.0f} jobs wait",
                ratio=None,
                met=not worst and most <= 2 * DEPTH,  # who has little waiting gets in beyond the depth
            ),
            Verdict(
                figure="accepted jobs that were lost or failed, that ended twice, wrong answers",
                target="0",
                ours=f"{lost}, {twice}, {wrong}",
                baseline=f"{len(found['ids'])} accepted",
                ratio=None,
                met=not (lost or twice or wrong),
            ),
        ],
        columns=["answer", "times", "p50 ms", "p99 ms", "most ms"],
        rows=[
            _row("201", found["accepted"]),
            *([_row("429 and 503, with Retry-After", found["refused"])] if refused else []),
            *([word, str(times), "", "", ""] for word, times in found["wrong"].items()),
        ],
        notes=[
            f"{USERS} users submit {RATE:.0f} trivial jobs a second for {total / RATE:.0f} s, whatever "
            f"becomes of them; {NODES} simulated nodes take {JOB_S:g} s for each, so they compute "
            f"{NODES / JOB_S:g} a second. FLEET_QUEUE_DEPTH is {DEPTH}, as by default. A submit's time "
            "counts from the moment at which it was due; the latest was sent "
            f"{found['late_s'] * 1000:.0f} ms too late.",
            "While the queue was full: "
            + ", ".join(
                f"{name} {shown(name, one.first)} → {shown(name, one.last)}" for name, one in memory.items()
            )
            + " (medians of the second and the last tenth of that time). In Redis, an accepted job and its "
            f"picture take {each_kib:.1f} KiB until their retention ends.",
            "Series may grow by what `benchmarks/vitals.py` says: a process' memory by 5 %, or by 8 MiB if "
            f"that is more. Retry-After was {_seconds(found['retry_after'])}.",
        ],
        data={
            "answers": found["answers"],
            "wrong": found["wrong"],
            "accepted": vars(accepted),
            "refused": vars(refused) if refused else None,
            "ended": ended,
            "growth": {name: vars(one) for name, one in grown.items()},
        },
        quick=options.quick,
    )


def _row(name: str, seconds: Sequence[float]) -> list[str]:
    spread = Spread.of(seconds)
    times = [f"{value * 1000:.1f}" for value in (spread.p50, spread.p99, spread.most)]
    return [name, str(spread.count), *times]


def _seconds(named: dict[str, int]) -> str:
    if not named:
        return "never named"
    values = sorted(map(int, named))
    return f"{values[0]} s" if len(values) == 1 else f"{values[0]} to {values[-1]} s"
