"""``fleet warm``: run common prompts on idle nodes, so that their first real jobs find models loaded."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

COLUMNS = ("<Node", "<Workflow", "Models", ">Took", "Result")
_SHOWN = 2
"""Model files named in a row."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(warm)


def warm(
    node: Annotated[
        list[str] | None, typer.Argument(help="The nodes' names.", show_default="all idle nodes")
    ] = None,
    workflow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A stored workflow to run with its defaults. Repeatable.",
            show_default="the most common ones",
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Only nodes of this pool.")] = None,
    most: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="At most so many common workflows of a pool.")
    ] = 8,
    wait: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0,
            help="Wait so many seconds for nodes that are busy or not up.",
            show_default="skip them",
        ),
    ] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Run common prompts on idle nodes, so that the next jobs find models loaded.

    After a start, the first jobs pay for loading models. This runs the stored workflows on which the nodes'
    last jobs spent most time, each set of models on as many nodes as its part of the work. Real jobs go
    first, and no outputs are kept.

    Examples: `fleet warm`, `fleet warm gpu7 --workflow image_card --wait 300`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout, table

    body: dict[str, Any] = {"nodes": node or [], "workflows": workflow or [], "most": most}
    if pool is not None:
        body["pool"] = pool
    if wait is not None:
        body["wait_s"] = wait
    with Client(api, key, timeout_s=120) as client:
        answer = client.post("/api/v1/nodes-warm", body)
        ended = _watched(client, [str(one["job"]) for one in answer["nodes"] if one["job"]], quiet=json_)
    rows = [{**one, **outcome(one, ended.get(one["job"]))} for one in answer["nodes"]]
    if json_:
        print_json({**answer, "nodes": rows})
    else:
        stdout().print(table(COLUMNS, [row(one) for one in rows]))
        for one in answer["skipped"]:
            stdout().print(f"{one['workflow']} warms no node of pool {one['pool']}: {one['why']}")
    if any(one["status"] == "failed" for one in rows):
        raise typer.Exit(Exit.JOB_FAILED)


def _watched(client: Any, ids: Sequence[str], *, quiet: bool) -> Mapping[str, Mapping[str, Any]]:
    """Wait for the end of some jobs; return their records by id."""
    from comfy_fleet.cli.batch import watch_all

    if not ids:
        return {}
    try:
        return dict(zip(ids, watch_all(client, ids, quiet=quiet), strict=True))
    except KeyboardInterrupt:
        raise Fail(
            f"interrupted; {len(ids)} jobs go on, or expire if they find no idle node",
            hint=f"stop one: fleet job cancel {ids[0]}",
            code=Exit.INTERRUPTED,
        ) from None


def outcome(row: Mapping[str, Any], job: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how warming a node ended: ``status``, ``why`` and ``took_s``."""
    if job is None:
        return {"status": "warm" if row["loaded"] else "skipped", "took_s": None}
    took_ms = job["metrics"]["execution_ms"]
    took_s = None if took_ms is None else took_ms / 1000
    match job["status"]:
        case "succeeded":
            return {"status": "warm", "took_s": took_s}
        case "expired":
            why = "it was not idle in time: real jobs went first, or it was not up"
            return {"status": "skipped", "took_s": None, "why": why}
        case "canceled":
            return {"status": "skipped", "took_s": None, "why": "canceled"}
    error = job.get("error") or {}
    return {"status": "failed", "took_s": took_s, "why": error.get("message") or "it failed"}


def row(one: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a node, with its outcome, as a row under :data:`COLUMNS`."""
    from comfy_fleet.cli.console import span

    files: Sequence[str] = one["models"]
    named = [file.rpartition("/")[2] for file in files[:_SHOWN]]
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    took = "" if one["took_s"] is None else span(one["took_s"])
    said = "ok" if one["status"] == "warm" else one["status"]
    if one["loaded"]:
        said = "ok, it has them"
    return (
        one["node"],
        one["workflow"],
        ", ".join(named) + more,
        took,
        ": ".join(filter(None, (said, one["why"]))),
    )
