"""A folder that looks like a ComfyUI checkout and serves a simulated node, for figures about supervision."""

from pathlib import Path

from comfy_fleet.settings import SOURCE

_MAIN = '''
"""Takes ComfyUI's arguments and serves a simulated node, after the time that a start takes."""
import argparse, sys, time
from pathlib import Path

sys.path.insert(0, {source!r})
from comfy_fleet.sim.options import SimOptions, SimTiming
from comfy_fleet.sim.server import serve

parser = argparse.ArgumentParser()
parser.add_argument("--listen")
parser.add_argument("--port", type=int)
parser.add_argument("--output-directory", type=Path)
given, _ = parser.parse_known_args()
time.sleep({start_s!r})
place = {{"host": given.listen, "port": given.port, "data": given.output_directory.parent / "sim"}}
serve(SimOptions(**place, timing=SimTiming(job_s={job_s!r})))
'''


def make(folder: Path, *, start_s: float, job_s: float) -> Path:
    """Make the checkout.

    Args:
        folder: Where; it is made.
        start_s: How long a start takes besides the imports.
        job_s: How long every job takes.
    """
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").write_text("")
    (folder / "main.py").write_text(_MAIN.format(source=str(SOURCE), start_s=start_s, job_s=job_s))
    return folder
