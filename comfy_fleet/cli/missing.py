"""``fleet workflow missing``: what people asked for and no node has."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

COLUMNS = ("Missing", ">Asked", "<Last", "Nodes", "Source, as the workflow says")
_SHOWN = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(missing)


def missing(
    all_: Annotated[bool, typer.Option("--all", help="Also list what some node has by now.")] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """List the classes and files that workflows needed and no node has.

    Each is listed with its package or its folder and URL, as the workflow itself says: look before you load
    anything from there. Needs a key with the role artist or operator.
    """
    from datetime import UTC

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout, table

    with Client(api, key) as client:
        answer = client.get("/api/v1/missing", **({"all": "true"} if all_ else {}))
    if json_:
        print_json(answer)
        return
    if not answer["missing"]:
        stderr().print("nothing is missing: no submit of the last 30 days was refused for what no node has")
        return
    now = datetime.now(UTC)
    stdout().print(table(COLUMNS, [row(part, now) for part in answer["missing"]]))


def row(part: Mapping[str, Any], now: datetime) -> tuple[Any, ...]:
    """Return a part as a row under :data:`COLUMNS`."""
    from comfy_fleet.cli.console import ago

    name = part["name"]
    if part["kind"] == "file" and part["folder"]:
        name = f"{part['folder']}/{name}"
    times = f"{part['asked']}" + (f" by {part['people']}" if part["people"] > 1 else "")
    source = part["url"] if part["kind"] == "file" else f"{part['package']} {part['version']}".strip()
    return name, times, ago(part["last_asked_at"], now), _nodes(part), source


def _nodes(part: Mapping[str, Any]) -> str:
    """Return who lacks it; where some node has it, who has."""
    having: Sequence[str] = part["nodes_with"]
    if not having:
        return "none has it"
    more = f" and {len(having) - _SHOWN} more" if len(having) > _SHOWN else ""
    return f"only {', '.join(having[:_SHOWN])}{more}" if part["nodes_without"] else "all have it"
