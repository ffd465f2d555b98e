"""A stand-in for systemd in tests: simulated nodes as units, each a process that comes back when it ends.

Called with a folder and ``NAME:PORT`` for each unit. It writes ``NAME.pid`` and, beside it, a program
``systemctl`` that restarts a unit: it ends the unit's process and waits for the next one.
"""

import os
import signal
import sys
from pathlib import Path

from comfy_fleet.adapters.system.child_processes import dies_with_parent
from comfy_fleet.sim.options import SimOptions, SimTiming
from comfy_fleet.sim.server import serve

JOB_S = 0.4
SYSTEMCTL = """#!/bin/sh
# systemctl restart comfyui@NAME
name=${{2#comfyui@}}
cd '{folder}' || exit 1
echo "$1 $2" >> commands
if [ -e "$name.refused" ]; then
    echo "Failed to restart $2.service: Access denied"
    exit 4
fi
old=$(cat "$name.pid")
kill -9 "$old"
while [ "$(cat "$name.pid")" = "$old" ]; do sleep 0.05; done
"""


def _start(folder: Path, name: str, port: int) -> int:
    bind = dies_with_parent(signal.SIGKILL)
    pid = os.fork()
    if pid == 0:
        if bind is not None:
            bind()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        serve(SimOptions(port=port, name_prefix=name, data=folder / name, timing=SimTiming(job_s=JOB_S)))
        os._exit(0)
    made = folder / f"{name}.new"
    made.write_text(str(pid))
    made.replace(folder / f"{name}.pid")
    return pid


def main() -> None:
    """Keep the units until SIGTERM."""
    folder = Path(sys.argv[1])
    ports = {name: int(port) for name, _, port in (word.partition(":") for word in sys.argv[2:])}
    program = folder / "systemctl"
    program.write_text(SYSTEMCTL.format(folder=folder))
    program.chmod(0o755)
    units = {_start(folder, name, port): name for name, port in ports.items()}
    while True:
        pid, _ = os.wait()
        name = units.pop(pid)
        units[_start(folder, name, ports[name])] = name


if __name__ == "__main__":
    main()
