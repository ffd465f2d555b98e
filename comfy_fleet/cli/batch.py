"""Watch several jobs at once."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.watching import ENDED

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

LOOK_S = 0.5
"""Between two looks at the jobs."""
PAGES = 10  # of the caller's newest live jobs that are looked through for these
TRIES = 40  # looks in a row that may fail, while the API restarts
BARS = 20  # jobs that get a line of their own on a terminal


def watch_all(
    client: "Client", ids: Sequence[str], *, quiet: bool = False, timeout_s: float | None = None
) -> list[dict[str, Any]]:
    """Show the jobs' progress until all have ended, and return their records in the same order.

    Args:
        client: The fleet.
        ids: The jobs.
        quiet: Show nothing.
        timeout_s: Give up after this time.

    Raises:
        Fail: One of them is gone, or the time is up.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended: dict[str, dict[str, Any]] = {}
    failures = 0
    with _shown(ids, quiet) as show:
        while True:
            try:
                live = _live(client, [job_id for job_id in ids if job_id not in ended])
                for job_id in ids:
                    if job_id not in ended and job_id not in live:
                        record = client.job(job_id)
                        live[job_id] = record
                        if record["status"] in ENDED:
                            ended[job_id] = record
                failures = 0
            except Fail as error:
                if error.exit is not Exit.UNREACHABLE or failures >= TRIES:
                    raise
                failures += 1
            else:
                show(live)
            if len(ended) == len(ids):
                return [ended[job_id] for job_id in ids]
            if deadline is not None and time.monotonic() > deadline:
                left = [job_id for job_id in ids if job_id not in ended]
                raise Fail(
                    f"{len(left)} of {len(ids)} jobs are not done yet: {', '.join(left)}",
                    hint="they go on: fleet job ls",
                    code=Exit.TIMEOUT,
                )
            time.sleep(LOOK_S)


def _live(client: "Client", wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return those of some jobs that are listed as not over."""
    found: dict[str, dict[str, Any]] = {}
    missing, cursor = set(wanted), None
    for _ in range(PAGES):
        if not missing:
            break
        page = client.get("/api/v1/jobs", status="queued,running,canceling", limit=100, cursor=cursor)
        for job in page["jobs"]:
            if job["id"] in missing:
                missing.discard(job["id"])
                found[job["id"]] = job
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    return found


def words(job: Mapping[str, Any]) -> str:
    """Return a job's state in words: ``running on sim-1, KSampler 3/20``."""
    text = str(job["status"])
    if job.get("node"):
        text += f" on {job['node']}"
    if text == "queued" and job.get("queue_position"):
        text += f", number {job['queue_position']} in the queue"
    message = (job.get("progress") or {}).get("message")
    return f"{text}, {message}" if message and job["status"] == "running" else text


@contextmanager
def _shown(ids: Sequence[str], quiet: bool) -> Iterator[Callable[[Mapping[str, Mapping[str, Any]]], None]]:
    """Yield a function that shows jobs' states: bars on a terminal, a line per change elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from comfy_fleet.cli.console import stderr

    console = stderr()
    if quiet:
        yield lambda jobs: None
        return
    if not console.is_terminal:
        told: dict[str, str] = {}

        def lines(jobs: Mapping[str, Mapping[str, Any]]) -> None:
            for job_id in ids:
                # Places and progress would fill a log file.
                if job_id in jobs and told.get(job_id) != (status := str(jobs[job_id]["status"])):
                    told[job_id] = status
                    node = f" on {jobs[job_id]['node']}" if jobs[job_id].get("node") else ""
                    console.print(f"{job_id[:8]}  {status}{node}", markup=False)

        yield lines
        return
    columns = (
        TextColumn("{task.fields[job]}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        each = {
            job_id: bars.add_task("queued", total=1.0, job=job_id[:8])
            for job_id in (ids if len(ids) <= BARS else ())
        }
        whole = bars.add_task("", total=float(len(ids)), job="all     ")
        over: set[str] = set()

        def draw(jobs: Mapping[str, Mapping[str, Any]]) -> None:
            for job_id, job in jobs.items():
                if job["status"] in ENDED:
                    over.add(job_id)
                if job_id in each:
                    done = float((job.get("progress") or {}).get("value") or 0)
                    bars.update(each[job_id], description=words(job), completed=done)
            bars.update(whole, completed=float(len(over)), description=f"{len(over)} of {len(ids)} done")

        yield draw
