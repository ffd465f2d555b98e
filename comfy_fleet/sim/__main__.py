"""``python -m comfy_fleet.sim``: simulated nodes in the foreground."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from comfy_fleet.sim.options import SimOptions, SimTiming
from comfy_fleet.sim.server import serve


def parse(arguments: Sequence[str] | None = None) -> SimOptions:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m comfy_fleet.sim", description="Run simulated ComfyUI nodes in the foreground."
    )
    base, speed = SimOptions(), SimTiming()
    parser.add_argument("--nodes", type=int, default=base.nodes, help="how many")
    parser.add_argument("--host", default=base.host, help="address to listen on")
    parser.add_argument("--port", type=int, default=base.port, help="port of the first; 0: any free ones")
    parser.add_argument(
        "--name-prefix", default=base.name_prefix, help="they are called PREFIX-1, PREFIX-2 ..."
    )
    parser.add_argument("--vram-gib", type=float, default=base.vram_gib, help="memory of each GPU")
    parser.add_argument("--foreign-gib", type=float, default=base.foreign_gib, help="part that others hold")
    parser.add_argument("--models", type=Path, help="JSON file of model files by folder, with sizes in GB")
    parser.add_argument("--object-info", type=Path, help="a real server's /object_info: further node classes")
    parser.add_argument("--data", type=Path, help="folder for outputs and uploads; else a temporary one")
    parser.add_argument("--previews", action="store_true", help="samplers send preview pictures")
    parser.add_argument("--job-seconds", type=float, help="every prompt takes exactly this long")
    parser.add_argument("--scale", type=float, default=speed.scale, help="factor on every modelled time")
    parser.add_argument(
        "--step-seconds", type=float, default=speed.step_s, help="a sampler step per megapixel"
    )
    parser.add_argument(
        "--load-gb-per-s", type=float, default=speed.load_gb_per_s, help="reading model files"
    )
    parser.add_argument(
        "--node-seconds", type=float, default=speed.node_s, help="added to every executed node"
    )
    parser.add_argument("--faults", type=json.loads, default={}, help="JSON, as POST /sim/faults takes it")
    given = parser.parse_args(arguments)
    try:
        timing = SimTiming(
            load_gb_per_s=given.load_gb_per_s,
            step_s=given.step_seconds,
            node_s=given.node_seconds,
            scale=given.scale,
            job_s=given.job_seconds,
        )
    except ValueError as error:
        parser.error(str(error))
    return SimOptions(
        nodes=given.nodes,
        host=given.host,
        port=given.port,
        name_prefix=given.name_prefix,
        vram_gib=given.vram_gib,
        foreign_gib=given.foreign_gib,
        timing=timing,
        models=given.models,
        object_info=given.object_info,
        data=given.data,
        previews=given.previews,
        faults=given.faults,
    )


def main() -> int:
    """Run until SIGTERM or SIGINT."""
    options = parse()
    try:
        serve(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
