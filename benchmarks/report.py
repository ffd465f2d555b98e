"""Results: kept as JSON, shown as tables, written into the document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BEGIN = "<!-- scripts/bench writes from here -->"
END = "<!-- to here -->"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target and whether it was met.

    Attributes:
        figure: What was measured.
        target: In words.
        ours: Our value, with its unit.
        baseline: What it stands against, by name and with its value.
        ratio: Ours over the baseline's; None where that says nothing.
        met: Whether the target was reached.
    """

    figure: str
    target: str
    ours: str
    baseline: str
    ratio: float | None
    met: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure.

    Attributes:
        name: Its name on the command line.
        title: Heading.
        verdicts: Its targets.
        columns: Head of its table.
        rows: Body of its table.
        notes: What a reader has to know to read the table.
        data: The measured values.
        measured_at: Day and time, UTC.
        load: Load average of the machine before it started.
        machine: What it was measured on: machine, versions.
        quick: Whether it was only tried out.
    """

    name: str
    title: str
    verdicts: Sequence[Verdict]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    measured_at: str = ""
    load: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Result":
        """Read what :func:`save` wrote."""
        return cls(**{**value, "verdicts": [Verdict(**one) for one in value["verdicts"]]})


def save(path: Path, results: Sequence[Result]) -> None:
    """Write results as JSON."""
    content = {"results": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def load(path: Path) -> list[Result]:
    """Read results, of whichever machine; none if there is no file yet."""
    if not path.exists():
        return []
    return [Result.from_json(value) for value in json.loads(path.read_text())["results"]]


def show(console: Console, result: Result) -> None:
    """Print one figure."""
    table = Table(title=result.title, title_justify="left", title_style="bold")
    for number, column in enumerate(result.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in result.rows:
        table.add_row(*row)
    console.print(table)
    for verdict in result.verdicts:
        word = "[green]met[/]" if verdict.met else "[red]missed[/]"
        ratio = "" if verdict.ratio is None else f", ratio {verdict.ratio:.2f}"
        console.print(
            f"  {word}  {verdict.figure}: {verdict.ours}; target {verdict.target}; {verdict.baseline}{ratio}",
            highlight=False,
        )
    for note in result.notes:
        console.print(f"  [dim]{note}[/]", highlight=False)
    console.print()


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in columns[1:])]
    return [f"| {' | '.join(row)} |" for row in (columns, rule, *rows)]


def markdown(results: Sequence[Result]) -> str:
    """Return the generated part of the document."""
    machines = [dict(one) for one in dict.fromkeys(tuple(result.machine.items()) for result in results)]
    named = {tuple(one.items()): f"machine {number}" for number, one in enumerate(machines, start=1)}
    lines = ["## Targets", ""]
    lines += _table(
        ["figure", "target", "measured", "instead", "ratio", "met"],
        [
            [
                verdict.figure,
                verdict.target,
                verdict.ours,
                verdict.baseline,
                "" if verdict.ratio is None else f"{verdict.ratio:.2f}",
                "yes" if verdict.met else "**no**",
            ]
            for result in results
            for verdict in result.verdicts
        ],
    )
    facts = dict.fromkeys(fact for one in machines for fact in one)
    lines += ["", "## Machines", ""]
    lines += _table(
        ["what", *named.values()], [[fact, *(one.get(fact, "") for one in machines)] for fact in facts]
    )
    for result in results:
        tried = " (tried out only, with `--quick`)" if result.quick else ""
        lines += ["", f"## {result.title}", ""]
        on = named[tuple(result.machine.items())]
        lines += [f"Measured {result.measured_at} on {on} at a load average of {result.load}{tried}.", ""]
        lines += _table(result.columns, result.rows)
        if result.notes:
            lines += ["", *(f"- {note}" for note in result.notes)]
    return "\n".join(lines) + "\n"


def write_document(path: Path, results: Sequence[Result]) -> None:
    """Replace the generated part of the document and leave the rest alone.

    Raises:
        ValueError: The document has no place for it.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the lines {BEGIN!r} and {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}")
