"""The run machine, rule by rule: frames and what they tell, adoption."""

from dataclasses import replace

import pytest

from comfy_fleet.domain.jobs.outputs import InlineText
from comfy_fleet.domain.jobs.run import RunPhase
from comfy_fleet.domain.jobs.run_messages import (
    AskQueue,
    Binary,
    Collect,
    Finish,
    Frame,
    HistoryAnswered,
    Interrupt,
    Left,
    Opened,
    QueueAnswered,
    ShowPreview,
    Tick,
    Unread,
)
from tests.unit.run_harness import (
    LIMITS,
    PNG,
    Log,
    accepted,
    frame,
    history_of,
    idle,
    is_idle,
    machine,
    recording,
    request_of,
    started,
    tick,
)


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
    assert run.phase is RunPhase.RUNNING


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


def test_a_node_whose_frames_we_do_not_read_is_not_silent() -> None:
    run, frames = started()
    for event in frames[:7]:
        run.handle(event, 0.1)
    for second in range(1, 2 * int(LIMITS.silence_s)):
        assert Interrupt() not in run.handle(Unread(), second)
    assert Interrupt() in run.handle(Tick(), 3 * LIMITS.silence_s)


def test_a_result_is_held_until_the_post_was_answered() -> None:
    record = recording("success")
    run = machine(record)
    run.handle(Opened(), 0.0)
    text = "x" * 1000
    run.handle(frame("executed", node="2", output={"text": [text]}), 0.1)
    assert run.held_bytes > 1000
    given = run.handle(accepted(request_of(record)["prompt_id"]), 0.2)
    assert [item.source for action in given if isinstance(action, Collect) for item in action.items] == [
        InlineText(text)
    ]
    assert run.held_bytes == 0
