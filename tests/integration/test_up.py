"""`fleet up` as an operator meets it: real processes, real Redis and HAProxy, simulated nodes."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.conftest import free_port
from tests.integration.up_kit import Up, fleet, processes_of, until, up

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("up") / "data", "--nodes", "2", "--job-seconds", "0.2") as started:
        yield started


def test_it_says_where_it_is_what_it_runs_and_how_to_stop(running: Up) -> None:
    deadline = time.monotonic() + 60
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


def test_every_process_has_metrics(running: Up) -> None:
    job = running.json("submit", "image_card", "-p", "prompt=counted", "--wait")
    assert job["status"] == "succeeded"
    ports = json.loads((running.data / "run" / "up.json").read_text())["settings"]
    counted = 'fleet_jobs_total{status="succeeded",workflow="image_card",pool="default",tenant="default"}'
    for name, metric in {
        "api_port": 'fleet_jobs_submitted_total{workflow="image_card"}',
        "dispatch_metrics_port": counted,
        "haproxy_metrics_port": "fleet_haproxy_ready 1.0",
        "agent_metrics_port": 'fleet_agent_nodes{word="ready"}',
    }.items():
        text = httpx.get(f"http://127.0.0.1:{ports[name]}/metrics").text
        assert metric in text and "process_cpu_seconds_total" in text, name
    health = httpx.get(f"http://127.0.0.1:{ports['dispatch_metrics_port']}/health")
    assert (health.status_code, health.text) == (200, "ok\n")


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
