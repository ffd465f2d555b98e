"""Work that nobody explains: two looks, and an answer that came after the second."""

from dataclasses import replace
from typing import Any

import pytest

from comfy_fleet.domain.orphans import Prompt, Queue, read_queue

RUN = Prompt(id="r1", ours=True)


def test_it_takes_two_looks_and_an_answer_to_a_question_after_the_second() -> None:
    queue = Queue().look([RUN], 10.0)
    assert queue.busy
    assert not queue.orphans
    queue = queue.told(["r1"], [], 10.1)  # asked too early: its run may have been claimed meanwhile
    assert not queue.look([RUN], 10.5).orphans
    queue = queue.look([RUN], 10.5).told(["r1"], [], 10.6)
    assert queue.orphans == (RUN,)


def test_one_look_is_not_enough_whenever_the_fleet_was_asked() -> None:
    assert not Queue().look([RUN], 10.0).told(["r1"], [], 10.6).orphans
    assert Queue().look([RUN], 10.0).look([RUN], 10.5).told(["r1"], [], 10.5).orphans == (RUN,)


def test_a_prompt_that_waited_and_runs_now_is_told_as_running() -> None:
    queue = Queue().look([replace(RUN, running=False)], 1.0).look([RUN], 2.0)
    assert queue.told(["r1"], [], 2.0).orphans == (RUN,)


def test_a_run_explains_it_as_long_as_it_is_known() -> None:
    queue = Queue().look([RUN], 1.0).look([RUN], 2.0).told(["r1"], ["r1"], 2.0)
    assert not queue.orphans
    assert queue.look([RUN], 3.0).told(["r1"], [], 3.0).orphans == (RUN,)


def test_a_prompt_that_left_is_forgotten() -> None:
    queue = Queue().look([RUN], 1.0).look([], 2.0)
    assert not queue.busy
    again = queue.look([RUN], 3.0).told(["r1"], [], 3.0)
    assert not again.orphans


def test_an_answer_about_others_says_nothing() -> None:
    queue = Queue().look([RUN], 1.0).look([RUN], 2.0).told(["other"], [], 2.0)
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
