"""The run machine and runs that have to end: cancels, silence, the longest time."""

import math
from dataclasses import replace

import pytest

from comfy_fleet.domain.jobs.run import Run
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    AskHistory,
    AskQueue,
    DeletePending,
    Finish,
    HistoryAnswered,
    Interrupt,
    InterruptSent,
    Opened,
    QueueAnswered,
)
from tests.unit.run_harness import (
    CANCEL,
    CLOSED,
    LIMITS,
    RUN,
    Log,
    accepted,
    frame,
    history_of,
    idle,
    machine,
    recording,
    started,
    tick,
)


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
    run, _ = started(limits=replace(LIMITS, silence_s=60, pending_s=math.inf))
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


def deaf_until_the_end(run: Run, log: Log) -> float:
    """Say that the prompt runs whenever that is asked; return when the run gave up."""
    at = 0.0
    while not log.of(Finish):
        at, actions = tick(run)
        if AskQueue() in log.add(actions):
            log.add(run.handle(QueueAnswered("running"), at))
    log.check()
    return at


def test_a_prompt_that_cannot_be_interrupted_is_given_up() -> None:
    run, frames = started(limits=replace(LIMITS, silence_s=10, abort_s=5))
    run.handle(frames[3], 0.0)
    log = Log()
    assert deaf_until_the_end(run, log) == pytest.approx(15)
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


def test_time_in_the_nodes_queue_is_not_the_jobs() -> None:
    run, frames = started(limits=replace(LIMITS, run_s=100, pending_s=math.inf))
    at = 0.0
    while at < 90:
        at, _ = tick(run)
        run.handle(QueueAnswered("pending"), at)
    run.handle(frames[3], 95.0)
    for second in range(96, 195):
        assert Interrupt() not in run.handle(
            frame("progress", value=second, max=1000, node="1"), float(second)
        ), second
    assert Interrupt() in run.handle(frame("progress", value=196, max=1000, node="1"), 195.0)


def test_a_cancel_waits_for_a_deaf_node_as_long_as_for_a_silent_one() -> None:
    run, frames = started(limits=replace(LIMITS, silence_s=60, abort_s=5))
    run.handle(frames[3], 0.0)
    log = Log()
    log.add(run.handle(CANCEL, 1.0))
    assert run.handle(CANCEL, 2.0) == [], "it is on its way"
    assert deaf_until_the_end(run, log) == pytest.approx(61)
    assert log.verdict.kind == "canceled"


def test_no_clock_runs_against_an_interrupted_prompt_while_haproxy_is_away() -> None:
    run, frames = started(limits=replace(LIMITS, silence_s=10, abort_s=5))
    run.handle(frames[3], 0.0)
    log = Log()
    at = 0.0
    while at < 60:
        at, actions = tick(run)
        if AskQueue() in log.add(actions):
            log.add(run.handle(AskFailed("queue", "unreachable"), at))
    assert log.of(Interrupt, Finish) == [Interrupt()]
    at, actions = tick(run)
    assert actions == [AskQueue()]
    log.add(run.handle(QueueAnswered("absent"), at))
    log.add(run.handle(HistoryAnswered(None), at))
    assert log.verdict.kind == "timeout"


def test_how_soon_a_prompt_that_stays_is_asked_about_again() -> None:
    waits, _ = started()
    waits.handle(CANCEL, 0.1)
    waits.handle(InterruptSent(ok=True), 0.2)
    assert waits.handle(QueueAnswered("pending"), 0.4) == [DeletePending()]
    assert waits.next_tick() == pytest.approx(0.4 + LIMITS.poll_s)

    deaf, frames = started()
    deaf.handle(frames[3], 0.1)
    deaf.handle(CANCEL, 1.0)
    assert deaf.next_tick() == pytest.approx(1.0 + LIMITS.nag_s)
    deaf.handle(InterruptSent(ok=False), 1.1)
    assert deaf.next_tick() == pytest.approx(1.1 + LIMITS.poll_s), "the interrupt did not get there"

    unheard, frames = started()
    unheard.handle(frames[3], 0.1)
    unheard.handle(CLOSED, 0.2)
    unheard.handle(CANCEL, 0.3)
    assert unheard.handle(QueueAnswered("running"), 0.4) == [Interrupt()]
    assert unheard.next_tick() == pytest.approx(0.4 + LIMITS.poll_s), "no frame will tell"


def test_an_end_that_frames_tell_twice_is_looked_up() -> None:
    run, frames = started()
    log = Log()
    log.add(run.handle(frame("execution_interrupted"), 0.1))
    for event in frames:
        log.add(run.handle(event, 0.2))
    assert log.of(Finish) == []
    assert log.actions[-1] == AskHistory()
    log.add(run.handle(HistoryAnswered(history_of(recording("success"))), 0.3))
    log.check()
    assert log.verdict.kind == "succeeded"


def test_somebody_elses_interrupt_costs_no_attempt_though_history_names_none() -> None:
    run, frames = started()
    run.handle(frames[3], 0.1)
    run.handle(frame("execution_interrupted"), 0.2)
    run.handle(CLOSED, 0.3)
    run.handle(QueueAnswered("absent"), 0.4)
    log = Log()
    log.add(run.handle(HistoryAnswered({"outputs": {}, "status": {"status_str": "error"}}), 0.5))
    assert (log.verdict.kind, log.verdict.counts) == ("lost", False)
