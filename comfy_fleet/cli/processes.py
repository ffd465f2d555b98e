"""The fleet's processes: all of them on one machine (``up``), or each alone for systemd and containers."""

import io
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import NAME_ITS_FOLDER, Data, words

if TYPE_CHECKING:
    from comfy_fleet.settings import Settings

_FLAGS = {
    "redis_url": "--redis",
    "agent_metrics_port": "--metrics-port",
}  # settings whose flag has another name


_LONG = re.compile(r"""(['"])((?:(?!\1).){100})(?:(?!\1).)+\1""")
"""A quoted value that is longer than people read."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Fleet")(up)
    app.command(rich_help_panel="Fleet")(down)
    for command in (serve, api, dispatch):
        app.command(rich_help_panel="Single processes")(command)


def up(
    nodes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Nodes to start; without --comfyui they are simulated.",
            show_default="those of the last start; at the first 3, with --comfyui one per GPU",
        ),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="[NAME=]URL", help="URL of a ComfyUI that already runs. Repeatable."),
    ] = None,
    comfyui: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Start nodes from this ComfyUI folder: one per GPU, or on the CPU if there is no GPU.",
        ),
    ] = None,
    comfyui_python: Annotated[
        str | None,
        typer.Option(metavar="PROGRAM", help="ComfyUI's Python.", show_default="DIR/venv, else python3"),
    ] = None,
    comfyui_args: Annotated[str, typer.Option(metavar="ARGS", help="More arguments for ComfyUI.")] = "",
    custom_nodes: Annotated[bool, typer.Option(help="Load ComfyUI's custom nodes.")] = True,
    job_seconds: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Duration of a simulated job.")
    ] = None,
    sim_args: Annotated[
        str, typer.Option(metavar="ARGS", help="More arguments for the simulated nodes; see fleet sim.")
    ] = "",
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="The public port.",
            show_default="FLEET_PORT, else 8188 or the next free one",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address of the public port.", show_default="FLEET_HOST or 127.0.0.1")
    ] = None,
    editor: Annotated[
        bool | None,
        typer.Option(
            "--editor/--no-editor",
            help="Serve ComfyUI's editor at the public port.",
            show_default="FLEET_EDITOR or on",
        ),
    ] = None,
    data: Data = None,
    redis: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use this Redis instead of one in --data."),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What sets this fleet apart from others on the same Redis.",
            show_default="FLEET_NAMESPACE or fleet",
        ),
    ] = None,
    ready_timeout: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="S",
            help="Give up if the start takes longer, in seconds.",
            show_default="60, with --comfyui 300",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Go to the background once it is ready.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all log lines.")] = False,
) -> None:
    """Run a whole fleet on this machine until Ctrl-C, or until `fleet down`.

    Redis, HAProxy, API, dispatcher and nodes start together, are restarted when they crash, and stop
    together. The queue and files stay in --data: the next `fleet up` goes on where this one stopped, and
    with the same nodes if it names none. Simulated nodes start unasked only where there were no others yet.

    Examples: `fleet up`, `fleet up -d --comfyui ~/ComfyUI`, `fleet up --node http://gpu1:8188`.
    """
    import asyncio

    from comfy_fleet.adapters.comfyui.checkout import Checkout
    from comfy_fleet.cli.console import stdout
    from comfy_fleet.cli.gpus import Gpus, Nvml, probe
    from comfy_fleet.cli.up import ports
    from comfy_fleet.cli.up.detach import into_background
    from comfy_fleet.cli.up.fleet import Fleet
    from comfy_fleet.cli.up.last_start import go_on
    from comfy_fleet.cli.up.lock import DataLock, read_note
    from comfy_fleet.cli.up.nodes import cuda_visible
    from comfy_fleet.cli.up.plan import UpOptions, plan

    keep_private()
    settings = load(data=data, port=port, host=host, redis_url=redis, namespace=namespace, editor=editor)
    home = None
    if not comfyui and (alone := "--comfyui-args" if comfyui_args else comfyui_python and "--comfyui-python"):
        raise Fail(f"{alone} needs --comfyui DIR beside it", code=Exit.USAGE)
    if comfyui:
        home = Checkout.find(
            comfyui,
            python=comfyui_python,
            args=words(comfyui_args, "--comfyui-args"),
            custom_nodes=custom_nodes,
        )
    extra = words(sim_args, "--sim-args")
    if job_seconds is not None:
        extra += ["--job-seconds", str(job_seconds)]
    options = UpOptions(
        nodes=nodes,
        running=node or (),
        comfyui=home,
        own_redis=redis is None and "FLEET_REDIS_URL" not in os.environ,
        port_named=port_named(port),
        console_named="FLEET_CONSOLE_PORT" if "FLEET_CONSOLE_PORT" in os.environ else "",
        sim_args=extra,
        ready_timeout_s=ready_timeout,
        verbose=verbose,
        leave=into_background() if detach else None,
    )
    with DataLock(settings.data) as lock:
        options = go_on(options, read_note(settings.data))
        gpus = probe() if options.comfyui else Gpus(why=Nvml.NO_DEVICE)
        planned = plan(settings, options, gpus=gpus, visible=cuda_visible())
        public, console = planned.port.number, planned.settings.console_port
        with ports.kept([*planned.ports, public, console]), ports.claimed(public), ports.claimed(console):
            asyncio.run(Fleet(planned, options, stdout()).run(lock))


def port_named(port: int | None) -> str:
    """Return what sets the public port, for messages; empty if nothing does, so that any port will do."""
    if port is not None:
        return "--port"
    return "FLEET_PORT" if "FLEET_PORT" in os.environ else ""


def down(
    data: Data = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="How many seconds to wait for it to stop.")
    ] = 30,
) -> None:
    """Stop the fleet that `fleet up` has started in a folder."""
    from comfy_fleet.cli.console import stdout
    from comfy_fleet.cli.up.holder import holder_of

    folder = load(data=data).data
    holder = holder_of(folder)
    if holder is None:
        raise Fail(f"no fleet runs on {folder}", hint=NAME_ITS_FOLDER, code=Exit.NOT_FOUND)
    with holder:
        holder.ask_to_end()
        if not holder.ended(timeout):
            raise Fail(f"pid {holder.pid} has not ended after {timeout:g} s", code=Exit.TIMEOUT)
    stdout().print("stopped")


def serve(
    name: Annotated[
        str | None,
        typer.Option(help="The dispatcher's name in records and logs.", show_default="host and pid"),
    ] = None,
) -> None:
    """Serve the HTTP API and give queued jobs to nodes: `fleet api` and `fleet dispatch` in one process.

    Others of each kind may run beside it, and any may crash.
    """
    from comfy_fleet import serve as process

    process.serve(logging_as("serve"), name=name)


def api() -> None:
    """Serve the HTTP API, behind the edge. Settings come from FLEET_* variables."""
    from comfy_fleet.api.main import serve

    serve(logging_as("api"))


def dispatch(
    name: Annotated[
        str | None, typer.Option(help="Name in records and logs.", show_default="host and pid")
    ] = None,
) -> None:
    """Give queued jobs to nodes. One dispatcher is enough; with two, either may crash."""
    from comfy_fleet.processes.dispatcher import serve

    serve(logging_as("dispatch"), name=name)


def load(**flags: Any) -> "Settings":
    """Return the settings, overridden by the command line's flags, with an absolute data folder.

    Raises:
        Fail: A variable or flag has a value that can't be used.
    """
    from pydantic import ValidationError

    from comfy_fleet.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        flag = _FLAGS.get(place, f"--{place.replace('_', '-')}")
        name = flag if flags.get(place) is not None else f"FLEET_{place.upper()}"
        what = _LONG.sub(r"\1\2…\1", str(first["msg"]).removeprefix("Value error, "))  # pydantic's prefix
        named = what.startswith(f"{name}: ")
        told = f"{name}: {what}" if place and not named else what  # what concerns several settings names them
        raise Fail(told, hint="see docs/reference/settings.md", code=Exit.USAGE) from None
    folder = settings.data.expanduser().absolute()
    if not folder.as_posix().isprintable():  # the path is in configurations, logs and variables
        raise Fail(
            f"--data: {str(folder)!r} contains characters that can't be printed; use another folder",
            code=Exit.USAGE,
        )
    return settings.model_copy(update={"data": folder})


def load_running(data: Path | None) -> "Settings":
    """Return the settings of the ``fleet up`` in a data folder; those of the shell if none runs."""
    from comfy_fleet.cli.up.lock import running

    settings = load(data=data)
    return settings.model_copy(update=running(settings.data).get("settings", {}))


def keep_private() -> None:
    """Make all files that this process and its children will write readable by this user only.

    For the fleet's own processes, with their prompts, pictures, keys and logs. Commands that save a picture
    for the user leave the umask alone.
    """
    os.umask(0o077)


def logging_as(process: str) -> "Settings":
    """Begin one of the fleet's own processes: return the settings, and set up logging to stderr."""
    from comfy_fleet import logs
    from comfy_fleet.cli.variables import sentences

    keep_private()
    settings = load()
    logs.setup(process, level=settings.log_level, fmt=settings.log_format)
    for sentence in sentences():
        logging.getLogger(__name__).warning("variable not read", extra={"reason": sentence})
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return settings
