"""The run machine against every recording of a real ComfyUI."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.jobs.outputs import InlineBytes
from comfy_fleet.domain.jobs.run import Run, RunPhase
from comfy_fleet.domain.jobs.run_messages import (
    AskHistory,
    AskQueue,
    HistoryAnswered,
    Interrupt,
    InterruptSent,
    Opened,
    PostAnswered,
    QueueAnswered,
    ShowPreview,
)
from comfy_fleet.domain.jobs.run_results import read_history
from tests.unit.run_harness import (
    CANCEL,
    CLOSED,
    LIMITS,
    Log,
    files,
    frame,
    history_of,
    idle,
    machine,
    recording,
    started,
    tick,
)

DATA = Path(__file__).parents[1] / "data"
SUCCESSES = ["success", "cached_rerun", "extra_pnginfo", "flags", "preview_and_ws_image", "sleep_progress"]


@pytest.mark.parametrize("name", SUCCESSES)
def test_recorded_success(name: str) -> None:
    record = recording(name)
    run, frames = started(name)
    log = Log()
    for event in frames:
        log.add(run.handle(event, 0.02))
    log.check()
    assert log.verdict.kind == "succeeded"
    assert log.of(AskQueue, AskHistory) == [], "the frames were complete: nothing had to be asked"
    assert files(log.left) == files(read_history(history_of(record)).items)
    assert run.phase is RunPhase.DONE
    assert run.next_tick() is None


@pytest.mark.parametrize("name", [name for name in SUCCESSES if name != "preview_and_ws_image"])
def test_recorded_success_without_a_websocket(name: str) -> None:
    record = recording(name)
    run = machine(record, adopted=True, accepted=True)
    assert not run.sockets_only
    log = Log()
    assert log.add(run.handle(Opened(), 0.0)) == [AskQueue()]
    assert log.add(run.handle(QueueAnswered("running"), 0.1)) == []
    at, actions = tick(run)
    assert actions == [AskQueue()]
    assert at == pytest.approx(1.1)
    assert log.add(run.handle(QueueAnswered("absent"), 1.2)) == [AskHistory()]
    log.add(run.handle(HistoryAnswered(history_of(record)), 1.3))
    log.check()
    assert log.verdict.kind == "succeeded"
    assert files(log.left) == files(read_history(history_of(record)).items)


def test_recorded_picture_that_exists_as_a_frame_only() -> None:
    run, frames = started("preview_and_ws_image")
    assert run.sockets_only
    log = Log()
    for event in frames:
        log.add(run.handle(event, 0.02))
    by_node = {item.node_id: item for item in log.collected}
    assert {item.id for item in log.left} == {item.id for item in log.collected}
    assert sum(item.held_bytes for item in log.left if isinstance(item.source, InlineBytes)) == 0
    assert by_node["2"].temporary
    picture = by_node["3"]
    assert isinstance(picture.source, InlineBytes)
    assert bytes(picture.source.data).startswith(b"\x89PNG")
    assert (picture.key, picture.index, picture.content_type) == ("images", 0, "image/png")
    assert log.of(ShowPreview) == []


def test_recorded_error_then_confirmed() -> None:
    """The recording ends at the error frame: the last frame's absence is made up for by asking."""
    record = recording("error_execution")
    run, frames = started("error_execution")
    log = Log()
    for event in frames:
        log.add(run.handle(event, 0.02))
    assert run.phase is RunPhase.RUNNING
    at, actions = tick(run)
    assert at == pytest.approx(1.02)
    assert actions == [AskQueue()]
    assert log.add(run.handle(QueueAnswered("absent"), at)) == [AskHistory()]
    log.add(run.handle(HistoryAnswered(history_of(record)), at))
    log.check()
    error = log.verdict.error
    assert error is not None
    assert (log.verdict.kind, log.verdict.counts, log.verdict.retryable) == ("failed", True, False)
    assert (error.code, error.node_id, error.class_type) == ("node_execution_error", "3", "TestSyncError")
    assert error.message == "Intentional sync execution error for testing"
    assert error.traceback == '  File "execution.py", line 1, in execute\n'


def test_recorded_error_with_its_last_frame() -> None:
    run, frames = started("error_execution")
    log = Log()
    for event in [*frames, idle("0436bfd2-fc43-4b8d-814a-ce84c2d8ffb0")]:
        log.add(run.handle(event, 0.02))
    assert log.verdict.kind == "failed"
    assert log.of(AskQueue, AskHistory) == []


def test_recorded_interrupt_by_somebody_else_is_a_lost_run_that_does_not_count() -> None:
    run, frames = started("interrupted")
    log = Log()
    for event in [*frames, idle("4877f1f3-b305-481e-9c47-2744ee81c17b")]:
        log.add(run.handle(event, 0.02))
    log.check()
    assert (log.verdict.kind, log.verdict.counts, log.verdict.exclude_node) == ("lost", False, False)


def test_recorded_interrupt_that_we_asked_for() -> None:
    run, frames = started("interrupted")
    log = Log()
    for event in frames[:-1]:
        log.add(run.handle(event, 0.02))
    assert log.add(run.handle(CANCEL, 0.5)) == [Interrupt()]
    log.add(run.handle(InterruptSent(ok=True), 0.6))
    log.add(run.handle(frames[-1], 0.7))
    assert run.phase is RunPhase.RUNNING, "it has not left the node yet"
    log.add(run.handle(idle("4877f1f3-b305-481e-9c47-2744ee81c17b"), 0.8))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("canceled", False)


CYCLE = json.loads((DATA / "error_cycle_while_running_0.33.0.json").read_text())
"""A dependency cycle that appeared while it ran: an ``execution_error``, and "success" as its status."""


def without_frames(messages: list[Any]) -> Log:
    """Take a run over whose prompt has left its node; return what came of it."""
    entry = {**CYCLE["history"], "status": {**CYCLE["history"]["status"], "messages": messages}}
    run = Run(
        run_id=CYCLE["prompt_id"],
        graph=entry["prompt"][2],
        limits=LIMITS,
        now=0.0,
        adopted=True,
        accepted=True,
    )
    log = Log()
    log.add(run.handle(Opened(), 0.0))
    log.add(run.handle(QueueAnswered("absent"), 0.1))
    log.add(run.handle(HistoryAnswered(entry), 0.2))
    log.check()
    return log


def test_recorded_error_that_history_calls_a_success() -> None:
    assert CYCLE["history"]["status"]["status_str"] == "success"
    verdict = without_frames(CYCLE["history"]["status"]["messages"]).verdict
    assert verdict.error is not None
    assert (verdict.kind, verdict.counts, verdict.retryable) == ("failed", True, False)
    assert (verdict.error.node_id, verdict.error.message) == ("2", "Dependency cycle detected")


def test_interrupt_that_history_calls_a_success() -> None:
    verdict = without_frames([["execution_interrupted", {"node_id": "2"}]]).verdict
    assert (verdict.kind, verdict.counts) == ("lost", False)


def test_error_that_was_seen_before_the_websocket_broke() -> None:
    """Only messages that tell how it ended know better than the frame."""
    for messages, kind in (([], "failed"), ([["execution_success", {}]], "succeeded")):
        run, frames = started("success")
        run.handle(frames[3], 0.1)
        run.handle(frame("execution_error", exception_type="ValueError", exception_message="no"), 0.2)
        run.handle(CLOSED, 0.3)
        run.handle(QueueAnswered("absent"), 0.4)
        log = Log()
        status = {"status_str": "success", "completed": True, "messages": messages}
        log.add(run.handle(HistoryAnswered({"outputs": {}, "status": status}), 0.5))
        assert log.verdict.kind == kind


@pytest.mark.parametrize(
    ("name", "node_errors"),
    [
        (
            "error_missing_checkpoint",
            {
                "4": [
                    {
                        "field": "ckpt_name",
                        "reason": "value_not_in_list",
                        "message": "Value not in list: ckpt_name: 'none.safetensors' not in []",
                    }
                ]
            },
        ),
        ("error_no_outputs", {}),
        (
            "error_unknown_node",
            {
                "1": [
                    {
                        "field": "class_type",
                        "reason": "invalid_prompt",
                        "message": "Cannot execute because node NopeNode does not exist.",
                    }
                ]
            },
        ),
        (
            "error_validation_missing_input",
            {
                "2": [
                    {
                        "field": "images",
                        "reason": "missing_input",
                        "message": "Required input is missing: images",
                    }
                ]
            },
        ),
        (
            "error_validation_range",
            {
                "1": [
                    {
                        "field": "width",
                        "reason": "value_smaller_than_min",
                        "message": "Value -5 smaller than min of 1: width",
                    }
                ]
            },
        ),
    ],
)
def test_recorded_rejection(name: str, node_errors: Mapping[str, Any]) -> None:
    record = recording(name)
    response = record["http"][0]["response"]
    run = machine(record)
    log = Log()
    log.add(run.handle(Opened(), 0.0))
    log.add(run.handle(PostAnswered(response["status"], response["body"]), 0.1))
    log.check()
    verdict = log.verdict
    assert (verdict.kind, verdict.counts, verdict.exclude_node) == ("rejected", False, True)
    assert verdict.error is not None
    assert verdict.error.code == "invalid_workflow"
    assert verdict.error.details["node_errors"] == node_errors
    assert verdict.error.message
