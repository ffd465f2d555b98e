"""``fleet job download``, ``rm``, ``retry``, ``keep`` and ``store``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of
from comfy_fleet.cli.submit import MOST_JOBS, finish
from comfy_fleet.cli.watching import ENDED, watch

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or a unique beginning of it.")]
JobIds = Annotated[
    list[str], typer.Argument(metavar="ID...", help="The jobs' ids, or unique beginnings of them.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (download, retry, keep, store):
        app.command()(command)
    app.command("rm")(remove)


def store(jobs: JobIds, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Put into their store again the outputs of jobs that it did not take."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    console = stdout()
    answers = []
    with Client(api, key) as client:

        def again(job_id: str) -> None:
            answers.append(client.post(path_of("job", job_id, "/store")))
            if not json_:
                console.print(f"the outputs of {job_id} are put into their store again", markup=False)

        code = _with_all(_each(client, jobs), again)
    if json_:
        print_json(answers[0] if len(answers) == 1 else {"jobs": answers})
    raise typer.Exit(code)


def download(
    jobs: JobIds,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder.", show_default=".")] = Path(),
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the jobs' ends first.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace other files with the same names.")] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Save all outputs of jobs in a folder, under their names.

    What is there already is not loaded again, and a download that broke off goes on where it stopped.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout
    from comfy_fleet.cli.downloads import listed, save_outputs

    console = stdout()
    answers = []
    code = Exit.OK
    with Client(api, key) as client:

        def save(job_id: str) -> None:
            nonlocal code
            job = watch(client, job_id, quiet=json_) if wait else client.job(job_id)
            status = str(job["status"])
            if status not in ENDED:
                raise Fail(
                    f"job {job_id} is {status}: its outputs are not complete",
                    hint=f"wait for them: fleet job download {job_id} --wait",
                    code=Exit.REFUSED,
                )
            with _bytes_shown(job, quiet=json_) as show:
                saved = save_outputs(client, job, out, job_in_name=False, force=force, show=show)
            answers.append({"job": job_id, "status": status, "files": [one.to_json() for one in saved]})
            if not saved:
                code = ENDED[status] or code
            if json_:
                return
            for line in listed(saved):
                console.print(line, markup=False)
            if status != "succeeded" or not saved:
                what = f"{len(saved)} outputs" if saved else "no outputs"
                stderr().print(f"job {job_id} {status}, with {what}", style="dim", markup=False)

        ids = _each(client, jobs)
        code = _with_all(ids, save) or code
    if json_:
        print_json(answers[0] if len(ids) == 1 else {"jobs": answers})
    raise typer.Exit(code)


def remove(
    jobs: JobIds,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Also jobs that wait or run: cancel them first.")
    ] = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Remove jobs with all their files, at once and for good."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stdout

    with Client(api, key) as client:

        def remove_one(job_id: str) -> None:
            try:
                client.delete(path_of("job", job_id), cancel="true" if cancel else "false")
            except Fail as error:
                if error.exit is Exit.REFUSED:
                    raise Fail(
                        error.message, hint=f"fleet job rm --cancel {job_id}", code=error.exit
                    ) from None
                raise
            stdout().print(f"removed {job_id}", markup=False)

        code = _with_all(_each(client, jobs), remove_one)
    raise typer.Exit(code)


def retry(
    job: JobId,
    new_seed: Annotated[bool, typer.Option("--new-seed", help="Draw its seeds anew.")] = False,
    count: Annotated[
        int,
        typer.Option(
            "-n", "--count", min=1, max=MOST_JOBS, metavar="N", help="With --new-seed: so many jobs."
        ),
    ] = 1,
    without_keys: Annotated[
        bool,
        typer.Option("--without-keys", help="Go without the keys of partners, which are erased at its end."),
    ] = False,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Is told of the end.", show_default="the first job's, with its events"
        ),
    ] = None,
    no_webhook: Annotated[bool, typer.Option("--no-webhook", help="Nobody is told of the end.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and wait for the end.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Save the outputs there; implies --wait.")
    ] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Submit a job again, as it was: graph, parameters, workflow version, files, labels, pools and webhook.

    Prints the new job's id.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stdout
    from comfy_fleet.cli.downloads import check_folder

    if count > 1 and not new_seed:
        raise Fail("-n needs --new-seed: all jobs would make the same", code=Exit.USAGE)
    if webhook and no_webhook:
        raise Fail("--webhook and --no-webhook exclude each other", code=Exit.USAGE)
    if out:
        check_folder(out)
    body: dict[str, Any] = {"new_seed": new_seed}
    if without_keys:
        body["extra_data"] = {}
    if webhook or no_webhook:
        body["webhook_url"] = webhook
    with Client(api, key) as client:
        job_id = client.job_id(job)
        made = []
        for _ in range(count):
            try:
                made.append(client.post(path_of("job", job_id, "/retry"), body))
            except Fail as error:
                if "extra_data" in error.message:
                    raise Fail(
                        f"job {job_id} came with keys of a partner, which were erased at its end",
                        hint="submit it anew, or go without them: --without-keys",
                        code=error.exit,
                    ) from None
                raise
            if not (json_ or wait or out):
                stdout().print(str(made[-1]["id"]))
        finish(client, made, follow=wait or out is not None, out=out, timeout_s=None, json_=json_)


def keep(
    jobs: JobIds,
    off: Annotated[bool, typer.Option("--off", help="Keep them no longer: retention begins anew.")] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Keep jobs beyond their retention, with their files and the uploads that they use."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    answers = []
    with Client(api, key) as client:

        def keep_one(job_id: str) -> None:
            path = path_of("job", job_id, "/keep")
            answers.append(client.delete(path) if off else client.put(path))
            if not json_:
                until = f"goes after {answers[-1]['expires_at']}" if off else "kept until it is removed"
                stdout().print(f"{job_id}  {until}", markup=False)

        ids = _each(client, jobs)
        code = _with_all(ids, keep_one)
    if json_:
        print_json(answers[0] if len(ids) == 1 else {"jobs": answers})
    raise typer.Exit(code)


def _each(client: Any, jobs: Sequence[str]) -> list[str]:
    """Return the complete ids, each once; all are looked up before anything changes."""
    return list(dict.fromkeys(client.job_id(job) for job in jobs))


def _with_all(ids: Sequence[str], change: Callable[[str], None]) -> Exit:
    """Do something with each job; one that is refused is told, and keeps the others from nothing.

    Returns:
        The code to end with: that of the first one refused.

    Raises:
        Fail: It is the only job, or the fleet can't be reached.
    """
    from comfy_fleet.cli.console import stderr

    code = Exit.OK
    for job_id in ids:
        try:
            change(job_id)
        except Fail as error:
            if len(ids) == 1 or error.exit is Exit.UNREACHABLE or error.passing:
                raise
            stderr().print(f"error: {error.message}", markup=False)
            if error.hint:
                stderr().print(f"hint: {error.hint}", markup=False)
            code = code or error.exit
    return code


@contextmanager
def _bytes_shown(job: dict[str, Any], *, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Yield a function that shows how many bytes of a job's outputs have come; on a terminal only."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from comfy_fleet.cli.console import stderr

    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda name, count: None
        return
    columns = (
        BarColumn(bar_width=28),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    total = sum(output.get("size_bytes") or 0 for output in job.get("outputs") or [])
    counts: dict[str, int] = {}
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        def show(name: str, count: int) -> None:
            counts[name] = count
            bar.update(task, completed=sum(counts.values()), description=name)

        yield show
