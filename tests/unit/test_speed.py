"""How fast a node is beside others."""

import math
from typing import Any

import pytest

from comfy_fleet.domain.nodes.node import Node, NodeState, Reading
from comfy_fleet.domain.nodes.speed import ENOUGH, LIMIT, OTHERS, WINDOW, Speeds, speed_of


def compared(
    speeds: Speeds, node: str, took_s: float, *, kind: str = "sdxl", weight: int = 100
) -> float | None:
    found = speeds.compare(kind, node, took_s=took_s, weight=weight)
    return None if found is None else math.exp(found)


def test_a_node_is_compared_with_others_only() -> None:
    speeds = Speeds()
    assert [compared(speeds, "a", 1.0) for _ in range(WINDOW)] == [None] * WINDOW
    for _ in range(OTHERS - 1):
        assert compared(speeds, "b", 4.0) == pytest.approx(0.5)
        assert compared(speeds, "a", 1.0) is None  # too few runs of others
    assert compared(speeds, "b", 4.0) == pytest.approx(0.5)
    assert compared(speeds, "a", 1.0) == pytest.approx(2.0)


@pytest.mark.parametrize("order", ["ab" * 30, "aaab" * 12, "abbb" * 12])
def test_who_runs_more_jobs_makes_no_difference(order: str) -> None:
    speeds, last = Speeds(), dict[str, float | None]()
    for node in order:
        last[node] = compared(speeds, node, {"a": 0.05, "b": 0.2}[node])
    assert last == {"a": pytest.approx(2.0), "b": pytest.approx(0.5)}


def test_kinds_of_work_are_never_mixed() -> None:
    speeds = Speeds()
    for _ in range(OTHERS):
        compared(speeds, "a", 1.0)
        compared(speeds, "a", 100.0, kind="video")
    assert compared(speeds, "b", 100.0, kind="video") == pytest.approx(1.0)
    assert compared(speeds, "b", 0.25) == pytest.approx(2.0)


def test_who_is_as_fast_as_its_model_promises_has_speed_one() -> None:
    speeds = Speeds()
    for _ in range(OTHERS):
        compared(speeds, "4090", 10.0, weight=100)
    assert compared(speeds, "3060", 10.0 / 0.15, weight=15) == pytest.approx(1.0)
    assert compared(speeds, "h200", 10.0, weight=220) == pytest.approx(2.2 ** (-2 / 3))


@pytest.mark.parametrize(("took_s", "speed"), [(0.001, LIMIT), (1000.0, 1 / LIMIT)])
def test_one_odd_run_says_no_more_than_the_limit(took_s: float, speed: float) -> None:
    speeds = Speeds()
    for _ in range(OTHERS):
        compared(speeds, "a", 1.0)
    assert compared(speeds, "b", took_s) == pytest.approx(speed)
    assert compared(speeds, "b", 0.0) is None


def test_kinds_that_are_no_longer_run_are_forgotten() -> None:
    speeds = Speeds()
    for _ in range(OTHERS):
        compared(speeds, "a", 1.0)
    for number in range(300):
        compared(speeds, "a", 1.0, kind=str(number))
    assert compared(speeds, "b", 1.0) is None


def test_a_speed_counts_after_a_few_runs() -> None:
    assert speed_of(math.log(0.5), ENOUGH - 1) is None
    assert speed_of(math.log(0.5), ENOUGH) == 0.5
    assert speed_of(9.0, 100) == LIMIT
    assert speed_of(-9.0, 100) == 1 / LIMIT


def test_how_fast_a_node_computes_is_its_card_s_promise_times_what_was_measured() -> None:
    def speed(gpu: str = "", **node: Any) -> float:
        reading = Reading(gpu=gpu, device="cuda")
        return NodeState(node=Node(name="g1", url="http://g1.test:1", **node), reading=reading).speed

    assert speed() == 1.0 == speed("NVIDIA GeForce RTX 4090")
    assert speed("NVIDIA H100 80GB HBM3") == 2.0
    assert speed("NVIDIA H100 80GB HBM3", speed=0.75) == 1.5
    assert speed("NVIDIA H100 80GB HBM3", weight=3) == 2.0, "that says how much work it should get"
