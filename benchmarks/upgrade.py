"""``python -m benchmarks.upgrade COMMIT``: replace an older version's processes while clients submit.

A whole fleet of the older version starts: API, dispatchers, HAProxy and agent. Then each process is stopped
and the same one of this version starts in its place, in a drawn order, as docs/howto/upgrade.md allows; with
``--back`` they are replaced once more by the older ones, which works only if both know one layout. Clients
go on submitting, and repeat what was not taken, with the same idempotency keys. In the end every acknowledged
job must be there and have ended once, and every webhook must have been told of start and end.
"""

import asyncio
import io
import json
import logging
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from benchmarks.aftermath import BROKEN, Expected, Findings, jobs_of_runs, look
from benchmarks.clients import trivial_graph
from benchmarks.failover import settled
from benchmarks.hook_receiver import HookReceiver
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from comfy_fleet.cli.up.supervisor import Supervised, stop_all
from comfy_fleet.settings import SOURCE

NODES, JOB_S = 4, 0.2
AT_ONCE = 4
BETWEEN_S = 3.0
TOLD_S = 180.0
"""Within this time everybody is told: starts and ends of older versions are looked for once a minute."""
TRIES_S = 0.2
LIMIT_S = 900.0
OWNER = "local"


@dataclass(kw_only=True)
class Upgraded:
    """What came of it.

    Attributes:
        expected: Acknowledged jobs, and what must become of them.
        hooked: Those of them that have a webhook.
        found: What is wrong with them.
        repeats: Submits that were repeated.
        steps: Which processes were replaced, in their order.
        untold: Messages that nobody got.
        again: How many runs were more than one for a job.
    """

    expected: dict[str, Expected] = field(default_factory=dict)
    hooked: set[str] = field(default_factory=set)
    found: Findings = field(default_factory=Findings)
    repeats: int = 0
    steps: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)
    again: int = 0


class TwoVersions(Stage):
    """A stage whose fleet's processes are of either version.

    Attributes:
        source: Where the code is that the next process runs.
    """

    source: Path = SOURCE

    async def child(
        self,
        name: str,
        argv: Sequence[str],
        *,
        stage: int,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Supervised:
        """See :meth:`Stage.child`; a module is looked for in the current folder first."""
        return await super().child(name, argv, stage=stage, env=env, cwd=cwd or self.source)

    async def replace(self, fleet: Fleet, old: Supervised) -> Supervised:
        """Stop a process of a fleet, and start the same one from :attr:`source`."""
        spec = old.spec
        await stop_all([old])
        self.children.remove(old)
        new = await self.child(spec.name, spec.argv, stage=spec.stage, env=spec.env)
        if old is fleet.api:
            fleet.api = new
        elif old is fleet.haproxy:
            fleet.haproxy = new
        elif old is fleet.agent:
            fleet.agent = new
        else:
            fleet.dispatchers[fleet.dispatchers.index(old)] = new
        return new


def checked_out(commit: str, folder: Path) -> Path:
    """Put a commit's files into a folder.

    Raises:
        BenchError: There is no such commit here.
    """
    found = subprocess.run(["git", "-C", str(SOURCE), "archive", commit], capture_output=True, check=False)
    if found.returncode:
        raise BenchError(f"no commit {commit} here: {found.stderr.decode().strip()}")
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


async def upgrade(options: Options, commit: str, *, back: bool, rng: random.Random) -> Upgraded:
    """Play it.

    Args:
        options: Of all measurements.
        commit: The older version.
        back: Whether to go back in the end.
        rng: Draws the order.
    """
    made = Upgraded()
    async with TwoVersions(options) as stage, bounded(LIMIT_S, "the upgrade"), HookReceiver() as shop:
        nodes = await stage.sims(NODES, job_s=JOB_S)
        older = await asyncio.to_thread(checked_out, commit, stage.folder / "older")
        stage.source = older
        env = {"FLEET_WEBHOOK_ALLOW": "127.0.0.1", "FLEET_RESULT_CACHE": "off"}
        fleet = await stage.fleet(nodes, dispatchers=2, env=env)
        await fleet.until_up(NODES)
        stop = asyncio.Event()
        numbers = iter(range(1_000_000))
        url = f"{shop.url}/{OWNER}"
        clients = [asyncio.create_task(_client(fleet, numbers, made, url, stop, rng)) for _ in range(AT_ONCE)]
        clients.append(asyncio.create_task(_learn_secret(fleet, shop)))
        try:
            for source, word in ((SOURCE, "new"), *(((older, "old"),) if back else ())):
                stage.source = source
                assert fleet.api and fleet.haproxy and fleet.agent
                parts = [fleet.api, fleet.haproxy, fleet.agent, *fleet.dispatchers]
                rng.shuffle(parts)
                for part in parts:
                    await asyncio.sleep(BETWEEN_S)
                    options.say(f"{word} {part.spec.name}; {len(made.expected)} jobs so far")
                    made.steps.append(f"{word} {part.spec.name}")
                    await stage.replace(fleet, part)
            await stage.until_200(f"{fleet.url}/api/v1/ready", but=stage.children)
            await asyncio.sleep(BETWEEN_S)
        finally:
            stop.set()
            done, waiting = await asyncio.wait(clients, timeout=60)
            for task in waiting:
                task.cancel()
        for task in done:
            task.result()
        await settled(fleet, made.expected, options.say)
        await look(fleet, made.expected, made.found)
        wanted = {f"msg_{job}_{word}" for job in made.hooked for word in ("started", "succeeded")}
        for _ in range(int(TOLD_S)):
            if wanted <= shop.taken.keys():
                break
            options.say(f"{len(wanted - shop.taken.keys())} of {len(wanted)} messages are to come")
            await asyncio.sleep(1)
        made.untold = sorted(wanted - shop.taken.keys())
        ran = jobs_of_runs(stage.folder.glob("sim*"))
        made.again = len(ran) - len(set(ran.values()))
    return made


async def _client(
    fleet: Fleet, numbers: Iterator[int], made: Upgraded, hook: str, stop: asyncio.Event, rng: random.Random
) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=15) as http:
        while not stop.is_set():
            graph, colour = trivial_graph(), rng.randrange(1 << 24)
            graph["1"]["inputs"]["color"] = colour
            wanted = Expected(colour=(colour >> 16, colour >> 8 & 255, colour & 255))
            key = {"Idempotency-Key": f"upgrade-{next(numbers)}"}
            body: dict[str, Any] = {"workflow": graph}
            body |= {"webhook_url": hook, "webhook_events": ["job.started", "job.succeeded"]}
            while True:
                try:
                    answer = await http.post(f"{fleet.url}/api/v2/jobs", json=body, headers=key)
                except httpx.HTTPError:
                    answer = None
                told = answer.json() if answer is not None and answer.status_code in (201, 400, 422) else {}
                error = told.get("error") or {}
                job = told.get("id") or (error.get("details") or {}).get("job_id")
                if job and "status" not in error:
                    made.expected[job] = wanted
                    if "webhook_url" in body:
                        made.hooked.add(job)
                    break
                if error and "webhook" in json.dumps(error):  # that version has none
                    body = {"workflow": graph}
                    continue
                made.repeats += 1
                await asyncio.sleep(TRIES_S)
            await asyncio.sleep(0.1)


async def _learn_secret(fleet: Fleet, shop: HookReceiver) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=15) as http:
        while OWNER not in shop.secrets:
            try:
                answer = await http.get(f"{fleet.console_url}/api/v1/webhooks/secret")
                if answer.status_code == 200:
                    shop.secrets[OWNER] = answer.json()["secret"]
            except httpx.HTTPError:
                pass
            await asyncio.sleep(TRIES_S)


def main(
    commit: Annotated[str, typer.Argument(help="The older version.")],
    back: Annotated[bool, typer.Option("--back", help="Go back to it in the end.")] = False,
    seed: Annotated[int | None, typer.Option(help="Repeats the order of an earlier run.")] = None,
) -> None:
    """Replace an older version's processes one by one while clients submit, and count what is lost."""
    console = Console()
    logging.disable(logging.WARNING)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    console.print(f"seed {seed}", highlight=False)
    try:
        with console.status("starting") as status:
            options = Options(bench_python=Path(sys.executable), say=status.update)
            made = asyncio.run(upgrade(options, commit, back=back, rng=random.Random(seed)))
    except BenchError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        for note in getattr(error, "__notes__", ()):
            console.print(f"  {note}", highlight=False, markup=False)
        raise typer.Exit(1) from None
    console.print("replaced: " + ", ".join(made.steps), highlight=False)
    said = [
        f"{len(made.expected)} jobs acknowledged, {len(made.hooked)} with a webhook",
        f"{made.repeats} submits repeated",
        f"{made.again} runs again",
        f"states {dict(made.found.states)}",
        f"{len(made.untold)} messages untold",
    ]
    console.print("; ".join(said), highlight=False)
    broken = {name: list(getattr(made.found, name)) for name in BROKEN if getattr(made.found, name)}
    for name, lines in broken.items():
        console.print(f"[red]{name} {len(lines)}[/]: {lines[:5]}", highlight=False)
    for line in made.untold[:5]:
        console.print(f"[red]untold[/] {line}", highlight=False)
    if broken or made.untold:
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.argv[0] = "scripts/chaos --upgrade"
    typer.run(main)
