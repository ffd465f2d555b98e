"""``python -m benchmarks.rq_kills``: kill a fleet's processes while RQ's client enqueues jobs.

Entries are enqueued bit by bit. Meanwhile the API, one of two dispatchers or a node is killed with SIGKILL,
again and again, and started anew. Afterwards every entry must be finished in RQ, with one result, of a job of
its own in the fleet; and there must be no other job.
"""

import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvloop
from redis import Redis
from rich.console import Console
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from benchmarks.batch_kills import PATIENCE_S, kill_on, pages
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from comfy_fleet.domain.backoff import Backoff

NODES, JOB_S = 4, 0.05
AT_ONCE = 10
"""Entries of one go."""
GO_S = (0.1, 1.0)
SETTLE_S = 600.0
LOOK_S = 1.0
ENDED = {"finished", "failed", "canceled", "stopped"}


@dataclass(kw_only=True)
class EntryKills:
    """What came of one round.

    Attributes:
        kills: How often what was killed.
        ended: Entries by their status in RQ.
        wrong: What must not be.
        took_s: From the first entry to the last end.
    """

    seed: int
    entries: int
    kills: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    took_s: float = 0.0


def rq_kills(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each with a fleet and a seed of its own.")] = 1,
    entries: Annotated[int, typer.Option(min=1, help="Entries of each.")] = 300,
    seed: Annotated[int | None, typer.Option(help="Repeats the choices of an earlier run.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")
    ] = None,
) -> None:
    """Kill a fleet's processes while RQ's client enqueues, and look whether an entry got lost."""
    console = Console()
    logging.disable(logging.WARNING)
    first = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    done: list[EntryKills] = []
    for number in range(rounds):
        chosen = first + number
        console.print(f"round {number + 1} of {rounds}: --seed {chosen} chooses the same", highlight=False)
        with console.status("starting a fleet") as status:
            try:
                done.append(uvloop.run(killed(entries, chosen, status.update)))
            except BenchError as error:
                console.print(f"[red]{error}[/]", highlight=False)
                raise typer.Exit(1) from None
        one = done[-1]
        killed_ = ", ".join(f"{name} {count} x" for name, count in one.kills.most_common())
        console.print(f"{one.entries} entries in {one.took_s:.0f} s; killed: {killed_}", highlight=False)
        console.print(f"[red]{len(one.wrong)} wrong[/]" if one.wrong else "nothing lost, nothing twice")
        for line in one.wrong[:20]:
            console.print(f"  {line}", highlight=False, markup=False)
        if json_file:
            json_file.write_text(json.dumps([asdict(kept) for kept in done], indent=1) + "\n")
    if any(one.wrong for one in done):
        raise typer.Exit(1)


async def killed(entries: int, seed: int, say: Callable[[str], None]) -> EntryKills:
    """Play one round.

    Raises:
        BenchError: It takes too long.
    """
    rng, made = random.Random(seed), EntryKills(seed=seed, entries=entries)
    options = Options(bench_python=Path(sys.executable), say=say, backoff=Backoff(first_s=0.1, longest_s=1.0))
    async with Stage(options) as stage, bounded(SETTLE_S + entries, "this round"):
        sims = await stage.sims_apart(NODES, job_s=JOB_S)
        env = {"FLEET_MAX_ATTEMPTS": "20"}
        fleet = await stage.fleet([sim.url for sim in sims], dispatchers=2, env=env)
        await fleet.until_up(NODES)
        assert fleet.api is not None
        targets = {
            "fleet api": [fleet.api],
            "a dispatcher": fleet.dispatchers,
            "a node": [sim.child for sim in sims],
        }
        began = time.monotonic()
        killing = asyncio.create_task(kill_on(fleet, targets, rng, made.kills, say))
        with Redis.from_url(fleet.settings.redis_url) as connection:
            queue = Queue("fleet", connection=connection, serializer=JSONSerializer)
            try:
                ids: list[str] = []
                while len(ids) < entries:
                    few = min(AT_ONCE, entries - len(ids))
                    ids += await asyncio.to_thread(_enqueue, queue, len(ids), few)
                    await asyncio.sleep(rng.uniform(*GO_S))
                await _until_ended(connection, ids, made)
            finally:
                killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)
            made.took_s = time.monotonic() - began
            results = await asyncio.to_thread(_results, connection, ids, made)
        await _look(fleet, results, made)
    return made


def _enqueue(queue: Queue, first: int, count: int) -> list[str]:
    made = []
    for number in range(first, first + count):
        call = {"workflow": "image_card", "params": {"prompt": f"entry {number}", "seed": number}}
        made.append(queue.enqueue("comfy_fleet.run", kwargs=call, result_ttl=86_400).id)
    return made


async def _until_ended(connection: Redis, ids: list[str], made: EntryKills) -> None:
    def statuses() -> Counter[str]:
        found = Job.fetch_many(ids, connection=connection, serializer=JSONSerializer)
        return Counter(job.get_status(refresh=False).value if job is not None else "lost" for job in found)

    until = time.monotonic() + SETTLE_S
    while True:
        made.ended = await asyncio.to_thread(statuses)
        if sum(made.ended[one] for one in (*ENDED, "lost")) == len(ids) or time.monotonic() > until:
            return
        await asyncio.sleep(LOOK_S)


def _results(connection: Redis, ids: list[str], made: EntryKills) -> set[str]:
    """Return the ids of the fleet's jobs that RQ's records name; note what is wrong with these."""
    found: set[str] = set()
    for id_, job in zip(
        ids, Job.fetch_many(ids, connection=connection, serializer=JSONSerializer), strict=True
    ):
        status = job.get_status(refresh=False).value if job is not None else "lost"
        if job is None or status != "finished":
            made.wrong.append(f"entry {id_} is {status}")
            continue
        if (count := len(job.results())) != 1:
            made.wrong.append(f"entry {id_} has {count} results")
        job_id = str((job.return_value() or {}).get("job_id"))
        if job_id in found:
            made.wrong.append(f"job {job_id} is that of two entries")
        found.add(job_id)
    return found


async def _look(fleet: Fleet, results: set[str], made: EntryKills) -> None:
    """Compare the fleet's jobs with what RQ's records name."""
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=PATIENCE_S) as http:
        jobs = await pages(http, "/api/v1/jobs", "jobs")
    if len(jobs) != made.entries:
        made.wrong.append(f"{len(jobs)} jobs of {made.entries} entries")
    made.wrong += [f"job {job['id']} is {job['status']}" for job in jobs if job["status"] != "succeeded"]
    made.wrong += [f"job {job['id']} is no entry's" for job in jobs if job["id"] not in results]


if __name__ == "__main__":
    sys.argv[0] = "scripts/chaos --rq"
    typer.run(rq_kills)
