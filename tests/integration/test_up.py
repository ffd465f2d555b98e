"""`fleet up` as an operator meets it: real processes, real Redis and HAProxy, simulated nodes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.children import mortal
from tests.conftest import free_port
from tests.integration.agent_kit import checkout

pytestmark = pytest.mark.timeout(120)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "comfy_fleet", *argv]


def environment(**more: str) -> dict[str, str]:
    """The shell's, without what a developer may have set for a fleet of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    return {**kept, "COLUMNS": "100", **more}


def fleet(*argv: str, timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv), capture_output=True, text=True, timeout=timeout_s, check=False, env=environment(**env)
    )


def until(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.03)


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
        self.log = data.with_name(f"{data.name}-{time.monotonic_ns()}.log")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                mortal(command("up", "--port", str(port), "--data", str(data), *argv)),
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(**env),
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return "The fleet is ready" in self.log.read_text()

        until(ready, "the fleet is ready", 60)

    def cli(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return fleet(*argv, FLEET_API_URL=self.url)

    def json(self, *argv: str) -> Any:
        told = self.cli(*argv, "--json")
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    def child(self, name: str) -> int:
        """The process id of `fleet NAME`."""
        wanted = f"-m comfy_fleet {name}"
        return next(pid for pid, words in processes_of(self.data).items() if wanted in words)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(40)


@contextmanager
def up(data: Path, *argv: str, port: int | None = None, **env: str) -> Iterator[Up]:
    running = Up(data, port or free_port(), *argv, **env)
    try:
        running.wait_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("up") / "data", "--nodes", "2", "--job-seconds", "0.2") as started:
        yield started


def test_it_says_where_it_is_what_it_runs_and_how_to_stop(running: Up) -> None:
    deadline = time.monotonic() + 10
    while "fleet down" not in (told := running.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)  # the port answers a moment before the last line is written
    assert running.url in told
    assert told.count("SIMULATED") >= 2
    assert "fleet down" in told
    assert httpx.get(f"{running.url}/api/v1/ready").status_code == 200


def test_a_prompt_becomes_a_picture(running: Up, tmp_path: Path) -> None:
    told = running.cli("submit", "image_card", "-p", "prompt=a red fox", "--out", str(tmp_path))
    assert told.returncode == 0, told.stderr
    assert re.search(r"on sim-[12] SIMULATED", told.stdout)
    (picture,) = tmp_path.iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in told.stdout


def test_a_graph_in_a_file_runs_as_it_is(running: Up, tmp_path: Path) -> None:
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": time.monotonic_ns() % 2**24},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "mine"}},
    }
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph))
    job = running.json("submit", str(path), "--wait")
    assert (job["status"], len(job["outputs"])) == ("succeeded", 1)
    assert running.json("job", "show", job["id"])["id"] == job["id"]
    assert running.cli("job", "events", job["id"]).returncode == 0


def test_status_and_listings_say_simulated(running: Up) -> None:
    for argv in (("status",), ("node", "ls"), ("node", "show", "sim-1")):
        told = running.cli(*argv)
        assert told.returncode == 0, told.stderr
        assert "SIMULATED" in told.stdout, argv
    assert running.json("status")["ready"] is True


def test_every_log_line_is_json_and_one_grep_tells_a_jobs_story(running: Up) -> None:
    job = running.json("submit", "image_card", "-p", "prompt=a story", "--wait")
    # The line may still be on its way from the child's pipe into the file.
    for process in ("api", "dispatch"):
        until(partial(_lines_about, running, job["id"], process), f"the lines of {process} about the job")
    for log in (running.data / "logs").glob("*.log"):
        for line in _lines(log):
            assert {"ts", "level", "process", "msg"} <= json.loads(line).keys(), (log, line)


def _lines(log: Path) -> list[str]:
    """Return the whole lines of a log: the last one may be on its way."""
    return log.read_text().rpartition("\n")[0].splitlines()


def _lines_about(running: Up, job_id: str, process: str) -> list[str]:
    lines = _lines(running.data / "logs" / f"{process}.log")
    return [line for line in lines if json.loads(line).get("job_id") == job_id]


def test_a_node_can_be_drained_resumed_and_the_reason_is_shown(running: Up) -> None:
    try:
        told = running.cli("node", "drain", "sim-2", "--wait", "--timeout", "20", "--reason", "new driver")
        assert told.returncode == 0, told.stderr
        assert "new driver" in running.cli("node", "ls").stdout
        jobs = [running.json("submit", "image_card", "-p", f"prompt=drained {n}", "--wait") for n in range(2)]
        assert {job["node"] for job in jobs} == {"sim-1"}
    finally:
        assert running.cli("node", "resume", "sim-2").returncode == 0


def test_a_workflow_is_checked_on_live_nodes(running: Up) -> None:
    good = running.json("workflow", "check", "image_card")
    assert [(found["node"], found["ok"]) for found in good["nodes"]] == [("sim-1", True), ("sim-2", True)]
    told = running.cli("workflow", "check", "image_card", "--node", "no-such-node")
    assert told.returncode == 7


def test_wrong_parameters_are_named_and_exit_2(running: Up) -> None:
    told = running.cli("submit", "image_card", "-p", "prompt=x", "-p", "width=1000000")
    assert told.returncode == 2
    assert "width" in told.stderr
    assert "Traceback" not in told.stderr


def test_haproxy_can_be_looked_at(running: Up) -> None:
    told = fleet("haproxy", "show", "--data", str(running.data), "--json")
    assert {row["server"] for row in json.loads(told.stdout)} == {"sim-1", "sim-2"}


@pytest.mark.parametrize(
    "argv", [("haproxy", "check"), ("haproxy", "render"), ("haproxy", "show"), ("health", "api"), ("down",)]
)
def test_a_fleet_that_is_not_found_is_looked_for_where_the_hint_says(
    running: Up, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    lost = fleet(*argv, "--data", str(tmp_path), FLEET_REDIS_URL="redis://127.0.0.1:1/0", FLEET_API_PORT="1")
    assert lost.returncode != 0
    assert "--data DIR" in lost.stderr
    if argv != ("down",):
        assert fleet(*argv, "--data", str(running.data)).returncode == 0


@pytest.mark.parametrize("part", ["api", "dispatch", "haproxy", "agent"])
def test_the_health_of_its_parts_can_be_asked_by_its_folder(running: Up, part: str) -> None:
    told = fleet("health", part, "--data", str(running.data))
    assert (told.returncode, told.stdout, told.stderr) == (0, "ok\n", "")


def test_the_configurations_of_a_running_fleet_can_be_made_again(running: Up) -> None:
    told = fleet("haproxy", "check", "--data", str(running.data))
    assert (told.returncode, told.stdout) == (0, "broker.cfg: ok\nedge.cfg: ok\n"), told.stderr
    made = fleet("haproxy", "render", "--data", str(running.data))
    assert made.stdout.startswith("### broker.cfg\n")
    assert f"bind '127.0.0.1:{running.port}'" in made.stdout.replace('"', "'")
    assert "server sim-1 127.0.0.1:" in made.stdout


def test_a_second_fleet_on_the_folder_is_refused(running: Up) -> None:
    told = fleet("up", "--port", str(free_port()), "--data", str(running.data))
    assert told.returncode == 8
    assert f"pid {running.process.pid}" in told.stderr


def test_a_second_fleet_on_the_port_is_refused_with_the_holders_name(running: Up, tmp_path: Path) -> None:
    told = fleet("up", "--port", str(running.port), "--data", str(tmp_path / "other"))
    assert told.returncode == 8
    assert re.search(rf"port {running.port} is taken by haproxy \(pid \d+\)", told.stderr)
    assert "--port" in told.stderr
    assert not processes_of(tmp_path / "other")


@pytest.mark.parametrize("name", ["api", "dispatch", "haproxy run", "sim"])
def test_a_killed_process_comes_back(running: Up, name: str) -> None:
    before = running.child(name)
    os.kill(before, signal.SIGKILL)
    until(lambda: _other(running, name, before), f"fleet {name} runs again")
    told = running.cli("status", "--wait", "--timeout", "30")
    assert told.returncode == 0, told.stderr
    job = running.json("submit", "image_card", "-p", f"prompt=after {name}", "--wait", "--timeout", "40")
    assert job["status"] == "succeeded"
    process = name.split(maxsplit=1)[0]
    until(lambda: re.search(rf"info {process}: runs again .*after_s=", running.log.read_text()), "it is said")
    # One line each, with a time and a reason, and nothing of what it said about others before its end.
    assert re.search(
        rf"^\d\d:\d\d:\d\d error {process}: ended by itself: "
        r"killed by signal SIGKILL \(perhaps out of memory\) status=SIGKILL again_in_s=[0-9.]+$",
        running.log.read_text(),
        re.MULTILINE,
    )


@pytest.mark.parametrize("name", ["edge", "broker"])
def test_a_killed_haproxy_comes_back_and_its_log_is_no_reason(running: Up, name: str) -> None:
    httpx.get(f"{running.url}/api/v1/jobs", headers={"Host": "no host"})  # the edge logs what is refused
    before = len(running.log.read_text())
    config = f"{name}.cfg"
    worst = max(pid for pid, words in processes_of(running.data).items() if config in words)  # the worker
    os.kill(worst, signal.SIGKILL)

    def told() -> str:
        said = running.log.read_text()[before:]
        return said if f"haproxy={name} after_s=" in said else ""

    said = until(told, f"{name} runs again")
    ended = next(line for line in said.splitlines() if f"haproxy={name} status=" in line)
    assert "haproxy ended: killed by signal SIGKILL (perhaps out of memory)" in ended
    assert '{"' not in said
    assert running.cli("status", "--wait", "--timeout", "30").returncode == 0


def test_what_an_operator_orders_is_no_alert(running: Up) -> None:
    before = len(running.log.read_text())
    try:
        for name in ("sim-1", "sim-2"):
            assert running.cli("node", "drain", name, "--wait", "--timeout", "20").returncode == 0
        log = running.data / "logs" / "haproxy.log"
        until(lambda: "has no server available" in log.read_text(), "HAProxy has said it")
    finally:
        for name in ("sim-1", "sim-2"):
            assert running.cli("node", "resume", name).returncode == 0
    assert running.cli("status", "--wait", "--timeout", "30").returncode == 0
    assert "ALERT" not in running.log.read_text()[before:]


def _other(running: Up, name: str, before: int) -> bool:
    try:
        return running.child(name) != before
    except StopIteration:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_nothing_behind_and_the_next_start_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    data = tmp_path / "data"
    with up(data, "--nodes", "1", "--job-seconds", "0.1") as first:
        done = first.json("submit", "image_card", "-p", "prompt=before", "--wait")
        assert first.cli("node", "drain", "sim-1").returncode == 0
        waiting = first.json("submit", "image_card", "-p", "prompt=later")
        assert len(processes_of(data)) >= 7
        assert first.stop(number) == 0
        assert processes_of(data) == {}
        assert "stopped" in first.log.read_text()
    # The cordon of sim-1 outlives the restart: the job needs a second node.
    with up(data, "--nodes", "2", "--job-seconds", "0.1") as second:
        assert second.json("job", "show", done["id"])["status"] == "succeeded"
        followed = second.cli("job", "events", waiting["id"], "--timeout", "40")
        assert followed.returncode == 0, followed.stderr
        assert second.json("job", "show", waiting["id"])["node"] == "sim-2"


def test_kill_9_takes_everything_along_and_loses_no_job(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with up(data, "--nodes", "1", "--job-seconds", "60") as first:  # longer than a few command lines take
        running, queued = (first.json("submit", "image_card", "-p", f"prompt={n}") for n in (1, 2))
        until(lambda: first.json("job", "show", running["id"])["status"] == "running", "the job runs")
        first.stop(signal.SIGKILL)
        until(lambda: not processes_of(data), "every process has gone", 20)
    with up(data, "--nodes", "1", "--job-seconds", "0.1") as second:
        for job in (running, queued):
            followed = second.cli("job", "events", job["id"], "--timeout", "60")
            assert followed.returncode == 0, (followed.stdout, second.log.read_text())


def test_an_unknown_variable_is_warned_of_once_and_not_by_every_child(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with up(data, "--nodes", "1", "--verbose", FLEET_BOGUS="1", FLEET_QUEUE_DEPTH="7") as started:
        assert started.log.read_text().count("FLEET_BOGUS") == 1
        assert "warning: nothing reads" in started.log.read_text().splitlines()[0]
        for log in (data / "logs").glob("*.log"):
            assert "nothing reads" not in log.read_text(), log


def test_down_stops_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert fleet("down", "--data", str(data)).returncode == 7
    with up(data, "--nodes", "0") as started:
        told = fleet("down", "--data", str(data))
        assert (told.returncode, told.stdout.strip()) == (0, "stopped")
        assert started.process.wait(10) == 0
        assert processes_of(data) == {}


def test_wrong_keys_are_refused_before_anything_starts(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("only-a-name\n")
    told = fleet(
        *("up", "--nodes", "0", "--port", str(free_port()), "--data", str(tmp_path / "data")),
        FLEET_KEYS_FILE=str(keys),
    )
    assert told.returncode == 1
    assert told.stderr.startswith("error: keys_file")
    assert "line 1" in told.stderr
    left = {path.name for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert left == {"up.json"}  # the lock: nothing was started that would leave a log


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


def test_a_process_that_can_not_start_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("no key\n")
    secret.chmod(0o600)
    told = fleet(
        *("up", "--nodes", "0", "--port", str(free_port()), "--data", str(tmp_path / "data")),
        FLEET_SECRET_FILE=str(secret),
    )
    assert told.returncode == 1
    assert "ends again and again" in told.stderr
    assert "secret_file" in told.stderr
    assert processes_of(tmp_path / "data") == {}


def test_keys_guard_the_fleet_and_its_own_parts_still_meet(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann ann-0123456789abcdef\nroot root-0123456789abcdef admin\n")
    data = tmp_path / "data"
    ann = ("--key", "ann-0123456789abcdef")
    with up(data, "--nodes", "1", "--job-seconds", "0.1", FLEET_KEYS_FILE=str(keys)) as started:
        assert started.cli("job", "ls").returncode == 8
        assert started.cli("job", "ls", *ann).returncode == 0
        assert started.cli("node", "drain", "sim-1", *ann).returncode == 8
        told = started.cli("submit", "image_card", "-p", "prompt=x", "--wait", *ann)
        assert told.returncode == 0, told.stderr
        for log in (data / "logs").glob("*.log"):
            assert "0123456789abcdef" not in log.read_text(), log


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_line_to_try_works_when_it_is_pasted(tmp_path: Path, host: str) -> None:
    keys = tmp_path / "my keys"
    keys.write_text("# who may\nann ann-0123456789abcdef# a comment\nroot root-0123456789abcdef admin\n")
    argv = ("--nodes", "1", "--job-seconds", "0.1")
    with up(tmp_path / "data", *argv, FLEET_HOST=host, FLEET_KEYS_FILE=str(keys)) as started:
        until(lambda: "Ctrl-C" in started.log.read_text(), "all is said")
        told = re.search(r"^try +(.+)$", started.log.read_text(), re.MULTILINE)
        assert told
        assert "0123456789abcdef" not in started.log.read_text()
        assert ("from  other machines: http://" in started.log.read_text()) == (host == "0.0.0.0")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        pasted = subprocess.run(
            ["sh", "-c", told[1]], capture_output=True, text=True, check=False, env=environment(PATH=path)
        )
        assert pasted.returncode == 0, pasted.stderr
        assert "succeeded" in pasted.stdout


def test_a_port_is_free_again_after_the_end(tmp_path: Path) -> None:
    port = free_port()
    with up(tmp_path / "data", "--nodes", "0", port=port) as started:
        started.stop()
    with socket.create_server(("127.0.0.1", port), reuse_port=False):
        pass


def test_an_agent_runs_and_restarts_its_comfyuis(tmp_path: Path) -> None:
    home = checkout(tmp_path).home
    data = tmp_path / "data"
    argv = ("--comfyui", str(home), "--comfyui-python", sys.executable, "--nodes", "2")
    with up(data, *argv, CUDA_VISIBLE_DEVICES="") as started:

        def nodes() -> dict[str, Any]:
            return {node["name"]: node for node in started.json("node", "ls")["nodes"]}

        def all_up() -> bool:
            return [node["verdict"] for node in nodes().values()] == ["up", "up"]

        until(all_up, "both nodes are up")
        first, second = sorted(nodes())
        assert (first[-7:], second[-7:]) == ("-cpu0-0", "-cpu0-1")
        assert first in started.log.read_text()
        assert not nodes()[first]["simulated"]
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
        assert started.cli("node", "drain", first).returncode == 0
        assert started.stop() == 0
        assert processes_of(data) == {}
    with up(data, *argv[:-1], "1", CUDA_VISIBLE_DEVICES="") as again:
        (left,) = again.json("node", "ls")["nodes"]  # what runs no more is forgotten
        assert left["name"] == first.removesuffix("-0")


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
    def started() -> Iterator[list[str]]:
        with log.open("wb") as out:
            process = subprocess.Popen(
                mortal(command(*argv)), stdout=out, stderr=out, env=environment(), cwd=tmp_path
            )
        try:
            until(lambda: "Ctrl-C" in log.read_text() or process.poll() is not None, "it is ready", 60)
            assert process.poll() is None, log.read_text()
            yield log.read_text().splitlines()
        finally:
            process.terminate()
            process.wait(40)

    def here(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*argv), capture_output=True, text=True, check=False, env=environment(), cwd=tmp_path
        )

    with taken, started() as told:
        first = re.fullmatch(
            r"port 8188 is taken by .+; the fleet takes port (\d+): (http://127\.0\.0\.1:\1)", told[0]
        )
        assert first, told
        assert f"The fleet is ready at {first[2]}" in told[1]
        assert any(f"export FLEET_API_URL={first[2]};" in line for line in told)
        # Commands in the same place find it without being told.
        assert first[2] in here("status").stdout
        assert here("submit", "image_card", "-p", "prompt=x", "--wait").returncode == 0
    with started() as again:
        assert again[0].startswith(f"the fleet stays at port {first[1]}, as at the last start")
        assert again[0].endswith(first[2])


def test_a_named_port_that_is_a_nodes_is_told_in_these_words(tmp_path: Path) -> None:
    port = free_port()
    node = f"http://127.0.0.1:{port}"
    told = fleet("up", "--port", str(port), "--node", node, "--data", str(tmp_path / "data"))
    assert told.returncode == 2
    assert f"--port {port} is the port of --node node-1 (127.0.0.1:{port})" in told.stderr
    assert "stop" not in told.stderr


@pytest.mark.parametrize("real", [False, True])
def test_what_it_writes_is_for_its_user_alone_also_in_a_folder_that_others_may_read(
    tmp_path: Path, real: bool
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    argv = ["--nodes", "1", "--job-seconds", "0.1"]
    if real:
        argv = ["--nodes", "1", "--comfyui", str(checkout(tmp_path).home), "--comfyui-python", sys.executable]
    with up(data, *argv, CUDA_VISIBLE_DEVICES="") as started:
        job = started.json("submit", "image_card", "-p", "prompt=x", "--wait", "--timeout", "40")
        assert job["status"] == "succeeded"
        status = {pid: Path(f"/proc/{pid}/status").read_text() for pid in processes_of(data)}
        assert len(status) >= 7
        assert {pid for pid, told in status.items() if "Umask:\t0077" not in told} == set()
        modes = {path: path.lstat().st_mode for path in data.rglob("*")}
        assert len(modes) > 10
        assert {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
    picture = tmp_path / "picture"
    picture.touch()
    assert picture.stat().st_mode & 0o044  # this process's own umask hides nothing


@pytest.mark.parametrize("real", [False, True])
def test_an_emptied_redis_gets_its_nodes_back(tmp_path: Path, real: bool) -> None:
    data = tmp_path / "data"
    argv = ["--nodes", "1", "--job-seconds", "0.1"]
    if real:
        argv = ["--nodes", "1", "--comfyui", str(checkout(tmp_path).home), "--comfyui-python", sys.executable]
    with up(data, *argv, CUDA_VISIBLE_DEVICES="") as started:
        note = json.loads((data / "run" / "up.json").read_text())
        with contextlib.closing(redis.Redis.from_url(note["settings"]["redis_url"])) as store:
            store.flushall()
            until(lambda: store.hlen("fleet:nodes"), "its node is registered again")
        job = started.json("submit", "image_card", "-p", "prompt=x", "--wait", "--timeout", "40")
        assert job["status"] == "succeeded"
