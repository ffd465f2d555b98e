"""``fleet submit --from FILE``: many jobs from a table or from JSON Lines, with the files that they name."""

import csv
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from comfy_fleet.cli.batch_downloads import save_batch
from comfy_fleet.cli.batches import NO_REQUEST_S, code_of, follow, say, say_errors
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.paths import path_of

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

KINDS = {
    ".csv": "text/csv",
    ".tsv": "text/csv",
    ".jsonl": "application/jsonl",
    ".ndjson": "application/jsonl",
}


def submit_table(
    client: "Client",
    workflow: str,
    table: Path,
    *,
    files: Path | None,
    partial: bool,
    defaults: Mapping[str, Any],
    webhook: str | None,
    idempotency_key: str | None,
    follow_: bool,
    out: Path | None,
    timeout_s: float | None,
    json_: bool,
) -> None:
    """Submit a batch; wait for its end, and save what it makes, if asked to.

    Raises:
        typer.Exit: With the code of the worst end.
        Fail: It can't be read, is refused, or the time is up.
    """
    from comfy_fleet.cli.console import print_json, stderr, stdout

    kind = KINDS.get(table.suffix.lower())
    if kind is None:
        raise Fail(f"--from {table}: it must be {', '.join(KINDS)}", code=Exit.USAGE)
    try:
        content = table.read_bytes()
    except OSError as error:
        raise Fail(f"can't read {table}: {error.strerror}", code=Exit.USAGE) from error
    query = {
        "partial": "true" if partial else None,
        "webhook_url": webhook,
        "files": _uploaded(client, files, table, content, kind),
        "defaults": json.dumps(defaults, ensure_ascii=False) if defaults else None,
    }
    try:
        made = client.send(
            path_of("workflow", workflow, "/batches"),
            content,
            kind,
            params={name: value for name, value in query.items() if value is not None},
            headers={"Idempotency-Key": idempotency_key} if idempotency_key is not None else {},
            timeout_s=NO_REQUEST_S,
        )
    except Fail as error:
        details = (error.answer or {}).get("details")
        if isinstance(details, dict) and isinstance(details.get("errors"), list):
            say_errors(details["errors"], int(details.get("more") or 0))
        raise
    say_errors(made["errors"], made["more_errors"])
    batch_id = str(made["id"])
    if not follow_ and out is None:
        if json_:
            print_json(made)
        else:
            stdout().print(batch_id)
            stderr().print(f"[dim]follow it:[/] fleet batch show {batch_id}")
        return
    try:
        ended = follow(client, batch_id, quiet=json_, timeout_s=timeout_s)
    except KeyboardInterrupt:
        raise Fail(
            f"interrupted; batch {batch_id} goes on",
            hint=f"fleet batch show {batch_id}, or stop it: fleet batch cancel {batch_id}",
            code=Exit.INTERRUPTED,
        ) from None
    saved = save_batch(client, batch_id, out) if out is not None else []
    if json_:
        print_json({**ended, "files": [str(one) for one in saved]} if out is not None else ended)
    else:
        say(ended)
        if out is not None:
            stdout().print(f"  {len(saved)} files in {out}", markup=False)
    raise typer.Exit(code_of(ended))


def _uploaded(client: "Client", files: Path | None, table: Path, content: bytes, kind: str) -> str | None:
    """Upload the files that the items name as ``@NAME``, in one zip; return its asset's id."""
    names = sorted(set(_named(content, kind)))
    if files is not None and files.is_file():
        return client.upload(files)
    if not names:
        return None
    folder = (files or table.parent).expanduser()
    there = {name: folder / name for name in names}
    outside = [name for name, path in there.items() if not path.resolve().is_relative_to(folder.resolve())]
    missing = [name for name, path in there.items() if name not in outside and not path.is_file()]
    for what, wrong in (("are not in", outside), ("are missing in", missing)):
        if wrong:
            shown = ", ".join(f"@{name}" for name in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
            raise Fail(
                f"{len(wrong)} files {what} {folder}: {shown}",
                hint="say where they are: --files DIR, or a zip",
                code=Exit.USAGE,
            )
    with tempfile.TemporaryDirectory() as made:
        packed = Path(made) / "files.zip"
        try:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                for name, path in there.items():
                    archive.write(path, name)
        except OSError as error:
            raise Fail(f"can't pack {folder}: {error}", code=Exit.USAGE) from error
        return client.upload(packed)


def _named(content: bytes, kind: str) -> Iterator[str]:
    text = content.decode("utf-8-sig", errors="replace")
    if kind == "text/csv":
        first = next((line for line in text.splitlines() if line.strip()), "")
        separator = max(",;\t", key=first.count)
        try:
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
                yield from (cell.strip()[1:] for cell in row if cell.strip().startswith("@"))
        except csv.Error:
            return  # the fleet says what is wrong
        return
    for line in text.split("\n"):
        try:
            item = json.loads(line)
        except ValueError:
            continue
        params = item.get("params") if isinstance(item, dict) else None
        if isinstance(params, dict):
            yield from (one[1:] for one in params.values() if isinstance(one, str) and one.startswith("@"))
