"""Watch a job until its end, and tell how it ended."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from comfy_fleet.cli.exits import Exit, Fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.downloads import Saved

ENDED = {
    "succeeded": Exit.OK,
    "failed": Exit.JOB_FAILED,
    "expired": Exit.JOB_FAILED,
    "canceled": Exit.CANCELED,
}
"""The exit code for each final status."""


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
                why = _waits(client, job_id) if place else ""
                show(f"{data['status']}{node}{place}{why}", None)
            elif kind == "progress":
                show(data.get("message") or "running", float(data.get("value") or 0))
    return client.job(job_id)


def _waits(client: "Client", job_id: str) -> str:
    """Return why a job waits; nothing if that can't be asked now."""
    try:
        why = client.job(job_id).get("waiting_for")
    except Fail:
        return ""
    return f": {why}" if why else ""


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


def say_end(job: Mapping[str, Any], saved: "Sequence[Saved]") -> None:
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
        where = saved[index].path if index < len(saved) else output.get("url")
        what = "withheld" if output.get("withheld") else size(output.get("size_bytes") or 0)
        console.print(f"  {where}  ({what})", markup=False)
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
