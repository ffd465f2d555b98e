"""Work that nobody explains: an answer that knows no run of it, and a look after the question."""

from typing import Any

import pytest

from comfy_fleet.domain.nodes.orphans import MOST_SHOWN, SHOWN_S, Prompt, Queue, read_queue

RUN = Prompt(id="r1", ours=True)


def test_it_takes_an_answer_and_a_look_some_time_after_the_question() -> None:
    queue = Queue().look([RUN], 10.0)
    assert queue.busy
    queue = queue.told(["r1"], [], 10.1)
    assert not queue.orphans
    queue = queue.look([RUN], 10.5)
    assert not queue.orphans
    assert queue.look([RUN], 10.6).orphans == (RUN,)


def test_a_run_that_ended_between_look_and_question_leaves_no_orphan() -> None:
    # Seen for as long as it ran; the fleet, asked right after its end, knows it no longer.
    queue = Queue().look([RUN], 10.0).look([RUN], 10.5).look([RUN], 11.0).told(["r1"], [], 11.1)
    assert not queue.orphans
    assert not queue.told(["r1"], [], 12.1).orphans  # no look has come in since
    assert not queue.look([], 11.5).orphans


def test_questions_that_go_on_do_not_put_it_off() -> None:
    queue = Queue().look([RUN], 10.0).told(["r1"], [], 10.1).look([RUN], 10.4).told(["r1"], [], 10.5)
    assert queue.look([RUN], 10.7).orphans == (RUN,)


def test_a_run_explains_it_as_long_as_it_is_known() -> None:
    queue = Queue().look([RUN], 1.0).told(["r1"], ["r1"], 1.1).look([RUN], 2.0)
    assert not queue.orphans
    assert queue.told(["r1"], [], 3.0).look([RUN], 3.5).orphans == (RUN,)


def test_an_answer_that_explains_it_begins_anew() -> None:
    queue = Queue().look([RUN], 1.0).told(["r1"], [], 1.1).told(["r1"], ["r1"], 1.2).look([RUN], 2.0)
    assert not queue.orphans
    assert not queue.told(["r1"], [], 2.1).look([RUN], 2.5).orphans


def test_a_prompt_that_left_is_forgotten() -> None:
    queue = Queue().look([RUN], 1.0).told(["r1"], [], 1.1).look([], 2.0)
    assert not queue.busy
    assert not queue.look([RUN], 3.0).orphans


def test_an_answer_about_others_says_nothing() -> None:
    queue = Queue().look([RUN], 1.0).told(["other"], [], 1.1).look([RUN], 2.0)
    assert not queue.orphans


def test_comfyui_s_queue_is_read() -> None:
    ours = [0, "r1", {}, {"client_id": "r1", "fleet": {"job": "j", "run": "r1"}}, ["2"]]
    lie = [1, "r2", {}, {"fleet": {"run": "r1"}}, []]
    body = {"queue_running": [ours], "queue_pending": [lie, [2, "r3"]]}
    assert read_queue(body) == [
        Prompt(id="r1", running=True, ours=True),
        Prompt(id="r2", running=False),
        Prompt(id="r3", running=False),
    ]


@pytest.mark.parametrize("body", [None, [], {}, {"queue_running": [], "queue_pending": [[1]]}])
def test_another_form_is_refused(body: Any) -> None:
    with pytest.raises(ValueError, match="queue"):
        read_queue(body)


def test_the_fleet_s_prompts_are_shown_for_a_moment_after_they_are_gone() -> None:
    queue = Queue().look([Prompt(id="a", ours=True), Prompt(id="stranger")], 10.0)
    assert queue.shown(10.0) == ("a",)
    queue = queue.look([Prompt(id="b", ours=True)], 11.0).told(["b"], [], 11.0)
    assert queue.shown(11.0) == ("a", "b")
    assert queue.shown(10.0 + SHOWN_S + 0.1) == ("b",)
    many = queue.look([Prompt(id=str(number), ours=True) for number in range(100)], 12.0)
    assert len(many.shown(12.0)) == MOST_SHOWN
