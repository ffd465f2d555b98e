"""``fleet workflow export``, ``pull`` and ``push``: stored workflows as files.

A folder that was pulled has a file ``.fleet-pulled`` with the version that each workflow had. So a push knows
what it replaces, and a pull knows what has been edited since.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of
from comfy_fleet.cli.workflow_versions import DryRun, Note

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client
    from comfy_fleet.ports.workflows import FoundWorkflow

PULLED = ".fleet-pulled"
"""Name of the file that says what was pulled."""
FILES = ("workflow.json", "workflow.toml", "editor.json")
_REMOVED = "somebody has removed it from the store since it was pulled; to publish it as new: --force"
_WHICH = "name a folder with a folder for each workflow, as `fleet workflow pull DIR` writes it"
_LEFT = ("kept", "edited", "left out")
"""What became of a workflow that a pull has not written."""
MAX_EXPORT_BYTES = 64 * 1024 * 1024
"""Of an export, packed; and of each file in it."""

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder with a folder for each workflow.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (export, pull, push):
        app.command()(command)


def export(
    name: Annotated[str, typer.Argument(help="The workflow, or one of its versions: NAME@VERSION.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Its folder is made there.", show_default=".")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Write a workflow's files as DIR/NAME: the graph, the manifest, and what the editor opens."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stdout

    with Client(api, key) as client:
        files = exported(client, name)
    target = out / name.partition("@")[0]
    if not force and (other := _other(target, files)):
        raise Fail(f"{other} is there already, and differs", hint="another --out, or --force")
    _write(target, files)
    for file in files:
        stdout().print(str(target / file), markup=False)


def pull(
    folder: Folder,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite workflows that were edited in the folder.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Write all workflows of the fleet's store into a folder, as they are in production.

    What was edited in the folder since the last pull stays, unless --force is given. Exits with 1 if
    something was left for that, or can't be read now, as a workflow that is in two places.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.workflow_text import short
    from comfy_fleet.domain.graphs.workflow_names import NAME

    if folder.exists() and not folder.is_dir():
        raise Fail(f"{folder} is no folder", hint="name one, or one that is to be made", code=Exit.USAGE)
    known = _pulled(folder)
    rows: list[dict[str, Any]] = []
    with Client(api, key) as client:
        answer = client.get("/api/v1/workflows")
        listed = answer["workflows"]
        for one in listed:
            name, version = one["name"], one["version"]
            if one.get("folder"):
                continue  # the operator keeps it in a folder already
            if not NAME.fullmatch(name):  # it becomes a path
                raise Fail(f"the fleet has a workflow {str(name)[:80]!r}, which can be no folder's name")
            here, problem = _version_in(folder, name)
            base = known.get(name)
            if here == version:
                rows.append(_row(name, "unchanged", short(version)))
            elif base == version and (here or problem) and not force:
                rows.append(_row(name, "edited", problem or f"since {short(version)}: push it, or --force"))
                continue
            elif (problem or here not in (None, base)) and not force:
                why = problem or ("edited here" if base else "other files are here")
                rows.append(_row(name, "kept", f"{why}, and {short(version)} is in production: --force"))
                continue
            else:
                _write(folder / name, exported(client, f"{name}@{version}"))
                rows.append(_row(name, "written", short(version)))
                _note(folder, {**known, name: version})  # a pull that ends early has pulled this one
            known[name] = version
        there = {one["name"] for one in listed}
        rows += _left_out(client, {name: why for name, why in answer["broken"].items() if name not in there})
        gone = sorted(set(known) - there - set(answer["broken"]))
    for name in gone:
        rows.append(_row(name, "gone", "no longer in the store; its files stay"))
        del known[name]
    _note(folder, known)
    _tell(rows, json_=json_, empty="the store has no workflows")
    raise typer.Exit(Exit.FAILED if any(row["state"] in _LEFT for row in rows) else Exit.OK)


def _left_out(client: "Client", broken: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each workflow of the store that can't be used now, so that none is left out unseen."""
    rows = []
    for name, why in sorted(broken.items()):
        try:
            in_store = bool(client.get(path_of("workflow", name, "/history"))["history"])
        except Fail as error:  # one of the operator's folder, which is no business of a pull
            if error.exit not in (Exit.USAGE, Exit.REFUSED, Exit.NOT_FOUND, Exit.FAILED) or error.passing:
                raise
            in_store = False
        if in_store:
            rows.append(_row(name, "left out", why))
    return rows


def push(
    folder: Folder,
    dry_run: DryRun = False,
    note: Note = "",
    force: Annotated[
        bool, typer.Option("--force", help="Publish over versions that were not pulled.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Publish all workflows of a folder whose files differ from what is in production.

    Nothing is published if a workflow in the folder can't be used. Folders without a workflow.json are passed
    over. Exits with 1 if one was refused.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stderr
    from comfy_fleet.cli.workflow_text import print_breaking, print_differences

    found = read_folder(folder)
    known = _pulled(folder)
    rows: list[dict[str, Any]] = []
    with Client(api, key) as client:
        for name, one in found.items():
            row = _push(client, name, one, known, note=note, force=force, dry_run=dry_run)
            rows.append(row)
            if row["version"] and not dry_run:
                known[name] = row["version"]
                _note(folder, known)
            if not json_ and (row["breaking_changes"] or (dry_run and row["differences"])):
                stderr().print(f"\n[bold]{name}[/]")
                if dry_run:
                    print_differences(stderr(), row["differences"])
                print_breaking(stderr(), row["breaking_changes"])
    rows += _passed_over(folder, found)
    _tell(rows, json_=json_, empty=f"there are no workflows in {folder}")
    raise typer.Exit(Exit.FAILED if any(row["state"] == "refused" for row in rows) else Exit.OK)


def _push(
    client: "Client",
    name: str,
    found: "FoundWorkflow",
    known: Mapping[str, str],
    *,
    note: str,
    force: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Publish one workflow, and return what happened to it."""
    from comfy_fleet.cli.workflow_text import short, who_and_when

    body: dict[str, Any] = {
        "graph": found.content.graph,
        "manifest": dict(found.content.manifest),
        "note": note,
        "force": force,
        "dry_run": dry_run,
    }
    if found.ui is not None:
        body["ui"] = dict(found.ui)
    if base := known.get(name):
        body["base_version"] = base
    try:
        answer = client.put(path_of("workflow", name), body)
    except Fail as error:
        if error.exit not in (Exit.USAGE, Exit.REFUSED, Exit.NOT_FOUND) or error.passing:
            raise
        why = error.message
        if error.answer.get("code") == "workflow_changed":
            details = error.answer.get("details") or {}
            theirs = details.get("production")
            why = (
                f"{short(theirs)} of {who_and_when(details)} was not pulled: --force" if theirs else _REMOVED
            )
        elif error.hint:
            why = f"{why} ({error.hint})"
        return _row(name, "refused", why)
    before = answer.get("before")
    overtaken = dry_run and not force and before not in (None, base, answer["version"])
    if overtaken:
        return _row(name, "refused", f"{short(before)} is in production, which was not pulled: --force")
    if dry_run and not force and base and before is None:
        return _row(name, "refused", _REMOVED)
    state = "unchanged" if not answer["changed"] else "published" if before else "new"
    if dry_run and answer["changed"]:
        state = f"would be {state}"
    words = short(answer["version"]) + (f", after {short(before)}" if before and answer["changed"] else "")
    return {
        **_row(name, state, words),
        "version": answer["version"],
        "differences": answer.get("differences") or [],
        "breaking_changes": answer.get("breaking_changes") or [] if answer["changed"] else [],
    }


def _row(name: str, state: str, message: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "state": state, "message": message}
    return {**found, "version": None, "differences": [], "breaking_changes": []}


def _tell(rows: list[dict[str, Any]], *, json_: bool, empty: str) -> None:
    from comfy_fleet.cli.console import print_json, stderr, stdout, table

    if json_:
        print_json({"workflows": rows})
    elif rows:
        cells = [(row["name"], row["state"], row["message"]) for row in rows]
        stdout().print(table(["<Workflow", "<State", "Version"], cells))
    else:
        stderr().print(empty, style="dim", markup=False)


# -- files ------------------------------------------------------------------


def exported(client: "Client", reference: str) -> dict[str, bytes]:
    """Return a version's files by name.

    Raises:
        Fail: There is no such version, or the export can't be read.
    """
    packed = client.fetch(path_of("workflow", reference, "/export"), most_bytes=MAX_EXPORT_BYTES)
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            for entry in archive.infolist():
                file = entry.filename.rpartition("/")[2]
                if file in FILES and entry.file_size <= MAX_EXPORT_BYTES:
                    files[file] = archive.read(entry)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Fail(f"the export of {reference} can't be read: {error}") from error
    if FILES[0] not in files:
        raise Fail(f"the export of {reference} has no {FILES[0]}")
    return {file: files[file] for file in FILES if file in files}


def read_folder(folder: Path) -> "dict[str, FoundWorkflow]":
    """Return the workflows of a folder by name.

    Raises:
        Fail: It can't be read, or one of them can't be used.
    """
    from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog
    from comfy_fleet.domain.errors import FleetError

    catalog = WorkflowCatalog(folder, logged=False)
    try:
        next(folder.iterdir(), None)
        problems = catalog.errors()
        names = catalog.names()
    except FileNotFoundError:
        raise Fail(f"there is no folder {folder}", hint=_WHICH, code=Exit.USAGE) from None
    except NotADirectoryError:
        hint = f"to publish one file: fleet workflow add {folder}"
        raise Fail(f"{folder} is no folder", hint=hint, code=Exit.USAGE) from None
    except OSError as error:
        raise Fail(f"can't read {folder}: {error.strerror}", hint=_WHICH, code=Exit.USAGE) from None
    except FleetError as error:
        raise Fail(f"{folder} can't be read: {error}", code=Exit.USAGE) from None
    if problems:
        lines = "\n".join(f"  {name}: {why}" for name, why in problems.items())
        raise Fail(f"nothing was published; in {folder}:\n{lines}", code=Exit.USAGE)
    found = {name: catalog.find(name) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def _passed_over(folder: Path, found: Mapping[str, "FoundWorkflow"]) -> list[dict[str, Any]]:
    """Return a row for each folder that is no workflow's, so that none is left out unseen."""
    rows = []
    for path in sorted(folder.iterdir()):
        if path.name in found or path.name.startswith("."):
            continue
        if path.is_dir():
            rows.append(_row(path.name, "passed over", f"there is no {FILES[0]} in it"))
        elif path.is_symlink() and not path.exists():
            rows.append(_row(path.name, "passed over", "a link that leads nowhere"))
    return rows


def _version_in(folder: Path, name: str) -> tuple[str | None, str | None]:
    """Return the version of a workflow's files here, None if there are none; and why they can't be used."""
    from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog
    from comfy_fleet.domain.errors import FleetError

    try:
        found = WorkflowCatalog(folder, logged=False).find(name)
    except FleetError as error:
        return None, str(error)
    return (None, None) if found is None else (found.content.version, None)


def _other(target: Path, files: Mapping[str, bytes]) -> Path | None:
    """Return a file that would be lost."""
    for file in FILES:
        path = target / file
        try:
            if path.read_bytes() != files.get(file):
                return path
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Fail(f"can't read {path}: {error.strerror}") from error
    return None


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a workflow's files; each is complete or as it was."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            if file in files:
                _replace(target / file, files[file])
            else:
                (target / file).unlink(missing_ok=True)
    except OSError as error:
        raise Fail(f"can't write {target}: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        part = Path(file.name)
        try:
            file.write(content)
            file.flush()
            part.chmod(0o644)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _pulled(folder: Path) -> dict[str, str]:
    """Return the versions that were pulled into a folder, by workflow."""
    try:
        found = json.loads((folder / PULLED).read_text(encoding="utf-8"))
        return {str(name): str(version) for name, version in dict(found["versions"]).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Fail(
            f"{folder / PULLED} can't be read: {error}", hint="remove it, and pull again", code=Exit.USAGE
        ) from None


def _note(folder: Path, versions: Mapping[str, str]) -> None:
    text = json.dumps({"versions": dict(sorted(versions.items()))}, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / PULLED, text.encode())
    except OSError as error:
        raise Fail(f"can't write {folder / PULLED}: {error.strerror}") from error
