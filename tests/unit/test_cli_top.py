"""``fleet top``: what it draws at any size, in a pipe, and while the API is away."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.cli.exits import Exit
from comfy_fleet.cli.top_frame import Scene, frame
from tests.canned import Canned, error, run

GIB = 2**30
AT = "2030-01-01T00:10:00.000Z"
EVIL = "\x1b[2J\u202eevil 狐\r\n"


def node(name: str, **more: Any) -> dict[str, Any]:
    shown = {
        "name": name,
        "pool": "default",
        "host": "box1",
        "state": "up",
        "why": "",
        "simulated": False,
        "gpu": "NVIDIA GeForce RTX 4090",
        "memory_bytes": 24 * GIB,
        "memory_used_bytes": 3 * GIB,
        "temperature_c": 61,
        "utilization": 0.5,
        "done": 3,
        "failed": 0,
        "jobs": [],
    }
    return shown | more


def job(job_id: str, **more: Any) -> dict[str, Any]:
    shown = {
        "id": job_id * 8 + "-0000-4000-8000-000000000000",
        "workflow": "image_card",
        "user": "ann",
        "started_at": "2030-01-01T00:09:00.000Z",
        "progress": 0.43,
        "message": "KSampler 13/30",
        "phase": "accepted",
    }
    return shown | more


def answer(nodes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    states: dict[str, int] = {}
    for one in nodes:
        states[one["state"]] = states.get(one["state"], 0) + 1
    waiting = [
        {
            "id": f"{number:08x}-0000-4000-8000-000000000000",
            "workflow": None,
            "user": "bob",
            "pool": "default",
            "created_at": "2030-01-01T00:06:40.000Z",
            "waiting_for": f"behind {number} of your own",
        }
        for number in range(10)
    ]
    ended = [
        {
            "id": f"{number:08x}-0000-4000-8000-000000000001",
            "status": "failed" if number == 2 else "succeeded",
            "workflow": "image_card",
            "user": "ann",
            "node": "gpu1",
            "started_at": "2030-01-01T00:08:00.000Z",
            "completed_at": "2030-01-01T00:08:04.000Z",
            "error": "out_of_memory: CUDA" if number == 2 else None,
        }
        for number in range(20)
    ]
    pool = {"name": "default", "waiting": 42, "oldest_s": 200.0, "nodes": len(nodes)}
    pool |= {"up": states.get("up", 0), "busy": sum(bool(one["jobs"]) for one in nodes)}
    return {
        "at": AT,
        "ready": True,
        "reasons": [],
        "notes": [],
        "queued": 42,
        "batch_items": 0,
        "dispatchers": 1,
        "states": states,
        "pools": [pool],
        "nodes": nodes,
        "more_nodes": 0,
        "waiting": waiting,
        "ended": ended,
    } | more


SOME = [
    node("gpu1", jobs=[job("a")]),
    node("gpu2", state="drained", why="new fans", jobs=[job("b", phase="left")]),
    node("gpu3", state="down", why="Layer4 connection problem: Connection refused"),
    node("gpu4", temperature_c=None, utilization=None, memory_used_bytes=None),
]
MANY = [*SOME, *(node(f"gpu{number}", memory_used_bytes=number * GIB // 100) for number in range(5, 301))]


def shown(seen: dict[str, Any], width: int = 80, height: int | None = 24, **more: Any) -> list[str]:
    return [line.plain for line in frame(Scene(seen=seen, url="http://f", **more), width, height)]


@given(
    width=st.integers(10, 250),
    height=st.integers(1, 90),
    count=st.integers(0, 40),
    text=st.text(max_size=30),
    keys=st.booleans(),
)
def test_it_fits_into_any_terminal(width: int, height: int, count: int, text: str, keys: bool) -> None:
    nodes = [node(f"n{number}", why=text, gpu=text, jobs=[job("c", message=text)]) for number in range(count)]
    seen = answer(nodes, notes=[text], reasons=[{"part": "nodes", "why": text}])
    lines = frame(Scene(seen=seen, url="http://f", silent=text, keys=keys), width, height)
    assert len(lines) <= height
    assert all(line.cell_len <= width for line in lines), [line.plain for line in lines]
    assert not any("\n" in line.plain or "\x1b" in line.plain for line in lines)


def test_each_part_is_there_at_80_by_24() -> None:
    text = "\n".join(shown(answer(SOME)))
    for part in ("ready  4 nodes: 2 up, 1 down, 1 drained", "42 waiting, oldest 3m 20s", "Pool", "gpu4"):
        assert part in text
    assert "image_card 43% KSampler" in text
    assert "drained: new fans" in text
    assert "down: Layer4 connection" in text
    assert re.search(r"failed +image_card +ann +gpu1 +4\.0s +1m 56s +out_of_memory", text)
    assert re.search(r"00000000 +graph +bob +3m 20s +behind 0", text)
    assert "… 40 more" in text or "… 39 more" in text  # of 42 that wait, two or three are shown


def test_a_wide_terminal_shows_ids_and_all_words() -> None:
    text = "\n".join(shown(answer(SOME), 160, 60))
    assert "aaaaaaaa  image_card 43% KSampler 13/30 1m ann" in text
    assert "drained: new fans; image_card outputs are being fetched" in text
    assert "Connection refused" in text
    assert "3.0/24G" in text


def test_trouble_first_then_work_then_equal_idle_nodes_in_one_line() -> None:
    lines = shown(answer(MANY), 100, 24)
    words = ("gpu3 ", "gpu1 ", "297 idle")
    places = [next(at for at, line in enumerate(lines) if word in line) for word in words]
    assert places == sorted(places)
    assert "gpu4 … gpu300" in lines[places[2]]
    by_name = shown(answer(MANY), 100, 24, by_name=True)
    assert [line.split()[0] for line in by_name if line.startswith("gpu")][:3] == ["gpu1", "gpu2", "gpu3"]
    busy = [node(f"gpu{number}", jobs=[job("d")]) for number in range(1, 101)]
    left = next(line for line in shown(answer(busy, more_nodes=7)) if "not listed" in line)
    assert re.fullmatch(r"… (\d+) more: (\d+) busy, 7 not listed", left), left
    own = [node(f"n{at}", gpu=f"A (n{at})") for at in range(1, 10)]
    assert any(line.startswith("n1 … n9") for line in shown(answer(own), 80, 16))


def test_in_a_pipe_one_plain_frame_without_end(canned: Canned) -> None:
    canned.on("GET", "/api/v1/overview", answer(SOME, notes=[EVIL]))
    found = run(canned, "top", "--pool", "default")
    assert found.exit_code == 0, found.output
    assert "\x1b" not in found.stdout
    assert "\\x1b[2J\\u202eevil 狐" in found.stdout
    assert "down: Layer4 connection problem: Connection refused" in found.stdout
    assert found.stdout.count("succeeded") == 19
    assert json.loads(run(canned, "top", "--json").stdout)["queued"] == 42


def test_errors_end_it_as_they_end_other_commands(canned: Canned) -> None:
    assert "earlier version" in str(run(canned, "top").exception)
    canned.on("GET", "/api/v1/overview", error("forbidden", "this needs a key with the role operator"), 403)
    refused = run(canned, "top").exception
    assert getattr(refused, "exit", None) is Exit.REFUSED
    assert run(canned, "top", "--interval", "0.1").exit_code == Exit.USAGE


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, pid: int, file: int) -> None:
        self.pid, self.file, self.written = pid, file, ""

    def size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, holds: Callable[[str], bool]) -> str:
        """Read until what was written fits; return it, and begin anew."""
        deadline = time.monotonic() + 60
        while not holds(self.written):
            assert time.monotonic() < deadline, self.written[-3000:]
            if select.select([self.file], [], [], 0.2)[0]:
                try:
                    self.written += os.read(self.file, 65536).decode(errors="replace")
                except OSError:  # the other end was closed
                    assert holds(self.written), self.written[-3000:]
        found, self.written = self.written, ""
        return found

    def press(self, key: str) -> None:
        os.write(self.file, key.encode())

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def terminal(*argv: str, **env: str) -> Iterator[Terminal]:
    pid, file = pty.fork()
    if pid == 0:
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        command = [sys.executable, "-m", "comfy_fleet", *argv]
        os.execve(command[0], command, {**kept, "TERM": "xterm", **env})
    opened = Terminal(pid, file)
    opened.size(80, 24)
    try:
        yield opened
    finally:
        os.close(file)


def test_live_in_a_terminal(canned: Canned) -> None:
    canned.on("GET", "/api/v1/overview", answer(SOME))
    with terminal("top", "--api", canned.url, "--interval", "1") as screen:
        screen.until(lambda text: "KSampler" in text and "q quit" in text)
        canned.on("GET", "/api/v1/overview", b"<html>", 502)
        screen.until(lambda text: "no answer since" in text and "gpu3" in text)
        canned.on("GET", "/api/v1/overview", answer([node("gpu9")]))
        screen.until(lambda text: "gpu9" in text and "no answer" not in text.rpartition("comfy_fleet")[2])
        screen.size(150, 40)
        wide = screen.until(lambda text: "q quit" in text)
        assert max(len(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)) for line in wide.split("\n")) > 100
        screen.press("p")
        screen.until(lambda text: "paused" in text)
        screen.press("q")
        screen.until(lambda text: "\x1b[?1049l" in text)
        assert screen.end() == 0


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_none_are_wanted(canned: Canned, env: dict[str, str]) -> None:
    canned.on("GET", "/api/v1/overview", answer(SOME))
    with terminal("top", "--api", canned.url, "--once", **env) as screen:
        text = screen.until(lambda text: "Ended" in text and "behind" in text)
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text)
        assert screen.end() == 0
