"""``fleet workflow add``, ``history``, ``diff``, ``rollback``, ``label``, ``unlabel`` and ``rm``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.graph_files import GraphOfFile

PRODUCTION = "production"
"""The label of the version that a plain name means."""
THUMBNAIL, MAX_THUMBNAIL_BYTES = 256, 64 * 1024

Name = Annotated[str, typer.Argument(help="The workflow's name.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check, and show what would change.")]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="What has changed, for the history.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(add)
    app.command()(history)
    app.command()(diff)
    app.command()(rollback)
    app.command()(label)
    app.command()(unlabel)
    app.command("rm")(remove)


def add(
    file: Annotated[
        Path,
        typer.Argument(
            help="A graph: ComfyUI's Export (API), a PNG or WebP made by ComfyUI, or, if comfy-cli is "
            "installed, a file of the editor's."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="The workflow's name.", show_default="made from the file's")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Limits, choices and roles, as in workflow.toml; without it, they are kept."
        ),
    ] = None,
    note: Note = "",
    base: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="The version that yours was made from; else it must be new."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Don't ask: publish over whatever is there, whatever breaks.")
    ] = False,
    dry_run: DryRun = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Put a workflow into the fleet's store, or publish its next version; the next job uses it."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stderr
    from comfy_fleet.cli.graph_files import EXPORT, graph_of_file

    known = _name(name, file)
    table = read_manifest(manifest) if manifest else None
    with Client(api, key) as client:
        read = graph_of_file(client, file)
        if read.converted:
            stderr().print(f"[dim]{file} was converted by comfy-cli[/]")
        body: dict[str, Any] = {"graph": read.graph, "note": note}
        body |= {"ui": dict(read.ui)} if read.ui is not None else {}
        body |= {"manifest": table} if table is not None else {}
        body |= {"thumbnail": text} if (text := thumbnail(read)) else {}
        try:
            answer = publish(client, known, body, base=base, force=force, dry_run=dry_run)
        except Fail as error:
            code = error.answer.get("code")
            if code not in ("invalid_workflow", "invalid_manifest"):
                raise
            place = manifest if manifest and code == "invalid_manifest" else file
            usual = EXPORT
            if code == "invalid_manifest":
                usual = f"mend {manifest}" if manifest else "--manifest FILE replaces the one in production"
            raise Fail(f"{place}: {error.message}", hint=error.hint or usual, code=error.exit) from None
    tell(known, answer, json_=json_)


def publish(
    client: "Client",
    name: str,
    body: Mapping[str, Any],
    *,
    base: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Publish a version; ask if that would break callers, or replace what somebody else has made.

    Args:
        client: The fleet.
        name: The workflow.
        body: The graph and what belongs to it.
        base: The version that it was made from.
        force: Don't ask.
        dry_run: Change nothing.

    Raises:
        Fail: The answer is no, nobody can be asked, or it is refused.
    """
    from comfy_fleet.cli.console import stderr
    from comfy_fleet.cli.questions import can_ask, confirm
    from comfy_fleet.cli.workflow_text import print_breaking, print_differences, who_and_when

    path, console = path_of("workflow", name), stderr()
    sent = {**body, **({"base_version": base} if base else {})}
    if dry_run or (can_ask() and not force):
        found: dict[str, Any] = client.put(path, {**sent, "dry_run": True})
        if dry_run:
            return found
        if found["changed"] and found["breaking_changes"]:
            print_breaking(console, found["breaking_changes"])
            confirm(
                f"Publish {name} all the same?",
                else_=f"{name} was not published: programs that use it would break",
                without="--force",
            )
    try:
        return dict(client.put(path, {**sent, "force": force}))
    except Fail as error:
        if error.answer.get("code") != "workflow_changed":
            raise
        details = error.answer.get("details") or {}
        if not details.get("production"):  # it was removed
            raise
        if details.get("theirs"):
            console.print(f"\n[bold]What {who_and_when(details)} has changed[/]")
            print_differences(console, details["theirs"])
        if details.get("differences"):
            console.print("\n[bold]What yours would change of it[/]")
            print_differences(console, details["differences"])
        who = who_and_when(details)
        confirm(
            f"Publish {name} over the version of {who}?",
            else_=f"{name} was not published: it would replace the version of {who}",
            without=f"--base {str(details['production']).removeprefix('sha256:')[:12]}, or --force",
        )
        return dict(client.put(path, {**body, "base_version": details["production"]}))


def tell(name: str, answer: Mapping[str, Any], *, json_: bool) -> None:
    """Print what was published, or would be."""
    from comfy_fleet.cli.console import print_json, stderr, stdout
    from comfy_fleet.cli.workflow_text import print_breaking, print_differences, short

    if json_:
        print_json(answer)
        return
    console, version, before = stdout(), short(answer["version"]), short(answer.get("before"))
    if not answer["changed"]:
        console.print(f"{name}  {version} is in production already", markup=False)
        return
    done = "would be published" if answer.get("dry_run") else "published"
    console.print(f"{name}  {version} {done}{f', after {before}' if before else ', new'}", markup=False)
    if answer.get("dry_run"):
        print_differences(console, answer.get("differences") or [])
    print_breaking(stderr(), answer.get("breaking_changes") or [])
    names = answer.get("parameters") or []
    if not names:
        stderr().print("no parameters: title a node of the graph $prompt, for example", style="dim")
    elif not answer.get("dry_run"):
        stderr().print(f"parameters: {', '.join(names)}", style="dim", markup=False)
    if not answer.get("dry_run"):
        stderr().print(f"check it on the nodes: fleet workflow check {name}", style="dim", markup=False)


def history(name: Name, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Show who published, labelled and rolled back a workflow, the latest first."""
    from datetime import UTC, datetime

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import ago, print_json, stderr, stdout, table
    from comfy_fleet.cli.workflow_text import short

    with Client(api, key) as client:
        found = client.get(path_of("workflow", name, "/history"))
        versions = client.get(path_of("workflow", name, "/versions"))
    if json_:
        print_json({**found, "labels": versions["labels"], "folder": versions["folder"]})
        return
    if folder := versions.get("folder"):
        stderr().print(f"{name} is kept in {folder}, which has no history", markup=False)
        return
    now = datetime.now(UTC)
    named: dict[str, list[str]] = {}
    for text, version in versions["labels"].items():
        named.setdefault(version, []).append(text)
    told: set[str] = set()
    kept = {one["version"] for one in versions["versions"]}
    rows = []
    for one in found["history"]:
        gone = [] if one["version"] in kept else ["not kept"]
        labels = gone if one["version"] in told else sorted(named.get(one["version"], gone))
        told.add(one["version"])
        what = str(one["action"]).replace("_", " ")
        if one["label"] != "production":
            what += f" {one['label']}"
        rows.append(
            (
                ago(one["at"], now),
                one["author"],
                what,
                short(one["version"]),
                ", ".join(labels),
                one.get("note") or "",
            )
        )
    stdout().print(table([">Ago", "<Who", "<What", "<Version", "Now", "Note"], rows))


def diff(
    name: Annotated[str, typer.Argument(help="The workflow, or one of its versions: NAME@VERSION.")],
    a: Annotated[
        str | None,
        typer.Argument(
            help="A version, a label or draft; a second one follows, or production.",
            show_default="what was in production before",
        ),
    ] = None,
    b: Annotated[str | None, typer.Argument(help="The later one.", show_default="production")] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Show what differs between two versions: parameters, nodes, inputs, and what breaks callers.

    Examples: `fleet workflow diff card`, `fleet workflow diff card draft`,
    `fleet workflow diff card@1f0c2ab card@staging`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout
    from comfy_fleet.cli.workflow_text import print_breaking, print_differences, short

    wanted, before, after = sides(name, a, b)
    with Client(api, key) as client:
        try:
            found = client.get(path_of("workflow", wanted, "/diff"), a=before, b=after)
        except Fail as error:
            if before is not None or (error.answer.get("details") or {}).get("field") != "a":
                raise
            raise Fail(
                f"nothing was in production before the present version of {wanted}",
                hint=f"name what to compare it with: fleet workflow diff {wanted} VERSION, or draft",
                code=error.exit,
            ) from None
    if json_:
        print_json(found)
        return
    console = stdout()
    console.print(f"{wanted}  {short(found['a'])} → {short(found['b'])}", markup=False)
    print_differences(console, found["differences"])
    if not found["differences"]:
        console.print("no difference")
    print_breaking(console, found["breaking_changes"])


def sides(name: str, a: str | None, b: str | None) -> tuple[str, str | None, str | None]:
    """Return the workflow and the two versions that were named in one of several ways.

    Raises:
        Fail: They are versions of different workflows.
    """
    wanted, _, first = name.partition("@")
    which = [first] if first else []
    for text in (a, b):
        if text is None:
            continue
        other, at, version = text.partition("@")
        if at and other != wanted:
            raise Fail(
                f"{name} and {text} are different workflows",
                hint="versions of one workflow can be compared",
                code=Exit.USAGE,
            )
        which.append(version if at else PRODUCTION if text == wanted else text)
    match which:
        case [] | ["production"]:
            return wanted, None, None
        case ["draft"]:
            return wanted, PRODUCTION, "draft"
        case [one]:
            return wanted, one, PRODUCTION
        case [one, other]:
            return wanted, one, other
    raise Fail("two versions can be compared, not three", code=Exit.USAGE)


def rollback(
    name: Name,
    version: Annotated[
        str | None,
        typer.Argument(help="A version or a label.", show_default="what was in production before"),
    ] = None,
    note: Note = "",
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Put an earlier version into production again; the next job uses it."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer
    from comfy_fleet.cli.workflow_text import short

    body = {"note": note} | ({"version": version} if version else {})
    with Client(api, key) as client:
        seen = client.get(path_of("workflow", name, "/versions"))
        if not seen.get("folder"):
            body["base_version"] = seen["production"]
        answer = client.post(path_of("workflow", name, "/rollback"), body)
    now, before = short(answer["version"]), short(answer.get("before"))
    words = f"{now} is in production" + (f", in place of {before}" if answer["changed"] else " already")
    print_answer(answer, f"{name}  {words}", json_=json_)


def label(
    name: Name,
    version: Annotated[str, typer.Argument(help="A version, or another label, such as production.")],
    label: Annotated[str, typer.Argument(help="The label, e.g. staging.")],
    note: Note = "",
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Give a version a label; NAME@LABEL then means it, wherever a workflow is named."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer
    from comfy_fleet.cli.workflow_text import short

    with Client(api, key) as client:
        path = path_of("workflow", name, f"/labels/{_part('label', label)}")
        seen = client.get(path_of("workflow", name, "/versions"))
        body = {"version": version, "note": note}
        if not seen.get("folder"):
            body["base_version"] = seen["labels"].get(label)
        answer = client.put(path, body)
    before = f", was {short(answer['before'])}" if answer.get("before") and answer["changed"] else ""
    print_answer(answer, f"{name}@{label}  is {short(answer['version'])}{before}", json_=json_)


def unlabel(
    name: Name,
    label: Annotated[str, typer.Argument(help="The label.")],
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Remove a label; the version stays."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stdout

    with Client(api, key) as client:
        client.delete(path_of("workflow", name, f"/labels/{_part('label', label)}"))
    stdout().print(f"{name} has no label {label} any more", markup=False)


def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Remove a workflow from the store with all its versions; its jobs go on."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stdout
    from comfy_fleet.cli.questions import confirm

    with Client(api, key) as client:
        if not yes:
            found = client.get(path_of("workflow", name, "/versions"))
            if not found.get("folder"):
                count = len(found["versions"])
                many = f"all {count} versions" if count > 1 else "its only version"
                confirm(
                    f"Remove {name} with {many}, for good?",
                    else_=f"{name} was not removed: nobody can be asked",
                    without="--yes",
                )
        client.delete(path_of("workflow", name))
    stdout().print(f"removed {name}", markup=False)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        Fail: It can't be read, or is no TOML.
    """
    import tomllib
    from datetime import date, time

    from comfy_fleet.cli.graph_files import content_of

    try:
        found = tomllib.loads(content_of(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Fail(f"{path} is not TOML: {error}", code=Exit.USAGE) from None

    def check(value: Any, place: str) -> None:
        if isinstance(value, date | time):
            raise Fail(f"{path}: {place} is a date; write it as a text", code=Exit.USAGE)
        if isinstance(value, dict | list):
            for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
                check(inner, f"{place}.{name}" if place else str(name))

    check(found, "")
    return found


def thumbnail(read: "GraphOfFile") -> str | None:
    """Return a small WebP of a picture with a graph, in base64; None if that is impossible."""
    import io
    from base64 import b64encode

    from PIL import Image

    if read.picture is None:
        return None
    try:
        with Image.open(io.BytesIO(read.picture)) as picture:
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            file = io.BytesIO()
            picture.convert("RGB").save(file, "WEBP", quality=80)
    except (OSError, ValueError, Image.DecompressionBombError):  # the graph counts, not the picture
        return None
    return b64encode(file.getvalue()).decode() if len(file.getvalue()) <= MAX_THUMBNAIL_BYTES else None


def _name(given: str | None, file: Path) -> str:
    from comfy_fleet.domain.graphs.workflow_names import NAME, slug

    if given is None:
        return slug(file.stem)
    if not NAME.fullmatch(given):
        raise Fail(
            f"--name {given!r}: names are 1 to 63 of a-z 0-9 _ . - and start with a letter or digit",
            hint=f"--name {slug(given)}" if slug(given) else None,
            code=Exit.USAGE,
        )
    return given


def _part(kind: str, text: str) -> str:
    """Return a part of a path as it was typed."""
    return path_of(kind, text).rpartition("/")[2]
