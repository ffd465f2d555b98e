"""A fleet of its own for tests: started and stopped as a user would."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.acceptance.footprint import Footprint, footprint
from tests.children import mortal
from tests.conftest import free_port
from tests.key_files import write_keys

START_S = 120.0
STOP_S = 90.0
"""For the end of a ``fleet up``: it gives its processes up to 10 s a stage before it kills them."""


@dataclass(frozen=True)
class Up:
    """A running ``fleet up``.

    Attributes:
        before: What it took when it had just started.
    """

    url: str
    data: Path
    process: subprocess.Popen[bytes]
    console: str = ""
    before: Footprint | None = None


def start_fleet(
    data: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    within_s: float = START_S,
    port: int | None = None,
) -> Up:
    """Start ``fleet up`` and wait until a job could run; on a free port, if none is given."""
    port, console_port = port or free_port(), free_port()
    url, console = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{console_port}"
    command = [
        sys.executable,
        "-m",
        "comfy_fleet",
        "up",
        "--port",
        str(port),
        "--data",
        str(data),
        "--ready-timeout",
        "300",  # what ends the wait is below
        *arguments,
    ]
    wanted = {**os.environ, "FLEET_CONSOLE_PORT": str(console_port), **(env or {})}
    log = (data.parent / f"{data.name}.log").open("wb")
    process = subprocess.Popen(mortal(command), stdout=log, stderr=log, env=wanted)
    log.close()
    deadline = time.monotonic() + within_s
    while True:
        try:
            if httpx.get(f"{url}/api/v1/ready", timeout=5).status_code == 200:
                return Up(url, data, process, console, footprint(process.pid, data))
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = (data.parent / f"{data.name}.log").read_text()
            raise AssertionError(f"the fleet did not come up: {said[-3000:]}")
        time.sleep(0.1)


def stop_fleet(up: Up) -> None:
    """Stop it as Ctrl-C would; one that does not end fails the test, and no later one."""
    up.process.send_signal(signal.SIGINT)
    try:
        up.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        up.process.kill()
        up.process.wait()
        raise


@contextmanager
def keyed_fleet(folder: Path, keys: str, agents: str, *arguments: str, **env: str) -> Iterator[Up]:
    """Run a node for the users in ``keys``, whose agents show the token ``agents``."""
    named = folder / "keys"
    write_keys(named, keys)
    wanted = {"FLEET_KEYS_FILE": str(named), "FLEET_AGENT_TOKEN": agents, **env}
    up = start_fleet(folder / "data", "--nodes", "1", *arguments, env=wanted)
    yield up
    stop_fleet(up)
