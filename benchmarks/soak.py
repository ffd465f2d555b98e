"""``python -m benchmarks.soak``: many jobs and attacks, and a look at whether anything goes on growing.

Users submit jobs in every way that there is, to simulated nodes that need next to no time. Meanwhile
attackers send what must be refused, agents lie, nodes fail, and one answers what no ComfyUI does. What the
fleet keeps of a job is kept for a minute only, so that its memory, its handles, its keys in Redis and its
files should level off. Every job must end once, and every message to a webhook must come.
"""

import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import orjson
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import receiver_down
from benchmarks.charts import svg
from benchmarks.ends import EndsAudit
from benchmarks.growth import Growth, Point, growths
from benchmarks.hook_receiver import HookReceiver
from benchmarks.people import Users
from benchmarks.stage import BenchError, Fleet, Options, Stage
from benchmarks.visits import Ended
from benchmarks.vitals import KEPT, TOLERANCES, Vitals, shown
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.settings import SOURCE

NODES, USERS, AT_ONCE = 4, 6, 24
RETENTION_S = 60.0
SETTINGS: Mapping[str, str] = {
    "FLEET_RETENTION_S": f"{RETENTION_S:g}",
    "FLEET_UPLOAD_RETENTION_S": f"{RETENTION_S:g}",
    "FLEET_BLOB_GRACE_S": "0",
    "FLEET_WEBHOOK_ALLOW": "127.0.0.1",
    "FLEET_LOG_LEVEL": "warning",
}
WARM_UP = 0.3
"""Part of a run that is not judged; at least as long as retention takes."""
WARM_UP_S = 3 * RETENTION_S
REST_S = 4 * RETENTION_S
"""How long the fleet may take to forget everything once it is at rest."""
HOOKS_S = 120.0
EXPECTED = frozenset({"dispatch-1: node quarantined", "api: node quarantined"})
"""Errors in the log that a hostile node is meant to cause; whether another one is out is looked at."""
REST_MORE = 50
"""So many more keys of another kind than before may be left when nothing is going on."""


@dataclass(kw_only=True)
class Outcome:
    """What a soak came to.

    Attributes:
        seconds: How long jobs were submitted.
        growth: By series.
        left: Keys that were left at rest beyond those before, by kind.
        unwell: What is wrong with the fleet at the end.
        missing: Messages to webhooks that did not come.
        said: What the clients told at last.
    """

    seconds: float = 0.0
    growth: dict[str, Growth] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    unwell: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    hooks: int = 0
    repeated: int = 0
    forged: dict[str, int] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)


def soak(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs to submit.")] = 100_000,
    minutes: Annotated[
        float, typer.Option(min=0, help="Spread the jobs over so long; 0: as fast as the fleet goes.")
    ] = 0,
    attacks: Annotated[bool, typer.Option(help="Whether the fleet is attacked meanwhile.")] = True,
    receiver_down_s: Annotated[
        float,
        typer.Option(
            "--receiver-down",
            metavar="SECONDS",
            min=0,
            help="Instead: have the receiver of webhooks away for so long, and kill the API twice.",
        ),
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="Repeats the choices of an earlier run.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw every series into this file.")
    ] = None,
) -> None:
    """Have many jobs done and attacks refused, and look whether anything grows without end."""
    console = Console()
    logging.disable(logging.WARNING)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    console.print(f"seed {seed}", highlight=False)
    with console.status("starting a fleet") as status:
        try:
            if receiver_down_s:
                fine = receiver_down.run(receiver_down_s, console, status.update, json_file)
            else:
                fine = _soak(jobs, minutes * 60, attacks, seed, console, status.update, json_file, chart)
        except BenchError as error:
            console.print(f"[red]{error}[/]", highlight=False)
            for note in getattr(error, "__notes__", ()):
                console.print(f"  {note}", highlight=False, markup=False)
            raise typer.Exit(1) from None
    if not fine:
        raise typer.Exit(1)


def _soak(
    jobs: int,
    seconds: float,
    attacks: bool,
    seed: int,
    console: Console,
    say: Callable[[str], None],
    json_file: Path | None,
    chart: Path | None,
) -> bool:
    out, audit, vitals = asyncio.run(_run(jobs, seconds, attacks, seed, say))
    fine = _show(console, out, audit)
    if json_file:
        content = {
            "seed": seed,
            "jobs": jobs,
            "seconds": out.seconds,
            "states": audit.states,
            "ways": audit.ways,
            "wrong": [*audit.wrong, *out.said.get("wrong", ())],
            "attacks": out.said.get("attacks"),
            "growth": {name: {**vars(one), "level": one.level} for name, one in out.growth.items()},
            "left": out.left,
            "unwell": out.unwell,
            "webhooks": {"taken": out.hooks, "repeated": out.repeated, "missing": len(out.missing)},
            "series": {name: [(round(at, 1), value) for at, value in s] for name, s in vitals.series.items()},
            "keys": [(round(at, 1), counts) for at, counts in vitals.kinds],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if chart:
        drawn = {
            name: (points, _beside(name, points, out.growth.get(name)), name not in growing(out))
            for name, points in vitals.series.items()
        }
        chart.write_text(svg(drawn, warm_up_s=_warm_up_s(out.seconds), title=f"{jobs} jobs, seed {seed}"))
    return fine


def growing(out: Outcome) -> list[str]:
    """Return the series that grow beyond what they may."""
    return [name for name, one in out.growth.items() if one.judged and not one.level]


def _beside(name: str, points: Sequence[Point], found: Growth | None) -> str:
    if found is None:
        return f"at most {shown(name, max(value for _, value in points))}"
    return f"{shown(name, found.first)} → {shown(name, found.last)}"


def _warm_up_s(seconds: float) -> float:
    return min(max(WARM_UP * seconds, WARM_UP_S), 0.6 * seconds)


async def _run(
    jobs: int, seconds: float, attacks: bool, seed: int, say: Callable[[str], None]
) -> tuple[Outcome, EndsAudit, Vitals]:
    options = Options(bench_python=Path(sys.executable), say=say, backoff=Backoff(first_s=0.1, longest_s=1.0))
    out = Outcome()
    async with Stage(options) as stage, HookReceiver() as receiver:
        users = Users.write(stage, USERS)
        nodes = await stage.sims(NODES)
        fleet = await stage.fleet(nodes, env={**SETTINGS, **users.env}, queue_depth=1000)
        await fleet.until_up(NODES)
        receiver.secrets = await receiver_down.signing_secrets(fleet, users)
        audit, vitals = EndsAudit(fleet), Vitals(fleet)
        hooked: dict[str, Ended] = {}
        told = {
            "url": fleet.url,
            "console": fleet.console_url,
            "keys": dict(users.keys),
            "operator": users.operator,
            "agent": users.agent,
            "nodes": nodes,
            "hooks": receiver.url,
            "jobs": jobs,
            "at_once": AT_ONCE,
            "pace_s": seconds * AT_ONCE / jobs,
            "attacks": attacks,
            "seed": seed,
        }
        began = time.monotonic()

        def hear(said: dict[str, Any]) -> None:
            ended = [Ended(**one) for one in said.pop("ended")]
            audit.add(said.pop("accepted"), ended)
            hooked.update({one.id: one for one in ended if one.hooked})
            out.said = said
            passed = time.monotonic() - began
            rate = audit.states.total() / passed
            say(
                f"{passed:.0f} s: {audit.states.total()} of {jobs} jobs ended, {rate:.0f} a second; "
                f"{sum(said['attacks']['made'].values())} attacks; "
                f"{sum(said['wrong'].values()) + sum(said['attacks']['wrong'].values())} wrong"
            )

        auditing = asyncio.create_task(audit.run())
        try:
            async with vitals.watching():
                await _clients(told, hear)
                out.seconds = vitals.now
                await _settle(stage, fleet, users, audit, receiver, hooked, vitals, out)
        finally:
            auditing.cancel()
            await asyncio.gather(auditing, return_exceptions=True)
        until = out.seconds
        during = {
            name: [point for point in points if point[0] <= until] for name, points in vitals.series.items()
        }
        out.growth = growths(during, TOLERANCES, warm_up_s=_warm_up_s(until))
        out.hooks, out.forged = len(receiver.taken), dict(receiver.forged)
        out.repeated = sum(receiver.taken.values()) - len(receiver.taken)
        warnings = Counter(line for line in stage.warnings if line not in EXPECTED)
        out.unwell += [f"{count} x {line}" for line, count in warnings.most_common(20)]
        return out, audit, vitals


async def _clients(told: Mapping[str, Any], hear: Callable[[dict[str, Any]], None]) -> None:
    """Run all clients in a process of their own, and pass on what they tell."""
    argv = [sys.executable, "-m", "benchmarks.soak_clients", json.dumps(told)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=SOURCE, limit=1 << 26
    )
    assert process.stdout and process.stderr
    errors = asyncio.create_task(process.stderr.read())
    try:
        async for line in process.stdout:
            hear(orjson.loads(line))
        if await process.wait():
            failed = BenchError("the clients failed")
            failed.add_note((await errors).decode(errors="replace")[-3000:])
            raise failed
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors.cancel()


async def _settle(
    stage: Stage,
    fleet: Fleet,
    users: Users,
    audit: EndsAudit,
    receiver: HookReceiver,
    hooked: Mapping[str, Ended],
    vitals: Vitals,
    out: Outcome,
) -> None:
    """Wait until all is told and forgotten, and look whether the fleet is well."""
    say = stage.options.say
    deadline = time.monotonic() + HOOKS_S
    while (behind := audit.behind) or out.missing or not hooked.keys() <= _jobs_told(receiver):
        out.missing = sorted(hooked.keys() - _jobs_told(receiver))
        say(f"{behind} jobs are to be looked at, {len(out.missing)} messages to come")
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(1)
    (_, before), deadline = vitals.kinds[0], time.monotonic() + REST_S
    while True:
        (_, now) = vitals.kinds[-1]
        more = {kind: now[kind] - before[kind] for kind in now if now[kind] > before[kind]}
        out.left = dict(sorted(more.items(), key=lambda one: -one[1]))
        grown = [kind for kind, count in more.items() if count > REST_MORE and kind not in KEPT]
        say(f"at rest: {sum(more.values())} more keys than at the start")
        if (not grown and now["job"] <= before["job"] + REST_MORE) or time.monotonic() > deadline:
            break
        await asyncio.sleep(5)
    stage.check()
    headers = {"Authorization": f"Bearer {users.operator}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30, headers=headers) as http:
        for node in (await http.get(f"{fleet.console_url}/api/v1/nodes")).json()["nodes"]:
            if node["name"].startswith("node-") and node["verdict"] != "up":
                out.unwell.append(f"{node['name']} is {node['verdict']}: {node['why']}")
        if (await http.get(f"{fleet.url}/api/v1/ready")).status_code != 200:
            out.unwell.append("the fleet is not ready")


def _jobs_told(receiver: HookReceiver) -> frozenset[str]:
    return frozenset(message.split("_")[1] for message in receiver.taken)


def _show(console: Console, out: Outcome, audit: EndsAudit) -> bool:
    """Print what came of it; return whether all is as it should be."""
    table = Table(title=f"{audit.accepted} jobs in {out.seconds:.0f} s", title_justify="left")
    for number, column in enumerate(("series", "second tenth", "last tenth", "grew by", "may by", "most")):
        table.add_column(column, justify="right" if number else "left")
    for name, one in out.growth.items():
        colour = "green" if one.level else "red" if one.judged else "yellow"
        cells = (one.first, one.last, one.grown, one.allowed, one.most)
        table.add_row(f"[{colour}]{name}[/]", *(shown(name, value) for value in cells))
    console.print(table)
    ends = ", ".join(f"{count} {state}" for state, count in audit.states.most_common())
    console.print(f"ended: {ends}; failed: {dict(audit.reasons)}", highlight=False)
    console.print(f"ways: {dict(audit.ways)}", highlight=False)
    attacks = out.said.get("attacks", {"made": {}, "wrong": {}})
    console.print(
        f"attacks: {attacks['made']}; nodes made to fail: {out.said.get('faults')}", highlight=False
    )
    console.print(
        f"messages: {out.hooks} came, {out.repeated} again, {len(out.missing)} did not", highlight=False
    )
    console.print(f"keys left at rest: {out.left}", highlight=False)
    kept = sum(count > REST_MORE and kind not in KEPT for kind, count in out.left.items())
    faults = {
        "jobs that nobody saw end": sorted(audit.unfinished),
        "jobs that ended otherwise or twice": audit.wrong,
        "what no user should meet": [f"{n} x {what}" for what, n in out.said.get("wrong", {}).items()],
        "wrong answers to attacks": [f"{n} x {what}" for what, n in attacks["wrong"].items()],
        "messages that did not come": out.missing,
        "messages whose signature is wrong": [f"{n} x {what}" for what, n in out.forged.items()],
        "series that grow": growing(out),
        "kinds of keys left at rest": [
            kind for kind, n in out.left.items() if n > REST_MORE and kind not in KEPT
        ],
        "what is unwell": out.unwell,
    }
    for what, found in faults.items():
        for line in found[:20]:
            console.print(f"[red]{what}[/]: {line}", highlight=False, markup=True)
    short = not any(one.judged for one in out.growth.values())
    fine = not any(faults.values()) and not kept
    if short:
        console.print("[yellow]too short to judge growth[/]")
    console.print("[bold green]all is well[/]" if fine else "[bold red]something is wrong[/]")
    return fine


if __name__ == "__main__":
    sys.argv[0] = "scripts/soak"
    typer.run(soak)
