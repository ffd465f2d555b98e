"""``python -m benchmarks.store_away``: take a fleet's store away while jobs come, and count its objects.

Each job's output has a name of its own there. Meanwhile the line to the store is cut, and the bytes that may
wait for it are few, so that submits are refused; the client sends those again. At the end every accepted job
must have succeeded in one computation, and have its object.
"""

import asyncio
import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvloop
from rich.console import Console

from benchmarks.bucket import BenchBucket, record
from benchmarks.clients import trivial_graph
from benchmarks.relay import Relay
from benchmarks.stage import BenchError, Options, Stage, bounded, sim_done

NODES, JOB_S = 4, 0.32
SPOOL_BYTES = 3_000
SETTLE_S = 240.0


@dataclass(kw_only=True)
class Outage:
    """What became of it.

    Attributes:
        jobs: How many were accepted.
        refused: Submits that got 503 with the store's name.
        wrong: What should not be, in words.
    """

    away_s: float
    jobs: int = 0
    refused: int = 0
    took_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def store_away(
    away_s: Annotated[float, typer.Option("--seconds", min=1, help="For how long the store is away.")] = 30.0,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs that are to be accepted.")] = 300,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result to this file.")
    ] = None,
) -> None:
    """Take a store away under load, and look whether an output was lost or computed twice."""
    console = Console()
    logging.disable(logging.WARNING)
    with console.status("a fleet and its store, for some minutes"):
        try:
            one = uvloop.run(played(away_s, jobs))
        except BenchError as error:
            console.print(f"[red]{error}[/]", highlight=False)
            raise typer.Exit(1) from None
    console.print(
        f"{one.jobs} jobs in {one.took_s:.0f} s, the store away for {one.away_s:.0f} s; {one.refused} "
        "submits refused with 503 and the store's name",
        highlight=False,
    )
    console.print(f"[red]{len(one.wrong)} wrong[/]" if one.wrong else "nothing lost, nothing computed twice")
    for line in one.wrong[:20]:
        console.print(f"  {line}", highlight=False, markup=False)
    if json_file:
        json_file.write_text(json.dumps(asdict(one), indent=1) + "\n")
    if one.wrong:
        raise typer.Exit(1)


async def played(away_s: float, jobs: int) -> Outage:
    """Play it.

    Raises:
        BenchError: It takes too long, or a submit is refused for another reason.
    """
    made = Outage(away_s=away_s)
    options = Options(bench_python=Path(sys.executable))
    async with Stage(options) as stage, bounded(away_s + 3 * jobs * JOB_S + SETTLE_S, "the outage"):
        nodes = await stage.sims(NODES, job_s=JOB_S)
        fleet = await stage.fleet(nodes, dispatchers=2, env={"FLEET_SPOOL_BYTES": str(SPOOL_BYTES)})
        await fleet.until_up(NODES)
        bucket = await BenchBucket.start(stage)
        there = ("127.0.0.1", bucket.port())
        async with Relay(there).running() as line, httpx.AsyncClient(trust_env=False, timeout=60) as http:
            store = record(f"http://127.0.0.1:{line.port}")
            added = await http.post(f"{fleet.console_url}/api/v1/stores", json=store)
            if added.status_code != 201:
                raise BenchError(f"the store was refused: {added.text[:300]}")
            began = time.monotonic()

            async def outage() -> None:
                await asyncio.sleep(2)
                line.lead_to(None)
                await asyncio.sleep(away_s)
                line.lead_to(there)

            going = asyncio.create_task(outage())
            ids: list[str] = []
            while len(ids) < jobs:
                body = {
                    "workflow": trivial_graph(),
                    "output": {"store": "bench", "key": "{job_id}.png", "on_conflict": "fail"},
                }
                answer = await http.post(f"{fleet.url}/api/v2/jobs", json=body)
                if answer.status_code == 201:
                    ids.append(answer.json()["id"])
                elif answer.status_code == 503 and "Store bench" in answer.text:
                    made.refused += 1
                    await asyncio.sleep(0.5)
                else:
                    raise BenchError(f"a submit got {answer.status_code}: {answer.text[:300]}")
            await going
            made.jobs = len(ids)
            for job_id in ids:
                while True:
                    job = (await http.get(f"{fleet.url}/api/v1/jobs/{job_id}")).json()
                    if job["status"] in ("failed", "canceled", "expired"):
                        made.wrong.append(f"job {job_id} is {job['status']}: {job['error']}")
                        break
                    if job["status"] == "succeeded" and not job["storing"]:
                        states = [one["stored"]["state"] for one in job["outputs"]]
                        if states != ["stored"]:
                            made.wrong.append(f"job {job_id}: {states}")
                        break
                    await asyncio.sleep(0.1)
            made.took_s = time.monotonic() - began
            names = set(bucket.objects())
            wanted = {f"{job_id}.png" for job_id in ids}
            made.wrong += [f"{name} is not in the bucket" for name in sorted(wanted - names)]
            made.wrong += [f"nobody has asked for {name}" for name in sorted(names - wanted)]
            computed = await sim_done(nodes)
            if computed != len(ids):
                made.wrong.append(f"{computed} computations for {len(ids)} jobs")
        stage.check()
    return made


if __name__ == "__main__":
    typer.run(store_away)
