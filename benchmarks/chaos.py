"""``python -m benchmarks.chaos``: kill -9 at random while a fleet works, then count the jobs.

Two dispatchers, one API, both HAProxy processes and their controller, Redis with AOF and four simulated
nodes, each restarted when it dies. Now and then a dispatcher is only stopped, for longer than its leases
last, and then goes on. A client submits all the time, with an idempotency key for each job, and repeats a
submit that got no answer; some jobs have an input file, and some are canceled. Afterwards every accepted job
must have ended exactly once, every picture must exist and be the job's own, no job may have been computed
twice at the same time, and Redis must contain nothing that belongs only to work in progress.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.aftermath import (
    BROKEN,
    Colour,
    Expected,
    Findings,
    Spell,
    jobs_of_runs,
    look,
    overlapping,
)
from benchmarks.clients import trivial_graph
from benchmarks.operations import FINAL, kill
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from benchmarks.stats import Spread
from comfy_fleet.cli.up.supervisor import Supervised
from comfy_fleet.domain.backoff import Backoff

NODES = 4
JOB_S = 0.3
LOAD = 0.6  # share of the nodes' capacity that is submitted, so that a backlog can be worked off
KILL_GAP_S = (0.5, 2.5)
SETTLE_S = 90.0
FREEZE = 0.4  # share of the strikes at a dispatcher that only stop it
FREEZE_S = (1.0, 9.0)  # its leases last 5 s
UPLOADS, CANCELS = 5, 10  # every so-manieth job has an input file, or is canceled
CANCEL_S = 3.0  # at the latest so long after it was accepted


@dataclass(kw_only=True)
class Account:
    """What happened.

    Attributes:
        accepted: When each job was accepted, by id, on this process's monotonic clock.
        expected: What must become of it.
        spells: What nodes told of their runs.
        ended: When it was first seen in a final state, and which.
        changed: Jobs that were seen in two final states.
        kills: By victim.
        repeats: Submits that had to be repeated because no answer came.
        rejected: Answers that no client should get, by status and code.
    """

    accepted: dict[str, float] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)
    spells: set[Spell] = field(default_factory=set)
    ended: dict[str, tuple[float, str]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def saw(self, job_id: str, status: str) -> None:
        """Note a job's state; a final one must never change."""
        if status not in FINAL:
            return
        before = self.ended.setdefault(job_id, (time.monotonic(), status))
        if before[1] != status:
            self.changed.append(f"{job_id}: {before[1]}, then {status}")


def chaos(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs to submit.")] = 400,
    seconds: Annotated[float, typer.Option(min=5, help="Seconds for which processes are killed.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Repeats the choices of an earlier run.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")
    ] = None,
) -> None:
    """Kill the processes of a fleet at random while it works, and look whether a single job was lost."""
    console = Console()
    logging.disable(logging.WARNING)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    console.print(f"seed {seed}: --seed {seed} chooses the same victims", highlight=False)
    with console.status("starting a fleet") as status:
        try:
            account, found, warnings = asyncio.run(_run(jobs, seconds, random.Random(seed), status.update))
        except BenchError as error:
            console.print(f"[red]{error}[/]", highlight=False)
            for note in getattr(error, "__notes__", ()):
                console.print(f"  {note}", highlight=False, markup=False)
            raise typer.Exit(1) from None
    _show(console, account, found, warnings)
    if json_file:
        content = {"seed": seed, "kills": account.kills, "findings": vars(found), "errors": warnings}
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if not found.clean:
        raise typer.Exit(1)


async def _run(
    jobs: int, seconds: float, rng: random.Random, say: Callable[[str], None]
) -> tuple[Account, Findings, Counter[str]]:
    account = Account()
    options = Options(bench_python=Path(sys.executable), say=say, backoff=Backoff(first_s=0.1, longest_s=1.0))
    async with Stage(options) as stage, bounded(max(seconds, jobs * JOB_S) + SETTLE_S + 120, "this run"):
        sims = await stage.sims_apart(NODES, job_s=JOB_S)
        fleet = await stage.fleet([sim.url for sim in sims], dispatchers=2)
        await fleet.until_up(NODES)
        rate = min(jobs / seconds, LOAD * NODES / JOB_S)
        nodes = [sim.url for sim in sims]
        submitting = asyncio.create_task(_submit(fleet.url, jobs, rate, rng.randrange(1 << 32), account))
        watching = asyncio.gather(_watch(fleet.url, account), _overhear(nodes, account))
        frozen: set[asyncio.Task[None]] = set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(rng.uniform(*KILL_GAP_S))
            _strike(fleet, [sim.child for sim in sims], rng, account, frozen)
            say(
                f"{end - time.monotonic():.0f} s left; {account.kills.total()} kills, "
                f"{len(account.accepted)} jobs accepted, {len(account.ended)} ended"
            )
        await asyncio.gather(*frozen)
        say("no more kills; waiting until every job has ended")
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
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        say("reading every job and output")
        found = Findings()
        if len(account.accepted) < jobs:
            found.refused = [f"{jobs - len(account.accepted)} of {jobs} jobs"]
        await look(fleet, account.expected, found)
        found.changed = account.changed
        ran = jobs_of_runs(stage.folder.glob("sim-*"))
        found.overlapping = overlapping(account.spells, ran)
        found.again = len(ran) - len(set(ran.values()))
        return account, found, Counter(stage.warnings)


def _strike(
    fleet: Fleet,
    sims: Sequence[Supervised],
    rng: random.Random,
    account: Account,
    frozen: set[asyncio.Task[None]],
) -> None:
    """Kill one process, or stop it for a while; whatever is being started again just now is spared."""
    victims: dict[str, int] = {
        child.spec.name: child.pid for child in (*sims, *fleet.dispatchers, fleet.redis) if child.pid
    }
    for name, child in (("api", fleet.api), ("agent", fleet.agent), ("HAProxy controller", fleet.haproxy)):
        if child and child.pid:
            victims[name] = child.pid
    if "HAProxy controller" in victims:
        below = fleet.haproxy_pids(victims["HAProxy controller"])
        # Of a master and its worker the first is the master; the worker dies with it.
        victims |= {name: pids[0] for name, pids in below.items() if pids}
    name = rng.choice(sorted(victims))
    freezes, freeze_s = rng.random() < FREEZE, rng.uniform(*FREEZE_S)
    try:
        if name.startswith("dispatch") and freezes:
            os.kill(victims[name], signal.SIGSTOP)
            task = asyncio.create_task(_thaw(victims[name], freeze_s))
            frozen.add(task)
            task.add_done_callback(frozen.discard)
            name += ", stopped"
        else:
            kill(victims[name])
    except ProcessLookupError:
        return
    account.kills[name] += 1


async def _thaw(pid: int, after_s: float) -> None:
    try:
        await asyncio.sleep(after_s)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
            os.kill(pid, signal.SIGCONT)


async def _submit(base: str, jobs: int, rate: float, seed: int, account: Account) -> None:
    """Submit jobs evenly, each until it is accepted."""
    rng = random.Random(seed)

    async def answered(send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Send until there is an answer that says something."""
        while True:
            try:
                answer = await send()
            except httpx.HTTPError:
                account.repeats += 1
            else:
                if answer.status_code not in (429, 500, 502, 503, 504):
                    return answer
                if answer.status_code == 500:
                    account.rejected[f"500 {answer.text[:120]}"] += 1
                account.repeats += 1
            await asyncio.sleep(0.3)

    async def one(http: httpx.AsyncClient, number: int) -> None:
        graph, expected = _job(number, rng)
        name = graph["1"]["inputs"].get("image")
        if name is not None:
            files = {"file": (name, _picture(expected.colour), "image/png")}
            what = {"file_path": name}
            await answered(lambda: http.post(f"{base}/api/v2/assets", data=what, files=files))
        key = {"Idempotency-Key": f"chaos-{number}"}
        url = f"{base}/api/v2/jobs"
        while True:
            answer = await answered(lambda: http.post(url, json={"workflow": graph}, headers=key))
            if found := _accepted(answer):
                break
            account.rejected[f"{answer.status_code} {answer.text[:120]}"] += 1
            await asyncio.sleep(0.3)
        account.accepted[found], account.expected[found] = time.monotonic(), expected
        if expected.canceled:
            await asyncio.sleep(rng.uniform(0, CANCEL_S))
            await answered(lambda: http.post(f"{url}/{found}/cancel"))

    async with httpx.AsyncClient(trust_env=False, timeout=5) as http, asyncio.TaskGroup() as group:
        for number in range(jobs):
            group.create_task(one(http, number))
            await asyncio.sleep(1 / rate)


def _job(number: int, rng: random.Random) -> tuple[dict[str, Any], Expected]:
    """Return a graph that makes a picture of one colour, and what must become of it."""
    graph = trivial_graph()
    colour = int(graph["1"]["inputs"]["color"])
    if number % UPLOADS == 0:
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": f"chaos-{number}-{rng.random()}.png"}}
    rgb = (colour >> 16, colour >> 8 & 255, colour & 255)
    return graph, Expected(colour=rgb, canceled=number % CANCELS == 1)


def _picture(colour: Colour) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def _accepted(answer: httpx.Response) -> str | None:
    """Return the job's id, also from the answer that an earlier submit with the same key had made it."""
    try:
        body: dict[str, Any] = answer.json()
    except ValueError:
        return None
    if answer.status_code == 201:
        return str(body["id"])
    error = body.get("error") or {}
    if error.get("code") == "idempotency_key_reuse":
        return str((error.get("details") or {})["job_id"])
    return None


async def _watch(base: str, account: Account) -> None:
    """Read the states again and again: one that is final must stay as it is."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        while True:
            cursor: str | None = None
            try:
                while True:
                    query = {"limit": "100", **({"cursor": cursor} if cursor else {})}
                    page = (await http.get(f"{base}/api/v2/jobs", params=query)).raise_for_status().json()
                    for job in page["jobs"]:
                        account.saw(job["id"], job["status"])
                    cursor = page.get("next_cursor")
                    if not cursor:
                        break
            except (httpx.HTTPError, ValueError):
                pass
            await asyncio.sleep(0.5)


async def _overhear(nodes: Sequence[str], account: Account) -> None:
    """Ask the nodes again and again what they have computed: whoever is killed forgets it."""
    async with httpx.AsyncClient(trust_env=False, timeout=1) as http:
        while True:
            for node in nodes:
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    told = (await http.get(f"{node}/sim/stats")).json()
                    account.spells |= {
                        Spell(run=run, node=node, start=start, end=end)
                        for start, end, run in told["intervals"]
                    }
            await asyncio.sleep(0.25)


def _show(console: Console, account: Account, found: Findings, warnings: Counter[str]) -> None:
    kills = Table(title=f"{account.kills.total()} processes killed", title_justify="left")
    kills.add_column("process")
    kills.add_column("times", justify="right")
    for name, count in sorted(account.kills.items()):
        kills.add_row(name, str(count))
    console.print(kills)
    table = Table(title=f"{len(account.accepted)} jobs accepted", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    for state, count in sorted(found.states.items()):
        table.add_row(f"ended as {state}" if state in FINAL else f"still {state}", str(count))
    for reason, count in sorted(found.reasons.items()):
        table.add_row(f"  failed: {reason}", str(count))
    table.add_row("runs that kills cost", str(found.again))
    table.add_row("requests repeated without an answer", str(account.repeats))
    for name in BROKEN:
        count = len(getattr(found, name))
        table.add_row(f"[{'red' if count else 'green'}]{name}[/]", str(count))
    console.print(table)
    took = [at - account.accepted[job] for job, (at, _) in account.ended.items() if job in account.accepted]
    if took:
        spread = Spread.of(took)
        console.print(
            f"from accepted to ended: median {spread.p50:.1f} s, p99 {spread.p99:.1f} s, "
            f"most {spread.most:.1f} s",
            highlight=False,
        )
    for name in BROKEN:
        for line in getattr(found, name)[:10]:
            console.print(f"[red]{name}[/] {line}", highlight=False)
    for answer, count in account.rejected.most_common(10):
        console.print(f"[yellow]{count} x[/] a submit was answered {answer}", highlight=False)
    for line, count in warnings.most_common(10):
        console.print(f"[dim]{count} x {line}[/]", highlight=False)
    console.print(
        "[bold green]nothing was lost[/]" if found.clean else "[bold red]something was lost[/]",
        highlight=False,
    )


if __name__ == "__main__":
    sys.argv[0] = "scripts/chaos"
    typer.run(chaos)
