"""How `fleet up` starts, refuses to start, stops and starts again."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.children import mortal
from tests.conftest import free_port
from tests.integration.agent_kit import checkout
from tests.integration.up_kit import Up, command, environment, fleet, processes_of, until, up
from tests.key_files import write_keys

pytestmark = pytest.mark.timeout(240)


def test_whatever_ends_it_leaves_nothing_behind_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """First it is asked to end, then killed, then interrupted; the first and the last take no job along."""
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)  # a folder that was there before, and that others may read
    with up(data, "--nodes", "1", "--job-seconds", "0.1") as first:
        done = first.json("submit", "image_card", "-p", "prompt=before", "--wait")
        assert first.cli("node", "drain", "sim-1").returncode == 0
        waiting = first.json("submit", "image_card", "-p", "prompt=later")
        assert len(processes_of(data)) >= 7
        assert first.stop() == 0
        assert_nothing_left(first)
    # The cordon of sim-1 outlives the restart: the job needs a second node.
    with up(data, "--nodes", "2", "--job-seconds", "60") as second:  # longer than a few command lines take
        assert second.json("job", "show", done["id"])["status"] == "succeeded"
        until(lambda: second.get(f"jobs/{waiting['id']}")["status"] == "running", "the job runs")
        assert second.get(f"jobs/{waiting['id']}")["node"] == "sim-2"
        queued = second.json("submit", "image_card", "-p", "prompt=queued")
        second.stop(signal.SIGKILL)
        until(lambda: not processes_of(data), "every process has gone", 20)
    with up(data, "--nodes", "2", "--job-seconds", "0.1") as third:
        for job in (waiting, queued):
            followed = third.cli("job", "events", job["id"], "--timeout", "60")
            assert followed.returncode == 0, (followed.stdout, third.log.read_text())
            assert third.json("job", "show", job["id"])["node"] == "sim-2"
        assert_private(third, tmp_path)
        assert_emptied_redis_is_filled(third)
        assert third.stop(signal.SIGINT) == 0
        assert_nothing_left(third)


def assert_nothing_left(ended: Up) -> None:
    assert processes_of(ended.data) == {}
    assert "stopped" in ended.log.read_text()
    with socket.create_server(("127.0.0.1", ended.port), reuse_port=False):
        pass  # its port is free again


def assert_private(running: Up, folder: Path) -> None:
    """What it writes is for its user alone."""
    status = {pid: Path(f"/proc/{pid}/status").read_text() for pid in processes_of(running.data)}
    assert len(status) >= 7
    assert {pid for pid, told in status.items() if "Umask:\t0077" not in told} == set()
    modes = {path: path.lstat().st_mode for path in running.data.rglob("*")}
    assert len(modes) > 10
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
    picture = folder / "picture"
    picture.touch()
    assert picture.stat().st_mode & 0o044  # this process's own umask hides nothing


def assert_emptied_redis_is_filled(running: Up) -> None:
    """Its nodes come back to a Redis that was emptied, and work."""
    note = json.loads((running.data / "run" / "up.json").read_text())
    with contextlib.closing(redis.Redis.from_url(note["settings"]["redis_url"])) as store:
        store.flushall()
        until(lambda: store.hlen("fleet:nodes"), "its node is registered again")
    job = running.json("submit", "image_card", "-p", "prompt=x", "--wait", "--timeout", "40")
    assert job["status"] == "succeeded"


def test_wrong_keys_are_refused_before_anything_starts(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "only-a-name\n")
    told = fleet(
        *("up", "--nodes", "0", "--port", str(free_port()), "--data", str(tmp_path / "data")),
        FLEET_KEYS_FILE=str(keys),
    )
    assert told.returncode == 1
    assert told.stderr.startswith("error: FLEET_KEYS_FILE")
    assert "line 1" in told.stderr
    left = {path.name for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert left == {"up.json", "up.lock"}  # nothing was started that would leave a log


def test_a_wrong_option_for_the_simulated_nodes_is_told_in_words(tmp_path: Path) -> None:
    told = fleet(
        *("up", "--nodes", "1", "--port", str(free_port()), "--data", str(tmp_path / "data")),
        *("--sim-args", "--no-such-option"),
    )
    assert told.returncode == 1
    assert "sim ends again and again: Error: No such option: --no-such-option" in told.stderr


def test_a_program_that_is_too_old_is_told_before_anything_starts(tmp_path: Path) -> None:
    data, port = tmp_path / "data", str(free_port())
    program = tmp_path / "haproxy"
    program.write_text("#!/bin/sh\necho 'HA-Proxy version 2.2.9-2+deb11u6 2023/12/29'\n")
    program.chmod(0o755)
    for argv in (("up", "--nodes", "0", "--port", port, "--data", str(data)), ("haproxy", "run")):
        told = fleet(*argv, FLEET_HAPROXY_BIN=str(program), FLEET_DATA=str(data), FLEET_LOG_FORMAT="text")
        assert told.returncode == 1
        assert "HAProxy 2.2.9 is too old; install HAProxy 2.6 or newer" in told.stderr
        assert "again and again" not in told.stderr
    assert processes_of(data) == {}


def test_a_secret_that_is_no_key_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("no key\n")
    secret.chmod(0o600)
    told = fleet(
        *("up", "--nodes", "0", "--port", str(free_port()), "--data", str(tmp_path / "data")),
        FLEET_SECRET_FILE=str(secret),
    )
    assert told.returncode == 1
    assert "ends again and again" not in told.stderr  # it is read before the others start
    assert "FLEET_SECRET_FILE" in told.stderr
    assert processes_of(tmp_path / "data") == {}


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A file with the keys of a user and of an operator."""
    keys = tmp_path / "my keys"
    write_keys(keys, "# who may\nann ann-0123456789abcdef# a comment\nroot root-0123456789abcdef admin\n")
    return keys


def try_the_line(started: Up) -> str:
    """Paste what it says to try; returns all that it has said."""
    until(lambda: "Ctrl-C" in started.log.read_text(), "all is said")
    said = started.log.read_text()
    told = re.search(r"^try +(.+)$", said, re.MULTILINE)
    assert told
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    pasted = subprocess.run(
        ["sh", "-c", told[1]], capture_output=True, text=True, check=False, env=environment(PATH=path)
    )
    assert pasted.returncode == 0, pasted.stderr
    assert "succeeded" in pasted.stdout
    return said


def assert_no_key_in_logs(started: Up) -> None:
    for log in (started.log, *(started.data / "logs").glob("*.log")):
        assert "0123456789abcdef" not in log.read_text(), log


def test_keys_guard_the_fleet_and_the_line_to_try_works_when_it_is_pasted(
    tmp_path: Path, named: Path
) -> None:
    argv = ("--nodes", "1", "--job-seconds", "0.1")
    with up(tmp_path / "data", *argv, FLEET_HOST="127.0.0.1", FLEET_KEYS_FILE=str(named)) as started:
        assert "from  other machines: http://" not in try_the_line(started)
        ann = ("--key", "ann-0123456789abcdef")
        assert started.cli("job", "ls").returncode == 8
        assert started.cli("job", "ls", *ann).returncode == 0
        assert started.cli("node", "drain", "sim-1", *ann).returncode == 8
        sent = started.cli("submit", "image_card", "-p", "prompt=x", "--wait", *ann)
        assert sent.returncode == 0, sent.stderr
        assert_no_key_in_logs(started)


def test_with_an_unknown_variable_and_open_to_others_it_says_so_and_down_stops_it(
    tmp_path: Path, named: Path
) -> None:
    """The variable is told once, and not by every child; the line to try works for others' machines, too."""
    data = tmp_path / "data"
    assert fleet("down", "--data", str(data)).returncode == 7
    argv = ("--nodes", "1", "--job-seconds", "0.1", "--verbose")
    with up(
        data,
        *argv,
        FLEET_HOST="0.0.0.0",
        FLEET_KEYS_FILE=str(named),
        FLEET_BOGUS="1",
        FLEET_QUEUE_DEPTH="7",
    ) as started:
        assert "from  other machines: http://" in try_the_line(started)
        assert started.log.read_text().count("FLEET_BOGUS") == 1
        assert "warning: nothing reads" in started.log.read_text().splitlines()[0]
        for log in (data / "logs").glob("*.log"):
            assert "nothing reads" not in log.read_text(), log
        assert_no_key_in_logs(started)
        told = fleet("down", "--data", str(data))
        assert (told.returncode, told.stdout.strip()) == (0, "stopped")
        assert started.process.wait(10) == 0
        assert processes_of(data) == {}


def test_an_agent_runs_and_restarts_its_comfyuis(tmp_path: Path) -> None:
    home = checkout(tmp_path).home
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    argv = ("--comfyui", str(home), "--comfyui-python", sys.executable, "--nodes", "2")
    with up(data, *argv, CUDA_VISIBLE_DEVICES="") as started:

        def nodes() -> dict[str, Any]:
            return {node["name"]: node for node in started.get("nodes")["nodes"]}

        def all_up() -> bool:
            return [node["verdict"] for node in nodes().values()] == ["up", "up"]

        until(all_up, "both nodes are up")
        first, second = sorted(nodes())
        assert (first[-7:], second[-7:]) == ("-cpu0-0", "-cpu0-1")
        assert first in started.log.read_text()
        until(lambda: nodes()[first]["simulated"], "the stand-in says so itself, once it is read")
        urls = {name: node["url"] for name, node in nodes().items()}

        def of_first() -> list[int]:
            return [pid for pid, argv in processes_of(data).items() if "main.py" in argv and first in argv]

        (pid,) = of_first()
        os.kill(pid, signal.SIGKILL)
        # A busy machine may not get to see it gone: it is back in a second or two.
        until(lambda: of_first() not in ([], [pid]), "it has been started again")
        until(all_up, "both nodes are up again")
        until(lambda: f"info host-agent: runs again node={first} " in started.log.read_text(), "it is said")
        assert "why=killed by signal SIGKILL (perhaps out of memory)" in started.log.read_text()
        job = started.json("submit", "image_card", "-p", "prompt=on an agent's node", "--wait")
        assert job["node"] in urls
        assert_private(started, tmp_path)
        assert started.cli("node", "drain", first).returncode == 0
        assert started.stop() == 0
        assert processes_of(data) == {}
    with up(data, CUDA_VISIBLE_DEVICES="") as again:  # names no nodes: the same start, and no simulated ones
        assert {node["name"] for node in again.json("node", "ls")["nodes"]} == {first, second}
        assert f"the fleet goes on with {first}, {second} (--comfyui {home}, as at the last start); " in (
            again.log.read_text()
        )
        assert_emptied_redis_is_filled(again)


def test_a_comfyui_that_can_not_start_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    home = checkout(tmp_path).home
    (home / "main.py").write_text("raise SystemExit('no module named torch')\n")
    told = fleet(
        *("up", "--port", str(free_port()), "--data", str(tmp_path / "data")),
        *("--comfyui", str(home), "--comfyui-python", sys.executable, "--nodes", "1"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert told.returncode == 1
    assert "cpu0 ends again and again: ended with exit 1: no module named torch" in told.stderr
    assert processes_of(tmp_path / "data") == {}


def test_a_taken_default_port_is_no_hindrance(tmp_path: Path) -> None:
    log, argv = tmp_path / "up.log", ("up", "--nodes", "1", "--job-seconds", "0.1")
    taken = contextlib.ExitStack()
    with contextlib.suppress(OSError):  # somebody has it anyway
        taken.enter_context(socket.create_server(("127.0.0.1", 8188)))

    @contextmanager
    def started(last: str) -> Iterator[list[str]]:
        with log.open("wb") as out:
            process = subprocess.Popen(
                mortal(command(*argv)), stdout=out, stderr=out, env=environment(), cwd=tmp_path
            )
        try:
            until(lambda: last in log.read_text() or process.poll() is not None, f"it says {last}", 60)
            assert process.poll() is None, log.read_text()
            yield log.read_text().splitlines()
        finally:
            process.terminate()
            process.wait(40)

    def here(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*argv), capture_output=True, text=True, check=False, env=environment(), cwd=tmp_path
        )

    with taken, started("Ctrl-C") as told:
        first = re.fullmatch(
            r"port 8188 is taken by .+; the fleet takes port (\d+): (http://127\.0\.0\.1:\1)", told[0]
        )
        assert first, told
        assert f"The fleet is ready at {first[2]}" in told[1]
        exported = re.search(r"export FLEET_API_URL=(\S+);", "\n".join(told))
        assert exported, told
        assert httpx.get(f"{exported[1]}/api/v1/nodes").status_code == 200
        # Commands in the same place find it without being told.
        assert exported[1] in here("status").stdout
        assert here("submit", "image_card", "-p", "prompt=x", "--wait").returncode == 0
    with started("as at the last start") as again:
        assert again[0].startswith(f"the fleet stays at port {first[1]}, as at the last start")
        assert again[0].endswith(first[2])


def test_a_named_port_that_is_a_nodes_is_told_in_these_words(tmp_path: Path) -> None:
    port = free_port()
    node = f"http://127.0.0.1:{port}"
    told = fleet("up", "--port", str(port), "--node", node, "--data", str(tmp_path / "data"))
    assert told.returncode == 2
    assert f"--port {port} is the port of --node node-1 (127.0.0.1:{port})" in told.stderr
    assert "stop" not in told.stderr
