"""``fleet logs``: the logs of a fleet on this machine."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import NAME_ITS_FOLDER, Data

if TYPE_CHECKING:
    from comfy_fleet.cli.log_files import LogLine

LEVEL_STYLE = {"warning": "yellow", "error": "red", "critical": "bold red"}

JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(logs)


def logs(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART", help="Only these parts, such as api or dispatch.", show_default=False),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option("--tail", "-n", metavar="N", min=0, help="Only the last N lines.", show_default="all"),
    ] = None,
    json_: JsonLines = False,
    data: Data = None,
) -> None:
    """Show the logs of a fleet on this machine, in order of time.

    They stay readable after the fleet has ended. The agent of a GPU host keeps separate logs in its own
    folder.
    """
    from comfy_fleet.cli import log_files
    from comfy_fleet.cli.processes import load

    folder = load(data=data).data / "logs"
    found = log_files.find(folder)
    if not found:
        raise Fail(f"no logs in {folder}", hint=NAME_ITS_FOLDER, code=Exit.NOT_FOUND)
    if missing := [part for part in parts or () if part not in found]:
        raise Fail(
            f"no part {missing[0]!r} has a log in {folder}",
            hint=f"there are {', '.join(found)}",
            code=Exit.NOT_FOUND,
        )
    with log_files.Logs(folder, parts or ()) as files:
        try:
            show(files.history(tail=tail, goes_on=follow), json_=json_)
            if follow:
                sys.stdout.flush()
                for line in files.follow():
                    show([line], json_=json_)
                    sys.stdout.flush()  # the reader of a pipe wants lines at once
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None


def show(lines: "Iterable[LogLine]", *, json_: bool, known: frozenset[str] = frozenset()) -> None:
    """Print lines of logs.

    Args:
        lines: What to print.
        json_: As JSON, with all fields.
        known: Fields that are left out for people and kept in JSON.
    """
    from comfy_fleet.cli.console import json_text, printable, stdout
    from comfy_fleet.cli.up.terminal import line_of, trace_of

    console = stdout()
    for line in lines:
        if json_:
            sys.stdout.write(json_text(line.fields) + "\n")
        else:
            fields = {name: value for name, value in line.fields.items() if name not in known}
            text = "\n".join((line_of(line.part, fields, dated=True), *trace_of(fields)))
            if console.is_terminal:
                console.print(text, markup=False, style=LEVEL_STYLE.get(str(fields.get("level")), ""))
            else:  # the console is slow, and there may be a million lines
                sys.stdout.write(printable(text) + "\n")
