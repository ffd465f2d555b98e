"""``fleet workflow publish``: a draft from the editor, its checks with a test run, and its publication."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of
from comfy_fleet.cli.workflow_versions import Note

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

LOOK_S = 0.5
"""Between two looks at the test run."""
_MARKS = {"passed": ("green", "ok"), "failed": ("bold red", "failed")}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(publish)


def publish(
    name: Annotated[str, typer.Argument(help="The workflow: your draft of it is published.")],
    note: Note = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Save the test run's pictures there.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check it.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run the test once more.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Don't ask: publish over others' versions, whatever breaks.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=1, help="Give up the test run after this many seconds.")
    ] = 1800.0,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Check your draft with a test run, show what changes, and publish it; the next job uses it.

    A draft is made by saving a workflow in the editor and running it.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout
    from comfy_fleet.cli.downloads import check_folder
    from comfy_fleet.cli.workflow_text import short

    if out:
        check_folder(out)
    with Client(api, key) as client:
        found = checked(client, name, again=again, quiet=json_, timeout_s=timeout)
        if not json_:
            _tell(client, found, out)
        if not found["ready"]:
            if json_:
                print_json(found)
            raise typer.Exit(Exit.FAILED)
        if check or found["unchanged"]:
            if json_:
                print_json(found)
            elif found["unchanged"]:
                stdout().print(f"{name}  {short(found['version'])} is in production already", markup=False)
            return
        if not force:
            _ask(name, found)
        production = (found.get("production") or {}).get("version") or ""
        body = {
            "draft": found["draft"],
            "over": production,
            "note": note,
            "breaking": bool(found["breaking"]),
        }
        if found.get("unrun"):
            body["leave_out_unrun"] = True
        if found.get("files_message"):
            body["leave_out_files"] = True
        answer = client.post(path_of("workflow", name, "/publish"), body)
    if json_:
        print_json(answer)
        return
    before = short(answer.get("before"))
    after = f", after {before}; back: fleet workflow rollback {name}" if before else ", new"
    stdout().print(f"{name}  {short(answer['version'])} published{after}", markup=False)


def checked(client: "Client", name: str, *, again: bool, quiet: bool, timeout_s: float) -> dict[str, Any]:
    """Check a draft, wait for its test run, and return the check.

    Raises:
        Fail: There is no draft, or the time is up.
    """
    from comfy_fleet.cli.batch import words
    from comfy_fleet.cli.watching import progress_bar

    deadline = time.monotonic() + timeout_s
    path = path_of("workflow", name, "/check")
    found: dict[str, Any] = client.post(path, {"again": True} if again else None)
    with progress_bar(quiet) as show:
        while _waits(found):
            job_id = (found.get("test_run") or {}).get("job_id")
            if job_id:
                job = client.job(job_id)
                value = float((job.get("progress") or {}).get("value") or 0)
                show(f"test run: {words({**job, 'progress': None})}", None)
                show(f"test run: {words(job)}", value)
            if time.monotonic() > deadline:
                which = f" (job {job_id})" if job_id else ""
                raise Fail(
                    f"the test run of {name} is not over yet{which}",
                    hint="it goes on; the same command waits for it again",
                    code=Exit.TIMEOUT,
                )
            time.sleep(LOOK_S)
            found = client.post(path)
    return found


def _waits(found: Mapping[str, Any]) -> bool:
    """Return whether a step is not over; after one that has failed, the rest does not begin."""
    states = {step["state"] for step in found["steps"]}
    return "waiting" in states and "failed" not in states


def _tell(client: "Client", found: Mapping[str, Any], out: Path | None) -> None:
    """Print the steps, the test run's outputs and what changes."""
    from rich.text import Text

    from comfy_fleet.cli.console import stdout
    from comfy_fleet.cli.downloads import listed, save_outputs
    from comfy_fleet.cli.workflow_text import print_breaking, print_differences, short

    console = stdout()
    console.print(f"{found['workflow']}  draft {short(found['version'])}", markup=False)
    for step in found["steps"]:
        style, mark = _MARKS.get(step["state"], ("yellow", str(step["state"])))
        name = str(step["name"]).replace("_", " ")
        console.print(Text.assemble("  ", (f"{mark:<7}", style), f" {name}: {step['message']}"))
        for problem in step["problems"]:
            console.print(f"          {problem}", markup=False)
    run = found.get("test_run") or {}
    if outputs := run.get("outputs"):
        if out:
            job = {"id": run["job_id"], "outputs": outputs}
            for line in listed(save_outputs(client, job, out)):
                console.print(f"  {line}", markup=False)
        else:
            for output in outputs:
                console.print(f"  test picture: {output['url']}", markup=False)
    if found.get("unrun"):
        console.print(f"  {found['unrun']} was saved since: run it once to make it the draft", markup=False)
    if found.get("files_message"):
        console.print(f"  {found['files_message']}", markup=False)
    if found["changes"]:
        console.print("\n[bold]What it changes[/]")
        print_differences(console, found["changes"])
    print_breaking(console, found["breaking"])


def _ask(name: str, found: Mapping[str, Any]) -> None:
    """Ask if others' work would be replaced, or programs would break."""
    from comfy_fleet.cli.console import stderr
    from comfy_fleet.cli.questions import can_ask, confirm
    from comfy_fleet.cli.workflow_text import print_differences, short, who_and_when

    if several := found.get("files_message"):
        confirm(
            f"Publish the draft of {found.get('editor_name') or name}, and leave out the other files?",
            else_=f"{name} was not published: {several}",
            without="--force",
        )
    if found.get("unrun"):
        file = found["unrun"]
        confirm(
            f"Publish the draft of {name} from before {file} was saved?",
            else_=f"{name} was not published: {file} was saved since the draft: run it to make it the draft",
            without="--force",
        )
    if gone := found.get("removed"):
        by = gone.get("removed_by")
        who = who_and_when({"changed_by": by, "changed_at": gone.get("removed_at")}) if by else ""
        done = f"{who} has removed {name}" if who else f"{name} is there no more"
        confirm(
            f"{done}. Publish it as a new workflow?",
            else_=f"{name} was not published: {done} since your draft was begun",
            without="--force",
        )
    elif found["overtaken"]:
        who = who_and_when(found.get("production") or {})
        version = short((found.get("production") or {}).get("version"))
        console = stderr()
        console.print(f"\n{who} has published {version} since your draft was begun", markup=False)
        print_differences(console, found["theirs"])
        confirm(
            f"Publish {name} over it?",
            else_=f"{name} was not published: it would replace the version of {who}",
            without="--force",
        )
    elif found["breaking"]:
        confirm(
            f"Publish {name} although programs may break?",
            else_=f"{name} was not published: programs that use it would break",
            without="--force",
        )
    elif can_ask():
        confirm(f"Publish {name}?", else_="", without="--force")
