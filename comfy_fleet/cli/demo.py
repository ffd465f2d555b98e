"""``fleet demo``: start a fleet, make pictures, and show how jobs spread over nodes."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.adapters.system.folders import private_folder
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.paths import path_of

if TYPE_CHECKING:
    from rich.console import Console

    from comfy_fleet.cli.client import Client

FIRST = "a lighthouse made of books, at dusk"
HANDFUL = (  # short enough for a row of 80 columns
    "a fox in the snow",
    "a paper boat",
    "a robot gardener",
    "an owl that reads",
    "a bicycle in ivy",
    "a whale in the sky",
)
_NOT_OURS = frozenset(
    {"FLEET_REDIS_URL", "FLEET_KEYS_FILE", "FLEET_HOST", "FLEET_PUBLIC_URL"}
    | {"FLEET_CONSOLE_URL", "FLEET_CONSOLE_PORT", "FLEET_EDITOR"}
    | {"FLEET_TLS_CERT_FILE", "FLEET_TLS_KEY_FILE", "FLEET_PLAIN_PORT", "FLEET_HSTS_S"}
    | {"FLEET_ALLOW_FROM", "FLEET_CONSOLE_ALLOW_FROM"}
    | {"FLEET_CONSOLE_TLS_CERT_FILE", "FLEET_CONSOLE_TLS_KEY_FILE"}
)
_START_S = {False: 90.0, True: 600.0}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the fleet running.")] = False,
    nodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Nodes.", show_default="3, or one ComfyUI per GPU")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="The public port.", show_default="8188, or the next that is free"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")] = Path(
        ".fleet/demo-pictures"
    ),
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="The demo's folder; its old content is deleted.")
    ] = Path(".fleet/demo"),
    comfyui: Annotated[
        Path | None,
        typer.Option(
            envvar="COMFYUI_HOME", metavar="DIR", help="Use this ComfyUI; without it nodes are SIMULATED."
        ),
    ] = None,
    comfyui_python: Annotated[
        str | None, typer.Option(envvar="COMFYUI_PYTHON", metavar="PROGRAM", help="ComfyUI's Python.")
    ] = None,
) -> None:
    """Start a fleet, run one prompt and then several at once, show which node made what, and stop."""
    from comfy_fleet.adapters.comfyui.checkout import Checkout
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import SIMULATED, stdout
    from comfy_fleet.cli.gpus import probe
    from comfy_fleet.cli.up import ports, public_port
    from comfy_fleet.cli.up.lock import held

    if comfyui:
        Checkout.find(comfyui, python=comfyui_python)
    console = stdout()
    data, out = data.expanduser().absolute(), out.expanduser()
    if held(data):
        raise Fail(
            f"a demo runs on {data} already", hint=f"stop it: fleet down --data {data}", code=Exit.REFUSED
        )
    chosen = public_port.choose(port or 8188, "127.0.0.1", named="--port" if port else "")
    if chosen.why:
        console.print(chosen.why, markup=False)
    operators = public_port.choose_console(8189, "127.0.0.1", public=chosen.number, named="")
    argv = ["--port", str(chosen.number), "--data", str(data), "--no-custom-nodes"]
    if comfyui:
        wanted = nodes or len(probe().gpus) or 3
        argv += ["--comfyui", str(comfyui)]
        argv += ["--comfyui-python", comfyui_python] if comfyui_python else []
        console.print(f"Starting {wanted} ComfyUI nodes from {comfyui} ...")
    else:
        wanted = nodes or 3
        argv += ["--job-seconds", "1.2"]  # the time of a small picture on a fast GPU
        console.print(f"Starting {wanted} [magenta]{SIMULATED}[/] nodes ...")
    argv += ["--nodes", str(wanted)]
    started = time.monotonic()
    with (
        running_fleet(argv, data, console_port=operators.number, keep=keep) as process,
        ports.claimed(chosen.number),
        ports.claimed(operators.number),
        Client(f"http://127.0.0.1:{operators.number}") as client,
    ):
        await_ready(process, client, data, console, timeout_s=_START_S[bool(comfyui)])
        url = f"http://127.0.0.1:{chosen.number}"
        console.print(f"[green]ready[/] after {time.monotonic() - started:.1f} s at {url}")
        if comfyui:
            console.print(f"editor   {url}/", markup=False)
        console.print(f"console  {client.url}\n", markup=False)
        one_prompt(client, console, out)
        good = a_handful(client, console, out, count=max(6, 2 * wanted))
        if keep:
            console.print(f"\nThe fleet keeps running at {url}. Stop it: fleet down --data {data}")
    if not keep:
        console.print("\nstopped everything", style="dim")
    if not good:
        raise Fail("not every job succeeded", hint="the table above says which")


@contextlib.contextmanager
def running_fleet(
    argv: Sequence[str], data: Path, *, console_port: int, keep: bool
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``fleet up`` as a child; stop it at the end unless it is to be kept.

    Args:
        argv: Arguments of ``fleet up``.
        data: Its folder; files of an earlier demo are deleted.
        console_port: The console's port.
        keep: Whether to leave it running after a success.
    """
    from comfy_fleet.adapters.system.child_processes import dies_with_parent
    from comfy_fleet.cli.up.lock import note_path
    from comfy_fleet.cli.up.nodes import fleet

    if note_path(data).exists():  # only if it is a fleet's folder
        shutil.rmtree(data)
    private_folder(data / "logs")
    with (data / "logs" / "up.txt").open("wb") as log:
        process = subprocess.Popen(
            fleet("up", *argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # The demo needs its own fleet, whatever the shell's variables say.
            env={
                **{name: value for name, value in os.environ.items() if name not in _NOT_OURS},
                "FLEET_CONSOLE_PORT": str(console_port),
            },
            start_new_session=True,
            preexec_fn=None if keep else dies_with_parent(signal.SIGTERM),  # noqa: PLW1509 - no thread runs yet
        )
    stay = False
    try:
        yield process
        stay = keep
    finally:
        if not stay:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def await_ready(
    process: "subprocess.Popen[bytes]",
    client: "Client",
    data: Path,
    console: "Console",
    *,
    timeout_s: float,
) -> None:
    """Wait until every node is up and a job could run.

    Raises:
        Fail: The fleet ended, or took too long; the message includes its output.
    """
    log = data / "logs" / "up.txt"  # no part's log: what its terminal would show
    deadline = time.monotonic() + timeout_s
    with console.status("waiting until a job could run") as status:
        while True:
            if process.poll() is not None:
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                error = next((line for line in lines if line.startswith("error:")), "fleet up ended")
                hint = next((line for line in lines if line.startswith("hint:")), "")
                raise Fail(
                    error.removeprefix("error:").strip(),
                    hint=hint.removeprefix("hint:").strip() or f"see {data / 'logs'}",
                )
            why = missing(client)
            if why is None:
                return
            status.update(f"waiting until every node is up ({why})")
            if time.monotonic() > deadline:
                raise Fail(
                    f"the fleet is not ready after {timeout_s:g} s: {why}",
                    hint=f"see {data / 'logs'}",
                    code=Exit.TIMEOUT,
                )
            time.sleep(0.1)


def missing(client: "Client") -> str | None:
    """Return what the demo still waits for, or None.

    A fleet is ready with one node; the demo needs all of them, to show how work spreads.
    """
    try:
        client.get("/api/v1/ready")
        nodes = client.get("/api/v1/nodes")["nodes"]
    except Fail as error:
        return error.message
    late = [str(node["name"]) for node in nodes if node["verdict"] != "up"]
    return f"{', '.join(late)} not up yet" if late else None


def one_prompt(client: "Client", console: "Console", out: Path) -> None:
    """Run the first prompt with progress, and print where the picture is and which node made it.

    Raises:
        Fail: The job did not succeed.
    """
    from comfy_fleet.cli.downloads import save_outputs
    from comfy_fleet.cli.watching import say_end, watch

    workflow = default_workflow()
    console.print(f"[bold]One prompt[/] to the workflow {workflow}: “{FIRST}”")
    job = watch(client, submit_prompt(client, workflow, FIRST))
    say_end(job, save_outputs(client, job, out))
    if job["status"] != "succeeded":
        raise Fail(f"the first job ended {job['status']}", hint="see the line above", code=Exit.JOB_FAILED)


def a_handful(client: "Client", console: "Console", out: Path, *, count: int) -> bool:
    """Run many prompts at once, show the table, and return True if all succeeded."""
    from comfy_fleet.cli.console import SIMULATED, span, table
    from comfy_fleet.cli.downloads import save_outputs
    from comfy_fleet.cli.watching import progress_bar, run_seconds

    workflow = default_workflow()
    console.print(f"\n[bold]{count} prompts at once[/]")
    started = time.monotonic()
    prompts = [HANDFUL[index % len(HANDFUL)] for index in range(count)]
    ids = [submit_prompt(client, workflow, prompt) for prompt in prompts]
    jobs: list[dict[str, Any]] = []
    with progress_bar(quiet=not console.is_terminal) as show:
        for index, job_id in enumerate(ids):
            show(f"{index} of {count} done", index / count)
            for _ in client.follow(job_id, timeout_s=600):
                pass
            jobs.append(client.job(job_id))
    wall_s = time.monotonic() - started
    rows = []
    for prompt, job in zip(prompts, jobs, strict=True):
        saved = save_outputs(client, job, out)
        node = f"{job.get('node')} {SIMULATED}" if job.get("simulated") else job.get("node")
        picture = saved[0].path.name if saved else ""
        rows.append((prompt, job["status"], node, span(run_seconds(job)), picture))
    console.print(table(["Prompt", "<Status", "<Node", ">Ran", "<Picture"], rows))
    say_spread(console, jobs, wall_s)
    console.print(f"pictures are in {out}")
    return all(job["status"] == "succeeded" for job in jobs)


def say_spread(console: "Console", jobs: Sequence[Mapping[str, Any]], wall_s: float) -> None:
    """Print how the jobs spread over the nodes, and the time saved."""
    from comfy_fleet.cli.console import span
    from comfy_fleet.cli.watching import run_seconds

    counts = Counter(str(job.get("node")) for job in jobs)
    words = ", ".join(f"{node} {count}" for node, count in sorted(counts.items()))
    total_s = sum(run_seconds(job) or 0 for job in jobs)
    console.print(f"\nspread: {words}; {span(total_s)} of work in {span(wall_s)}")


def submit_prompt(client: "Client", workflow: str, prompt: str) -> str:
    """Submit a prompt to a stored workflow and return the job's id."""
    job = client.post(path_of("workflow", workflow, "/jobs"), {"params": {"prompt": prompt}})
    return str(job["id"])


def default_workflow() -> str:
    """Return the workflow that the demo runs."""
    from comfy_fleet.cli.submit import default_workflow as default

    return default()
