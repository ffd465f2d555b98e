"""``fleet model``: the nodes' model files."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

app = typer.Typer(help="List the nodes' model files, and have agents fetch new ones.", no_args_is_help=True)

_NAMED = 4


@app.command("list", hidden=True)
@app.command("ls")
def list_(
    missing_on: Annotated[
        str | None, typer.Option(metavar="NODE", help="Only what this node lacks and another one has.")
    ] = None,
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Only what this node has.")] = None,
    folder: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Only files in this folder, e.g. loras.")
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="POOL", help="Only nodes of this pool count.")] = None,
    unequal: Annotated[bool, typer.Option("--unequal", help="Only what not all nodes have.")] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """List model files with their sizes, and the nodes that have them.

    Example: `fleet model ls --missing-on gpu7`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, size, stderr, stdout, table

    asked = {"missing_on": missing_on, "node": node, "folder": folder, "pool": pool}
    asked["unequal"] = "true" if unequal else None
    with Client(api, key) as client:
        answer = client.get("/api/v1/models", limit=5000, **asked)
        page = answer
        while page["next"] is not None:
            page = client.get("/api/v1/models", limit=5000, after=page["next"], **asked)
            answer["files"] += page["files"]
    answer["next"] = None
    if json_:
        print_json(answer)
        return
    for name in answer["unread"]:
        stderr().print(f"{name} was not read yet: fleet node refresh {name}")
    if not answer["files"]:
        stderr().print("no such model files")
        return
    every = sum(len(group["nodes"]) for group in answer["groups"])
    rows = [
        (
            file["folder"],
            file["name"],
            "?" if file["bytes"] is None else size(file["bytes"]),
            _nodes(file, answer, every),
        )
        for file in answer["files"]
    ]
    stdout().print(table(("<Folder", "<File", ">Size", "Nodes"), rows))


def _nodes(file: Mapping[str, Any], answer: Mapping[str, Any], every: int) -> str:
    """Return who has a file, or who lacks it, whatever are fewer."""
    if file["nodes"] == every:
        return f"all {every}"
    groups = list(enumerate(answer["groups"]))
    having = [name for number, one in groups if number in file["groups"] for name in one["nodes"]]
    lacking = [name for number, one in groups if number not in file["groups"] for name in one["nodes"]]
    if len(lacking) < len(having):
        return f"{file['nodes']} of {every}; not {_some(lacking)}"
    return f"{file['nodes']} of {every}: {_some(having)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
