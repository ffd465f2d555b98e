"""The run machine and the POST: answers, none, and leases that end before it."""

import pytest

from comfy_fleet.domain.jobs.run import RunPhase
from comfy_fleet.domain.jobs.run_messages import (
    AskHistory,
    AskQueue,
    Collect,
    DeletePending,
    Finish,
    HistoryAnswered,
    Interrupt,
    InterruptSent,
    Opened,
    PostAnswered,
    PostPrompt,
    PostUnknown,
    QueueAnswered,
)
from tests.unit.run_harness import (
    CANCEL,
    CLOSED,
    LIMITS,
    RUN,
    TICK,
    Log,
    accepted,
    events_of,
    machine,
    recording,
    request_of,
    tick,
)


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
    assert run.phase is RunPhase.ACCEPTED
    for event in events_of(record):
        log.add(run.handle(event, 0.3))
    assert log.verdict.kind == "succeeded"


def test_an_answer_that_comes_after_it_was_given_up_changes_nothing() -> None:
    run = machine(recording("success"))
    run.handle(Opened(), 0.0)
    run.handle(PostUnknown("timeout"), 0.1)
    assert run.handle(PostAnswered(400, {"error": "plain"}), 0.2) == []
    assert run.phase is RunPhase.POSTING


def test_a_cancel_during_the_post_counts_more_than_a_partly_valid_graph() -> None:
    run = machine(recording("success"))
    run.handle(Opened(), 0.0)
    log = Log()
    assert log.add(run.handle(CANCEL, 0.1)) == []
    body = {"prompt_id": RUN, "node_errors": {"7": {"errors": [], "class_type": "X"}}}
    assert log.add(run.handle(PostAnswered(200, body), 0.2)) == [DeletePending(), Interrupt()]
    log.add(run.handle(InterruptSent(ok=True), 0.3))
    log.add(run.handle(QueueAnswered("absent"), 0.4))
    log.add(run.handle(HistoryAnswered(None), 0.5))
    log.check()
    assert log.verdict.kind == "canceled"


def test_nothing_is_pushed_out_before_the_answer_to_the_post() -> None:
    record = recording("success")
    run = machine(record)
    run.handle(Opened(), 0.0)
    run.handle(events_of(record)[3], 0.1)
    assert run.phase is RunPhase.RUNNING
    assert run.handle(CANCEL, 0.2) == []
    assert run.handle(accepted(RUN), 0.3) == [Interrupt()]


def test_pictures_that_nobody_heard_during_the_post_are_given_up_at_once() -> None:
    record = recording("preview_and_ws_image")
    run = machine(record)
    run.handle(Opened(), 0.0)
    assert run.handle(CLOSED, 0.1) == []
    assert run.handle(accepted(request_of(record)["prompt_id"]), 0.2)[:2] == [DeletePending(), Interrupt()]


def test_a_canceled_post_without_an_answer_is_waited_for_from_when_it_was_given_up() -> None:
    run = machine(recording("success"))
    run.handle(Opened(), 0.0)
    assert run.handle(CANCEL, 100.0) == []
    log = Log()
    assert log.add(run.handle(PostUnknown("timeout"), 500.0)) == [AskQueue()]
    at = 500.0 + LIMITS.silence_s
    assert run.next_tick() == at  # the node does not answer
    assert log.add(run.handle(TICK, at - 0.1)) == []
    log.add(run.handle(TICK, at))
    log.check()
    assert log.verdict.kind == "canceled"


def test_a_post_without_an_answer_whose_pictures_nobody_heard_is_not_waited_for_without_end() -> None:
    run = machine(recording("preview_and_ws_image"))
    run.handle(Opened(), 0.0)
    run.handle(CLOSED, 0.1)
    log = Log()
    assert log.add(run.handle(PostUnknown("timeout"), 500.0)) == [AskQueue()]
    at = 500.0 + LIMITS.silence_s
    assert run.next_tick() == at
    log.add(run.handle(TICK, at))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", False)
