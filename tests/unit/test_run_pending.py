"""The run machine and a prompt that waits in its node's own queue, behind work that is not the fleet's."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.run import Run
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    AskFailure,
    AskHistory,
    AskQueue,
    DeletePending,
    Finish,
    Frame,
    FreeElsewhere,
    HistoryAnswered,
    Interrupt,
    InterruptSent,
    LookElsewhere,
    Opened,
    PostUnknown,
    QueueAnswered,
    RunResult,
)
from tests.unit.run_harness import (
    CANCEL,
    CLOSED,
    LIMITS,
    Log,
    Tell,
    World,
    accepted,
    events_of,
    frame,
    history_of,
    idle,
    machine,
    recording,
    request_of,
    started,
    tick,
)

PENDING, RUNNING, ABSENT = QueueAnswered("pending"), QueueAnswered("running"), QueueAnswered("absent")
ELSEWHERE, DELETED, LOST = FreeElsewhere(), InterruptSent(ok=True), InterruptSent(ok=False)
NONE = HistoryAnswered(None)


def waiting(**limits: Any) -> tuple[Run, float]:
    """A run that has just been told that its prompt waits, and when."""
    run, _ = started(limits=replace(LIMITS, **limits))
    at, actions = tick(run)
    assert actions == [AskQueue()]
    assert at == pytest.approx(0.01 + LIMITS.poll_s), "an idle node would have begun by now"
    assert run.handle(PENDING, at) == [LookElsewhere()]
    return run, at


def withdrawn(verdict: RunResult) -> bool:
    """Whether it was given back as one that never began; nothing else of that kind may be uncounted."""
    error = verdict.error
    back = verdict.kind == "lost" and error is not None and error.code == "node_busy"
    assert not back or (not verdict.counts and verdict.retryable and not verdict.exclude_node)
    return back


def deleting() -> tuple[Run, float]:
    """A run that has just ordered the deletion."""
    run, at = waiting()
    assert run.handle(ELSEWHERE, at) == [AskQueue()]
    assert run.handle(PENDING, at) == [DeletePending()]
    return run, at


def test_it_goes_where_a_node_is_free() -> None:
    run, at = deleting()
    assert run.handle(DELETED, at) == [AskQueue()], "verified"
    assert run.handle(ABSENT, at) == [AskHistory()]
    log = Log()
    log.add(run.handle(NONE, at))
    log.check()
    assert withdrawn(log.verdict)
    assert log.verdict.error is not None and "behind a prompt" in log.verdict.error.message


def test_it_is_looked_for_another_node_as_long_as_it_waits() -> None:
    run, at = waiting()
    for _ in range(5):
        at, actions = tick(run)
        assert actions == [AskQueue()]
        assert run.handle(PENDING, at) == [LookElsewhere()]


def test_after_a_while_it_goes_in_any_case() -> None:
    run, first = waiting(pending_s=5)
    actions: list[Any] = []
    at = first
    while DeletePending() not in actions:
        at, _ = tick(run)
        actions = run.handle(PENDING, at)
    assert at - first == pytest.approx(5)


@pytest.mark.parametrize("silence_s", [0.5, 2.0, 8.0, 600.0])
def test_a_prompt_that_never_began_shows_no_lack_of_progress(silence_s: float) -> None:
    run, _ = started(limits=replace(LIMITS, silence_s=silence_s, run_s=5))
    log = Log()
    at = 0.0
    while not log.of(DeletePending):
        at, actions = tick(run)
        log.add(actions)
        if AskQueue() in actions:
            log.add(run.handle(PENDING, at))
    log.add(run.handle(DELETED, at))
    log.add(run.handle(ABSENT, at))
    log.add(run.handle(NONE, at))
    log.check()
    assert withdrawn(log.verdict)
    assert not log.of(Interrupt)


def test_a_node_that_tells_nothing_of_it_is_lost_and_counts() -> None:
    run, _ = started(limits=replace(LIMITS, silence_s=60, abort_s=5))
    log = Log()
    while not log.of(Finish):
        at, actions = tick(run)
        log.add(actions)
        if AskQueue() in actions:
            log.add(run.handle(AskFailed("queue", "error"), at))
        if DeletePending() in actions:
            log.add(run.handle(LOST, at))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", True)
    assert log.verdict.error is not None and log.verdict.error.code == "node_lost"


def test_one_that_begins_just_then_goes_on_by_its_frames() -> None:
    run, at = deleting()
    log = Log()
    for event in events_of(recording("success")):
        log.add(run.handle(event, at))
    log.check()
    assert log.verdict.kind == "succeeded"
    assert not log.of(Interrupt, DeletePending)


def test_one_that_begins_just_then_goes_on_by_the_nodes_answer() -> None:
    run, at = deleting()
    assert run.handle(DELETED, at) == [AskQueue()]
    assert run.handle(RUNNING, at) == [], "it is left alone"
    assert run.handle(ELSEWHERE, at) == []
    log = Log()
    for event in events_of(recording("success")):
        log.add(run.handle(event, at + 1))
    log.check()
    assert log.verdict.kind == "succeeded"


def test_one_that_ran_meanwhile_is_judged_by_its_history() -> None:
    for name, kind in (("success", "succeeded"), ("error_execution", "failed"), ("interrupted", "lost")):
        run, at = deleting()
        run.handle(CLOSED, at)
        run.handle(ABSENT, at)
        log = Log()
        log.add(run.handle(HistoryAnswered(history_of(recording(name))), at))
        log.check()
        assert log.verdict.kind == kind and not withdrawn(log.verdict)


@pytest.mark.parametrize("heard", [True, False], ids=["deleted", "not deleted"])
def test_a_deletion_whose_answer_is_lost_is_looked_after(heard: bool) -> None:
    run, at = deleting()
    assert run.handle(LOST, at) == []
    at, actions = tick(run)
    assert actions == [AskQueue()]
    if not heard:
        assert run.handle(PENDING, at) == [DeletePending()], "again"
        assert run.handle(DELETED, at) == [AskQueue()]
    run.handle(ABSENT, at)
    log = Log()
    log.add(run.handle(NONE, at))
    log.check()
    assert withdrawn(log.verdict), "the websocket would have told of a beginning"


def test_without_websocket_and_confirmation_nobody_knows_so_it_counts() -> None:
    run, at = deleting()
    run.handle(LOST, at)
    run.handle(CLOSED, at)
    run.handle(ABSENT, at)
    log = Log()
    log.add(run.handle(NONE, at))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", True)


def adopted() -> Run:
    """A run that was taken over while its prompt waits, and that has just ordered the deletion."""
    run = machine(recording("success"), adopted=True, accepted=True)
    assert run.handle(Opened(), 0.0) == [AskQueue()]
    assert run.handle(PENDING, 0.1) == [LookElsewhere()]
    assert run.handle(ELSEWHERE, 0.2) == [AskQueue()]
    assert run.handle(PENDING, 0.3) == [DeletePending()]
    return run


@pytest.mark.parametrize("socket", [True, False])
def test_a_node_that_went_away_after_it_had_confirmed_may_have_begun(socket: bool) -> None:
    run = deleting()[0] if socket else adopted()
    assert run.handle(DELETED, 2.0) == [AskQueue()]
    if socket:
        run.handle(CLOSED, 2.1)
    run.handle(AskFailed("queue", "node_down"), 2.2)
    at, _ = tick(run)
    assert run.handle(ABSENT, at) == [AskHistory()], "it is back, and new"
    log = Log()
    log.add(run.handle(NONE, at))
    log.check()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", True)


def test_a_broken_websocket_changes_nothing_for_who_is_told() -> None:
    run, at = waiting()
    assert run.handle(CLOSED, at) == [AskQueue()]
    assert run.handle(PENDING, at) == [LookElsewhere()]
    assert run.handle(ELSEWHERE, at) == [AskQueue()]
    assert run.handle(PENDING, at) == [DeletePending()]
    assert run.handle(DELETED, at) == [AskQueue()]
    run.handle(ABSENT, at)
    log = Log()
    log.add(run.handle(NONE, at))
    log.check()
    assert withdrawn(log.verdict)


def test_a_cancel_comes_first() -> None:
    run, at = deleting()
    log = Log()
    assert log.add(run.handle(CANCEL, at)) == [DeletePending(), Interrupt()]
    assert log.add(run.handle(DELETED, at)) == [AskQueue()]
    log.add(run.handle(DELETED, at))
    log.add(run.handle(ABSENT, at))
    log.add(run.handle(NONE, at))
    log.check()
    assert log.verdict.kind == "canceled"


def test_whoever_takes_it_over_goes_on() -> None:
    run = adopted()
    assert run.handle(DELETED, 0.4) == [AskQueue()]
    run.handle(ABSENT, 0.5)
    log = Log()
    log.add(run.handle(NONE, 0.6))
    assert withdrawn(log.verdict)


def test_what_the_one_before_had_deleted_counts_for_the_next() -> None:
    """It can't know whether the prompt was deleted or had begun."""
    run = machine(recording("success"), adopted=True, accepted=True)
    run.handle(Opened(), 0.0)
    run.handle(ABSENT, 0.1)
    log = Log()
    log.add(run.handle(NONE, 0.2))
    assert (log.verdict.kind, log.verdict.counts) == ("lost", True)


def test_a_run_that_began_is_asked_about_as_seldom_as_ever() -> None:
    run, frames = started()
    run.handle(frames[3], 0.5)
    assert run.next_tick() == pytest.approx(0.5 + LIMITS.probe_s)


def test_a_free_node_is_nothing_to_a_prompt_that_runs() -> None:
    run, frames = started()
    run.handle(frames[3], 0.5)
    assert run.handle(ELSEWHERE, 0.6) == []
    log = Log()
    for event in (frame("execution_interrupted"), idle()):
        log.add(run.handle(event, 0.7))
    assert log.verdict.kind == "lost" and not withdrawn(log.verdict)


@st.composite
def busy_nodes(draw: st.DrawFn) -> World:
    """A node that works for others for a while, or for ever; much may go wrong meanwhile."""
    record = recording("extra_pnginfo")
    run_id = request_of(record)["prompt_id"]
    script = [event for event in events_of(record) if isinstance(event, Frame) and event.type != "status"]
    faults: list[AskFailure | None] = draw(
        st.lists(st.sampled_from([None, None, "unreachable", "error"]), max_size=6)
    )
    tells: list[Tell] = draw(st.lists(st.sampled_from(["ok", "ok", "answer lost", "not heard"]), max_size=6))
    free = draw(st.lists(st.booleans(), max_size=12))
    limits = replace(LIMITS, pending_s=draw(st.sampled_from([1.0, 5.0, 10.0])), silence_s=60)
    unsure = draw(st.booleans())
    world = World(
        run=Run(run_id=run_id, graph=request_of(record)["prompt"], limits=limits, now=1000.0),
        run_id=run_id,
        script=script,
        history=history_of(record),
        post=PostUnknown("reset") if unsure else accepted(run_id),
        faults=lambda: faults.pop() if faults else None,
        tells=lambda: tells.pop() if tells else "ok",
        free_elsewhere=lambda: free.pop() if free else False,
        latency_s=draw(st.sampled_from([0.001, 0.03, 0.5])),
        beat_s=draw(st.sampled_from([0.0, 0.5])),
        pending_s=draw(st.floats(0.5, 15.0) | st.just(1e9)),
    )
    closes = draw(st.none() | st.floats(0.001, 15.0))
    if closes is not None:
        world.at(closes, world.close)
    return world


def judged(world: World) -> RunResult:
    """Play a world; what holds whatever happens in it."""
    log = world.play()
    verdict = log.verdict
    assert world.state == "absent", "nothing of it is left on the node"
    assert world.began <= 1
    if withdrawn(verdict):
        assert not world.began, "a prompt that began is never given back for nothing"
    if world.began and verdict.kind == "lost":
        assert verdict.counts
    assert verdict.kind != "timeout", "it never lacked progress"
    return verdict


@settings(max_examples=400, deadline=None)
@given(world=busy_nodes())
def test_every_order_ends_with_the_prompt_run_or_taken_back(world: World) -> None:
    world.feed(Opened())
    verdict = judged(world)
    assert verdict.kind in ("succeeded", "lost")
    assert (verdict.kind == "succeeded") == bool(world.began)
    if isinstance(world.post, PostUnknown) or not world.socket:
        return
    assert world.began or withdrawn(verdict), "with its websocket it knows for sure"


@settings(max_examples=300, deadline=None)
@given(world=busy_nodes(), cancel_at=st.floats(0.0, 16.0))
def test_a_cancel_at_any_moment_leaves_nothing(world: World, cancel_at: float) -> None:
    world.at(cancel_at, lambda: world.feed(CANCEL))
    world.feed(Opened())
    verdict = judged(world)
    assert verdict.kind in ("succeeded", "lost", "canceled")


@settings(max_examples=400, deadline=None)
@given(world=busy_nodes(), dies_at=st.floats(0.6, 16.0))
def test_a_dispatcher_that_dies_at_any_moment_leaves_it_to_the_next(world: World, dies_at: float) -> None:
    def die() -> None:
        if world.log.of(Finish):
            return
        graph = request_of(recording("extra_pnginfo"))["prompt"]
        limits = replace(LIMITS, silence_s=60)
        world.take_over(
            Run(run_id=world.run_id, graph=graph, limits=limits, now=world.now, adopted=True, accepted=True)
        )

    world.post = accepted(world.run_id)
    world.at(dies_at, die)
    world.feed(Opened())
    verdict = judged(world)
    assert verdict.kind in ("succeeded", "lost")
    assert (verdict.kind == "succeeded") == bool(world.began)
