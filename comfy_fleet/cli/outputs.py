"""``fleet outputs``: what jobs have made, as files."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.parameters import pairs

if TYPE_CHECKING:
    from comfy_fleet.cli.mirror import Mirror, MirrorCounts, MirroredFile

app = typer.Typer(help="Mirror what jobs have made into a folder.", no_args_is_help=True)

LOOK_S = 2.0
"""How often --follow looks for jobs that have ended."""
LONGEST_LOOK_S = 60.0


@app.callback()
def group() -> None:
    """Mirror what jobs have made into a folder."""


@app.command()
def sync(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; it is made if it is missing.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with jobs as they end.")] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only jobs submitted within this time, e.g. 12h, 7d."),
    ] = None,
    workflow: Annotated[str | None, typer.Option(help="Only jobs of this stored workflow.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Only jobs with this label. Repeatable.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Also of others whose files you may read, as in a shared tenant.")
    ] = False,
    form: Annotated[
        Literal["webp", "jpeg", "png"] | None,
        typer.Option("--format", help="The format of pictures; left out: as they were asked for."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Look through all jobs again, e.g. after files were deleted.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Mirror the outputs of jobs that have succeeded into a folder, under the names that were asked for.

    Jobs that were submitted with `output.key` have those names, others DATE/JOB/NAME. What is there already
    stays; another file of a name gets -2. Run it again, also after it broke off: only what is missing is
    loaded.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout
    from comfy_fleet.cli.mirror import Mirror
    from comfy_fleet.cli.people_options import seconds

    began = ""
    if since is not None:
        at = datetime.fromtimestamp(time.time() - seconds("--since", since), UTC)
        began = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    query = {f"metadata[{name}]": value for name, value in pairs(metadata or [], "--metadata").items()}
    query |= {"workflow": workflow} if workflow else {}
    query |= {"all": "true"} if all_ else {}

    def trouble(error: Fail) -> None:
        stderr().print(f"error: {error.message}", markup=False)

    with Client(api, key) as client, _shown(quiet=json_) as told:
        mirror = Mirror(client, folder, query=query, form=form, told=told, trouble=trouble)
        with mirror.held():
            mirror.walk(since=began, again=again)
            while follow:
                _follow_once(mirror, began)
    counts = mirror.counts
    if json_:
        print_json(vars(counts))
    elif stdout().is_terminal or not counts.new:
        stderr().print(_words(counts), markup=False)
    if counts.failed:
        raise typer.Exit(Exit.FAILED)


def _follow_once(mirror: "Mirror", began: str) -> None:
    from comfy_fleet.cli.console import stderr

    time.sleep(min(LONGEST_LOOK_S, max(LOOK_S, 10 * mirror.took_s)))  # with many jobs a look takes long
    try:
        mirror.walk(since=began)
    except Fail as error:
        if error.exit is not Exit.UNREACHABLE and not error.passing:
            raise
        stderr().print(f"waiting: {error.message}", markup=False)


def _words(counts: "MirrorCounts") -> str:
    parts = [f"{counts.new} new", f"{counts.there} there already"]
    if counts.earlier:
        parts.append(f"{counts.earlier} not looked at again (--again does)")
    if counts.unreadable:
        parts.append(f"{counts.unreadable} gone, or not yours to read")
    if counts.failed:
        parts.append(f"{counts.failed} failed")
    return ", ".join(parts)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[["MirroredFile"], None]]:
    """Yield what is called for each file: a line for each new one, or counts on a terminal."""
    from comfy_fleet.cli.console import size, stderr, stdout

    if quiet:
        yield lambda _: None
        return
    if not stdout().is_terminal:
        yield lambda file: stdout().print(file.path, markup=False) if file.new else None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn

    counts = {True: 0, False: 0}
    bytes_ = 0
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), console=stderr(), transient=True
    ) as line:
        task = line.add_task("")

        def show(file: "MirroredFile") -> None:
            nonlocal bytes_
            counts[file.new] += 1
            bytes_ += file.size_bytes if file.new else 0
            text = f"{counts[True]} new ({size(bytes_)}), {counts[False]} there already  {file.path}"
            line.update(task, description=text)

        yield show
