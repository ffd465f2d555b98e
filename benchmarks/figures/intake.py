"""How many entries a second are taken from RQ's clients, beside submits over HTTP."""

import asyncio
import time

import httpx
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from benchmarks.loads import load
from benchmarks.report import Result, Verdict
from benchmarks.stage import Fleet, Options, Stage, bounded
from benchmarks.stats import median

ROUNDS = 3
AT_ONCE = 24
MOST = 2.0
BODY = {"prompt": "a red fox in the snow"}


async def measure(options: Options) -> Result:
    """Measure; about half a minute."""
    entries = options.some(2000, 300)
    taken: list[float] = []
    posted: list[float] = []
    async with Stage(options) as stage, bounded(600, "the figure of RQ's entries"):
        (node,) = await stage.sims(1)
        fleet = await stage.fleet([node], queue_depth=10_000_000)
        await fleet.cordon("node-1")
        for number in range(options.some(ROUNDS, 2)):
            options.say(f"round {number + 1}: over HTTP")
            asked = {"base": fleet.url, "jobs": entries, "at_once": AT_ONCE, "params": BODY}
            posted.append(entries / (await load("submit_cards", asked))["wall_s"])
            options.say(f"round {number + 1}: through RQ's queue")
            taken.append(entries / await _taken(fleet, entries))
        stage.check()
    ours, baseline = median(taken), median(posted)
    return Result(
        name="intake",
        title="Jobs that RQ's clients enqueue",
        verdicts=[
            Verdict(
                figure="entries of RQ's made into jobs, one API process",
                target=f"≥ 1/{MOST:g} of submits over HTTP",
                ours=f"{ours:.0f}/s",
                baseline=f"submits {baseline:.0f}/s",
                ratio=ours / baseline,
                met=ours * MOST >= baseline,
            )
        ],
        columns=["way", "jobs/s"],
        rows=[["RQ's queue", f"{ours:.0f}"], [f"HTTP, {AT_ONCE} connections", f"{baseline:.0f}"]],
        notes=[
            f"Median of {options.some(ROUNDS, 2)} rounds of {entries} jobs of the stored workflow "
            "image_card, which only queue: the one node is cordoned. Entries: all are in RQ's list before; "
            "from the end of their enqueuing until as many jobs are queued. HTTP: through the edge, by a "
            "client in a process of its own.",
        ],
        data={"taken": taken, "posted": posted},
        quick=options.quick,
    )


async def _taken(fleet: Fleet, entries: int) -> float:
    """Enqueue so many entries; return how long it takes until all are jobs."""
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=60) as http:

        async def queued() -> int:
            return int((await http.get("/api/v1/queue")).json()["queued"])

        before = await queued()
        await asyncio.to_thread(_enqueue, fleet.settings.redis_url, entries)
        began = time.perf_counter()
        while await queued() < before + entries:  # noqa: ASYNC110 - another process takes them
            await asyncio.sleep(0.1)
        return time.perf_counter() - began


def _enqueue(url: str, entries: int) -> None:
    with Redis.from_url(url) as connection:
        queue = Queue("fleet", connection=connection, serializer=JSONSerializer)
        call = {"workflow": "image_card", "params": BODY}
        with connection.pipeline() as pipe:
            for _ in range(entries):
                queue.enqueue("comfy_fleet.run", kwargs=call, pipeline=pipe)
            pipe.execute()
