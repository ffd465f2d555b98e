"""``fleet submit``: submit parameters or a graph, and save the outputs."""

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfy_fleet.cli.client import Client

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest file with a graph, in bytes; of pictures only a small part is read."""
ENDED = {
    "succeeded": Exit.OK,
    "failed": Exit.JOB_FAILED,
    "expired": Exit.JOB_FAILED,
    "canceled": Exit.CANCELED,
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Jobs")(submit)


def submit(
    workflow: Annotated[
        str | None,
        typer.Argument(
            help="A stored workflow's name, or a file with a graph in API format (FILE.json or FILE.png).",
            show_default="the fleet's default workflow",
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--param", metavar="K=V", help="A parameter's value; K=@FILE reads a text file. Repeatable."
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="K=FILE", help="Upload a file as a parameter's value. Repeatable."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and wait for the end.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Save the outputs in this folder; implies --wait."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", min=0, help="With --wait: give up after this many seconds."),
    ] = None,
    priority: Annotated[
        int | None, typer.Option(metavar="N", help="Higher goes first, -1000000 to 1000000.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="K=V", help="A label on the job. Repeatable.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Run only in this pool.")] = None,
    prefer_pool: Annotated[str | None, typer.Option(help="Try this pool first, then all others.")] = None,
    spill_to: Annotated[
        list[str] | None, typer.Option(metavar="POOL", help="With --pool: try this pool next. Repeatable.")
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Run only in this zone.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="K=V", help="Run only on nodes with this label. Repeatable."),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="A second submit with the same key makes no second job.")
    ] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Submit a job: a stored workflow with parameters, or a graph exported from ComfyUI.

    Examples: `fleet submit image_card -p prompt="a red fox" --wait --out pictures`,
    `fleet submit my_graph.json --wait`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout

    labels = pairs(metadata or [], "--metadata")
    if out:
        _folder(out)  # check first: no GPU time for pictures that can't be saved
    if idempotency_key is not None and not (idempotency_key.isascii() and idempotency_key.isprintable()):
        raise Fail("--idempotency-key must be 1 to 255 printable ASCII characters", code=Exit.USAGE)
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}
    extra: dict[str, Any] = {
        "priority": priority,
        "metadata": labels,
        "pool": pool,
        "prefer_pool": prefer_pool,
        "spill_to": spill_to,
        "zone": zone,
        "labels": pairs(label or [], "--label"),
    }
    extra = {name: value for name, value in extra.items() if value not in (None, [], {})}
    with Client(api, key) as client:
        if workflow is not None and is_file(workflow):
            if parameter or image:
                raise Fail(
                    "-p and --image need a stored workflow; a graph in a file goes as it is",
                    hint="store it as workflows/NAME/workflow.json, see docs/howto",
                    code=Exit.USAGE,
                )
            job = client.post(
                "/api/v2/jobs", {"workflow": read_file(Path(workflow)), **extra}, headers=headers
            )
        else:
            name = default_workflow() if workflow is None else workflow
            values = parameters(client, name, parameter or [], image or [])
            job = client.post(
                path_of("workflow", name, "/jobs"), {"params": values, **extra}, headers=headers
            )
        job_id = str(job["id"])
        if not (wait or out):
            if json_:
                print_json(job)
            else:
                stdout().print(job_id)
                stderr().print(f"[dim]follow it:[/] fleet job events {job_id}")
            return
        try:
            job = watch(client, job_id, quiet=json_, timeout_s=timeout)
        except KeyboardInterrupt:
            raise Fail(
                f"interrupted; job {job_id} goes on",
                hint=f"fleet job events {job_id}, or stop it: fleet job cancel {job_id}",
                code=Exit.INTERRUPTED,
            ) from None
        saved = save_outputs(client, job, out) if out and job["status"] == "succeeded" else []
        if json_:
            print_json({**job, "files": [str(path) for path in saved]} if out else job)
        else:
            say_end(job, saved)
        raise typer.Exit(ENDED.get(str(job["status"]), Exit.FAILED))


def default_workflow() -> str:
    """Return the default workflow."""
    from comfy_fleet.cli.processes import load

    return load().default_workflow


def is_file(workflow: str) -> bool:
    """Return whether the argument is a file and not a stored workflow."""
    path = Path(workflow)
    return (
        "/" in workflow or path.suffix.lower() in (".json", ".png") or (path.suffix != "" and path.is_file())
    )


def read_file(path: Path) -> dict[str, Any]:
    """Read a graph in API format, from JSON or from a picture.

    Raises:
        Fail: The file can't be read or contains no JSON object.
    """
    from comfy_fleet.domain.errors import BadInput
    from comfy_fleet.domain.graphs.graph_file import read_graph
    from comfy_fleet.domain.graphs.structure import carried

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Fail(f"can't read {path}: {error.strerror}", code=Exit.USAGE) from error
    if len(content) > MAX_FILE_BYTES:
        raise Fail(f"{path} is larger than {MAX_FILE_BYTES} bytes", code=Exit.USAGE)
    try:
        return carried(read_graph(content))
    except BadInput as error:
        raise Fail(f"{path} {error}", code=Exit.USAGE) from None


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """Split ``K=V`` strings.

    Raises:
        Fail: One has no ``=`` or no name, or a name comes twice.
    """
    made: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise Fail(f"{option} {text!r} is not NAME=VALUE", code=Exit.USAGE)
        if name in made:
            raise Fail(f"{option} {name} is given twice", code=Exit.USAGE)
        made[name] = value
    return made


def parameters(client: "Client", name: str, given: Sequence[str], images: Sequence[str]) -> dict[str, Any]:
    """Convert the given values to the types of the workflow's parameters, and upload files.

    Raises:
        Fail: No such workflow or parameter, a value of the wrong type, an unreadable file.
    """
    typed = pairs(given, "-p")
    files = pairs(images, "--image")
    described = client.get(path_of("workflow", name))
    warn_of_broken(name, described)
    properties: dict[str, Any] = schema_of(described).get("properties", {})
    for wanted in (*typed, *files):
        if wanted not in properties:
            raise Fail(
                f"workflow {name} has no parameter {wanted!r}",
                hint=f"it has: {', '.join(properties) or 'none'}",
                code=Exit.USAGE,
            )
    for wanted in files:
        if wanted in typed:
            raise Fail(f"{wanted} is given twice: with -p and with --image", code=Exit.USAGE)
        if properties[wanted].get("x-fleet-type") not in ("image", "asset"):
            raise Fail(
                f"parameter {wanted!r} of workflow {name} takes no file",
                hint=f"-p {wanted}=VALUE; for text from a file: -p {wanted}=@FILE",
                code=Exit.USAGE,
            )
    for wanted, text in typed.items():
        file = text.removeprefix("@")
        if properties[wanted].get("x-fleet-type") in ("image", "asset") and _is_file(file):
            raise Fail(
                f"-p {wanted}: {file} is a file here, and the fleet can't see it",
                hint=f"upload it: --image {shlex.quote(f'{wanted}={file}')}",
                code=Exit.USAGE,
            )
    values = {wanted: typed_value(wanted, text, properties[wanted]) for wanted, text in typed.items()}
    for wanted, path in files.items():
        values[wanted] = client.upload(Path(path).expanduser())
    return values


def warn_of_broken(name: str, answer: Mapping[str, Any]) -> None:
    """Warn on stderr if a workflow's files can't be used and its last good version is served."""
    from comfy_fleet.cli.console import stderr

    if why := answer.get("broken"):
        text = f"{name}: its last good version is used, as its files are broken: {why}"
        stderr().print(text, style="red", markup=False)


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have
        return False


def schema_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of the parameters, from the API's description of a workflow."""
    return dict(described["parameters"])


def typed_value(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    """Read a value as its parameter's type.

    Raises:
        Fail: It has another type.
    """
    kind = schema.get("type", "string")
    if text.startswith("@") and kind == "string" and "enum" not in schema:
        try:
            return Path(text[1:]).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise Fail(f"-p {name}: can't read {text[1:]}: {error.strerror}", code=Exit.USAGE) from error
        except UnicodeDecodeError:
            raise Fail(f"-p {name}: {text[1:]} is not UTF-8 text", code=Exit.USAGE) from None
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
    except ValueError:
        raise Fail(f"-p {name}: {text!r} is no {kind}", code=Exit.USAGE) from None
    if kind == "boolean":
        if text.lower() not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            raise Fail(f"-p {name}: {text!r} is neither true nor false", code=Exit.USAGE)
        return text.lower() in ("true", "yes", "on", "1")
    return text


def watch(
    client: "Client", job_id: str, *, quiet: bool = False, timeout_s: float | None = None
) -> dict[str, Any]:
    """Show a job's progress until its end, and return its record.

    Args:
        client: The fleet.
        job_id: The job.
        quiet: Show nothing.
        timeout_s: Give up after this time.

    Raises:
        Fail: There is no such job, or the time is up.
    """
    with progress_bar(quiet) as show:
        for kind, data in client.follow(job_id, timeout_s=timeout_s):
            if kind == "status" and data["status"] not in ENDED:  # the caller prints how it ended
                position = data.get("queue_position")
                place = f", number {position} in the queue" if position and data["status"] == "queued" else ""
                node = f" on {data['node']}" if data.get("node") else ""
                show(f"{data['status']}{node}{place}", None)
            elif kind == "progress":
                show(data.get("message") or "running", float(data.get("value") or 0))
    return client.job(job_id)


@contextmanager
def progress_bar(quiet: bool) -> "Iterator[Any]":
    """Yield ``show(text, fraction)``: a bar on a terminal, a line per change elsewhere."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    from comfy_fleet.cli.console import stderr

    console = stderr()
    if quiet:
        yield lambda text, fraction: None
        return
    if not console.is_terminal:
        last = ""

        def line(text: str, fraction: float | None) -> None:
            nonlocal last
            # Steps would fill a log file: without a terminal, only events are printed, not progress.
            if fraction is None and text != last:
                console.print(text, markup=False)
                last = text

        yield line
        return
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("submitted", total=1.0)

        def draw(text: str, fraction: float | None) -> None:
            bar.update(task, description=text)
            if fraction is not None:
                bar.update(task, completed=fraction)

        yield draw


def save_outputs(client: "Client", job: Mapping[str, Any], folder: Path) -> list[Path]:
    """Download a job's outputs; return the files' paths.

    Files are named ``JOB-NAME``, with the first eight characters of the job's id, so that jobs never
    overwrite each other's files.

    Raises:
        Fail: One can't be fetched or written.
    """
    _folder(folder)
    saved: list[Path] = []
    for output in job.get("outputs") or []:
        # The name comes from a node: only its last part, only harmless characters.
        name = re.sub(r"[^\w.() -]", "_", str(output.get("name", "output")).replace("\\", "/").split("/")[-1])
        name = re.sub(r"_\d{5}_(?=\.)", "", name)  # ComfyUI's counter; the job's id is more useful
        target = folder / f"{str(job['id'])[:8]}-{name or 'output'}"
        if target in saved:
            target = folder / f"{str(job['id'])[:8]}-{len(saved)}-{name}"
        client.download(str(output["url"]), target)
        saved.append(target)
    return saved


def _folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Fail(f"can't write in {folder}: {error.strerror}", code=Exit.USAGE) from error


def say_end(job: Mapping[str, Any], saved: Sequence[Path]) -> None:
    """Print how a job ended, where it ran and its outputs."""
    from comfy_fleet.cli.console import SIMULATED, STATUS_STYLE, size, span, stdout

    console = stdout()
    status = str(job["status"])
    took = run_seconds(job)
    simulated = f" [magenta]{SIMULATED}[/]" if job.get("simulated") else ""
    line = f"[{STATUS_STYLE.get(status, '')}]{status}[/]  job {job['id']}"
    console.print(line)
    if job.get("node"):
        console.print(f"  on {job['node']}{simulated}" + (f" in {span(took)}" if took is not None else ""))
    if error := job.get("error"):
        console.print(f"  {error.get('code')}: {error.get('message')}", markup=False)
    outputs = job.get("outputs") or []
    for index, output in enumerate(outputs):
        where = saved[index] if index < len(saved) else output.get("url")
        console.print(f"  {where}  ({size(output.get('size_bytes') or 0)})", markup=False)
    if params := job.get("params"):
        seed = {name: value for name, value in params.items() if "seed" in name}
        if seed:
            words = ", ".join(f"{name} {value}" for name, value in seed.items())
            console.print(f"  {words}", markup=False)


def run_seconds(job: Mapping[str, Any]) -> float | None:
    """Return how long a job ran, or None if it has not run to its end."""
    from comfy_fleet.cli.console import parse_time

    started, ended = parse_time(job.get("started_at")), parse_time(job.get("completed_at"))
    return (ended - started).total_seconds() if started and ended else None
