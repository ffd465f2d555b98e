"""A real ComfyUI on the CPU, for tests marked ``comfyui``.

``COMFYUI_HOME`` names its folder, ``COMFYUI_PYTHON`` the interpreter that has its packages (else its own
``venv`` or ``.venv``, else this one). It gets its own folders and a free port; nothing is written into
its home. Its testing nodes (``TestSleep`` and others) are loaded from there, and one of ours beside them.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.children import mortal
from tests.comfyui_shapes import write_pack

START_CPU_S = 90.0
"""Of processor time: about 10 are needed, and how long that takes is the machine's business."""
STILL_S = 60.0
"""For how long a ComfyUI that starts may do nothing (less than ``STILL_CPU_S`` of processor time)."""
STILL_CPU_S = 0.1
START_S = 600.0
"""By the clock: one that listens and answers with an error works a little for each question."""
ANSWER_S = 30.0
"""For one answer of a ComfyUI: httpx's own 5 s are not enough where others want the processor, too."""
Pack: TypeAlias = Callable[[Path], Path]
"""Writes custom nodes below a folder; returns what ComfyUI takes as a folder of custom nodes."""


@dataclass(frozen=True)
class ComfyServer:
    """A ComfyUI that runs.

    Attributes:
        url: ``http://127.0.0.1:PORT``.
        port: The port.
        folder: Where its output, input, temp and user folders are.
    """

    url: str
    port: int
    folder: Path


def interpreter(home: Path) -> str:
    """Return the interpreter that has ComfyUI's packages."""
    for candidate in (home / "venv/bin/python", home / ".venv/bin/python"):
        if candidate.exists():
            return str(candidate)
    return sys.executable


def command(
    home: Path, folder: Path, port: int, python: str | None = None, packs: Iterable[Pack] = ()
) -> list[str]:
    """Return the command line of a ComfyUI whose files all lie in a folder."""
    extra = folder / "extra_model_paths.yaml"
    folders = (home / "tests/execution/testing_nodes", *(write(folder) for write in (write_pack, *packs)))
    lines = "".join(f"        {pack}\n" for pack in folders)
    extra.write_text(f"testing:\n    custom_nodes: |\n{lines}")
    options = [
        "--cpu",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--extra-model-paths-config",
        str(extra),
    ]
    for name in ("output", "input", "temp", "user"):
        (folder / name).mkdir(exist_ok=True)
        options += [f"--{name}-directory", str(folder / name)]
    python = python or os.environ.get("COMFYUI_PYTHON") or interpreter(home)
    return [python, str(home / "main.py"), *options, "--database-url", "sqlite:///:memory:"]


@pytest.fixture(scope="session")
def comfyui_server(comfyui_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """One real ComfyUI for the whole session."""
    with comfyui_of(comfyui_home, tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@contextmanager
def comfyui_of(
    home: Path, folder: Path, *, python: str | None = None, packs: Iterable[Pack] = ()
) -> Iterator[ComfyServer]:
    """Run a ComfyUI whose files all lie in a folder.

    Args:
        home: Where its programs are.
        folder: For its files.
        python: The interpreter that has its packages.
        packs: Writers of further custom nodes.
    """
    with ExitStack() as stack:
        server, process = stack.enter_context(started_comfyui(home, folder, python=python, packs=packs))
        wait_until_it_answers(server, process)
        yield server


@contextmanager
def started_comfyui(
    home: Path,
    folder: Path,
    *,
    python: str | None = None,
    port: int | None = None,
    packs: Iterable[Pack] = (),
) -> Iterator[tuple[ComfyServer, subprocess.Popen[bytes]]]:
    """Start a ComfyUI as :func:`comfyui_of` does, but don't wait for it: several start at once.

    Args:
        home: Where its programs are.
        folder: For its files; those of an earlier start may be there.
        python: The interpreter that has its packages.
        port: Where it listens; a free port if not given.
        packs: Writers of further custom nodes.
    """
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
    server = ComfyServer(f"http://127.0.0.1:{port}", port, folder)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            mortal(command(home, folder, port, python, packs)),
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            # Linux gives each session the same share of the processors (autogroup). In the tests' session,
            # ComfyUI would share theirs with a browser; as a service, it has one of its own.
            start_new_session=True,
        )
    try:
        yield server, process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(server: ComfyServer, process: subprocess.Popen[bytes]) -> None:
    """Wait until a ComfyUI that was started can take a prompt.

    The test fails if it ends, if it has used up much more processor time than a start needs, if it does
    nothing any more, or after ``START_S``. Where processor time can't be read, only the first and last count.
    """
    began = moved = time.monotonic()
    used_s = 0.0
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/prompt", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            tail = (server.folder / "log").read_text(errors="replace")[-2000:]
            if process.poll() is not None:
                pytest.fail(f"ComfyUI ended with {process.returncode}:\n{tail}")
            clock = time.monotonic()
            now_s = _processor_s(process.pid)
            if now_s is None or now_s > used_s + STILL_CPU_S:
                used_s, moved = now_s or 0.0, clock
            if now_s is not None and now_s > START_CPU_S:
                pytest.fail(f"ComfyUI does not answer after {now_s:.0f} s of processor time:\n{tail}")
            if clock - moved > STILL_S:
                pytest.fail(f"ComfyUI does not answer and has done nothing for {STILL_S:.0f} s:\n{tail}")
            if clock - began > START_S:
                pytest.fail(f"ComfyUI does not answer after {START_S:.0f} s:\n{tail}")
            time.sleep(0.2)


def _processor_s(pid: int) -> float | None:
    """Return how much processor time a child that was not waited for has used, in seconds.

    None where the system does not say so in ``/proc``.
    """
    if sys.platform != "linux":
        return None
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")
