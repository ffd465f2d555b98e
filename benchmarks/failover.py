"""``python -m benchmarks.failover``: kill the primary Redis at a random moment, promote its replica, count.

In each round clients submit jobs to a fleet whose Redis has a replica behind a line with a delay. At a
random moment the primary is killed and the line is cut, with what is on its way. The replica is made the
primary, and the address of Redis leads to it. The clients repeat what was not answered, with the same
idempotency keys. Then every job that was ever acknowledged must be there and end once; how many are lost is
counted, with ``FLEET_REDIS_REPLICAS`` and without it.
"""

import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from benchmarks.aftermath import BROKEN, Expected, Findings, Spell, jobs_of_runs, look, overlapping
from benchmarks.clients import trivial_graph
from benchmarks.operations import FINAL
from benchmarks.relay import Relay
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.cli.up import ports
from comfy_fleet.timeouts import Timeout

NODES, JOB_S = 4, 0.2
AT_ONCE = 8
AWAY_S = 1.0  # between the kill and the promotion: an operator takes longer
SETTLE_S = 120.0
TRIES_S = 0.2


@dataclass(kw_only=True)
class Round:
    """What came of one failover.

    Attributes:
        expected: Acknowledged jobs, and what must become of them.
        before: Those that were acknowledged before the primary died.
        lost: Of these, the ones that the promoted replica does not know.
        found: What is wrong with the others.
        repeats: Submits that were repeated.
        away_s: From the kill until the next submit was acknowledged.
        after: When submits were acknowledged since the promotion, by the monotonic clock.
        news: Set when one was.
    """

    expected: dict[str, Expected] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    found: Findings = field(default_factory=Findings)
    repeats: int = 0
    away_s: float = 0.0
    after: list[float] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def redis_server(folder: Path, *, primary: int | None = None) -> AsyncIterator[tuple[int, Any]]:
    """Run a Redis as the fleet runs its own, on loopback; yields its port and process.

    Args:
        folder: For its data.
        primary: Port of the primary of which it is a replica.
    """
    await asyncio.to_thread(folder.mkdir, parents=True)
    (port,) = ports.draw(1)
    argv = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    argv += ["--appendonly", "yes", "--appendfsync", "no", "--repl-diskless-sync-delay", "0"]
    if primary is not None:
        argv += ["--replicaof", f"127.0.0.1 {primary}"]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*argv, stdout=quiet, stderr=quiet)
    try:
        async with Timeout(30), Redis(port=port) as client:
            while True:
                try:
                    about = await client.info("replication")
                    if primary is None or about["master_link_status"] == "up":
                        break
                except (RedisError, OSError) as error:
                    if process.returncode is not None:
                        raise BenchError(f"Redis ended with {process.returncode}") from error
                await asyncio.sleep(0.05)
        yield port, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def fail_over(
    options: Options, *, jobs: int, replicas: int, delay_s: float, rng: random.Random
) -> Round:
    """Play one round.

    Args:
        options: Of all measurements.
        jobs: How many jobs to submit.
        replicas: ``FLEET_REDIS_REPLICAS``.
        delay_s: How long the line to the replica takes.
        rng: Chooses the moment.
    """
    made = Round()
    async with (
        Stage(options) as stage,
        bounded(SETTLE_S + 120, "a round"),
        redis_server(stage.folder / "primary") as (port, process),
        Relay(("127.0.0.1", port), delay_s=delay_s).running() as line,
        redis_server(stage.folder / "replica", primary=line.port) as (other, _),
        Relay(("127.0.0.1", port)).running() as address,
    ):
        nodes = await stage.sims(NODES, job_s=JOB_S)
        env = {"FLEET_REDIS_REPLICAS": str(replicas), "FLEET_REDIS_REPLICAS_S": "1"}
        url = f"redis://127.0.0.1:{address.port}/0"
        fleet = await stage.fleet(nodes, dispatchers=2, env=env, redis_url=url)
        await fleet.until_up(NODES)
        spells: set[Spell] = set()
        clients = [asyncio.create_task(_overhear(nodes, spells))]
        numbers = iter(range(jobs))
        submitting = [asyncio.create_task(_client(fleet, numbers, made, rng)) for _ in range(AT_ONCE)]
        some = rng.randint(jobs // 10, jobs // 2)
        while len(made.expected) < some:
            await made.news.wait()
            made.news.clear()
        process.kill()
        line.lead_to(None)
        address.lead_to(None)
        killed = time.monotonic()
        await process.wait()
        await asyncio.sleep(AWAY_S)
        made.before = set(made.expected)  # with those whose answers were on their way
        options.say(f"the primary is dead; {len(made.before)} submits were acknowledged")
        async with Redis(port=other) as client:
            await client.replicaof("NO", "ONE")
            made.after = []
            made.lost = {job for job in made.before if await client.zscore("fleet:jobs", job) is None}
        # A fleet that waits for replicas takes no submits without one.
        async with redis_server(stage.folder / "next", primary=other):
            address.lead_to(("127.0.0.1", other))
            await asyncio.gather(*submitting)
            made.away_s = min(made.after, default=killed) - killed
            kept = {job: wanted for job, wanted in made.expected.items() if job not in made.lost}
            await settled(fleet, kept, options.say)
            await look(fleet, kept, made.found)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        ran = jobs_of_runs(stage.folder.glob("sim*"))
        made.found.overlapping = overlapping(spells, ran)
        made.found.again = len(ran) - len(set(ran.values()))
        stage.check()
    return made


async def _client(fleet: Fleet, numbers: Any, made: Round, rng: random.Random) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=15) as http:
        for number in numbers:
            graph = trivial_graph()
            colour = rng.randrange(1 << 24)
            graph["1"]["inputs"]["color"] = colour
            wanted = Expected(colour=(colour >> 16, colour >> 8 & 255, colour & 255))
            key = {"Idempotency-Key": f"failover-{number}"}
            while True:
                try:
                    answer = await http.post(
                        f"{fleet.url}/api/v2/jobs", json={"workflow": graph}, headers=key
                    )
                except httpx.HTTPError:
                    answer = None
                if answer is not None and answer.status_code in (201, 422):
                    told = answer.json()
                    job = told["id"] if answer.status_code == 201 else told["error"]["details"]["job_id"]
                    made.expected[job] = wanted
                    made.after.append(time.monotonic())
                    made.news.set()
                    break
                made.repeats += 1
                await asyncio.sleep(TRIES_S)


async def settled(fleet: Fleet, kept: Mapping[str, Expected], say: Callable[[str], None]) -> None:
    """Wait until all jobs have ended, or for as long as that may take."""
    deadline = time.monotonic() + SETTLE_S
    left = set(kept)
    async with httpx.AsyncClient(trust_env=False, timeout=15) as http:
        while left and time.monotonic() < deadline:
            for job in tuple(left):
                answer = await http.get(f"{fleet.url}/api/v2/jobs/{job}")
                if answer.status_code == 404 or (
                    answer.status_code == 200 and answer.json()["status"] in FINAL
                ):
                    left.discard(job)
            say(f"{len(left)} of {len(kept)} jobs have not ended")
            await asyncio.sleep(0.25)


async def _overhear(nodes: Sequence[str], spells: set[Spell]) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        while True:
            for node in nodes:
                try:
                    told = (await http.get(f"{node}/sim/stats")).json()
                except (httpx.HTTPError, ValueError):
                    continue
                spells |= {Spell(run=run, node=node, start=at, end=end) for at, end, run in told["intervals"]}
            await asyncio.sleep(0.25)


def failover(
    rounds: Annotated[int, typer.Option(min=1, help="Failovers with the setting, and as many without.")] = 3,
    jobs: Annotated[int, typer.Option(min=10, help="Jobs of each.")] = 400,
    delay_ms: Annotated[float, typer.Option(min=0, help="How long the line to the replica takes.")] = 5.0,
    seed: Annotated[int | None, typer.Option(help="Repeats the choices of an earlier run.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")
    ] = None,
) -> None:
    """Fail over to a replica of Redis again and again, and count the jobs that are lost."""
    console = Console()
    logging.disable(logging.WARNING)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    console.print(f"seed {seed}", highlight=False)
    rng = random.Random(seed)
    results: list[tuple[int, Round]] = []
    try:
        for number in range(rounds):
            for replicas in (1, 0):
                what = f"round {number + 1} of {rounds}, FLEET_REDIS_REPLICAS={replicas}"
                with console.status(what) as status:

                    def say(
                        text: str, what: str = what, update: Callable[[str], None] = status.update
                    ) -> None:
                        update(f"{what}: {text}")

                    options = Options(bench_python=Path(sys.executable), say=say)
                    played = fail_over(
                        options, jobs=jobs, replicas=replicas, delay_s=delay_ms / 1000, rng=rng
                    )
                    made = asyncio.run(played)
                    results.append((replicas, made))
                console.print(
                    f"{what}: {len(made.before)} acknowledged before, {len(made.lost)} lost", highlight=False
                )
    except BenchError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        for note in getattr(error, "__notes__", ()):
            console.print(f"  {note}", highlight=False, markup=False)
        raise typer.Exit(1) from None
    table = Table(title=f"failovers, {delay_ms:g} ms from primary to replica", title_justify="left")
    for column in ("FLEET_REDIS_REPLICAS", "acknowledged before", "lost", "in all", "repeats", "runs again"):
        table.add_column(column, justify="right")
    table.add_column("away s", justify="right")
    table.add_column("broken", justify="right")
    bad = False
    for replicas, one in results:
        broken = {name: len(getattr(one.found, name)) for name in BROKEN if getattr(one.found, name)}
        bad = bad or bool(broken) or bool(replicas and one.lost)
        table.add_row(
            *(str(value) for value in (replicas, len(one.before), len(one.lost), len(one.expected))),
            *(str(one.repeats), str(one.found.again), f"{one.away_s:.1f}"),
            ", ".join(f"{name} {count}" for name, count in broken.items()) or "nothing",
        )
        for name in broken:
            for line in getattr(one.found, name)[:5]:
                console.print(f"[red]{name}[/] {line}", highlight=False)
    console.print(table)
    if json_file:
        content = [
            {"replicas": replicas, "before": len(one.before), "lost": len(one.lost), "all": len(one.expected)}
            | {"repeats": one.repeats, "again": one.found.again, "away_s": one.away_s}
            | {name: list(getattr(one.found, name)) for name in BROKEN}
            for replicas, one in results
        ]
        json_file.write_text(json.dumps({"seed": seed, "rounds": content}, indent=1) + "\n")
    if bad:
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.argv[0] = "scripts/chaos --failover"
    typer.run(failover)
