"""Hundreds of thousands of inputs that nobody thought of, and a table of what came of them."""

import json
import logging
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.fuzz import guide, inside
from benchmarks.fuzz.inside import Finding, Outcome

GROUPS = ("api", "bodies", "frames", "uploads", "manifests")
_LEAST_GUIDED = 2000
"""Fewer cases are not worth a process that has to measure coverage first."""


def fuzz(
    cases: Annotated[int, typer.Option(min=1, help="Cases in all.")] = 100_000,
    minutes: Annotated[float, typer.Option(min=0, help="Begin nothing new after so long; 0: no limit.")] = 0,
    only: Annotated[str, typer.Option(help=f"One part: {', '.join(GROUPS)}.")] = "",
    target: Annotated[str, typer.Option(help="One target, as the table names it.")] = "",
    seed: Annotated[int | None, typer.Option(help="Repeats the choices of an earlier run.")] = None,
    round_: Annotated[
        int, typer.Option("--round", help="With --target and --seed: only this round, as a finding says.")
    ] = -1,
    guided: Annotated[bool, typer.Option(help="Let atheris guide by coverage where it is installed.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write results and findings to this file.")
    ] = None,
) -> None:
    """Feed odd input to everything that reads what others send; exit 1 if anything goes wrong."""
    console = Console()
    if only and only not in GROUPS:
        raise typer.BadParameter(f"there are {', '.join(GROUPS)}", param_hint="--only")
    begin = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    console.print(f"seed {begin}", highlight=False)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    until = time.monotonic() + (minutes * 60 or 86_400)
    with console.status("starting") as status:
        outcomes = _run(cases, until, only, target, begin, round_, guided, status.update)
    if not outcomes:
        raise typer.BadParameter("there is no such target", param_hint="--target")
    _show(console, outcomes)
    if json_file:
        content = {
            "seed": begin,
            "targets": [{**vars(one), "findings": [vars(f) for f in one.findings]} for one in outcomes],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if any(one.findings for one in outcomes):
        raise typer.Exit(1)


def _run(
    cases: int,
    until: float,
    only: str,
    target: str,
    begin: int,
    round_: int,
    guided: bool,
    say: Callable[[str], None],
) -> list[Outcome]:
    from benchmarks.fuzz.targets import INSIDE

    chosen = [one for one in INSIDE if only in ("", one.group) and target in ("", one.name)]
    outcomes: list[Outcome] = []
    if only in ("", "api", "bodies") and not (target and chosen):
        from benchmarks.fuzz import served

        # A request to a fleet costs as much as a hundred cases inside a process.
        share = cases if only else cases // 20
        end = time.monotonic() + (until - time.monotonic()) / (1 if only else 3)
        outcomes += served.fuzz(only, target, cases=share, until=end, begin=begin, say=say)
        cases -= sum(one.cases for one in outcomes)
    can_guide = guided and guide.available()
    for number, one in enumerate(chosen):
        # What one leaves of its time is the next one's; so are its cases.
        left = len(chosen) - number
        share = max(1, cases // left)
        end = time.monotonic() + (until - time.monotonic()) / left
        told = _told(one.name, number, len(chosen), share, say)
        if round_ >= 0:
            finding, done = inside.one_round(one, f"{begin}:{round_}", inside.ROUND)
            found = [finding] if finding is not None else []
            outcomes.append(Outcome(name=one.name, cases=done, findings=found))
            continue
        way = guide.fuzz if can_guide and one.corpus and share >= _LEAST_GUIDED else inside.fuzz
        outcomes.append(way(one, cases=share, until=end, begin=begin, say=told))
        cases -= outcomes[-1].cases
    return outcomes


def _told(
    name: str, number: int, count: int, share: int, say: Callable[[str], None]
) -> Callable[[int], None]:
    return lambda done: say(f"{name} ({number + 1} of {count}): {done} of {share}")


def _show(console: Console, outcomes: Sequence[Outcome]) -> None:
    table = Table(title=f"{sum(one.cases for one in outcomes)} cases", title_justify="left")
    for column in ("target", "drawn by", "cases", "seconds", "taken", "findings"):
        table.add_column(column, justify="left" if column in ("target", "drawn by") else "right")
    for one in outcomes:
        colour = "red" if one.findings else "green"
        cells = (one.way, str(one.cases), f"{one.seconds:.0f}", one.taken, str(len(one.findings)))
        table.add_row(f"[{colour}]{one.name}[/]", *cells)
    console.print(table)
    for one in outcomes:
        for finding in one.findings:
            _tell(console, one.name, finding)


def _tell(console: Console, name: str, finding: Finding) -> None:
    console.print(f"[red]{name}[/]:", highlight=False, end=" ")
    for line in (finding.what, finding.where, f"case: {finding.case[:2000]}", f"again: {finding.again}"):
        console.print(line, highlight=False, markup=False)


if __name__ == "__main__":
    sys.argv[0] = "scripts/fuzz"
    typer.run(fuzz)
