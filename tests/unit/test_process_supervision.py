"""When a ComfyUI process is started, restarted and recycled."""

from dataclasses import replace

import pytest

from comfy_fleet.domain.nodes.process_supervision import Look, Order, ProcessPhase, RestartLimits, Watch, step

LIMITS = RestartLimits(start_s=100, frozen_s=30, hung_s=600, rss_bytes=10 * 2**30, jobs=5, steady_s=60)
UP = Watch(phase=ProcessPhase.UP, since=100.0, up_at=100.0, why="", restarts=0, effort=5.0, effort_at=100.0)
WELL = Look(now=110.0, running=True, ready=True, heard_at=110.0, effort=5.0, rss_bytes=2**30, needed=False)


def test_it_is_started_and_up_once_it_answers() -> None:
    watch, order = step(Watch(), Look(now=1.0, running=False), LIMITS)
    assert (watch.phase, order, watch.restarts) == (ProcessPhase.STARTING, Order.START, 0)
    assert step(watch, Look(now=2.0, running=True), LIMITS) == (watch, None)
    watch, order = step(watch, Look(now=3.0, running=True, ready=True, heard_at=3.0), LIMITS)
    assert (watch.phase, watch.why, order) == (ProcessPhase.UP, "", None)


def test_a_start_that_takes_too_long_is_given_up() -> None:
    watch, _ = step(Watch(), Look(now=0.0, running=False), LIMITS)
    watch, order = step(watch, Look(now=100.0, running=True, effort=50.0), LIMITS)
    assert (watch.phase, order) == (ProcessPhase.WAITING, Order.KILL)
    assert "100 s" in watch.why


def test_crashes_in_a_row_are_waited_out_longer_each_time() -> None:
    watch, order = step(UP, Look(now=110.0, running=False, ended="SIGKILL"), LIMITS)
    assert (watch.phase, watch.why, watch.crashes, order) == (ProcessPhase.WAITING, "SIGKILL", 1, None)
    assert step(watch, Look(now=110.1, running=False), LIMITS)[1] is None
    watch, order = step(watch, Look(now=110.2, running=False), LIMITS)
    assert (order, watch.restarts) == (Order.START, 1)
    assert "SIGKILL" in watch.why
    watch, _ = step(watch, Look(now=111.0, running=False, ended="exit 1"), LIMITS)
    assert watch.crashes == 2
    assert step(watch, Look(now=111.3, running=False), LIMITS)[1] is None
    assert step(watch, Look(now=111.5, running=False), LIMITS)[1] is Order.START


def test_a_crash_of_a_start_is_one_more_however_long_the_process_before_was_up() -> None:
    watch, _ = step(UP, Look(now=110.0, running=False), LIMITS)
    assert watch.why == "ended by itself"
    watch, _ = step(watch, Look(now=111.0, running=False), LIMITS)
    watch, _ = step(watch, Look(now=190.0, running=False, ended="exit 1"), LIMITS)
    assert (watch.phase, watch.crashes) == (ProcessPhase.WAITING, 2)


def test_the_work_of_a_process_counts_from_its_own_start() -> None:
    watch, _ = step(replace(UP, effort=5000.0), Look(now=110.0, running=False), LIMITS)
    watch, _ = step(watch, Look(now=111.0, running=False), LIMITS)
    watch, _ = step(watch, Look(now=112.0, running=True, ready=True, heard_at=112.0), LIMITS)
    for second in range(1, 120):  # it loads a model, as the one before it did
        watch, order = step(
            watch, Look(now=112.0 + second, running=True, ready=True, heard_at=112.0, effort=second), LIMITS
        )
        assert order is None, second


def test_a_long_steady_time_forgives_earlier_crashes() -> None:
    watch, _ = step(replace(UP, crashes=7), Look(now=160.0, running=False), LIMITS)
    assert watch.crashes == 1


def test_silent_and_without_progress_is_frozen() -> None:
    silent = replace(WELL, heard_at=105.0)
    assert step(UP, replace(silent, now=134.0), LIMITS)[1] is None
    watch, order = step(UP, replace(silent, now=135.0), LIMITS)
    assert (watch.phase, order) == (ProcessPhase.WAITING, Order.KILL)
    assert watch.why.startswith("frozen")


@pytest.mark.parametrize("phase", [ProcessPhase.STARTING, ProcessPhase.UP, ProcessPhase.LEAVING])
def test_one_that_answers_but_can_run_nothing_is_killed(phase: ProcessPhase) -> None:
    watch, order = step(
        replace(UP, phase=phase), replace(WELL, broken="its worker died", needed=True), LIMITS
    )
    assert (watch.phase, watch.why, order) == (ProcessPhase.WAITING, "its worker died", Order.KILL)


def test_a_load_that_starves_the_event_loop_is_not_frozen() -> None:
    watch = UP
    order: Order | None = None
    for second in range(1, 120):
        look = replace(WELL, now=100.0 + second, heard_at=100.0, effort=5.0 + 0.8 * second)
        watch, order = step(watch, look, LIMITS)
        assert order is None, second
    # What threads use that only wake up to wait again is no progress.
    for second in range(120, 150):
        look = replace(look, now=100.0 + second, effort=look.effort + 0.01)
        watch, order = step(watch, look, LIMITS)
    assert order is Order.KILL


def test_busy_but_silent_for_very_long_is_hung() -> None:
    watch = UP
    order: Order | None = None
    for second in range(1, 601):
        look = replace(WELL, now=100.0 + second, heard_at=100.0, effort=5.0 + second)
        watch, order = step(watch, look, LIMITS)
    assert order is Order.KILL
    assert watch.why.startswith("hung")


@pytest.mark.parametrize(
    ("look", "why"),
    [(replace(WELL, rss_bytes=11 * 2**30), "host memory"), (replace(WELL, jobs=5), "after 5 jobs")],
)
def test_a_worn_process_is_recycled_once_nobody_needs_it(look: Look, why: str) -> None:
    watch, order = step(replace(UP, crashes=3), look, LIMITS)
    assert (watch.phase, order) == (ProcessPhase.LEAVING, None)
    assert why in watch.why
    assert step(watch, replace(look, now=111.0), LIMITS)[1] is None  # HAProxy has not heard it yet
    assert step(watch, replace(look, now=500.0, heard_at=500.0, needed=True), LIMITS)[1] is None
    watch, order = step(watch, replace(look, now=112.0), LIMITS)
    assert (watch.phase, order) == (ProcessPhase.STOPPING, Order.STOP)
    assert step(watch, replace(look, now=113.0), LIMITS) == (watch, None)
    watch, order = step(watch, Look(now=114.0, running=False), LIMITS)
    assert (order, watch.crashes, watch.restarts) == (Order.START, 0, 1)


def test_no_limit_means_none() -> None:
    look = replace(WELL, rss_bytes=2**50, jobs=10**6)
    assert step(UP, look, RestartLimits())[0].phase is ProcessPhase.UP


def test_only_what_is_up_can_be_recycled_by_hand() -> None:
    assert UP.recycle("because", 1.0).phase is ProcessPhase.LEAVING
    starting = replace(UP, phase=ProcessPhase.STARTING)
    assert starting.recycle("because", 1.0) is starting


def test_a_worn_process_waits_for_its_turn_but_not_while_it_leaks_on() -> None:
    done = replace(WELL, jobs=5, turn=False)
    assert step(UP, done, LIMITS)[0].phase is ProcessPhase.UP
    assert step(UP, replace(done, turn=True), LIMITS)[0].phase is ProcessPhase.LEAVING
    leaking = replace(WELL, rss_bytes=11 * 2**30, turn=False)
    assert step(UP, leaking, LIMITS)[0].phase is ProcessPhase.UP
    assert step(UP, replace(leaking, rss_bytes=13 * 2**30), LIMITS)[0].phase is ProcessPhase.LEAVING
