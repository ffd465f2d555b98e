"""``fleet doctor``: is this machine ready to run a fleet, and if not, what to do?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from comfy_fleet.cli.exits import Exit
from comfy_fleet.cli.options import Data

if TYPE_CHECKING:
    from rich.table import Table

    from comfy_fleet.cli.doctor_checks import Finding


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(doctor)


def doctor(
    data: Data = None,
    files: Annotated[
        bool,
        typer.Option(
            "--files",
            help="Look for the bytes of every upload and output, too: after a restore, for instance.",
        ),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this machine, and say what to do about each finding. Exits with 1 on a FAIL."""
    from comfy_fleet.cli.console import print_json, stdout
    from comfy_fleet.cli.doctor_checks import Severity, examine
    from comfy_fleet.cli.doctor_files import stored_files
    from comfy_fleet.cli.processes import load, load_running

    findings = examine(load(data=data))
    if files:
        findings += stored_files(load_running(data))
    failed = any(finding.verdict is Severity.FAIL for finding in findings)
    if json_:
        print_json(
            [
                {"check": finding.check, "verdict": finding.verdict, "found": finding.found, "do": finding.do}
                for finding in findings
            ]
        )
    else:
        stdout().print(listing(findings))
    raise typer.Exit(Exit.FAILED if failed else Exit.OK)


def listing(findings: "Sequence[Finding]") -> "Table":
    """Return findings as a table, with advice below each."""
    from rich.text import Text

    from comfy_fleet.cli.console import printable, table
    from comfy_fleet.cli.doctor_checks import Severity

    styles = {Severity.OK: "green", Severity.WARN: "yellow", Severity.FAIL: "bold red"}
    rows = []
    for finding in findings:
        found = Text(printable(finding.found))
        if finding.do:
            found.append(f"\n→ {printable(finding.do)}", style="cyan")
        rows.append((Text(finding.verdict, style=styles[finding.verdict]), finding.check, found))
    return table(["<", "<Check", "Found"], rows)
