"""``python -m scripts.benchmarks.chaos``: kill -9 at random while a fleet works, then count the jobs.

Two dispatchers, one API, both HAProxy processes and their controller, Redis with AOF and four simulated
nodes, each started again when it dies. A client submits all the while, with an idempotency key for each job,
and repeats a submit that got no answer, as a careful client does. When the killing is over, every job that
was ever accepted must have ended, once, and every output of those that succeeded must be readable.
"""

import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from comfy_fleet.cli.up.supervisor import Supervised
from comfy_fleet.domain.backoff import Backoff
from scripts.benchmarks.clients import PNG, trivial_graph
from scripts.benchmarks.operations import FINAL, kill
from scripts.benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from scripts.benchmarks.stats import Spread

NODES = 4
JOB_S = 0.3
LOAD = 0.6  # share of the nodes' capacity that is submitted, so that a backlog can be worked off
KILL_GAP_S = (0.5, 2.5)
SETTLE_S = 90.0
BROKEN = ("refused", "missing", "unfinished", "twice", "unreadable", "changed", "leases")


@dataclass(kw_only=True)
class Account:
    """What happened.

    Attributes:
        accepted: When each job was accepted, by id, on this process's monotonic clock.
        ended: When it was first seen in a final state, and which.
        changed: Jobs that were seen in two final states.
        kills: By victim.
        repeats: Submits that had to be repeated because no answer came.
        rejected: Answers that no client should get, by status and code.
    """

    accepted: dict[str, float] = field(default_factory=dict)
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


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is left when everything has settled; all but the last two must be empty.

    Attributes:
        refused: Jobs that were never accepted, though the killing was over.
        missing: Accepted jobs that nobody knows any more.
        unfinished: Jobs that have not ended.
        twice: Jobs whose end was written more than once, or that stand in two registries.
        unreadable: Outputs of succeeded jobs that can't be read.
        changed: Jobs that were seen in two final states.
        leases: Nodes that are still leased although nothing runs.
        states: Jobs by final state.
        reasons: Failed jobs by error code.
    """

    refused: Sequence[str]
    missing: Sequence[str]
    unfinished: Sequence[str]
    twice: Sequence[str]
    unreadable: Sequence[str]
    changed: Sequence[str]
    leases: Sequence[str]
    states: Mapping[str, int]
    reasons: Mapping[str, int]

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled or left behind."""
        return not any(getattr(self, name) for name in BROKEN)


def chaos(
    jobs: Annotated[int, typer.Option(min=1, help="How many to submit.")] = 400,
    seconds: Annotated[float, typer.Option(min=5, help="How long to kill processes.")] = 60,
    seed: Annotated[int | None, typer.Option(help="For the same choice of victims again.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it there.")] = None,
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
        content = {"seed": seed, "kills": account.kills, "findings": asdict(found), "errors": warnings}
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
        submitting = asyncio.create_task(_submit(fleet.url, jobs, rate, account))
        watching = asyncio.create_task(_watch(fleet.url, account))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(rng.uniform(*KILL_GAP_S))
            _kill(fleet, [sim.child for sim in sims], rng, account)
            say(
                f"{end - time.monotonic():.0f} s left; {account.kills.total()} kills, "
                f"{len(account.accepted)} jobs accepted, {len(account.ended)} ended"
            )
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
        return account, await _find(fleet, account, jobs), Counter(stage.warnings)


def _kill(fleet: Fleet, sims: Sequence[Supervised], rng: random.Random, account: Account) -> None:
    """Kill one process; whatever is being started again just now is spared."""
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
    try:
        kill(victims[name])
    except ProcessLookupError:
        return
    account.kills[name] += 1


async def _submit(base: str, jobs: int, rate: float, account: Account) -> None:
    """Submit jobs evenly, each until it is accepted."""

    async def one(http: httpx.AsyncClient, number: int) -> None:
        key = {"Idempotency-Key": f"chaos-{number}"}
        body = {"workflow": trivial_graph()}
        while True:
            try:
                answer = await http.post(f"{base}/api/v2/jobs", json=body, headers=key)
            except httpx.HTTPError:
                account.repeats += 1
            else:
                found = _accepted(answer)
                if found:
                    account.accepted[found] = time.monotonic()
                    return
                if answer.status_code in (429, 502, 503, 504):
                    account.repeats += 1
                else:
                    account.rejected[f"{answer.status_code} {answer.text[:120]}"] += 1
            await asyncio.sleep(0.3)

    async with httpx.AsyncClient(trust_env=False, timeout=5) as http, asyncio.TaskGroup() as group:
        for number in range(jobs):
            group.create_task(one(http, number))
            await asyncio.sleep(1 / rate)


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


async def _find(fleet: Fleet, account: Account, jobs: int) -> Findings:
    missing, unfinished, twice, unreadable = [], [], [], []
    refused = [f"{jobs - len(account.accepted)} of {jobs} jobs"] if len(account.accepted) < jobs else []
    states: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    store: Any = Redis.from_url(fleet.settings.redis_url)
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http, store:
        for job_id in account.accepted:
            answer = await http.get(f"{fleet.url}/api/v2/jobs/{job_id}")
            if answer.status_code != 200:
                missing.append(f"{job_id}: {answer.status_code}")
                continue
            job = answer.json()
            states[job["status"]] += 1
            if job["status"] not in FINAL:
                unfinished.append(f"{job_id}: {job['status']}")
                continue
            account.saw(job_id, job["status"])
            if job["status"] == "failed":
                reasons[(job["error"] or {}).get("code", "no reason")] += 1
            ends = await store.xlen(f"rq:results:{job_id}")
            places = [
                name
                for name in ("finished", "failed", "canceled", "wip")
                if await store.zscore(f"rq:{name}:fleet", job_id) is not None
            ]
            if await store.lpos("rq:queue:fleet", job_id) is not None:
                places.append("queue")
            if ends != 1 or len(places) != 1:
                twice.append(f"{job_id}: ended {ends} times, stands in {places}")
            if job["status"] == "succeeded":
                unreadable += await _unreadable(http, job)
        leases = [key.decode() async for key in store.scan_iter("fleet:lease:*")]
    return Findings(
        refused=refused,
        missing=missing,
        unfinished=unfinished,
        twice=twice,
        unreadable=unreadable,
        changed=account.changed,
        leases=leases,
        states=dict(states),
        reasons=dict(reasons),
    )


async def _unreadable(http: httpx.AsyncClient, job: Mapping[str, Any]) -> list[str]:
    if not job["outputs"]:
        return [f"{job['id']}: succeeded without an output"]
    broken = []
    for output in job["outputs"]:
        answer = await http.get(output["url"])
        if answer.status_code != 200 or not answer.content.startswith(PNG):
            broken.append(f"{job['id']}: {output['name']}: {answer.status_code}")
    return broken


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
    table.add_row("submits repeated without an answer", str(account.repeats))
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
