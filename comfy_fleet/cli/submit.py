"""``fleet submit``: submit parameters or a graph, and save the outputs."""

import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.graph_files import content_of
from comfy_fleet.cli.job_times import moment, seconds
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.parameters import pairs, parameters
from comfy_fleet.cli.paths import path_of
from comfy_fleet.cli.watching import ENDED, say_end, watch

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

MOST_JOBS = 100
"""Jobs of one ``fleet submit``."""
SEED_BITS = 53
"""Of a seed that is drawn here: every JSON reader handles them."""
MOST_EDITOR_BYTES = 1024 * 1024 - 64
"""Of a graph in the editor's format that goes along: a fleet takes so much (``FLEET_MAX_PNGINFO_BYTES``)."""
_WORST_FIRST = (Exit.FAILED, Exit.JOB_FAILED, Exit.CANCELED)


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
        typer.Option(
            "--out", "--download", metavar="DIR", help="Save the outputs in this folder; implies --wait."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A job for each line of a .csv (a column a parameter) or .jsonl file, as one batch.",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|ZIP",
            help="With --from: where the files are that it names as @NAME.",
            show_default="beside the file",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --from: leave out the lines that can't be taken.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", min=0, help="With --wait: give up after this many seconds."),
    ] = None,
    priority: Annotated[
        int | None, typer.Option(metavar="N", help="Of your jobs, higher goes first, -1000000 to 1000000.")
    ] = None,
    ttl: Annotated[
        float | None, typer.Option(metavar="S", help="It expires if it has not begun after so many seconds.")
    ] = None,
    run_timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Stop a run that takes longer; the job fails.")
    ] = None,
    finish_by: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="A wish for the order: 18:30, '2030-05-17 18:30' or RFC 3339."),
    ] = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="One of many: your other jobs go first. With -n, always so.")
    ] = False,
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
    count: Annotated[
        int,
        typer.Option(
            *("-n", "--count"),
            min=1,
            max=MOST_JOBS,
            metavar="N",
            help="So many jobs, each with a seed that is drawn for it.",
        ),
    ] = 1,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="A second submit with the same key makes no second job.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Tell this URL how the job, or the batch, has ended.")
    ] = None,
    output_store: Annotated[
        str | None, typer.Option(metavar="STORE", help="Put the outputs into this store, too.")
    ] = None,
    output_key: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="Their names there, e.g. products/{metadata.sku}/{index}.{ext}.",
            show_default="{job_id}/{index}-{name}",
        ),
    ] = None,
    output_format: Annotated[
        str | None, typer.Option(metavar="webp|jpeg|png", help="The format of pictures there.")
    ] = None,
    on_conflict: Annotated[
        str | None,
        typer.Option(metavar="replace|fail", help="What if there is another object of that name."),
    ] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Submit a job: a stored workflow with parameters, or a graph exported from ComfyUI.

    Examples: `fleet submit image_card -p prompt="a red fox" --wait --out pictures`,
    `fleet submit image_card --from products.csv --wait --download pictures`,
    `fleet submit my_graph.json --wait`, `fleet submit image_card -p prompt="a red fox" -n 4 --wait`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.downloads import check_folder

    if out:
        check_folder(out)  # check first: no GPU time for pictures that can't be saved
    if idempotency_key is not None and not (idempotency_key.isascii() and idempotency_key.isprintable()):
        raise Fail("--idempotency-key must be 1 to 255 printable ASCII characters", code=Exit.USAGE)
    extra: dict[str, Any] = {
        "priority": priority,
        "ttl_s": seconds("--ttl", "ttl_s", ttl),
        "timeout_s": seconds("--run-timeout", "timeout_s", run_timeout),
        "finish_by": None if finish_by is None else moment(finish_by, datetime.now().astimezone()),
        "tier": "batch" if batch or count > 1 else None,
        "metadata": pairs(metadata or [], "--metadata"),
        "webhook_url": webhook,
        "output": {
            name: value
            for name, value in (
                ("store", output_store),
                ("key", output_key),
                ("format", output_format),
                ("on_conflict", on_conflict),
            )
            if value is not None
        },
        "pool": pool,
        "prefer_pool": prefer_pool,
        "spill_to": spill_to,
        "zone": zone,
        "labels": pairs(label or [], "--label"),
    }
    extra = {name: value for name, value in extra.items() if value not in (None, [], {})}
    if table is None and (files is not None or partial):
        raise Fail("--files and --partial need --from FILE", code=Exit.USAGE)
    with Client(api, key) as client:
        if table is not None:
            from comfy_fleet.cli.batch_submit import submit_table

            if image or count > 1 or (workflow is not None and is_file(workflow)):
                raise Fail(
                    "--from needs a stored workflow, and takes no --image and no -n",
                    hint="name files in its lines, as @NAME or by URL",
                    code=Exit.USAGE,
                )
            name = default_workflow() if workflow is None else workflow
            extra.pop("webhook_url", None)
            values = parameters(client, name, parameter or [], [])
            submit_table(
                client,
                name,
                table,
                files=files,
                partial=partial,
                defaults={**extra, **({"params": values} if values else {})},
                webhook=webhook,
                idempotency_key=idempotency_key,
                follow_=wait,
                out=out,
                timeout_s=timeout,
                json_=json_,
            )
            return
        if workflow is not None and is_file(workflow):
            if parameter or image:
                raise Fail(
                    "-p and --image need a stored workflow; a graph in a file goes as it is",
                    hint=f"store it: fleet workflow add {shlex.quote(workflow)} --name NAME",
                    code=Exit.USAGE,
                )
            path = "/api/v2/jobs"
            bodies = [{**body, **extra} for body in bodies_of(Path(workflow), count)]
        else:
            name = default_workflow() if workflow is None else workflow
            path = path_of("workflow", name, "/jobs")
            values = parameters(client, name, parameter or [], image or [], count=count)
            bodies = [{"params": values, **extra}] * count
        finish(
            client,
            _submitted(client, path, bodies, idempotency_key, tell=not (json_ or wait or out)),
            follow=wait or out is not None,
            out=out,
            timeout_s=timeout,
            json_=json_,
        )


def _submitted(
    client: "Client", path: str, bodies: Sequence[dict[str, Any]], key: str | None, *, tell: bool
) -> list[dict[str, Any]]:
    """Submit jobs and return them; with ``tell``, print each id as soon as it is known."""
    from comfy_fleet.cli.console import stdout

    made: list[dict[str, Any]] = []
    for number, body in enumerate(bodies, 1):
        headers = {}
        if key is not None:
            headers = {"Idempotency-Key": key if len(bodies) == 1 else f"{key}-{number}"}
        try:
            made.append(client.post(path, body, headers=headers))
        except Fail as error:
            if not made:
                raise
            ids = "" if tell else ": " + ", ".join(str(job["id"]) for job in made)
            raise Fail(
                f"{len(made)} of {len(bodies)} jobs were submitted{ids}; then: {error.message}",
                hint=error.hint,
                code=error.exit,
            ) from None
        if tell:
            stdout().print(str(made[-1]["id"]))
    return made


def finish(
    client: "Client",
    jobs: list[dict[str, Any]],
    *,
    follow: bool,
    out: Path | None,
    timeout_s: float | None,
    json_: bool,
) -> None:
    """Wait for jobs that were just submitted, if asked to, save their outputs and tell how they ended.

    Raises:
        typer.Exit: With the code of the worst end.
        Fail: The time is up, or a file can't be saved.
    """
    from comfy_fleet.cli.batch import watch_all
    from comfy_fleet.cli.console import print_json, stderr
    from comfy_fleet.cli.downloads import save_outputs

    ids = [str(job["id"]) for job in jobs]
    if not follow:
        if json_:
            print_json(jobs[0] if len(jobs) == 1 else {"jobs": jobs})
        else:
            which = "it" if len(ids) == 1 else "the last"
            stderr().print(f"[dim]follow {which}:[/] fleet job events {ids[-1]}")
        return
    try:
        if len(ids) == 1:
            ended = [watch(client, ids[0], quiet=json_, timeout_s=timeout_s)]
        else:
            ended = watch_all(client, ids, quiet=json_, timeout_s=timeout_s)
    except KeyboardInterrupt:
        goes_on = f"job {ids[0]} goes on" if len(ids) == 1 else f"{len(ids)} jobs go on: {', '.join(ids)}"
        raise Fail(
            f"interrupted; {goes_on}",
            hint=f"fleet job events {ids[0]}, or stop it: fleet job cancel {ids[0]}",
            code=Exit.INTERRUPTED,
        ) from None
    shown: list[dict[str, Any]] = []
    for job in ended:
        try:
            saved = save_outputs(client, job, out) if out and job["status"] == "succeeded" else []
        except Fail as error:  # the same command would make the jobs anew
            left = [str(one["id"]) for one in ended[len(shown) :] if one["status"] == "succeeded"]
            where = shlex.quote(str(out))
            raise Fail(
                error.message,
                hint=f"the outputs are kept: fleet job download {' '.join(left)} --out {where}",
                code=error.exit,
            ) from None
        shown.append({**job, "files": [str(one.path) for one in saved]} if out else job)
        if not json_:
            say_end(job, saved)
    if json_:
        print_json(shown[0] if len(shown) == 1 else {"jobs": shown})
    codes = {ENDED.get(str(job["status"]), Exit.FAILED) for job in ended}
    raise typer.Exit(next((code for code in _WORST_FIRST if code in codes), Exit.OK))


def bodies_of(path: Path, count: int) -> list[dict[str, Any]]:
    """Read a graph from a file and return so many requests' bodies; if several, with seeds drawn for each.

    What a picture holds beside it, the graph in the editor's format, goes along: refusals say from it where
    missing parts are from, and the editor opens the new pictures as it opens this one.

    Raises:
        Fail: The file can't be read, or has no seed.
    """
    from comfy_fleet.domain.graphs.reseed import editor_graph_with, reseeded

    graph, ui = read_file(path)
    if count == 1:
        return [{"workflow": graph, **_editor_form(ui)}]
    sound = all(isinstance(node, dict) and isinstance(node.get("inputs"), dict) for node in graph.values())
    made = [reseeded(graph, lambda: secrets.randbits(SEED_BITS)) for _ in range(count)] if sound else []
    if not all(made):
        raise Fail(
            f"{path} has no seed, so {count} jobs would all make the same",
            hint="seeds are inputs called seed or ..._seed; leave out -n",
            code=Exit.USAGE,
        )
    return [{"workflow": one.graph, **_editor_form(editor_graph_with(ui, one.seeds))} for one in made if one]


def _editor_form(ui: object) -> dict[str, Any]:
    """Return the part of a body with the editor's form of the graph; nothing if there is none to send."""
    try:
        size = len(json.dumps(ui, allow_nan=False).encode())
    except (ValueError, RecursionError):
        return {}
    if ui is None or size > MOST_EDITOR_BYTES:
        return {}
    return {"extra_data": {"extra_pnginfo": {"workflow": ui}}}


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


def read_file(path: Path) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Read a graph from JSON or from a picture: in API format, and in the editor's if the file has it, too.

    Raises:
        Fail: The file can't be read or contains no JSON object.
    """
    from comfy_fleet.domain.errors import BadInput
    from comfy_fleet.domain.graphs.graph_file import read_graph_file
    from comfy_fleet.domain.graphs.structure import carried

    try:
        found = read_graph_file(content_of(path))
        return carried(found.graph), found.ui
    except BadInput as error:
        raise Fail(f"{path} {error}", code=Exit.USAGE) from None
