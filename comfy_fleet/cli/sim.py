"""``fleet sim``: simulated ComfyUI nodes, to try things out and for tests."""

import json
from pathlib import Path
from typing import Annotated

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.processes import logging_as


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Single processes")(sim)


def sim(
    nodes: Annotated[int, typer.Option(metavar="N", min=1, help="How many.")] = 1,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Port of the first node; the others follow. 0: any free ports."),
    ] = 8301,
    name_prefix: Annotated[
        str, typer.Option(metavar="PREFIX", help="Names are PREFIX-1, PREFIX-2, ...")
    ] = "sim",
    comfyui: Annotated[
        str, typer.Option(metavar="VERSION", help="Version of ComfyUI to simulate: 0.33.0 or 0.3.64.")
    ] = "0.33.0",
    vram_gib: Annotated[float, typer.Option(min=0.1, help="Memory of each GPU.")] = 24.0,
    foreign_gib: Annotated[float, typer.Option(min=0, help="Part of it that other processes hold.")] = 0.0,
    job_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="S", help="Duration of every job.", show_default="by a model of the graph"
        ),
    ] = None,
    step_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Duration of a sampler step for a megapixel.")
    ] = 0.12,
    batch_share: Annotated[
        float,
        typer.Option(
            min=0, help="Time of each further picture of a batch, compared with the first: 1 is as long."
        ),
    ] = 1.0,
    node_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Time added to every executed node.")
    ] = 0.0,
    load_gb_per_s: Annotated[float, typer.Option(min=0.001, help="Speed of reading model files.")] = 4.0,
    scale: Annotated[float, typer.Option(min=0, help="Factor on every modelled time.")] = 1.0,
    models: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file with the nodes' model files.")
    ] = None,
    object_info: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with a real ComfyUI's /object_info, for further node classes."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for their files.", show_default="a temporary one"),
    ] = None,
    previews: Annotated[bool, typer.Option("--previews", help="Samplers send preview pictures.")] = False,
    faults: Annotated[
        str, typer.Option(metavar="JSON", help="Faults from the start, in the form of POST /sim/faults.")
    ] = "{}",
) -> None:
    """Serve SIMULATED ComfyUI nodes: the native API, test pictures, no GPU."""
    from comfy_fleet.sim.faults import BadFault
    from comfy_fleet.sim.options import SimOptions, SimTiming
    from comfy_fleet.sim.server import serve

    logging_as("sim")
    try:
        wanted = json.loads(faults)
    except ValueError as error:
        raise Fail(f"--faults is not JSON: {error}", code=Exit.USAGE) from error
    try:
        options = SimOptions(
            nodes=nodes,
            host=host,
            port=port,
            name_prefix=name_prefix,
            comfyui=comfyui,
            vram_gib=vram_gib,
            foreign_gib=foreign_gib,
            timing=SimTiming(
                load_gb_per_s=load_gb_per_s,
                step_s=step_seconds,
                batch_share=batch_share,
                node_s=node_seconds,
                scale=scale,
                job_s=job_seconds,
            ),
            models=models,
            object_info=object_info,
            data=data,
            previews=previews,
            faults=wanted,
        )
        serve(options)
    except (ValueError, BadFault) as error:
        raise Fail(str(error), code=Exit.USAGE) from error
    except OSError as error:
        if error.filename is not None:  # a file or folder, and no socket
            raise Fail(f"can't use {error.filename}: {error.strerror}", code=Exit.USAGE) from error
        raise Fail(f"can't listen on {host}:{port}: {error.strerror}", hint="use another --port") from error
