"""``fleet submit --from FILE``: many jobs from a table or from JSON Lines, with the files that they name."""

import csv
import io
import json
import tempfile
import unicodedata
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

_SHOWN = 20  # names of files that are missing
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
    from comfy_fleet.cli.console import stderr

    if files is not None and files.is_file():
        return client.upload(files)
    lines: dict[str, int] = {}
    for name, line in _named(content, kind):
        lines.setdefault(name, line)
    if not lines:
        return None
    folder = (files or table.parent).expanduser().resolve()
    there = {name: _found(folder, name) for name in lines}
    wrong = [name for name, path in there.items() if path is None]
    for name in wrong[:_SHOWN]:
        stderr().print(f"line {lines[name]}: there is no file {name!r} in {folder}", markup=False)
    if len(wrong) > _SHOWN:
        stderr().print(f"and {len(wrong) - _SHOWN} more", markup=False)
    if wrong:
        many = f"{len(wrong)} files that it names are" if len(wrong) > 1 else "a file that it names is"
        raise Fail(
            f"--from {table}: {many} not in {folder}",
            hint="say where they are: --files DIR, or a zip",
            code=Exit.USAGE,
        )
    with tempfile.TemporaryDirectory() as made:
        packed = Path(made) / "files.zip"
        try:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                for name, path in there.items():
                    if path is not None:
                        archive.write(path, name)
        except OSError as error:
            raise Fail(f"can't pack {folder}: {error}", code=Exit.USAGE) from error
        return client.upload(packed)


def _found(folder: Path, name: str) -> Path | None:
    """Return a file below a folder, whichever way its name writes `ü`; a Mac writes it as two characters."""
    for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
        path = (folder / form).resolve()
        if path.is_relative_to(folder) and path.is_file():
            return path
    return None


def _named(content: bytes, kind: str) -> Iterator[tuple[str, int]]:
    """Yield the files that items name as ``@NAME``, and the lines on which they do."""
    from comfy_fleet.domain.jobs.batch_tables import table_form

    text = content.decode("utf-8-sig", errors="replace")
    if kind == "text/csv":
        separator, _ = table_form(text)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            for row in rows:
                yield from ((cell.strip()[1:], rows.line_num) for cell in row if cell.strip().startswith("@"))
        except csv.Error:
            return  # the fleet says what is wrong
        return
    for number, line in enumerate(text.split("\n"), 1):
        try:
            item = json.loads(line)
        except ValueError:
            continue
        params = item.get("params") if isinstance(item, dict) else None
        if isinstance(params, dict):
            named = (one[1:] for one in params.values() if isinstance(one, str) and one.startswith("@"))
            yield from ((one, number) for one in named)
