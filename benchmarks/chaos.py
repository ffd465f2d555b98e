"""``python -m benchmarks.chaos``: hurt a fleet while it works, then count the jobs.

Two dispatchers, one API, both HAProxy processes and their controller, Redis with AOF and four simulated
nodes, each restarted when it dies. Processes are killed and frozen; connections to Redis and to nodes are
cut, refused and stalled; Redis is full, read-only, without replicas; disks are full and read-only. Clients
submit all the time, with an idempotency key for each job, and repeat a submit that was not accepted; some
jobs have an input file, and some are canceled. Afterwards every accepted job must have ended exactly once,
every picture must exist and be the job's own, no job may have been computed twice at the same time, nothing
that nobody submitted may be on a node or in a list, and Redis must contain nothing that belongs only to work
in progress.
"""

import asyncio
import contextlib
import json
import logging
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvloop
from rich.console import Console

from benchmarks.aftermath import Findings, jobs_of_runs, look, orphans, overlapping
from benchmarks.chaos_clients import ACCEPTED, Account, list_all, overhear, submit_all, watch
from benchmarks.chaos_report import Run, outside_of, show_run, show_summary
from benchmarks.cuts import Streams, Way
from benchmarks.faults import Faults, Target
from benchmarks.outages import Outages
from benchmarks.small_disks import SmallDisk
from benchmarks.stage import BenchError, Fleet, Options, Served, Stage, bounded
from comfy_fleet.adapters.haproxy.config_render import files
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.timeouts import Timeout

NODES = 4
JOB_S = 0.3
LOAD = 0.6  # share of the nodes' capacity that is submitted, so that a backlog can be worked off
GAP_S = (1.0, 3.5)  # from one fault to the next
SETTLE_S = 90.0
PROBE_KEY = b"chaos:probe"


@dataclass(kw_only=True)
class World:
    """A fleet that can be hurt, and what it stands on."""

    stage: Stage
    sims: Sequence[Served]
    fleet: Fleet
    faults: Faults
    outages: Outages


@dataclass(kw_only=True)
class Ground:
    """Ways and disks under a fleet; all are given back at the end."""

    ways: list[Way] = field(default_factory=list)
    disks: list[SmallDisk] = field(default_factory=list)

    async def way(self, name: str, connect: Callable[[], Awaitable[Streams]]) -> Way:
        """Open a way."""
        made = Way(name, connect)
        await made.start()
        self.ways.append(made)
        return made

    def disk(self, folder: Path) -> SmallDisk | None:
        """Mount a disk, if this process may."""
        made = SmallDisk.mounted(folder)
        if made is not None:
            self.disks.append(made)
        return made

    async def close(self) -> None:
        """Close all ways."""
        for way in self.ways:
            await way.close()


def chaos(
    runs: Annotated[int, typer.Option(min=1, help="Runs, each with a fleet and a seed of its own.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs to submit in each.")] = 250,
    seconds: Annotated[float, typer.Option(min=5, help="Seconds for which things happen in each.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Repeats the choices of an earlier run.")] = None,
    logs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the logs of runs that find something: DIR/SEED."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")
    ] = None,
) -> None:
    """Kill, freeze and cut a fleet's processes, fill its disks, and look whether a single job was lost."""
    console = Console()
    logging.disable(logging.WARNING)
    first = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    done: list[Run] = []
    broken = False
    for number in range(runs):
        chosen = first + number
        console.print(f"run {number + 1} of {runs}: --seed {chosen} chooses the same", highlight=False)
        with console.status("starting a fleet") as status:
            try:
                done.append(uvloop.run(_run(jobs, seconds, chosen, logs, status.update)))
            except BenchError as error:
                broken = True
                console.print(f"[red]{error}[/]", highlight=False)
                for note in getattr(error, "__notes__", ()):
                    console.print(f"  {note}", highlight=False, markup=False)
                continue
        show_run(console, done[-1])
        if json_file:  # after each: a long series may be broken off
            json_file.write_text(json.dumps({"runs": [run.to_json() for run in done]}, indent=1) + "\n")
    if done and runs > 1:
        show_summary(console, done)
    if broken or not all(run.found.clean for run in done):
        raise typer.Exit(1)


async def _run(jobs: int, seconds: float, seed: int, logs: Path | None, say: Callable[[str], None]) -> Run:
    rng = random.Random(seed)
    account, found, ground = Account(), Findings(), Ground()
    options = Options(bench_python=Path(sys.executable), say=say, backoff=Backoff(first_s=0.1, longest_s=1.0))
    began = time.monotonic()
    try:
        async with (
            Stage(options) as stage,
            bounded(max(seconds, jobs * JOB_S) + SETTLE_S + 180, "this run"),
        ):
            clean = False
            try:
                world = await _built(stage, ground, rng)
                rate = min(jobs / seconds, LOAD * NODES / JOB_S)
                await _work(world, account, found, jobs, rate, seconds, rng, say)
                outside = outside_of(world.outages, account)
                clean = found.clean and all(one.outcome == ACCEPTED for one in outside)
            finally:
                if logs is not None and not clean:
                    shutil.copytree(stage.folder / "logs", logs / str(seed), dirs_exist_ok=True)
            warnings = Counter(stage.warnings)
    finally:
        await ground.close()
        for disk in ground.disks:
            disk.unmount()
    return Run(
        seed=seed,
        jobs=jobs,
        account=account,
        found=found,
        faults=world.faults.done,
        log=world.faults.log,
        outages=world.outages,
        warnings=warnings,
        took_s=time.monotonic() - began,
    )


async def _built(stage: Stage, ground: Ground, rng: random.Random) -> World:
    """Start nodes and a fleet, with ways and disks that can be hurt."""
    data_disk, redis_disk = ground.disk(stage.folder / "fleet"), ground.disk(stage.folder / "redis")
    sims = await stage.sims_apart(NODES, job_s=JOB_S)
    urls = []
    for number, sim in enumerate(sims, start=1):
        way = await ground.way(f"node-{number}", _to_port(httpx.URL(sim.url).port or 0))
        urls.append(f"http://127.0.0.1:{way.port}")

    async def to_redis(process: str, url: str) -> str:
        way = await ground.way(f"{process} to Redis", _to_redis(url))
        return f"redis://127.0.0.1:{way.port}/0"

    fleet = await stage.fleet(urls, dispatchers=2, way=to_redis)
    await fleet.until_up(NODES)
    outages = Outages(_probes(fleet, data_disk))
    target = Target(
        fleet=fleet,
        sims=sims,
        ways=ground.ways,
        data_disk=data_disk,
        redis_disk=redis_disk,
        outages=outages,
    )
    return World(stage=stage, sims=sims, fleet=fleet, faults=Faults(target=target, rng=rng), outages=outages)


async def _work(
    world: World,
    account: Account,
    found: Findings,
    jobs: int,
    rate: float,
    seconds: float,
    rng: random.Random,
    say: Callable[[str], None],
) -> None:
    """Submit and hurt, wait until everything has come to rest, and look at what is there."""
    fleet, faults = world.fleet, world.faults
    nodes = [sim.url for sim in world.sims]
    submitting = asyncio.create_task(submit_all(fleet.url, jobs, rate, rng.randrange(1 << 32), account))
    watching = [
        asyncio.create_task(work)
        for work in (watch(fleet.url, account), overhear(nodes, account), world.outages.watch())
    ]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(rng.uniform(*GAP_S))
        faults.strike()
        say(
            f"{max(0, end - time.monotonic()):.0f} s left; {faults.done.total()} faults, "
            f"{len(account.accepted)} jobs accepted, {len(account.ended)} ended"
        )
    await faults.over()
    say("no more faults; waiting until every job has ended")
    late_s = max(0.0, jobs / rate - seconds)
    settled = time.monotonic() + late_s + SETTLE_S
    await asyncio.wait({submitting}, timeout=late_s + SETTLE_S)
    submitting.cancel()
    await asyncio.gather(submitting, return_exceptions=True)
    while len(account.ended.keys() & account.accepted.keys()) < len(account.accepted):
        say(f"{len(account.ended)} of {len(account.accepted)} jobs have ended")
        if time.monotonic() > settled:
            break
        await asyncio.sleep(0.25)
    with contextlib.suppress(TimeoutError):
        async with Timeout(SETTLE_S):
            await world.outages.well()
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    say("reading every job and output")
    if len(account.accepted) < jobs:
        found.refused = [f"{jobs - len(account.accepted)} of {jobs} jobs"]
    await look(fleet, account.expected, found)
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        await list_all(http, fleet.url, account)
    found.changed = account.changed
    found.answers = [f"{count} x {answer}" for answer, count in account.odd.most_common()]
    ran = jobs_of_runs(world.stage.folder.glob("sim-*"))
    found.overlapping = overlapping(account.spells, ran)
    found.orphans = await orphans(nodes, ran, account.listed, set(account.accepted))
    found.again = len(ran) - len(set(ran.values()))


def _to_port(port: int) -> Callable[[], Awaitable[Streams]]:
    return lambda: asyncio.open_connection("127.0.0.1", port)


def _to_redis(url: str) -> Callable[[], Awaitable[Streams]]:
    parts = httpx.URL(url)
    if parts.scheme == "unix":
        return lambda: asyncio.open_unix_connection(parts.path)
    return _to_port(parts.port or 6379)


def _probes(fleet: Fleet, data_disk: SmallDisk | None) -> Mapping[str, Callable[[], Awaitable[bool]]]:
    """Return for each part what asks the part itself whether it is well."""
    places = files(fleet.settings)

    async def disk() -> bool:
        return data_disk is None or data_disk.writable()

    def haproxy(name: str, socket: Path) -> Callable[[], Awaitable[bool]]:
        asks = b"GET /health HTTP/1.0\r\n\r\n"

        async def well() -> bool:
            # One whose master or controller was killed answers until it is ended.
            controller = fleet.haproxy and fleet.haproxy.pid
            if not controller or not fleet.haproxy_pids(controller)[name]:
                return False
            return await _says(lambda: asyncio.open_unix_connection(socket), asks, b" 200 ")

        return well

    return {
        "redis": lambda: _says(_to_redis(fleet.settings.redis_url), b"SET %s 1\r\n" % PROBE_KEY, b"+OK"),
        "edge": haproxy("HAProxy edge", places.edge_monitor),
        "broker": haproxy("HAProxy broker", places.broker_monitor),
        "disk": disk,
    }


async def _says(connect: Callable[[], Awaitable[Streams]], question: bytes, answer: bytes) -> bool:
    """Return whether the first line of the answer has these words."""
    reader, writer = await connect()
    try:
        writer.write(question)
        return answer in await reader.readline()
    finally:
        writer.transport.abort()


if __name__ == "__main__":
    sys.argv[0] = "scripts/chaos"
    typer.run(chaos)
