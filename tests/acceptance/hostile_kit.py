"""What tests of hostile nodes share: a fleet's nodes, its jobs, and by how much its processes grow."""

import contextlib
import time
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.up import Up
from tests.factories import picture
from tests.hostile import MIB

GROWTH = 64 * MIB
FRAME_LIMIT = 8 * MIB
NONE_READY = {"FLEET_READY_LEASES": "0"}  # then a websocket comes with a job


def nodes(up: Up) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{up.console}/api/v1/nodes").json()["nodes"]
    return found


def node(up: Up, name: str) -> dict[str, Any]:
    return next(one for one in nodes(up) if one["name"] == name)


def wait(done: Any, up: Up, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < until, node(up, "evil")
        time.sleep(0.1)


def processes(up: Up) -> dict[int, str]:
    """Return the fleet's processes by pid, with their command lines."""
    parents, words = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words[int(folder.name)] = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
            except OSError:
                continue
    found = {up.process.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: words[pid] for pid in found if pid in words}


def memory(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


class Grown:
    """Measures by how much processes have grown at their largest, from now on."""

    def __init__(self, up: Up) -> None:
        self._words = processes(up)
        for pid in self._words:
            with contextlib.suppress(FileNotFoundError):  # one that has ended meanwhile grows no more
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # the largest size begins anew
        self._before = {pid: memory(pid, "VmRSS") for pid in self._words}

    def most(self) -> tuple[int, str]:
        return max((memory(pid, "VmHWM") - had, self._words[pid]) for pid, had in self._before.items())


def submit(up: Up, pool: str, color: int) -> str:
    body = {"workflow": picture(color), "pool": pool}
    answer = httpx.post(f"{up.url}/api/v2/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def job(up: Up, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{up.url}/api/v2/jobs/{id_}").json()
    return found


def others_work(up: Up, color: int) -> None:
    """A job on another node ends on time."""
    began = time.monotonic()
    id_ = submit(up, "default", color)
    while not job(up, id_)["completed_at"]:
        assert time.monotonic() - began < 10
        time.sleep(0.05)
    assert job(up, id_)["status"] == "succeeded"
