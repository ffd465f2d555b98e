"""`fleet up` and other commands as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.children import mortal
from tests.conftest import free_port
from tests.looks import pauses


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "comfy_fleet", *argv]


def environment(**more: str) -> dict[str, str]:
    """The shell's, without what a developer may have set for a fleet of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    return {**kept, "COLUMNS": "100", **more}


def fleet(*argv: str, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv), capture_output=True, text=True, timeout=timeout_s, check=False, env=environment(**env)
    )


def until(condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    for pause in pauses(0.03, 0.2):
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(pause)
    return None  # never


def processes_of(data: Path) -> dict[int, str]:
    """Every living process that belongs to a data folder, by its arguments or its environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes()
            known = argv + b"\0" + (folder / "environ").read_bytes()
        except OSError:
            continue
        if argv and str(data).encode() in known and int(folder.name) != os.getpid():
            found[int(folder.name)] = argv.replace(b"\0", b" ").decode(errors="replace")
    return found


class Up:
    """A running `fleet up`."""

    def __init__(self, data: Path, port: int, *argv: str, **env: str) -> None:
        self.data = data
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        console_port = env.setdefault("FLEET_CONSOLE_PORT", str(free_port()))
        self.console = f"http://127.0.0.1:{console_port}"
        self.log = data.with_name(f"{data.name}-{time.monotonic_ns()}.log")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                mortal(
                    command("up", "--port", str(port), "--data", str(data), "--ready-timeout", "300", *argv)
                ),
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(**env),
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return "The fleet is ready" in self.log.read_text()

        until(ready, "the fleet is ready", 120)

    def cli(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return fleet(*argv, FLEET_API_URL=self.console)

    def json(self, *argv: str) -> Any:
        told = self.cli(*argv, "--json")
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    def get(self, path: str) -> Any:
        """What the console's API answers: to ask again and again by command line costs half a second each."""
        answer = httpx.get(f"{self.console}/api/v1/{path}", timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def child(self, name: str) -> int:
        """The process id of `fleet NAME`."""
        wanted = f"-m comfy_fleet {name}"
        return next(pid for pid, words in processes_of(self.data).items() if wanted in words)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(90)


@contextmanager
def up(data: Path, *argv: str, port: int | None = None, **env: str) -> Iterator[Up]:
    running = Up(data, port or free_port(), *argv, **env)
    try:
        running.wait_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()
