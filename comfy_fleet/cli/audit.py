"""``fleet audit``: who changed the fleet."""

from typing import Annotated, Any

import typer

from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

COLUMNS = ("<When", "<Who", "<What", "About", "<From")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(audit)


def audit(
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what was done within this time, e.g. 12h, 7d.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only what this user did.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many entries.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="Continue after the last page.")] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Show who changed nodes, pools, workflows, users and keys, or canceled others' jobs. For operators.

    The newest come first. The fleet keeps the last 100,000.
    """
    import time

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout, table
    from comfy_fleet.cli.people_options import seconds

    began = None if since is None else time.time() - seconds("--since", since)
    with Client(api, key) as client:
        page = client.get("/api/v1/audit", since=began, user=user, limit=limit, cursor=cursor)
    if json_:
        print_json(page)
        return
    rows = [
        (str(one["at"])[:19].replace("T", " "), one["by"], one["event"], _words(one["about"]), one["address"])
        for one in page["entries"]
    ]
    stdout().print(table(COLUMNS, rows))
    if not rows:
        stderr().print("[dim]nothing was done[/]")
    if following := page.get("next_cursor"):
        stderr().print(f"[dim]more:[/] --cursor {following}")


def _words(about: dict[str, Any]) -> str:
    told = {
        name: "+".join(map(str, value)) if isinstance(value, list) else value for name, value in about.items()
    }
    return ", ".join(f"{name} {value}" for name, value in told.items() if value not in (None, "", False))
