"""The run machine where frames end or lack: what it asks, in which order, and when a node counts as lost."""

import pytest

from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    AskHistory,
    AskQueue,
    Binary,
    Finish,
    Frame,
    HistoryAnswered,
    Interrupt,
    QueueAnswered,
)
from tests.unit.run_harness import (
    CLOSED,
    LIMITS,
    TICK,
    Log,
    frame,
    history_of,
    recording,
    started,
    tick,
)


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


def test_an_error_between_two_503_begins_the_count_anew() -> None:
    run, frames = started()
    run.handle(frames[3], 0.1)
    run.handle(CLOSED, 0.2)
    run.handle(AskFailed("queue", "node_down"), 0.3)
    log = Log()
    for kind in ("error", "node_down"):
        at, _ = tick(run)
        log.add(run.handle(AskFailed("queue", kind), at))
    assert log.of(Finish) == []


def test_later_frames_do_not_put_off_the_question_after_the_end() -> None:
    run, frames = started()
    for event in frames[:13]:
        run.handle(event, 1.0)
    assert run.next_tick() == pytest.approx(1.0 + LIMITS.settle_s)
    run.handle(frame("progress_state", nodes={}), 1.5)
    assert run.next_tick() == pytest.approx(1.0 + LIMITS.settle_s)


def test_a_picture_after_the_end_belongs_to_another_prompt() -> None:
    run, frames = started("preview_and_ws_image")
    for event in frames:
        if isinstance(event, Frame) and event.type == "execution_start":
            continue
        run.handle(event, 0.1)
    assert run.handle(Binary(b"\0\0\0\x01\0\0\0\x01\xff\xd8\xff123"), 0.2) == []


def test_a_frame_that_tells_nothing_new_is_not_reported() -> None:
    run, frames = started()
    for event in frames[:7]:
        run.handle(event, 0.1)
    assert run.handle(frames[6], 0.2) == []


def test_an_old_server_s_history_says_less_than_the_error_that_was_seen() -> None:
    run, frames = started()
    run.handle(frames[3], 0.1)
    run.handle(frame("execution_error", exception_type="ValueError", exception_message="no"), 0.2)
    run.handle(CLOSED, 0.3)
    run.handle(QueueAnswered("absent"), 0.4)
    log = Log()
    log.add(run.handle(HistoryAnswered({"outputs": {}}), 0.5))
    assert (log.verdict.kind, log.verdict.error and log.verdict.error.message) == ("failed", "no")
