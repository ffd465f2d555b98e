"""Adds, drains and removes at random while jobs run: none may be lost, fail, or run twice."""

import asyncio
import random
from collections import Counter

import httpx

from benchmarks.operations import all_ended, audit, order, submitting
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded, sim_stats

SEED = 7
JOBS, CHANGES = 300, 50
JOB_S = 0.3
FIRST = 3  # nodes at the start
FEWEST, MOST = 2, 6  # nodes that may take jobs, while there is a choice
GAP_S = (0.1, 0.7)
KINDS = ("add", "drain", "drain, giving jobs back", "remove")


async def measure(options: Options) -> Result:
    """Measure; about a minute."""
    jobs, changes = options.some(JOBS, 40), options.some(CHANGES, 8)
    chance = random.Random(SEED)
    made: Counter[str] = Counter()
    async with Stage(options) as stage, bounded(300, "the figure of changes"):
        urls = await stage.sims(FIRST + changes, job_s=JOB_S)
        fleet = await stage.fleet(urls[:FIRST])
        await fleet.until_up(FIRST)
        nodes = f"{fleet.console_url}/api/v1/nodes"
        usable = [f"node-{number}" for number in range(1, FIRST + 1)]
        drained: list[str] = []
        spare = iter(list(enumerate(urls, start=1))[FIRST:])
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            # About as fast as the changes last, so that there is work all the while.
            rate = jobs / (changes * sum(GAP_S) / 2)
            async with submitting(http, fleet.url, jobs, rate) as submitted:
                for number in range(changes):
                    kind = chance.choice(KINDS)
                    if len(usable) <= FEWEST:
                        kind = "add"
                    elif len(usable) >= MOST and kind == "add":
                        kind = "drain"
                    made[kind] += 1
                    options.say(f"change {number + 1} of {changes}: {kind}, {len(usable)} nodes")
                    if kind == "add" and drained and chance.random() < 0.5:
                        name = drained.pop(chance.randrange(len(drained)))
                        await order(http, "POST", f"{nodes}/{name}/resume")
                        usable.append(name)
                    elif kind == "add":
                        index, url = next(spare)
                        await order(http, "POST", nodes, {"name": f"node-{index}", "url": url})
                        usable.append(f"node-{index}")
                    elif kind == "remove":
                        name = chance.choice(usable + drained)
                        await order(http, "DELETE", f"{nodes}/{name}?force=true")
                        usable, drained = [n for n in usable if n != name], [n for n in drained if n != name]
                    else:
                        name = usable.pop(chance.randrange(len(usable)))
                        drained.append(name)
                        body = {"reason": "benchmark", "requeue": kind != "drain"}
                        await order(http, "POST", f"{nodes}/{name}/drain", body)
                    await asyncio.sleep(chance.uniform(*GAP_S))
                ids = await submitted
            records = await all_ended(
                http, fleet.url, ids, within_s=90, tell=lambda n: options.say(f"{n} of {jobs} jobs read")
            )
        stats = await sim_stats(urls)
        stage.check()
    found = audit(ids, records, sum(one["done"] for one in stats))
    interrupted = sum(one["interrupted"] for one in stats)
    return Result(
        name="changes",
        title="Adds, drains and removes under load",
        verdicts=[
            Verdict(
                figure=f"{changes} adds, drains and removes under {jobs} jobs",
                target="0 lost, 0 failed, 0 run twice",
                ours=str(found),
                baseline=f"{found.counted} attempts counted",
                ratio=None,
                met=found.clean and not found.counted,
            )
        ],
        columns=["change", "times"],
        rows=[[kind, str(made[kind])] for kind in KINDS],
        notes=[
            f"{jobs} jobs of {JOB_S} s arrive all the while; {FEWEST} to {MOST} simulated nodes may take "
            "them. Adds are new nodes, or drained ones that come back; removes are forced, with their jobs "
            f"given back. {interrupted} runs were interrupted for that. Jobs ran twice if more runs "
            "succeeded on the nodes, by their own count, than there are jobs.",
        ],
        data={"changes": dict(made), "audit": vars(found), "interrupted": interrupted},
        quick=options.quick,
    )
