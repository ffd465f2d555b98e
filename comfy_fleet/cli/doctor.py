"""``fleet doctor``: is this machine ready to run a fleet, and what to do about what is not."""

from typing import Annotated

import typer

from comfy_fleet.cli.exits import Exit
from comfy_fleet.cli.options import Data


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(doctor)


def doctor(
    data: Data = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this machine, and say what to do about each finding. Exits with 1 on a FAIL."""
    from comfy_fleet.cli.checks import Verdict, examine
    from comfy_fleet.cli.console import print_json, stdout
    from comfy_fleet.cli.processes import load

    findings = examine(load(data=data))
    failed = any(finding.verdict is Verdict.FAIL for finding in findings)
    if json_:
        print_json(
            [
                {"check": finding.check, "verdict": finding.verdict, "found": finding.found, "do": finding.do}
                for finding in findings
            ]
        )
    else:
        from rich.table import Table
        from rich.text import Text

        styles = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}
        shown = Table(box=None, pad_edge=False, header_style="bold dim")
        shown.add_column("", no_wrap=True)
        shown.add_column("Check", no_wrap=True)
        shown.add_column("Found", overflow="fold")
        for finding in findings:
            found = Text(finding.found)
            if finding.do:
                found.append(f"\n→ {finding.do}", style="cyan")
            shown.add_row(Text(finding.verdict, style=styles[finding.verdict]), finding.check, found)
        stdout().print(shown)
    raise typer.Exit(Exit.FAILED if failed else Exit.OK)
