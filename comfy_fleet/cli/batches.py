"""``fleet batch``: list, show, cancel, run again, download and remove batches."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

app = typer.Typer(help="List, show, cancel, repeat, download and remove batches.", no_args_is_help=True)

COLUMNS = ["<Batch", "<Status", ">Items", ">Done", ">Failed", ">Age", "<Workflow"]
ITEM_COLUMNS = ["<Item", "<Status", "<Job", "What is wrong"]
MOST_ITEMS = 100
LOOK_S = 1.0
_ENDS = ("succeeded", "failed", "canceled", "expired", "refused")
TRIES = 40  # looks in a row that may fail, while the API restarts
NO_REQUEST_S = 900.0
"""How long the API may check a batch."""

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.")]


@app.command("list", hidden=True)
@app.command("ls")
def list_(
    all_: Annotated[
        bool,
        typer.Option("--all", help="Everybody's, for operators; of a shared tenant, its users'."),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="How many.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Continue after the last page.")] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """List batches, newest first."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import ago, print_json, stderr, stdout, table

    with Client(api, key) as client:
        page = client.get("/api/v1/batches", all="true" if all_ else None, limit=limit, cursor=cursor)
    if json_:
        print_json(page)
        return
    now = datetime.now(UTC)
    rows = [
        (
            one["id"],
            one["status"],
            one["total"],
            one["counts"]["succeeded"],
            one["counts"]["failed"] + one["counts"]["expired"] + one["counts"]["refused"],
            ago(one["created_at"], now),
            one["workflow"] or "graphs",
        )
        for one in page["batches"]
    ]
    stdout().print(table(COLUMNS, rows))
    if not rows:
        stderr().print("[dim]no batches[/]")
    if following := page.get("next_cursor"):
        stderr().print(f"[dim]more:[/] --cursor {following}")


@app.command()
def show(
    batch: BatchId,
    status: Annotated[
        list[str] | None,
        typer.Option(help="List items with this status, e.g. failed. Repeatable.", metavar="STATUS"),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, max=MOST_ITEMS, metavar="N", help="How many items.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Continue after the last page of items.")] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Show how far a batch is, and items of it."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import ago, facts, print_json, span, stderr, stdout, table

    with Client(api, key) as client:
        found = client.get(
            path_of("batch", batch),
            status=",".join(status) if status else None,
            limit=limit,
            cursor=cursor,
        )
    if json_:
        print_json(found)
        return
    estimate = found.get("estimate")
    stdout().print(
        facts(
            {
                "batch": found["id"],
                "status": found["status"],
                "items": f"{found['total']}: {counts_of(found)}",
                "workflow": found["workflow"] or "graphs of their own",
                "submitted": ago(found["created_at"], datetime.now(UTC)),
                "done in about": span(estimate["p50_s"]) if estimate else None,
            }
        )
    )
    rows = [(one["custom_id"], one["status"], one["job_id"], _wrong(one)) for one in found["items"]]
    if rows:
        stdout().print()
        stdout().print(table(ITEM_COLUMNS, rows))
    if following := found.get("next_cursor"):
        stderr().print(f"[dim]more:[/] --cursor {following}")


def _wrong(item: Mapping[str, Any]) -> str:
    if error := item.get("error"):
        return f"{error.get('code')}: {error.get('message')}"
    return "; ".join(str(one.get("message")) for one in item.get("errors") or [])


@app.command()
def cancel(batch: BatchId, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Cancel those items of a batch that have not ended."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json

    with Client(api, key, timeout_s=NO_REQUEST_S) as client:
        found = client.post(path_of("batch", batch, "/cancel"))
    if json_:
        print_json(found)
    else:
        say(found)


@app.command("rm")
def remove(
    batch: BatchId,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel it first, if it has not ended.")] = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Remove a batch with its jobs and their files."""
    from comfy_fleet.cli.client import Client

    with Client(api, key, timeout_s=NO_REQUEST_S) as client:
        client.delete(path_of("batch", batch), **({"cancel": "true"} if cancel else {}))


@app.command()
def retry(
    batch: BatchId,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Run items that are failed, canceled or expired. Repeatable.", metavar="STATUS"),
    ] = None,
    new_seed: Annotated[bool, typer.Option("--new-seed", help="Draw their seeds anew.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Leave out those that can't run again.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and wait for the end.")] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Run those items of a batch again that have failed."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    body = {"statuses": status or ["failed"], "new_seed": new_seed, "partial": partial}
    with Client(api, key, timeout_s=NO_REQUEST_S) as client:
        made = client.post(path_of("batch", batch, "/retry"), body)
        if not wait:
            if json_:
                print_json(made)
            else:
                stdout().print(f"{made['retried']} items run again")
            return
        ended = follow(client, batch, quiet=json_)
    if json_:
        print_json(ended)
    else:
        say(ended)
    raise typer.Exit(code_of(ended))


@app.command()
def download(
    batch: BatchId,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder.", show_default=".")] = Path(),
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the batch's end first.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace other files with the same names.")] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Save all outputs of a batch in a folder, named by their items, with manifest.csv."""
    from comfy_fleet.cli.batch_downloads import save_batch
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    with Client(api, key) as client:
        found = follow(client, batch, quiet=json_) if wait else client.get(path_of("batch", batch), limit=0)
        saved = save_batch(client, batch, out, force=force)
    if json_:
        print_json({**found, "files": [str(one) for one in saved]})
    else:
        stdout().print(f"{len(saved)} files in {out}", markup=False)


def follow(
    client: "Client", batch_id: str, *, quiet: bool = False, timeout_s: float | None = None
) -> dict[str, Any]:
    """Show a batch's progress until its end, and return it.

    Raises:
        Fail: There is no such batch, or the time is up.
    """
    from comfy_fleet.cli.watching import progress_bar

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    failures = 0
    with progress_bar(quiet) as show_:
        while True:
            try:
                found: dict[str, Any] = client.get(path_of("batch", batch_id), limit=0)
                failures = 0
            except Fail as error:
                if error.exit is not Exit.UNREACHABLE or failures >= TRIES:
                    raise
                failures += 1
            else:
                counts = found["counts"]
                over = sum(counts[one] for one in _ENDS) - _again(found)
                bad = over - counts["succeeded"]
                text = f"{over} of {found['total']} done" + (f", {bad} of them not succeeded" if bad else "")
                show_(text, over / found["total"])
                if found["status"] == "completed":
                    return found
            if deadline is not None and time.monotonic() > deadline:
                raise Fail(
                    f"batch {batch_id} is not done yet",
                    hint=f"it goes on: fleet batch show {batch_id}",
                    code=Exit.TIMEOUT,
                )
            time.sleep(LOOK_S)


def say(batch: Mapping[str, Any]) -> None:
    """Print how a batch stands."""
    from comfy_fleet.cli.console import stdout

    stdout().print(f"batch {batch['id']} {batch['status']}: {counts_of(batch)}", markup=False)


def counts_of(batch: Mapping[str, Any]) -> str:
    """Return in words how many of a batch's items are in each state."""
    counts = ", ".join(f"{count} {state}" for state, count in batch["counts"].items() if count)
    again = _again(batch)
    return counts + (f"; of these, {again} wait to run again" if again else "")


def _again(batch: Mapping[str, Any]) -> int:
    """Return how many items have ended and are to run again: they keep their states until they are queued."""
    return max(0, int(batch["waiting"]) - int(batch["counts"]["pending"]))


def code_of(batch: Mapping[str, Any]) -> Exit:
    """Return the exit code for a batch's end: the worst of its items'."""
    counts = batch["counts"]
    if counts["failed"] or counts["expired"] or counts["refused"]:
        return Exit.JOB_FAILED
    return Exit.CANCELED if counts["canceled"] else Exit.OK


def say_errors(errors: Sequence[Mapping[str, Any]], more: int) -> None:
    """Print why items can't be taken, a line each."""
    from comfy_fleet.cli.console import stderr

    for one in errors:
        where = f"line {one['line']}: " if one.get("line") else ""
        name = one.get("custom_id") or f"item {one.get('item')}"
        stderr().print(f"{where}{name}: {one.get('field')}: {one.get('message')}", markup=False)
    if more:
        stderr().print(f"and {more} more", markup=False)
