"""The run machine: against every recording, by rule, and against a truthful node with unreliable frames."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.outputs import InlineBytes, OutputItem
from comfy_fleet.domain.run import (
    AskFailed,
    AskHistory,
    AskQueue,
    Binary,
    Collect,
    DeletePending,
    Finish,
    Frame,
    HistoryAnswered,
    Interrupt,
    InterruptSent,
    Left,
    Opened,
    Phase,
    PostAnswered,
    PostPrompt,
    PostUnknown,
    QueueAnswered,
    Report,
    Run,
    ShowPreview,
)
from comfy_fleet.domain.run_messages import AskFailure
from comfy_fleet.domain.run_verdicts import read_history
from tests.unit.run_harness import (
    CANCEL,
    CLOSED,
    LIMITS,
    PNG,
    TICK,
    Log,
    World,
    accepted,
    events_of,
    history_of,
    recording,
    request_of,
)

RUN = "7c6bfcb2-dd89-4093-9184-675cc1c94f75"
SUCCESSES = ["success", "cached_rerun", "extra_pnginfo", "flags", "preview_and_ws_image", "sleep_progress"]


def machine(record: Mapping[str, Any], **options: Any) -> Run:
    request = request_of(record)
    return Run(
        run_id=request["prompt_id"],
        graph=request["prompt"],
        limits=options.pop("limits", LIMITS),
        now=0.0,
        **options,
    )


def started(name: str = "success", **options: Any) -> tuple[Run, list[Frame | Binary]]:
    """A run whose POST was accepted, and the frames that would come."""
    record = recording(name)
    run = machine(record, **options)
    assert run.handle(Opened(), 0.0) == [PostPrompt()]
    assert run.handle(accepted(request_of(record)["prompt_id"]), 0.01) == []
    return run, events_of(record)


def tick(run: Run) -> tuple[float, list[Any]]:
    """Let time pass until the run wants to hear of it."""
    at = run.next_tick()
    assert at is not None
    return at, run.handle(TICK, at)


def files(items: Sequence[OutputItem]) -> set[tuple[str, str, int, str]]:
    return {(*item.id, item.name) for item in items if not isinstance(item.source, InlineBytes)}


# Recordings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUCCESSES)
def test_recorded_success(name: str) -> None:
    record = recording(name)
    run, frames = started(name)
    log = Log()
    for frame in frames:
        log.add(run.handle(frame, 0.02))
    log.check()
    assert log.verdict.kind == "succeeded"
    assert log.of(AskQueue, AskHistory) == [], "the frames were complete: nothing had to be asked"
    assert files(log.left) == files(read_history(history_of(record)).items)
    assert run.phase is Phase.DONE
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
    for frame in frames:
        log.add(run.handle(frame, 0.02))
    by_node = {item.node_id: item for item in log.left}
    assert by_node["2"].temporary
    picture = by_node["3"]
    assert isinstance(picture.source, InlineBytes)
    assert picture.source.data.startswith(b"\x89PNG")
    assert (picture.key, picture.index, picture.content_type) == ("images", 0, "image/png")
    assert log.of(ShowPreview) == []


def test_recorded_error_then_confirmed() -> None:
    """The recording ends at the error frame: the last frame's absence is made up for by asking."""
    record = recording("error_execution")
    run, frames = started("error_execution")
    log = Log()
    for frame in frames:
        log.add(run.handle(frame, 0.02))
    assert run.phase is Phase.RUNNING
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
    for frame in [*frames, idle("0436bfd2-fc43-4b8d-814a-ce84c2d8ffb0")]:
        log.add(run.handle(frame, 0.02))
    assert log.verdict.kind == "failed"
    assert log.of(AskQueue, AskHistory) == []


def test_recorded_interrupt_by_somebody_else_is_a_lost_run_that_does_not_count() -> None:
    run, frames = started("interrupted")
    log = Log()
    for frame in [*frames, idle("4877f1f3-b305-481e-9c47-2744ee81c17b")]:
        log.add(run.handle(frame, 0.02))
    log.check()
    assert (log.verdict.kind, log.verdict.counts, log.verdict.exclude_node) == ("lost", False, False)


def test_recorded_interrupt_that_we_asked_for() -> None:
    run, frames = started("interrupted")
    log = Log()
    for frame in frames[:-1]:
        log.add(run.handle(frame, 0.02))
    assert log.add(run.handle(CANCEL, 0.5)) == [Interrupt()]
    log.add(run.handle(InterruptSent(ok=True), 0.6))
    log.add(run.handle(frames[-1], 0.7))
    assert run.phase is Phase.RUNNING, "it has not left the node yet"
    log.add(run.handle(idle("4877f1f3-b305-481e-9c47-2744ee81c17b"), 0.8))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("canceled", False)


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


# Rules ----------------------------------------------------------------------------------------------------


def idle(run: str = RUN) -> Frame:
    return Frame("executing", {"node": None, "prompt_id": run})


def frame(type_: str, **data: Any) -> Frame:
    return Frame(type_, {"prompt_id": RUN, **data})


def is_idle(event: Frame | Binary) -> bool:
    return isinstance(event, Frame) and event.type == "executing" and event.data["node"] is None


def test_an_output_is_collected_while_the_prompt_still_runs() -> None:
    run, frames = started()
    seen: list[str] = []
    for event in frames:
        seen += [type(action).__name__ for action in run.handle(event, 0.1)]
    assert seen.index("Collect") < seen.index("Left") == len(seen) - 2
    assert seen.count("Collect") == 1


def test_a_prompt_has_not_left_before_the_last_frame() -> None:
    run, frames = started()
    for event in frames[:-1]:
        assert not any(isinstance(action, Left | Finish) for action in run.handle(event, 0.1))
    assert run.phase is Phase.RUNNING


def test_frames_of_other_prompts_and_unknown_frames_change_nothing() -> None:
    run, frames = started()
    noise: list[Frame | Binary] = [
        Frame("executing", {"node": None, "prompt_id": "another"}),
        Frame("executing", {"node": None}),
        Frame("execution_error", {"prompt_id": "another", "exception_type": "X"}),
        Frame("execution_success", {"prompt_id": "another"}),
        frame("brand_new", what=[1, {"x": None}]),
        Frame("status", {"status": {"exec_info": {"queue_remaining": 3}}}),
        Binary(b""),
        Binary(b"\0\0\0\x63abc"),
        frame("progress_state", nodes=None),
        frame("progress_state", nodes={"9": 1, "8": {"state": "running"}}),
        frame("progress", value="x", max=None, node=3),
        frame("executed", node="1", output=None),
        frame("execution_cached", nodes="all"),
    ]
    log = Log()
    for event in frames[:-1]:
        for other in noise:
            log.add(run.handle(other, 0.02))
        log.add(run.handle(event, 0.02))
    assert log.of(Finish, AskQueue, Interrupt) == []
    log.add(run.handle(frames[-1], 0.02))
    assert log.verdict.kind == "succeeded"
    assert len(log.left) == 1


def test_frames_may_overtake_the_answer_to_the_post() -> None:
    record = recording("cached_rerun")
    run = machine(record)
    log = Log()
    log.add(run.handle(Opened(), 0.0))
    for event in events_of(record):
        log.add(run.handle(event, 0.01))
    assert log.of(Collect, Finish) == [], "the answer may still say that half of the graph was dropped"
    log.add(run.handle(accepted(request_of(record)["prompt_id"]), 0.02))
    log.check()
    assert log.verdict.kind == "succeeded"


def test_partly_valid_graph_is_taken_off_the_node_and_rejected() -> None:
    record = recording("success")
    run = machine(record)
    run.handle(Opened(), 0.0)
    errors = {"2": {"errors": [{"type": "t", "message": "m", "details": "d"}], "class_type": "SaveImage"}}
    answer = PostAnswered(200, {"prompt_id": RUN, "number": 1, "node_errors": errors})
    log = Log()
    assert log.add(run.handle(answer, 0.1)) == [DeletePending(), Interrupt()]
    assert log.add(run.handle(InterruptSent(ok=True), 0.2)) == [AskQueue()]
    assert log.add(run.handle(QueueAnswered("absent"), 0.3)) == [AskHistory()]
    log.add(run.handle(HistoryAnswered(None), 0.4))
    log.check()
    assert log.verdict.kind == "rejected"
    assert log.verdict.exclude_node
    assert log.verdict.error is not None
    assert log.verdict.error.details["node_errors"] == {
        "2": [{"field": "", "reason": "t", "message": "m: d"}]
    }


def test_partly_valid_graph_that_ran_anyway_is_still_rejected() -> None:
    record = recording("success")
    run = machine(record)
    log = Log()
    log.add(run.handle(Opened(), 0.0))
    frames = events_of(record)
    for event in frames[:-1]:
        log.add(run.handle(event, 0.01))
    body = {"prompt_id": RUN, "node_errors": {"7": {"errors": [], "class_type": "X"}}}
    log.add(run.handle(PostAnswered(200, body), 0.02))
    log.add(run.handle(frames[-1], 0.03))
    log.check()
    assert log.verdict.kind == "rejected"
    assert log.collected == []


@pytest.mark.parametrize(
    ("answer", "kind", "code", "exclude"),
    [
        (PostAnswered(503, None, "no server"), "lost", "node_lost", False),
        (PostAnswered(500, None, "boom"), "rejected", "internal_error", True),
        (PostAnswered(413, None, ""), "rejected", "internal_error", True),
        (PostAnswered(400, {"error": "plain"}, ""), "rejected", "invalid_workflow", True),
    ],
)
def test_other_answers_never_count(answer: PostAnswered, kind: str, code: str, exclude: bool) -> None:
    run = machine(recording("success"))
    log = Log()
    log.add(run.handle(Opened(), 0.0))
    log.add(run.handle(answer, 0.1))
    log.check()
    assert log.verdict.error is not None
    assert (log.verdict.kind, log.verdict.error.code) == (kind, code)
    assert (log.verdict.counts, log.verdict.exclude_node) == (False, exclude)


def test_the_lease_may_end_before_the_post() -> None:
    run = machine(recording("success"))
    log = Log()
    log.add(run.handle(CLOSED, 0.0))
    assert (log.verdict.kind, log.verdict.counts) == ("lost", False)
    assert log.of(PostPrompt) == []


def test_a_post_without_an_answer_is_asked_about_until_absence_is_certain() -> None:
    run = machine(recording("success"))
    run.handle(Opened(), 0.0)
    log = Log()
    assert log.add(run.handle(PostUnknown("reset"), 0.1)) == [AskQueue()]
    assert log.add(run.handle(QueueAnswered("absent"), 0.2)) == [AskHistory()]
    assert log.add(run.handle(HistoryAnswered(None), 0.3)) == [], "it may still be on its way"
    at, actions = tick(run)
    assert actions == [AskQueue()]
    log.add(run.handle(QueueAnswered("absent"), at))
    log.add(run.handle(HistoryAnswered(None), at))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", False)


def test_a_post_without_an_answer_may_have_arrived() -> None:
    record = recording("success")
    run = machine(record)
    run.handle(Opened(), 0.0)
    run.handle(PostUnknown("reset"), 0.1)
    log = Log()
    log.add(run.handle(QueueAnswered("pending"), 0.2))
    assert run.phase is Phase.ACCEPTED
    for event in events_of(record):
        log.add(run.handle(event, 0.3))
    assert log.verdict.kind == "succeeded"


def test_queue_then_history_and_in_no_other_order() -> None:
    run, frames = started()
    for event in frames[:5]:
        run.handle(event, 0.1)
    assert run.handle(CLOSED, 0.2) == [AskQueue()]
    assert run.handle(HistoryAnswered(None), 0.3) == [], "nobody asked"
    assert run.handle(QueueAnswered("absent"), 0.3) == [AskHistory()]
    log = Log()
    log.add(run.handle(HistoryAnswered(None), 0.4))
    log.check()
    assert (log.verdict.kind, log.verdict.counts, log.verdict.retryable) == ("lost", True, True)
    assert log.verdict.error is not None
    assert log.verdict.error.code == "node_lost"


def test_a_broken_websocket_is_completed_from_history() -> None:
    record = recording("extra_pnginfo")
    run, frames = started("extra_pnginfo")
    log = Log()
    for event in frames[:6]:
        log.add(run.handle(event, 0.1))
    log.add(run.handle(CLOSED, 0.2))
    log.add(run.handle(QueueAnswered("running"), 0.3))
    at, _ = tick(run)
    log.add(run.handle(QueueAnswered("absent"), at))
    log.add(run.handle(HistoryAnswered(history_of(record)), at))
    log.check()
    assert len(log.left) == 2


def test_a_websocket_that_breaks_after_success_has_told_everything() -> None:
    run, frames = started("preview_and_ws_image")
    log = Log()
    for event in frames[:-1]:
        log.add(run.handle(event, 0.1))
    assert log.add(run.handle(CLOSED, 0.2)) == [AskQueue()]
    log.add(run.handle(QueueAnswered("absent"), 0.3))
    log.add(run.handle(HistoryAnswered(history_of(recording("preview_and_ws_image"))), 0.4))
    log.check()
    assert log.verdict.kind == "succeeded"
    assert len(log.left) == 2


def test_history_is_asked_again_when_it_comes_late() -> None:
    record = recording("success")
    run, frames = started()
    log = Log()
    for event in frames:
        if isinstance(event, Frame) and event.type == "executed":
            continue
        log.add(run.handle(event, 0.1))
    assert log.of(AskHistory) == [AskHistory()], "the save node told nothing"
    assert log.add(run.handle(HistoryAnswered(None), 0.2)) == []
    at, actions = tick(run)
    assert at == pytest.approx(0.3)
    assert actions == [AskHistory()]
    log.add(run.handle(HistoryAnswered(history_of(record)), at))
    log.check()
    assert len(log.left) == 1


def test_a_success_that_history_forgot_is_still_a_success() -> None:
    run, frames = started("preview_and_ws_image")
    log = Log()
    for event in frames:
        if isinstance(event, Frame) and event.type == "execution_start":
            continue
        log.add(run.handle(event, 0.1))
    for _ in range(LIMITS.history_tries):
        log.add(run.handle(HistoryAnswered(None), 0.2))
        if (at := run.next_tick()) is not None:
            log.add(run.handle(TICK, at))
    log.check()
    assert log.verdict.kind == "succeeded"


def test_haproxy_down_is_no_loss_and_takes_no_time() -> None:
    run, frames = started()
    run.handle(frames[3], 0.1)
    assert run.handle(CLOSED, 0.2) == [AskQueue()]
    now = 0.2
    for _ in range(5000):
        now += 0.1
        assert not any(
            isinstance(action, Finish | Interrupt)
            for action in run.handle(AskFailed("queue", "unreachable"), now)
        )
        now, actions = tick(run)
        assert actions == [AskQueue()]
        if now > 2 * LIMITS.silence_s:
            break
    run.handle(QueueAnswered("running"), now)
    now, _ = tick(run)
    run.handle(QueueAnswered("absent"), now)
    log = Log()
    log.add(run.handle(HistoryAnswered(history_of(recording("success"))), now))
    assert log.verdict.kind == "succeeded"


def test_a_node_is_lost_when_haproxy_says_so_twice() -> None:
    run, frames = started()
    run.handle(frames[3], 0.1)
    run.handle(CLOSED, 0.2)
    log = Log()
    log.add(run.handle(AskFailed("queue", "node_down"), 0.3))
    assert log.of(Finish) == []
    at, actions = tick(run)
    assert at == pytest.approx(0.8)
    assert actions == [AskQueue()]
    log.add(run.handle(AskFailed("queue", "node_down"), at))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", True)


def test_one_503_is_not_enough() -> None:
    run, frames = started()
    run.handle(frames[3], 0.1)
    run.handle(CLOSED, 0.2)
    run.handle(AskFailed("queue", "node_down"), 0.3)
    at, _ = tick(run)
    run.handle(QueueAnswered("running"), at)
    at, _ = tick(run)
    log = Log()
    log.add(run.handle(AskFailed("queue", "node_down"), at))
    assert log.of(Finish) == []


def test_errors_of_a_node_are_waited_out() -> None:
    run, frames = started()
    run.handle(frames[3], 0.1)
    run.handle(CLOSED, 0.2)
    for number in range(20):
        assert run.handle(AskFailed("queue", "error"), 0.3 + number) == []
        _, actions = tick(run)
        assert actions == [AskQueue()]


@pytest.mark.parametrize(
    ("gone", "counts"), [("unreachable", False), ("", True)], ids=["haproxy died", "socket broke"]
)
def test_pictures_on_a_broken_websocket_are_lost(gone: str, counts: bool) -> None:
    record = recording("preview_and_ws_image")
    run, frames = started("preview_and_ws_image")
    log = Log()
    for event in frames[:8]:
        log.add(run.handle(event, 0.1))
    assert log.add(run.handle(CLOSED, 0.2)) == [Interrupt(), AskQueue()]
    if gone:
        log.add(run.handle(AskFailed("queue", "unreachable"), 0.3))
        _, actions = tick(run)
        assert actions == [AskQueue()]
    assert log.add(run.handle(QueueAnswered("running"), 2.0)) == [Interrupt()]
    at, _ = tick(run)
    log.add(run.handle(QueueAnswered("absent"), at))
    log.add(run.handle(HistoryAnswered(history_of(record)), at))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", counts)


def test_cancel_before_the_post() -> None:
    run = machine(recording("success"))
    log = Log()
    log.add(run.handle(CANCEL, 0.0))
    log.check()
    assert log.verdict.kind == "canceled"
    assert run.handle(Opened(), 0.1) == []


def test_cancel_while_posting_waits_for_the_answer() -> None:
    run = machine(recording("success"))
    run.handle(Opened(), 0.0)
    log = Log()
    assert log.add(run.handle(CANCEL, 0.1)) == []
    assert log.add(run.handle(accepted(RUN), 0.2)) == [DeletePending(), Interrupt()]
    assert log.add(run.handle(InterruptSent(ok=True), 0.3)) == [AskQueue()]
    log.add(run.handle(InterruptSent(ok=True), 0.3))
    assert log.add(run.handle(QueueAnswered("pending"), 0.4)) == [DeletePending()]
    assert log.add(run.handle(InterruptSent(ok=True), 0.5)) == [AskQueue()]
    assert log.add(run.handle(QueueAnswered("absent"), 0.6)) == [AskHistory()]
    log.add(run.handle(HistoryAnswered(None), 0.7))
    log.check()
    assert log.verdict.kind == "canceled"


def test_an_interrupt_that_was_not_heard_is_repeated() -> None:
    run, frames = started("interrupted")
    for event in frames[:8]:
        run.handle(event, 0.1)
    assert run.handle(CANCEL, 1.0) == [Interrupt()]
    run.handle(InterruptSent(ok=True), 1.1)
    at, actions = tick(run)
    assert at == pytest.approx(3.0)
    assert actions == [AskQueue()]
    assert run.handle(QueueAnswered("running"), at) == [Interrupt()]


def test_success_that_arrives_before_the_interrupt_is_told() -> None:
    run, frames = started()
    log = Log()
    for event in frames[:7]:
        log.add(run.handle(event, 0.1))
    assert Interrupt() in log.add(run.handle(CANCEL, 0.2))
    for event in frames[7:]:
        log.add(run.handle(event, 0.3))
    log.check()
    assert log.verdict.kind == "succeeded"


def test_a_silent_prompt_is_probed_then_interrupted() -> None:
    limits = replace(LIMITS, silence_s=60)
    run, frames = started(limits=limits)
    run.handle(frames[3], 1.0)
    log = Log()
    at = 0.0
    probes = 0
    while not log.of(Interrupt):
        at, actions = tick(run)
        log.add(actions)
        if AskQueue() in actions:
            probes += 1
            log.add(run.handle(QueueAnswered("running"), at))
    assert at == pytest.approx(61)
    assert probes >= 3
    log.add(run.handle(frame("execution_interrupted"), at))
    log.add(run.handle(idle(), at))
    log.check()
    verdict = log.verdict
    assert verdict.error is not None
    assert (verdict.kind, verdict.error.code, verdict.retryable) == ("timeout", "run_timeout", False)


def test_waiting_in_the_nodes_queue_is_no_silence() -> None:
    run, _ = started(limits=replace(LIMITS, silence_s=60))
    at = 0.0
    while at < 300:
        at, actions = tick(run)
        assert actions == [AskQueue()]
        run.handle(QueueAnswered("pending"), at)


def test_frames_keep_a_run_alive_until_its_longest_time() -> None:
    run, frames = started(limits=replace(LIMITS, silence_s=10, run_s=100))
    run.handle(frames[3], 1.0)
    log = Log()
    for second in range(2, 120):
        log.add(run.handle(frame("progress", value=second, max=1000, node="1"), float(second)))
        if log.of(Interrupt):
            break
    assert second == 101, "the clock runs from its start"


def test_a_prompt_that_cannot_be_interrupted_is_given_up() -> None:
    run, frames = started(limits=replace(LIMITS, silence_s=10, abort_s=5))
    run.handle(frames[3], 0.0)
    log = Log()
    while not log.of(Finish):
        at, actions = tick(run)
        if AskQueue() in log.add(actions):
            log.add(run.handle(QueueAnswered("running"), at))
    log.check()
    assert at == pytest.approx(15)
    assert log.verdict.kind == "timeout"


def test_lost_last_frames_are_found_out_by_probing() -> None:
    run, frames = started()
    log = Log()
    for event in frames[:5]:
        log.add(run.handle(event, 0.1))
    at, actions = tick(run)
    assert at == pytest.approx(15.1)
    assert actions == [AskQueue()]
    log.add(run.handle(QueueAnswered("absent"), at))
    log.add(run.handle(HistoryAnswered(history_of(recording("success"))), at))
    assert log.verdict.kind == "succeeded"


def test_a_blocked_branch_is_not_an_error() -> None:
    run, frames = started()
    log = Log()
    for event in frames:
        if is_idle(event):
            blocked = {"exception_type": "ExecutionBlocked", "exception_message": "no", "node_id": "1"}
            log.add(run.handle(frame("execution_error", **blocked), 0.1))
        log.add(run.handle(event, 0.1))
    assert log.verdict.kind == "succeeded"


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("torch.OutOfMemoryError", "Allocation failed"),
        ("torch.cuda.OutOfMemoryError", ""),
        ("comfy.model_management.OOM_EXCEPTION.OutOfMemoryError", ""),
        ("RuntimeError", "CUDA error: out of memory"),
        ("RuntimeError", "HIP out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_out_of_memory_can_be_tried_again(type_: str, message: str) -> None:
    run, frames = started()
    run.handle(frames[3], 0.1)
    log = Log()
    data = {"exception_type": type_, "exception_message": message, "traceback": "x", "node_id": "2"}
    log.add(run.handle(frame("execution_error", **data), 0.1))
    log.add(run.handle(idle(), 0.1))
    log.check()
    assert log.verdict.error is not None
    assert log.verdict.error.code == "out_of_memory"
    assert (log.verdict.counts, log.verdict.retryable) == (True, True)


def test_previews_are_shown_with_their_node() -> None:
    run, frames = started()
    for event in frames[:7]:
        run.handle(event, 0.1)
    assert run.handle(Binary(b"\0\0\0\x01\0\0\0\x01\xff\xd8\xff123"), 0.2) == [
        ShowPreview("1", "image/jpeg", b"\xff\xd8\xff123")
    ]


def test_several_pictures_of_one_node_are_several_outputs() -> None:
    run, frames = started("preview_and_ws_image")
    log = Log()
    for event in frames:
        log.add(run.handle(event, 0.1))
        if isinstance(event, Binary):
            log.add(run.handle(Binary(b"\0\0\0\x01\0\0\0\x02" + PNG), 0.1))
    log.check()
    assert [item.id for item in log.left if item.node_id == "3"] == [("3", "images", 0), ("3", "images", 1)]


def test_a_run_whose_pictures_are_frames_cannot_be_adopted() -> None:
    record = recording("preview_and_ws_image")
    run = machine(record, adopted=True, accepted=True)
    log = Log()
    run.handle(Opened(), 0.0)
    assert log.add(run.handle(QueueAnswered("running"), 0.1)) == [Interrupt()]
    now, _ = tick(run)
    run.handle(QueueAnswered("absent"), now)
    log.add(run.handle(HistoryAnswered(history_of(record)), now))
    log.check()
    assert log.verdict.kind == "lost"


def test_an_adopted_run_that_was_never_posted() -> None:
    run = machine(recording("success"), adopted=True)
    log = Log()
    now, actions = tick(run)
    assert actions == [AskQueue()]
    for _ in range(LIMITS.gone_polls):
        log.add(run.handle(QueueAnswered("absent"), now))
        log.add(run.handle(HistoryAnswered(None), now))
        if not log.of(Finish):
            now, _ = tick(run)
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", False)


def test_an_adopted_run_of_which_the_node_knows_nothing_any_more() -> None:
    run = machine(recording("success"), adopted=True, accepted=True)
    log = Log()
    run.handle(Opened(), 0.0)
    log.add(run.handle(QueueAnswered("absent"), 0.1))
    log.add(run.handle(HistoryAnswered(None), 0.2))
    assert (log.verdict.kind, log.verdict.counts) == ("lost", True)


def test_an_adopted_run_is_not_silent_while_the_node_says_that_it_runs() -> None:
    run = machine(recording("success"), adopted=True, limits=replace(LIMITS, silence_s=5))
    now = 0.0
    while now < 30:
        now, actions = tick(run)
        assert actions == [AskQueue()]
        run.handle(QueueAnswered("running"), now)


# A truthful node, unreliable frames -----------------------------------------------------------------------


def node_script(outcome: str) -> tuple[list[Frame | Binary], dict[str, Any], dict[str, Any]]:
    """A script of frames, its history entry and the request."""
    if outcome == "several":
        return several_outputs()
    name = {"success": "extra_pnginfo", "cached": "cached_rerun", "error": "error_execution"}[outcome]
    record = recording(name)
    run = request_of(record)["prompt_id"]
    script = [event for event in events_of(record) if isinstance(event, Frame) and event.type != "status"]
    if outcome == "error":
        script.append(idle(run))
    return list(script), history_of(record), request_of(record)


def several_outputs() -> tuple[list[Frame | Binary], dict[str, Any], dict[str, Any]]:
    """Four nodes that show something; the last one is cached and keeps silent about it."""
    outputs = {
        "2": {"images": [{"filename": "a.png", "subfolder": "x", "type": "output"}]},
        "3": {"images": [{"filename": "p.png", "subfolder": "", "type": "temp"}], "animated": [False]},
        "4": {"text": ["one", "two"]},
        "5": {"gifs": [{"filename": "v.mp4", "subfolder": "", "type": "output"}]},
    }
    graph: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}
    graph |= {node: {"class_type": "Show", "inputs": {"images": ["1", 0]}} for node in outputs}
    script: list[Frame | Binary] = [frame("execution_start"), frame("execution_cached", nodes=["5"])]
    states: dict[str, Any] = {}
    for node in ("1", "2", "3", "4"):
        states[node] = {"value": 0, "max": 1, "state": "running"}
        script += [frame("progress_state", nodes=dict(states)), frame("executing", node=node)]
        if node in outputs:
            script.append(frame("executed", node=node, output=outputs[node]))
        states[node] = {"value": 1, "max": 1, "state": "finished"}
        script.append(frame("progress_state", nodes=dict(states)))
    script += [frame("execution_success"), idle()]
    status = {"status_str": "success", "completed": True, "messages": []}
    return script, {"outputs": outputs, "status": status}, {"prompt": graph, "prompt_id": RUN}


@st.composite
def worlds(draw: st.DrawFn, outcome: str = "success") -> World:
    script, history, request = node_script(outcome)
    fates = draw(
        st.lists(
            st.sampled_from([(), (0.0,), (0.0,), (0.0,), (0.0, 0.0), (0.03,), (0.2,), (0.001, 0.4)]),
            min_size=len(script),
            max_size=len(script),
        )
    )
    faults: list[AskFailure | None] = draw(
        st.lists(st.sampled_from([None, None, "unreachable", "error"]), max_size=6)
    )
    run_id = request["prompt_id"]
    unsure = draw(st.booleans())
    run = Run(
        run_id=run_id,
        graph=request["prompt"],
        limits=replace(LIMITS, probe_s=draw(st.sampled_from([0.05, 1.0, 15.0]))),
        now=1000.0,
    )
    world = World(
        run=run,
        run_id=run_id,
        script=script,
        history=history,
        post=PostUnknown("reset") if unsure else accepted(run_id),
        deliver=lambda index: fates[index],
        faults=lambda: faults.pop() if faults else None,
        latency_s=draw(st.sampled_from([0.001, 0.004, 0.03])),
        beat_s=draw(st.sampled_from([0.0, 0.01, 0.5])),
        pending_s=draw(st.sampled_from([0.0, 0.02, 3.0])),
        deaf_s=draw(st.sampled_from([0.0, 0.05, 3.0])),
    )
    closes = draw(st.none() | st.floats(0.001, 2.0))
    if closes is not None:
        world.at(closes, world.close)
    return world


@settings(max_examples=300, deadline=None)
@given(world=st.one_of(worlds(), worlds("cached"), worlds("several"), worlds("several")))
def test_every_disorder_ends_with_the_outputs_of_the_history(world: World) -> None:
    world.feed(Opened())
    log = world.play()
    assert log.verdict.kind == "succeeded"
    assert files(log.left) == files(read_history(world.history).items)
    assert world.state == "absent", "it had left the node"


@settings(max_examples=150, deadline=None)
@given(world=worlds(outcome="error"))
def test_every_disorder_ends_with_the_nodes_error(world: World) -> None:
    world.feed(Opened())
    log = world.play()
    assert log.verdict.kind == "failed"
    assert log.verdict.error is not None
    assert log.verdict.error.node_id == "3"


@settings(max_examples=300, deadline=None)
@given(world=st.one_of(worlds(), worlds("several")), cancel_at=st.floats(0.0, 6.0))
def test_a_cancel_at_any_moment_ends_with_a_free_node(world: World, cancel_at: float) -> None:
    world.at(cancel_at, lambda: world.feed(CANCEL))
    world.feed(Opened())
    log = world.play()
    assert log.verdict.kind in ("succeeded", "canceled")
    assert world.state == "absent", "the node is free"


@settings(max_examples=200, deadline=None)
@given(world=st.one_of(worlds(), worlds("several")), dies_at=st.floats(0.0, 3.0))
def test_a_node_that_dies_at_any_moment_is_noticed(world: World, dies_at: float) -> None:
    world.dies_at = world.now + dies_at
    world.at(dies_at + 0.004, world.close)
    world.feed(Opened())
    log = world.play()
    assert log.verdict.kind in ("succeeded", "lost")
    if log.verdict.kind == "lost" and isinstance(world.post, PostAnswered):
        assert log.verdict.counts
        assert log.verdict.retryable


@settings(max_examples=100, deadline=None)
@given(world=worlds())
def test_a_post_that_never_arrived_is_found_out(world: World) -> None:
    world.post, world.reached = PostUnknown("reset"), False
    world.feed(Opened())
    log = world.play()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", False)
    assert log.of(Report, Collect) == []
