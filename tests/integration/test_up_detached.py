"""`fleet up --detach`: a fleet that goes on in the background."""

import contextlib
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.children import mortal
from tests.conftest import free_port
from tests.integration.up_kit import command, environment, fleet, processes_of, until

pytestmark = pytest.mark.timeout(180)


@contextmanager
def detached(data: Path) -> Iterator[list[str]]:
    """Yield the words of a `fleet up --detach`; what it left running is stopped."""
    try:
        yield command("up", "-d", "--nodes", "1", "--port", str(free_port()), "--data", str(data))
    finally:
        fleet("down", "--data", str(data))
        until(lambda: not processes_of(data), "every process has gone", 30)


def test_a_detached_fleet_is_ready_when_its_command_ends_and_says_how_to_go_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with detached(data) as words:
        # All output is read to its end: the fleet has let go of it.
        told = subprocess.run(
            words, capture_output=True, text=True, timeout=150, check=False, env=environment()
        )
        assert (told.returncode, told.stderr) == (0, "")
        assert "The fleet is ready" in told.stdout
        (url,) = re.findall(r"^console +(http://127.0.0.1:\d+)$", told.stdout, re.MULTILINE)
        assert fleet("status", FLEET_API_URL=url).returncode == 0
        for name in ("logs", "stop"):
            hint = re.search(rf"^{name}  (fleet .+)$", told.stdout, re.MULTILINE)
            assert hint, told.stdout
            with subprocess.Popen(
                mortal(command(*hint[1].split()[1:])), stdout=subprocess.PIPE, text=True, env=environment()
            ) as process:
                assert process.stdout
                assert process.stdout.readline()
                process.send_signal(signal.SIGINT)
        assert not processes_of(data)
        story = fleet("logs", "fleet", "--data", str(data)).stdout
        said = [found[1] for found in re.finditer(r"info fleet: (fleet \w+)", story)]
        assert said == ["fleet starts", "fleet ready", "fleet stops", "fleet stopped"]


def test_a_reader_that_has_seen_enough_ends_no_fleet(tmp_path: Path) -> None:
    """Not that in the foreground, either."""
    data = tmp_path / "data"
    with detached(data) as words:
        words.remove("-d")
        with subprocess.Popen(mortal(words), stdout=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stdout
            assert "The fleet is ready" in process.stdout.readline()
            process.stdout.close()
            url = json.loads((data / "run" / "up.json").read_text())["console_url"]
            assert fleet("status", FLEET_API_URL=url).returncode == 0
            assert fleet("down", "--data", str(data)).returncode == 0
            assert process.wait(30) == 0


OPENED = """
import os, sys
from comfy_fleet.cli.main import _open_standard_streams
_open_standard_streams()
with open(sys.argv[1], "w") as told:
    print(told.fileno() > 2, *(os.readlink(f"/proc/self/fd/{number}") for number in range(3)), file=told)
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_no_file_takes_the_place_of_a_closed_standard_stream(tmp_path: Path, closed: tuple[int, ...]) -> None:
    told, other = tmp_path / "told", tmp_path / "other"
    words = shlex.join([sys.executable, "-c", OPENED, str(told)])
    streams = " ".join(f"{number}>&-" if number in closed else f"{number}>{other}" for number in range(3))
    assert subprocess.run(["sh", "-c", f"{words} {streams}"], check=False, timeout=60).returncode == 0
    expected = ("/dev/null" if number in closed else str(other) for number in range(3))
    assert told.read_text().split() == ["True", *expected]


def test_a_detached_fleet_needs_no_standard_streams(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with detached(data) as words:
        told = subprocess.run(
            ["sh", "-c", f"{shlex.join(words)} <&- >&- 2>&-"],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            env=environment(),
        )
        assert (told.returncode, told.stderr) == (0, "")
        url = json.loads((data / "run" / "up.json").read_text())["console_url"]
        assert fleet("status", FLEET_API_URL=url).returncode == 0
        assert fleet("logs", "fleet", "--data", str(data)).stdout.count("fleet ready") == 1
        stopped = fleet("down", "--data", str(data))  # its lock is still held
        assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")


@pytest.mark.parametrize("target", ["| true", "> /dev/full"])
def test_words_that_nobody_takes_end_no_detached_fleet(tmp_path: Path, target: str) -> None:
    data = tmp_path / "data"
    with detached(data) as words:
        at = words.index("--port")
        del words[at : at + 2]  # that 8188 is taken is said before anything starts
        with contextlib.ExitStack() as others:
            with contextlib.suppress(OSError):  # somebody has it anyway
                others.enter_context(socket.create_server(("127.0.0.1", 8188)))
            told = subprocess.run(
                ["bash", "-o", "pipefail", "-c", f"{shlex.join(words)} {target}"],
                stderr=subprocess.PIPE,
                text=True,
                timeout=150,
                check=False,
                env=environment(),
            )
            assert (told.returncode, told.stderr) == (0, "")
            url = json.loads((data / "run" / "up.json").read_text())["console_url"]
            assert fleet("status", FLEET_API_URL=url).returncode == 0


def test_a_detached_fleet_that_can_not_start_says_why(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("no key\n")
    secret.chmod(0o600)
    with detached(tmp_path / "data") as words:
        told = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            env=environment(FLEET_SECRET_FILE=str(secret)),
        )
        assert told.returncode == 1
        assert "must hold 32 bytes" in told.stderr
        assert "must hold 32 bytes" not in told.stdout  # it is said once
        assert str(secret) in told.stderr
        assert processes_of(tmp_path / "data") == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_wait_for_a_detached_fleet_leaves_it_whole_or_away(
    tmp_path: Path, number: signal.Signals
) -> None:
    data = tmp_path / "data"
    with detached(data) as words:
        waits = subprocess.Popen(mortal(words), stdout=subprocess.PIPE, text=True, env=environment())
        until((data / "logs" / "redis.log").exists, "it starts")
        waits.send_signal(number)
        said, _ = waits.communicate(timeout=60)
        if number is signal.SIGKILL:
            assert waits.returncode == -number
            assert "The fleet is ready" in said  # read to its end: it is there, and has let go of the pipe
            url = said.split("ready at ")[1].split()[0]
            done = fleet("submit", "image_card", "-p", "prompt=x", "--wait", "--api", url)
            assert done.returncode == 0, done.stderr
            log = (data / "logs" / "fleet.log").read_text()
            assert "fleet ready" in log
            assert "fleet stops" not in log  # nobody hears that it is ready, and it goes on all the same
            down = fleet("down", "--data", str(data))
            assert down.returncode == 0, down.stderr
        else:
            assert waits.returncode == 130
        assert processes_of(data) == {}
