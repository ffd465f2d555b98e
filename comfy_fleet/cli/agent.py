"""``fleet agent``: the agent of one GPU host, or the central one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import Data, words

if TYPE_CHECKING:
    from comfy_fleet.agent.main import Beside
    from comfy_fleet.agent.supervisor import Supervision
    from comfy_fleet.domain.nodes.process_supervision import RestartLimits

_HOST = "This host"
_RUN = "ComfyUIs to run"
_BESIDE = "ComfyUIs that run already"
_CARE = "When ComfyUIs are restarted"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Single processes")(agent)


def agent(
    join: Annotated[
        str | None,
        typer.Option(metavar="URL", help="URL of the fleet's API.", show_default="FLEET_API_HOST and _PORT"),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="FLEET_AGENT_TOKEN",
            help="Its token; the file that FLEET_AGENT_TOKEN_FILE names is seen by nobody.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Name of this host.", show_default="its own", rich_help_panel=_HOST),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="This host's address for HAProxy; everything listens on it.",
            show_default="found by the route to --join",
            rich_help_panel=_HOST,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port for agent-checks; 0: any free one.",
            show_default="FLEET_AGENT_PORT",
            rich_help_panel=_HOST,
        ),
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="Pool of the nodes.", show_default="default", rich_help_panel=_HOST)
    ] = None,
    weight: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=256, help="Share of the work.", show_default="100", rich_help_panel=_HOST
        ),
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Zone of the nodes, e.g. a rack.", rich_help_panel=_HOST)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="A label of the nodes. Repeatable.", rich_help_panel=_HOST),
    ] = None,
    editor: Annotated[
        bool | None,
        typer.Option(
            "--editor/--no-editor",
            help="Let the nodes serve ComfyUI's editor, before others or never.",
            show_default="if no other node does",
            rich_help_panel=_HOST,
        ),
    ] = None,
    metrics_port: Annotated[
        str | None,
        typer.Option(
            metavar="PORT",
            help="Port of /metrics and /health; 0: any; none: not served.",
            show_default="FLEET_AGENT_METRICS_PORT",
            rich_help_panel=_HOST,
        ),
    ] = None,
    data: Data = None,
    comfyui: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Start ComfyUIs from this checkout.", rich_help_panel=_RUN),
    ] = None,
    gpus: Annotated[
        str,
        typer.Option(
            help="all, cpu, or indices or UUIDs, e.g. 0,2; a GPU that is named twice gets two.",
            rich_help_panel=_RUN,
        ),
    ] = "all",
    per_gpu: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of ComfyUIs on each GPU.", rich_help_panel=_RUN)
    ] = 1,
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="ComfyUI's Python.",
            show_default="DIR/venv, else python3",
            rich_help_panel=_RUN,
        ),
    ] = None,
    comfyui_args: Annotated[
        str, typer.Option(metavar="ARGS", help="More arguments for ComfyUI.", rich_help_panel=_RUN)
    ] = "",
    custom_nodes: Annotated[
        bool, typer.Option(help="Load ComfyUI's custom nodes.", rich_help_panel=_RUN)
    ] = True,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[GPU:]K=V",
            help="An environment variable for ComfyUI, on one GPU or on all. Repeatable.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU:ARGS", help="More arguments on one GPU, e.g. 0:--lowvram.", rich_help_panel=_RUN
        ),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="GIB", help="Restart one that uses more host memory.", rich_help_panel=_CARE
        ),
    ] = None,
    max_jobs: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Restart one after this many jobs; 0: never.", rich_help_panel=_CARE
        ),
    ] = 0,
    frozen_after: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="S",
            help="Restart a ComfyUI that is silent and idle for this many seconds.",
            rich_help_panel=_CARE,
        ),
    ] = 30.0,
    node: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL[@GPU]",
            help="A ComfyUI that already runs on this host. Repeatable.",
            rich_help_panel=_BESIDE,
        ),
    ] = None,
    output_dir: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Output folder of a --node: finished jobs' files are deleted. Repeatable.",
            rich_help_panel=_BESIDE,
        ),
    ] = None,
    input_dir: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR", help="Input folder of a --node. Repeatable.", rich_help_panel=_BESIDE
        ),
    ] = None,
    models_dir: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Folder `models` of a --node: it is watched, and files can be fetched into it. Repeatable.",
            rich_help_panel=_BESIDE,
        ),
    ] = None,
    restart_command: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]CMD",
            help="Restart a --node, or each of them, by this command, without a shell; {name} is filled in. "
            "Repeatable.",
            rich_help_panel=_BESIDE,
        ),
    ] = None,
) -> None:
    """Run the agent of one GPU host: start, watch and register its ComfyUIs, and answer HAProxy for them.

    Without --comfyui and --node it is the central agent: it answers for all nodes that were added by URL.

    Example: `FLEET_AGENT_TOKEN_FILE=token fleet agent --join http://FLEET:8189 --comfyui ~/ComfyUI`.
    """
    from comfy_fleet.agent.main import AgentOptions, serve
    from comfy_fleet.cli.parameters import pairs
    from comfy_fleet.cli.processes import load, logging_as
    from comfy_fleet.domain.nodes.node import check_name
    from comfy_fleet.domain.nodes.process_supervision import RestartLimits

    given = load(data=data, agent_metrics_port=metrics_port)
    settings = logging_as("agent").model_copy(
        update={"data": given.data, "agent_metrics_port": given.agent_metrics_port}
    )
    limits = RestartLimits(
        rss_bytes=None if max_memory is None else int(max_memory * 2**30),
        jobs=max_jobs,
        frozen_s=frozen_after,
    )
    options = AgentOptions(
        join=join,
        token=token,
        host=None if host is None else check_name("host", host),
        advertise=advertise,
        port=port,
        pool=None if pool is None else check_name("pool", pool),
        weight=weight,
        zone=zone,
        labels=pairs(label or [], "--label"),
        editor=editor,
        beside=beside(
            node or [],
            pairs(output_dir or [], "--output-dir"),
            pairs(input_dir or [], "--input-dir"),
            restart_command or [],
            pairs(models_dir or [], "--models-dir"),
        ),
        limits=limits,
        supervision=None
        if comfyui is None
        else _supervision(
            comfyui,
            python=python,
            args=words(comfyui_args, "--comfyui-args"),
            custom_nodes=custom_nodes,
            gpus=gpus,
            per_gpu=per_gpu,
            env=env or [],
            override=override or [],
            limits=limits,
        ),
    )
    serve(settings, options)


def beside(
    specs: Sequence[str],
    outputs: dict[str, str],
    inputs: dict[str, str],
    restarts: Sequence[str] = (),
    models: dict[str, str] | None = None,
) -> "tuple[Beside, ...]":
    """Read ``NAME=URL[@GPU]``, with folders by name, and commands that restart them.

    Raises:
        Fail: One of them has another form, a name comes twice, or a folder or command belongs to no node.
        BadInput: A name or URL can't be used.
        ConfigError: A command can't be used.
    """
    from comfy_fleet.agent.main import Beside
    from comfy_fleet.domain.nodes.node import check_name, parse_url, split_credentials

    found: list[Beside] = []
    folders = models or {}
    for spec in specs:
        # The last @ is before a GPU, or after a user and password before a host.
        match = re.fullmatch(
            r"(?P<name>[^=:/@]+)=(?P<url>https?://.+?)(?:@(?P<gpu>\d+|cpu|(?:GPU|MIG)-[\w/-]+))?", spec
        )
        if match is None:
            shown = "" if "@" in spec else f" {spec!r}"  # the text before an @ may be a password
            raise Fail(f"--node{shown} is not NAME=URL or NAME=URL@GPU", code=Exit.USAGE)
        name = check_name("node", match["name"])
        url, credentials = split_credentials(match["url"].rstrip("/"))
        host, _ = parse_url(url)
        if credentials and "." not in host and ":" not in host and host != "localhost":
            # A mistyped GPU looks like a host.
            raise Fail(
                f"--node {name}: {host!r} is neither a GPU (an index, cpu, or a UUID of `nvidia-smi -L`) "
                "nor a host with a dot in its name, as it must be behind a user and password",
                code=Exit.USAGE,
            )
        if name in {one.name for one in found}:
            raise Fail(f"--node {name} is named twice", code=Exit.USAGE)
        output, input_ = outputs.pop(name, None), inputs.pop(name, None)
        model = folders.pop(name, None)
        found.append(
            Beside(
                name=name,
                url=url,
                credentials=credentials,
                gpu=match["gpu"],
                output=Path(output).expanduser().absolute() if output else None,
                input=Path(input_).expanduser().absolute() if input_ else None,
                models=Path(model).expanduser().absolute() if model else None,
            )
        )
    for left in (*outputs, *inputs, *folders):
        raise Fail(f"a folder is named for {left}, but no --node is called so", code=Exit.USAGE)
    commands = _restarts(restarts, [one.name for one in found])
    return tuple(replace(one, restart=commands.get(one.name, ())) for one in found)


def _restarts(specs: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read ``[NAME=]CMD``, and return program and arguments by node.

    Raises:
        Fail: A command is for no node, or a node has two.
        ConfigError: One can't be used.
    """
    from comfy_fleet.agent.commanded_process import RestartTemplate
    from comfy_fleet.domain.nodes.node import NAME

    option = "--restart-command"
    if specs and not names:
        raise Fail(f"{option} is for a --node, and there is none", code=Exit.USAGE)
    found: dict[str | None, RestartTemplate] = {}
    for spec in specs:
        before, equals, command = spec.partition("=")
        one = before if equals and NAME.fullmatch(before) else None
        if one is not None and one not in names:
            raise Fail(f"{option} {spec!r}: no --node is called {one}", code=Exit.USAGE)
        if one in found:
            raise Fail(f"{option} is given twice for {one or 'all nodes'}", code=Exit.USAGE)
        found[one] = RestartTemplate.parse(command if one else spec, f"{option} of {one}" if one else option)
    rest = [name for name in names if name not in found]
    general = found.get(None)
    if general is not None and len(rest) > 1 and not general.for_all:
        raise Fail(
            f"{option} would restart the same for {', '.join(rest)}: put {{name}} where it names the node",
            code=Exit.USAGE,
        )
    chosen = {name: found.get(name, general) for name in names}
    return {name: template.argv(name) for name, template in chosen.items() if template is not None}


def _supervision(
    comfyui: Path,
    *,
    python: str | None,
    args: Sequence[str],
    custom_nodes: bool,
    gpus: str,
    per_gpu: int,
    env: Sequence[str],
    override: Sequence[str],
    limits: "RestartLimits",
) -> "Supervision":
    from comfy_fleet.adapters.comfyui.checkout import Checkout
    from comfy_fleet.agent.supervisor import Supervision
    from comfy_fleet.cli.parameters import pairs

    overrides = {}
    for spec in override:
        gpu, colon, more = spec.partition(":")
        if not colon or not gpu.strip():
            raise Fail(f"--override {spec!r} is not GPU:ARGS", code=Exit.USAGE)
        overrides[gpu.strip()] = tuple(words(more, "--override"))
    envs: dict[str, dict[str, str]] = {}
    for name, value in pairs(env, "--env").items():
        gpu, _, variable = name.rpartition(":")
        envs.setdefault(gpu.strip(), {})[variable] = value
    return Supervision(
        checkout=Checkout.find(comfyui, python=python, args=args, custom_nodes=custom_nodes),
        gpus=gpus,
        per_gpu=per_gpu,
        env=envs.pop("", {}),
        envs=envs,
        overrides=overrides,
        limits=limits,
    )
