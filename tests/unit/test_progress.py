"""Progress: steps weigh, caches don't, nothing falls."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.job import Progress
from comfy_fleet.domain.jobs.progress import MAX_STEPS, Meter, weight

GRAPH: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
    "3": {"class_type": "KSampler", "inputs": {"steps": 17, "model": ["1", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
}


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"steps": 20}, 21),
        ({"steps": 10**9}, 1 + MAX_STEPS),
        ({"steps": ["4", 0]}, 1),
        ({"steps": True}, 1),
        ({"steps": -3}, 1),
        ({}, 1),
        (None, 1),
    ],
)
def test_weights(inputs: Any, expected: float) -> None:
    assert weight({"class_type": "X", "inputs": inputs}) == expected


def test_steps_are_where_the_time_goes() -> None:
    meter = Meter(GRAPH)
    meter.start("1")
    meter.done("1")
    assert meter.snapshot.value == pytest.approx(1 / 20)
    meter.start("3")
    meter.step("3", 9, 17)
    assert meter.snapshot == Progress(
        value=(1 + 18 * (9 / 17)) / 20,
        nodes_done=1,
        nodes_total=3,
        current_node="3",
        current_node_class="KSampler",
        step=9,
        steps=17,
    )
    assert meter.snapshot.message == "KSampler 9/17"


def test_cached_nodes_take_no_time() -> None:
    meter = Meter(GRAPH)
    meter.cached(["1", "3", "unknown"])
    assert (meter.snapshot.value, meter.snapshot.nodes_done) == (0, 2)
    meter.done("9")
    assert meter.snapshot.value == 1


@pytest.mark.parametrize(
    ("cached", "mostly"),
    [([], False), (["1"], False), (["1", "9"], False), (["3"], True), (["1", "3"], True)],
)
def test_a_loader_that_is_cached_is_not_most_of_the_work(cached: list[str], mostly: bool) -> None:
    meter = Meter(GRAPH)
    meter.cached(cached)
    assert meter.mostly_cached is mostly


def test_seconds_and_single_steps_are_no_steps() -> None:
    meter = Meter(GRAPH)
    meter.step("3", 0.25, 5.0)
    assert (meter.snapshot.step, meter.snapshot.steps) == (None, None)
    assert meter.snapshot.value > 0
    meter.step("9", 0, 1)
    assert meter.snapshot.message == "SaveImage"


def test_a_node_that_grew_while_running_is_shown_but_not_counted() -> None:
    meter = Meter(GRAPH)
    meter.step("3.0.1", 1, 2)
    meter.done("3.0.1")
    assert (meter.snapshot.nodes_done, meter.snapshot.nodes_total, meter.snapshot.value) == (0, 3, 0)


def test_the_end_is_one() -> None:
    meter = Meter(GRAPH)
    meter.finish()
    assert meter.snapshot == Progress(value=1, nodes_done=3, nodes_total=3)


NODES = st.sampled_from([*GRAPH, "x"])
CALLS = st.one_of(
    st.tuples(st.just("step"), NODES, st.floats(-1, 30), st.floats(-1, 20)),
    st.tuples(st.just("start"), NODES),
    st.tuples(st.just("done"), NODES),
    st.tuples(st.just("cached"), st.lists(NODES)),
)


@given(st.lists(CALLS, max_size=30))
def test_it_never_falls_whatever_comes(calls: list[tuple[Any, ...]]) -> None:
    meter = Meter(GRAPH)
    before = meter.snapshot
    for name, *arguments in calls:
        getattr(meter, name)(*arguments)
        after = meter.snapshot
        assert 0 <= before.value <= after.value <= 1
        assert before.nodes_done <= after.nodes_done <= after.nodes_total
        before = after
