"""What the tests themselves stand on: children that do not outlive them, ports that nobody else draws."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.children import mortal
from tests.conftest import free_port

# Starts a child that tells when it was asked to end, says that it runs, and waits to be killed.
CHILD = """
import pathlib, signal, sys
def ended(*_):
    pathlib.Path(sys.argv[1]).write_text("asked")
    sys.exit()
signal.signal(signal.SIGTERM, ended)
print("runs", flush=True)
signal.pause()
"""
PARENT = """
import signal, subprocess, sys
from tests.children import mortal
subprocess.Popen(mortal([sys.executable, "-c", sys.argv[1], sys.argv[2]]))
signal.pause()
"""


def test_a_child_is_asked_to_end_when_its_parent_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    argv = [sys.executable, "-c", PARENT, CHILD, str(told)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"runs\n"
        parent.kill()
        assert parent.stdout.read() == b""  # the child has closed it, too: it has ended
    assert told.read_text() == "asked"


def test_it_is_the_command_itself() -> None:
    with subprocess.Popen(mortal(["sleep", "60"])) as process:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM


def test_a_child_whose_parent_is_gone_already_does_not_begin() -> None:
    command = mortal(["echo", "begun"])
    other = [word if word != str(os.getpid()) else "1" for word in command]
    assert subprocess.run(other, capture_output=True, check=True).stdout == b""


def test_a_drawn_port_can_be_listened_on_and_is_drawn_by_nobody_else() -> None:
    drawn = {free_port() for _ in range(100)}
    assert len(drawn) == 100
    ours = drawn | {port + 1 for port in drawn}
    for _ in range(2000):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] not in ours
    for port in ours:
        with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            pass
