"""What a process and its children use: of this very machine, and of one that was written down."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from comfy_fleet.adapters.system.procfs import family, listener, used

CHILD = """
import subprocess, sys, time
p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(p.pid, flush=True)
time.sleep(60)
"""


def test_a_process_counts_with_its_children() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        try:
            assert family(process.pid) == {process.pid, grandchild}
            found = used(process.pid)
            assert found.pids == {process.pid, grandchild}
            assert found.own_bytes is not None
            assert 2**20 < found.own_bytes < 2**28
        finally:
            os.kill(grandchild, 9)
            process.kill()


def test_what_does_not_exist_uses_nothing(tmp_path: Path) -> None:
    assert used(1, tmp_path).pids == frozenset()
    assert used(1, tmp_path).own_bytes is None


def test_numbers_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    (folder / "task" / "7").mkdir(parents=True)
    (folder / "task" / "7" / "children").write_text("")
    numbers = " ".join(["0"] * 10 + ["150", "50"] + ["0"] * 10)
    (folder / "stat").write_text(f"7 (a (b) name) D {numbers}\n")
    (folder / "status").write_text("Name:\tx\nRssAnon:\t  1024 kB\nRssFile:\t 9999 kB\nRssShmem:\t 1 kB\n")
    (folder / "io").write_text("rchar: 5\nread_bytes: 4096\n")
    found = used(7, tmp_path)
    assert found.cpu_s == 200 / os.sysconf("SC_CLK_TCK")
    assert (found.read_bytes, found.own_bytes, found.blocked) == (4096, 1025 * 1024, True)


def test_who_listens_on_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listener(server.getsockname()[1]) == os.getpid()
        port = server.getsockname()[1]
    assert listener(port) is None
