"""``fleet usage``: what was used."""

from enum import StrEnum
from typing import Annotated

import typer

from comfy_fleet.cli.options import DEFAULT_API, Api, Key

FIGURES = ("gpu_seconds", "jobs", "succeeded", "failed", "canceled", "expired", "output_bytes")


class UsageBy(StrEnum):
    """What the rows are."""

    TENANT = "tenant"
    USER = "user"
    WORKFLOW = "workflow"
    POOL = "pool"


class UsageFormat(StrEnum):
    """How they are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(usage)


def usage(
    by: Annotated[UsageBy, typer.Option("--by", help="What the rows are.")] = UsageBy.USER,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="From the day that long ago, e.g. 12h, 7d.")
    ] = "7d",
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Up to the day that long ago, included.")
    ] = None,
    format_: Annotated[UsageFormat, typer.Option("--format", help="How it is printed.")] = UsageFormat.TABLE,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Show GPU seconds, jobs and bytes of outputs by whole days in UTC.

    Operators see all, others their own, and all of a shared tenant's."""
    import csv
    import sys
    import time

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, printable, size, stdout, table
    from comfy_fleet.cli.people_options import seconds

    now = time.time()
    ended = None if until is None else now - seconds("--until", until)
    with Client(api, key) as client:
        found = client.get("/api/v1/usage", by=by.value, since=now - seconds("--since", since), until=ended)
    if format_ is UsageFormat.JSON:
        print_json(found)
        return
    named = [(_name(by, one["name"]), one) for one in found["rows"]]
    if format_ is UsageFormat.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([by.value, *FIGURES])
        for name, one in named:
            safe = printable(name)
            safe = f"'{safe}" if safe.startswith(tuple("=+-@\t")) else safe  # a spreadsheet would compute it
            writer.writerow([safe, *(one[figure] for figure in FIGURES)])
        return
    rows = [
        (
            name,
            f"{one['gpu_seconds']:.1f}",
            *(one[figure] for figure in FIGURES[1:-1]),
            size(one["output_bytes"]),
        )
        for name, one in named
    ]
    columns = [f"<{by.value.capitalize()}", ">GPU seconds", ">Jobs", ">Succeeded", ">Failed", ">Canceled"]
    stdout().print(table([*columns, ">Expired", ">Outputs"], rows))


def _name(by: UsageBy, name: str) -> str:
    return name or {UsageBy.TENANT: "default", UsageBy.WORKFLOW: "graph"}.get(by, "")
