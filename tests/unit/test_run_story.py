"""What a run keeps of what it saw, and what its invariants find."""

import tracemalloc

import pytest

from comfy_fleet.domain.jobs.run import RunPhase
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    AskHistory,
    AskQueue,
    Binary,
    Finish,
    Frame,
    HistoryAnswered,
    Opened,
    PostAnswered,
    QueueAnswered,
    SocketClosed,
    Tick,
)
from comfy_fleet.domain.jobs.run_story import MOST_CHARACTERS, MOST_FACT, MOST_STIMULI, RunStory, newest
from comfy_fleet.domain.jobs.run_transcript import RunTranscript
from tests.unit.run_harness import PNG, RUN, frame, started, tick


def test_a_story_tells_what_came_in_and_what_that_led_to() -> None:
    run, _ = started()
    run.handle(frame("execution_start"), 0.02)
    run.handle(SocketClosed("reset by peer"), 0.5)
    run.handle(QueueAnswered("absent"), 0.6)
    run.handle(HistoryAnswered(None), 0.7)
    assert run.phase is RunPhase.DONE
    assert run.story.lines() == [
        "0.000 Opened -> posting: PostPrompt",
        "0.010 PostAnswered 200 -> accepted",
        "0.020 execution_start -> running",
        "0.500 SocketClosed reset by peer -> running: AskQueue",
        "0.600 QueueAnswered absent -> running: AskHistory",
        "0.700 HistoryAnswered absent -> done: Finish",
    ]


def test_frames_that_only_move_the_progress_are_one_entry() -> None:
    run, _ = started("sleep_progress")
    run.handle(Frame("execution_start", {"prompt_id": RUN}), 0.02)
    for step in range(1, 5000):
        at = 0.1 + step / 1000
        run.handle(Frame("progress", {"node": "3", "value": step, "max": 5000}), at)
        run.handle(Frame("crystools.monitor", {"cpu": step}), at)
        run.handle(Binary(b"\0\0\0\1\0\0\0\2" + PNG), at)
    lines = run.story.lines()
    assert len(lines) <= 5
    assert lines[-1] == "0.101..5.099 frames x14997 -> running"


def test_questions_that_repeat_while_a_run_waits_are_folded() -> None:
    run, _ = started()
    run.handle(frame("execution_start"), 0.02)
    run.handle(SocketClosed("reset"), 0.1)
    at = 0.1
    for _ in range(300):
        run.handle(QueueAnswered("running"), at + 0.05)
        at, actions = tick(run)
        assert actions == [AskQueue()]
    assert len(run.story.lines()) == 6
    assert "QueueAnswered x300 running" in run.story.lines()[-2]


def test_a_story_is_bounded_in_entries_and_in_characters() -> None:
    story = RunStory(0.0)
    for number in range(3 * MOST_STIMULI):
        reason = f"{number} {'x' * 5000}"
        story.note(SocketClosed(reason), float(number), RunPhase.RUNNING, [AskQueue(), AskHistory()], "")
    lines = story.lines()
    assert len(lines) == MOST_STIMULI
    assert max(map(len, lines)) < 2 * MOST_FACT
    assert lines[-1].startswith(f"{3 * MOST_STIMULI - 1}.000 SocketClosed {3 * MOST_STIMULI - 1} x")
    short = newest(lines)
    assert sum(map(len, short)) < MOST_CHARACTERS + 40
    assert short[0] == f"({MOST_STIMULI - len(short) + 1} earlier left out)"
    assert short[-1] == lines[-1]
    assert newest(lines[:5]) == lines[:5]


def test_a_story_keeps_no_large_frame() -> None:
    run, _ = started()
    run.handle(frame("execution_start"), 0.02)
    tracemalloc.start()
    try:
        for number in range(50):
            run.handle(Binary(b"\0\0\0\1\0\0\0\2" + PNG + bytes(1_000_000)), 0.1 + number)
            run.handle(PostAnswered(200, {"x": "y" * 1_000_000}, "z" * 1_000_000), 0.1 + number)
            run.handle(Frame(f"{number}" + "t" * 1_000_000, {"prompt_id": RUN}), 0.1 + number)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 500_000


def test_what_could_not_be_read_is_in_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = started()

    def broken(*_: object) -> bool:
        raise ValueError("odd")

    monkeypatch.setattr(RunTranscript, "mine", broken)
    run.handle(frame("progress"), 0.02)
    assert run.story.lines()[-1] == "0.020 frames Frame: ValueError: odd -> accepted"


def test_an_adopted_run_tells_its_own_part() -> None:
    run, _ = started(adopted=False)
    run.handle(AskFailed("queue", "unreachable"), 0.02)  # not asked: it led to nothing
    assert run.story.lines()[-1] == "0.020 AskFailed unreachable -> accepted"


@pytest.mark.parametrize(
    ("attribute", "value", "rule"),
    [
        ("_ask_at", None, "waits for an answer"),
        ("_abort", "timeout", "only a prompt that began"),
        ("_broken", False, None),
        ("_socket", False, "frames may be missing"),
        ("_absent", 99, "a limit that is reached"),
        ("_since", 99.0, "in the future"),
    ],
)
def test_validate_names_what_does_not_hold(attribute: str, value: object, rule: str | None) -> None:
    run, _ = started()
    setattr(run, attribute, value)
    if rule is None:
        run.validate()
    else:
        with pytest.raises(AssertionError, match=rule):
            run.validate()


def test_a_run_that_is_over_has_nothing_to_check() -> None:
    run, _ = started()
    run.handle(SocketClosed("reset"), 0.1)
    run.handle(QueueAnswered("absent"), 0.2)
    assert any(isinstance(action, Finish) for action in run.handle(HistoryAnswered(None), 0.3))
    assert run.handle(Tick(), 0.4) == []
    assert run.handle(Opened(), 0.4) == []
    run.validate()


def test_no_name_that_a_node_sends_is_kept_whole() -> None:
    run, _ = started()
    run.handle(frame("execution_start"), 0.02)
    at = 0.1
    tracemalloc.start()
    try:
        for number in range(50):  # the time brings a question with each of them
            at = max(at + 1, run.next_tick() or 0)
            run.handle(Frame(f"{number}" + "t" * 1_000_000, {}), at)
            run.handle(QueueAnswered("running"), at + 0.1)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert run.phase is RunPhase.RUNNING
    assert held < 500_000
    assert max(map(len, run.story.lines())) < 2 * MOST_FACT


def test_a_name_that_no_encoder_takes_is_told_all_the_same() -> None:
    run, _ = started()
    run.handle(frame("execution_start"), 0.02)
    run.handle(Frame("\ud800", {}), run.next_tick() or 0)
    assert run.story.lines()[-1].endswith(" ? -> running: AskQueue")
    "".join(run.story.lines()).encode()
