"""``fleet node diff``: what differs between nodes."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

_NAMED = 3


def diff(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of nodes; all if left out.", show_default=False)
    ] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with 1 if they differ, or if one was not read yet.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Show what differs between nodes: versions, settings, custom nodes, classes, model files.

    Example: `fleet node diff gpu1 gpu2 --exit-code`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout, table

    with Client(api, key) as client:
        answer = client.get("/api/v1/nodes-diff", names=",".join(names) if names else None)
    if json_:
        print_json(answer)
    else:
        for name in answer["unread"]:
            stderr().print(f"{name} was not read yet: fleet node refresh {name}")
        if answer["differences"]:
            groups = _groups(answer)
            columns = ("<Kind", "What", *map(_some, groups))
            rows = [
                (
                    row["kind"],
                    _what(row),
                    *(row["nodes"].get(group[0], "?") or "-" for group in groups),
                )
                for row in answer["differences"]
            ]
            stdout().print(table(columns, rows))
        else:
            stdout().print("no differences")
    if exit_code and (answer["differences"] or answer["unread"]):
        raise typer.Exit(Exit.FAILED)


def say_unequal(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Say which pools have nodes that differ in what they can run."""
    from comfy_fleet.cli.console import stderr

    kinds: dict[str, set[str]] = {}
    for node in nodes:
        if inventory := node.get("inventory"):
            kinds.setdefault(str(node.get("pool")), set()).add(str(inventory))
    if unequal := sorted(pool for pool, some in kinds.items() if len(some) > 1):
        pools = f"pool{'s' * (len(unequal) > 1)} {', '.join(unequal[:5])}"
        stderr().print(f"the nodes of {pools} differ in classes or models: fleet node diff", markup=False)


def _groups(answer: Mapping[str, Any]) -> list[list[str]]:
    """Return the nodes, those that have the same in all rows together."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in answer["nodes"]:
        found.setdefault(tuple(row["nodes"].get(name, "?") for row in answer["differences"]), []).append(name)
    return list(found.values())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _what(row: Mapping[str, Any]) -> str:
    classes = row.get("classes") or ()
    if not classes:
        return str(row["what"])
    return f"{row['what']} ({len(classes)} class{'es' * (len(classes) > 1)})"
