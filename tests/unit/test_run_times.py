"""Where a run's time went, as frames tell; and how the terminal draws a job's."""

import io
from typing import Any

from comfy_fleet.cli import timelines
from comfy_fleet.cli.console import FleetConsole
from comfy_fleet.domain.jobs.run_times import MOST_NODES, RunTimes, StopWatch
from tests.canned import JOB, Canned, run


def graph(count: int) -> dict[str, Any]:
    return {str(n): {"class_type": f"Class{n}", "inputs": {}} for n in range(count)}


def test_only_this_prompts_frames_about_its_own_nodes_count() -> None:
    watch = StopWatch(100.0, "run")
    watch.graph(graph(3))
    watch.frame("execution_start", {"prompt_id": "other"}, 101.0)
    watch.frame("execution_start", {"prompt_id": "run"}, 102.0)
    watch.frame("execution_cached", {"nodes": ["0", "no", 7, ["x"], "0"]}, 102.0)
    watch.frame("executing", {"node": "1", "prompt_id": "run"}, 103.0)
    watch.frame("executing", {"node": ["1"], "prompt_id": "run"}, 104.0)
    watch.frame("executing", {"node": "evil" * 999, "prompt_id": "run"}, 105.0)
    watch.frame("executing", {"node": "2", "prompt_id": "run"}, 106.0)
    watch.frame("executing", {"node": None, "prompt_id": "run"}, 108.5)
    watch.step("left", 109.0)
    watch.step("left", 120.0)
    times = watch.times()
    assert times.steps == {"executing": 2.0, "left": 9.0}
    found = [(one.node_id, one.start_s, one.seconds) for one in times.nodes]
    assert found == [("1", 3.0, 1.0), ("2", 6.0, 2.5)]
    assert (times.cached, times.others) == (1, 0)
    assert RunTimes.load(times.dump()) == times


def test_a_large_graph_leaves_a_small_text() -> None:
    watch = StopWatch(0.0, "run")
    watch.graph({"9" * 500 + str(n): {"class_type": "x" * 9000} for n in range(5000)})
    for n in range(5000):
        watch.frame("executing", {"node": "9" * 500 + str(n)}, float(n * n))
    watch.leave(5000.0 * 5000)
    assert len(watch.times().nodes) == MOST_NODES
    assert watch.times().others == 5000 - MOST_NODES
    assert len(watch.times().dump()) < 4000


def part(name: str, start_s: float, seconds: float, **more: Any) -> dict[str, Any]:
    rest = dict.fromkeys(("attempt", "node", "node_id", "class_type", "note"))
    return {"name": name, "start_s": start_s, "seconds": seconds, "lasting": False, **rest, **more}


RECORD = {
    "id": JOB,
    "status": "running",
    "submitted_at": "2030-01-01T00:00:00Z",
    "seconds": 10.0,
    "spans": [
        part("queue", 0, 4),
        part("attempt", 4, 6, attempt=1, node="g1", lasting=True, note="bad\x1b[31m\nnews"),
        part("graph_node", 5, 1, attempt=1, node="g1", node_id="3", class_type="[red]KSampler\x1b" * 9),
        part("webhook", 9.99, 0.001),
    ],
    "unknown": ["when it\nbegan"],
}


def test_bars_fit_into_eighty_columns() -> None:
    file = io.StringIO()
    console = FleetConsole()
    console.file, console.width = file, 80
    timelines.bars(console, RECORD)
    lines = file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines), lines
    bars = {line[:20].strip(): line.count("█") for line in lines}
    assert abs(bars["attempt 1 on g1"] - 1.5 * bars["wait in the queue"]) <= 1
    assert bars["webhook"] == 0, "too short for one"
    assert "\x1b" not in file.getvalue()


def test_a_pipe_gets_a_line_for_each_part(canned: Canned) -> None:
    canned.on("GET", f"/api/v1/jobs/{JOB}/timeline", RECORD)
    found = run(canned, "job", "show", JOB, "--timeline")
    lines = found.stdout.splitlines()
    assert lines[1].split()[:3] == ["0.000", "4.000", "queue"]
    assert lines[2].split()[:6] == ["4.000", "6.000", "attempt", "attempt", "1", "on"]
    assert len(lines) == 6
    assert "\x1b" not in found.stdout
