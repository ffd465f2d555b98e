"""``fleet job``: list, show, follow and cancel jobs; :mod:`.job_changes` adds the rest."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.logs import JsonLines
from comfy_fleet.cli.logs import show as show_lines
from comfy_fleet.cli.options import DEFAULT_API, Api, Data, Json, Key
from comfy_fleet.cli.parameters import pairs
from comfy_fleet.cli.paths import path_of
from comfy_fleet.cli.watching import ENDED, run_seconds

if TYPE_CHECKING:
    from comfy_fleet.cli.log_files import LogLine

app = typer.Typer(
    help="List, show, follow, download, repeat, keep, cancel and remove jobs.", no_args_is_help=True
)

JOB_COLUMNS = ["<Job", "<Status", ">Progress", ">Age", "<Node", "<Workflow", "<Prompt"]
LEAST_PROMPT, MOST_WORKFLOW = 14, 16
"""Characters of a prompt and of a workflow's name that a narrow terminal shows."""
ATTEMPT_COLUMNS = ["<Attempt on", "<Started", ">Took", "<Counted", "Why it ended"]

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or a unique beginning of it.")]


@app.command("list", hidden=True)
@app.command("ls")
def list_(
    status: Annotated[
        list[str] | None,
        typer.Option(help="Only jobs with this status, e.g. queued. Repeatable.", metavar="STATUS"),
    ] = None,
    workflow: Annotated[str | None, typer.Option(help="Only jobs of this stored workflow.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Only jobs with this label. Repeatable.")
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Only jobs that are kept beyond retention.")] = False,
    all_: Annotated[
        bool,
        typer.Option("--all", help="Everybody's jobs, for operators; of a shared tenant, its users'."),
    ] = False,
    user: Annotated[str | None, typer.Option(help="Only this user's jobs, as with --all.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="How many jobs.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Continue after the last page.")] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """List jobs, newest first: place in the queue, progress, or how long it ran."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import ago, print_json, stderr, stdout, table

    labels = {f"metadata[{name}]": value for name, value in pairs(metadata or [], "--metadata").items()}
    with Client(api, key) as client:
        page = client.get(
            "/api/v1/jobs",
            status=",".join(status) if status else None,
            workflow=workflow,
            kept="true" if kept else None,
            all="true" if all_ else None,
            user=user,
            limit=limit,
            cursor=cursor,
            **labels,
        )
    if json_:
        print_json(page)
        return
    now = datetime.now(UTC)
    jobs = page["jobs"]
    console = stdout()
    # Programs get complete ids; on a terminal, 36 characters would leave no room for the rest.
    short = _short([job["id"] for job in jobs]) if console.is_terminal else {}
    whose = all_ or user is not None
    rows = [
        (
            short.get(job["id"], job["id"]),
            *([job.get("user")] if whose else []),
            job["status"],
            _how_far(job),
            ago(job.get("created_at"), now),
            job.get("node"),
            job.get("workflow") or "graph",
            job.get("excerpt"),
        )
        for job in jobs
    ]
    columns = [JOB_COLUMNS[0], "<User", *JOB_COLUMNS[1:]] if whose else JOB_COLUMNS
    if console.is_terminal:
        rows = _fitted(rows, columns, console.width)
    console.print(table(columns, rows))
    if not jobs:
        stderr().print("[dim]no jobs[/]")
    if following := page.get("next_cursor"):
        console, option = stderr(), f"--cursor {following}"
        fits = not console.is_terminal or len(f"more: {option}") <= console.width
        console.print(f"[dim]more:[/] {option}" if fits else f"[dim]more, with --cursor:[/]\n{following}")


@app.command()
def show(
    job: JobId,
    timeline: Annotated[bool, typer.Option("--timeline", help="Draw where its time went.")] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Show everything about a job, or where its time went."""
    from comfy_fleet.cli import timelines
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import SIMULATED, ago, facts, print_json, size, span, stdout, table

    with Client(api, key) as client:
        if timeline:
            record = client.get(path_of("job", client.job_id(job), "/timeline"))
        else:
            record = client.job(client.job_id(job))
    if json_:
        print_json(record)
        return
    console = stdout()
    if timeline:
        timelines.show(console, record)
        return
    now = datetime.now(UTC)
    progress = record.get("progress") or {}
    metadata = record.get("metadata")
    node = record.get("node")
    console.print(
        facts(
            {
                "job": record["id"],
                "user": record.get("user"),
                "status": record["status"],
                "waiting for": record.get("waiting_for"),
                "queue position": record.get("queue_position"),
                "ends in": _ends(record.get("estimate"), span),
                "workflow": record.get("workflow"),
                "version": record.get("workflow_version"),
                "repeats": record.get("retry_of"),
                "kept": "until it is removed" if record.get("kept") else None,
                "priority": record.get("priority") or None,
                **_wishes(record),
                "memory": _memory(record),
                "metadata": _words(metadata) if isinstance(metadata, dict) else metadata,
                "parameters": _words(record.get("params") or {}),
                "picture": _batch(record.get("batch")),
                "result": "that of an equal job" if record.get("cached") else None,
                "node": f"{node} {SIMULATED}" if node and record.get("simulated") else node,
                "failed attempts": record.get("attempt") or None,
                "progress": _progress(progress) if record["status"] == "running" else None,
                "submitted": f"{ago(record.get('created_at'), now)} ago",
                "ran for": span(run_seconds(record)),
                "error": _error(record.get("error")),
            }
        )
    )
    attempts = record.get("attempts") or []
    if len(attempts) > 1 or any(one.get("error") for one in attempts):
        console.print()
        console.print(table(ATTEMPT_COLUMNS, [attempt_row(one) for one in attempts]))
    if seen := _story(record.get("error")):
        console.print()
        console.print(table(["<What its last run saw: seconds, event, phase after it, and actions"], seen))
    if outputs := record.get("outputs"):
        console.print()
        rows = [
            (
                output.get("name"),
                "withheld" if output.get("withheld") else output.get("type"),
                size(output.get("size_bytes") or 0),
                output.get("url"),
            )
            for output in outputs
        ]
        console.print(table(["Output", "<Kind", ">Size", "URL"], rows))
        if stored := [(output.get("name"), output["stored"]) for output in outputs if output.get("stored")]:
            console.print()
            console.print(table(["Output", "<Store", "<State", "In the store"], map(_stored_row, stored)))


def _stored_row(output: tuple[str | None, Mapping[str, Any]]) -> tuple[str | None, ...]:
    """Return a row of where an output is in its store, or why it is not."""
    name, stored = output
    where = stored.get("url") or stored.get("key")
    error = stored.get("error")
    return name, stored.get("store"), stored.get("state"), f"{where}: {error}" if error else where


def _ends(estimate: Mapping[str, float] | None, span: Callable[[float], str]) -> str | None:
    """Return when a job will have ended, in words."""
    if not estimate:
        return None
    return f"about {span(estimate['p50_s'])}; 9 of 10 such jobs within {span(estimate['p90_s'])}"


@app.command("wait", hidden=True)
@app.command("follow", hidden=True)
@app.command()
def events(
    job: JobId,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="Give up after this many seconds.")
    ] = None,
    json_: JsonLines = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Follow a job until its end; the exit code says how it ended."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import json_text, stdout

    console = stdout()
    status = ""
    with Client(api, key) as client:
        for kind, data in client.follow(client.job_id(job), timeout_s=timeout):
            if kind == "status":
                status = str(data.get("status"))
            if json_:
                typer.echo(json_text({"event": kind, **data}))
            else:
                now = datetime.now().astimezone()
                console.print(f"{now:%H:%M:%S}  {_event(kind, data)}", markup=False)
    raise typer.Exit(ENDED.get(status, 1))


@app.command("logs")
def logs_(
    job: JobId, json_: JsonLines = False, data: Data = None, api: Api = DEFAULT_API, key: Key = None
) -> None:
    """Show what happened to a job: its attempts, and the log lines about it, in order of time.

    The log lines are from a fleet on this machine, as far back as its logs reach.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stderr
    from comfy_fleet.cli.log_files import Logs
    from comfy_fleet.cli.processes import load

    folder = load(data=data).data / "logs"
    with Client(api, key) as client:
        record = client.job(client.job_id(job))
    with Logs(folder) as logs:
        lines = list(logs.history(about=str(record["id"])))
    if not lines:
        stderr().print(f"no line in {folder} names it; another folder: --data DIR", style="dim", markup=False)
    show_lines(
        sorted([*story(record), *lines], key=lambda line: line.at), json_=json_, known=frozenset({"job_id"})
    )


@app.command()
def cancel(
    job: Annotated[
        str | None, typer.Argument(metavar="ID", help="The job's id, or a unique beginning of it.")
    ] = None,
    all_mine: Annotated[bool, typer.Option("--all-mine", help="All of your jobs instead of one.")] = False,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="With --all-mine: only those that wait.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Cancel a job: a queued one ends at once, a running one is interrupted. Operators cancel everybody's."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer, styled

    if (job is None) != all_mine:
        raise Fail("name a job, or give --all-mine", code=Exit.USAGE)
    if waiting and not all_mine:
        raise Fail("--waiting needs --all-mine", code=Exit.USAGE)
    with Client(api, key) as client:
        if job is None:
            done = client.post("/api/v1/jobs-cancel", {"waiting_only": waiting})
            running = f", {done['ending']} are being interrupted" if done["ending"] else ""
            print_answer(done, f"{done['ended']} canceled{running}", json_=json_)
            return
        job = client.job_id(job)
        before = str(client.job(job)["status"])
        record = client.post(path_of("job", job, "/cancel"))
    status = str(record["status"])
    ended = before in ENDED or status in ENDED.keys() - {"canceled"}
    print_answer(record, f"had already ended: {status}" if ended else styled(status), json_=json_)


def story(record: dict[str, Any]) -> "list[LogLine]":
    """Return a job's life, from its record, as log lines."""
    from comfy_fleet.cli.console import parse_time
    from comfy_fleet.cli.log_files import LogLine

    told: list[LogLine] = []

    def tell(ts: Any, level: str, message: str, **more: Any) -> None:
        if (when := parse_time(ts)) is not None:
            fields = {"ts": when.isoformat(timespec="milliseconds"), "level": level, "process": "job"}
            fields |= {"msg": message, "job_id": record["id"]}
            fields |= {name: value for name, value in more.items() if value is not None}
            told.append(LogLine(part="job", at=when.timestamp(), fields=fields))

    tell(record.get("created_at"), "info", "submitted", workflow=record.get("workflow"))
    for attempt in record.get("attempts") or ():
        node, error = attempt.get("node"), _error(attempt.get("error"))
        tell(attempt.get("started_at"), "info", "attempt began", node=node)
        level = "warning" if error else "info"
        tell(attempt.get("ended_at"), level, "attempt ended", node=node, reason=error)
    level = "error" if record["status"] == "failed" else "info"
    tell(record.get("completed_at"), level, str(record["status"]), reason=_error(record.get("error")))
    return told


def _how_far(job: dict[str, Any]) -> str:
    """Return a job's place in the queue, its progress, or how long it ran."""
    from comfy_fleet.cli.console import span

    if job["status"] == "queued":
        place = job.get("queue_position")
        return f"#{place}" if place else ""
    if job["status"] in ("running", "canceling"):
        return f"{float((job.get('progress') or {}).get('value') or 0):.0%}"
    return span(run_seconds(job))


def _fitted(rows: list[tuple[Any, ...]], columns: list[str], width: int) -> list[tuple[Any, ...]]:
    """Shorten prompts, and workflows' names if need be, so that each job takes one line of a terminal."""
    from rich.cells import cell_len, set_cell_size

    from comfy_fleet.cli.console import one_line

    def cut(text: str, most: int) -> str:
        return text if cell_len(text) <= most else f"{set_cell_size(text, max(1, most - 1)).rstrip()}…"

    def room() -> int:
        widths = [
            max(cell_len(text) for text in (title.lstrip("<>"), *(one_line(row[at]) for row in rows)))
            for at, title in enumerate(columns[:-1])
        ]
        return width - sum(widths) - 2 * len(widths)

    if room() < LEAST_PROMPT:
        rows = [(*row[:-2], cut(str(row[-2]), MOST_WORKFLOW), row[-1]) for row in rows]
    left = max(LEAST_PROMPT, room())
    return [(*row[:-1], cut(one_line(row[-1]), left)) for row in rows]


def _short(ids: list[str]) -> dict[str, str]:
    """Return each id's shortest unique beginning, of at least eight characters."""
    length = next((n for n in range(8, 36) if len({job[:n] for job in ids}) == len(set(ids))), 36)
    return {job: job[:length] for job in ids}


def attempt_row(attempt: dict[str, Any]) -> tuple[str | None, ...]:
    """Return a finished run as cells of :data:`ATTEMPT_COLUMNS`."""
    from comfy_fleet.cli.console import parse_time, span

    started, ended = parse_time(attempt.get("started_at")), parse_time(attempt.get("ended_at"))
    return (
        attempt.get("node"),
        f"{started.astimezone():%m-%d %H:%M:%S}" if started else None,
        span((ended - started).total_seconds()) if started and ended else None,
        "yes" if attempt.get("counted") else "no",
        _error(attempt.get("error")),
    )


def _wishes(record: dict[str, Any]) -> dict[str, str | None]:
    """Return what was said about a job's times and tier, in local time, if anything was."""
    from comfy_fleet.cli.console import parse_time, span

    def local(field: str) -> str | None:
        at = parse_time(record.get(field))
        return f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else None

    queued = record["status"] == "queued"
    return {
        "tier": record.get("tier") if record.get("tier") != "single" else None,
        "starts by": f"{local('start_by')}, or expires" if queued and record.get("start_by") else None,
        "finish by": local("finish_by"),
        "longest run": span(record.get("timeout_s")),
    }


def _memory(record: dict[str, Any]) -> str | None:
    """Return what is predicted of a job's memory: ``about 14.2 GiB, on cards above 12 GiB``."""
    from comfy_fleet.domain.nodes.eligibility import gib

    needs, above = record.get("memory_bytes"), record.get("card_above_bytes")
    words = [f"about {gib(needs)}"] if needs else []
    return ", ".join([*words, f"on cards above {gib(above)}"] if above else words) or None


def _batch(batch: dict[str, Any] | None) -> str | None:
    """Return which pictures of a merged prompt are a job's, and from which seed they come."""
    if not batch:
        return None
    first, last = batch["batch_index"], batch["batch_index"] + batch["count"] - 1
    which = f"number {first}" if first == last else f"numbers {first} to {last}"
    return f"{which}, from 0, of a batch of {batch['batch_size']} with seed {batch['seed']}"


def _words(pairs_: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in pairs_.items())


def _progress(progress: dict[str, Any]) -> str:
    return f"{float(progress.get('value') or 0):.0%} {progress.get('message') or ''}".strip()


def _error(error: dict[str, Any] | None) -> str | None:
    if not error:
        return None
    place = f" (node {error['node_id']} {error.get('class_type') or ''})" if error.get("node_id") else ""
    return f"{error.get('code')}: {error.get('message')}{place}"


def _story(error: dict[str, Any] | None) -> list[tuple[str]]:
    """Return the story of a run that ended a job badly, as rows; empty for any other job."""
    lines = ((error or {}).get("details") or {}).get("story")
    return [(str(line),) for line in lines] if isinstance(lines, list) else []


def _event(kind: str, data: dict[str, Any]) -> str:
    if kind == "status":
        position = data.get("queue_position")
        return f"{data.get('status')}" + (f", number {position} in the queue" if position else "")
    if kind == "progress":
        return _progress(data)
    if kind == "preview":
        return f"preview of node {data.get('node_id')} ({data.get('content_type')})"
    if kind == "output":
        return f"output {data.get('name')} {data.get('url') or ''}".rstrip()
    return kind
