"""Half of all jobs end by the first number, nine of ten by the second, whatever is wrong with estimates."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.schedule.calibration import KEPT, KINDS, Calibration, kind_of

RATIOS = st.lists(st.floats(0, 1e6), max_size=300)


@pytest.mark.parametrize(("bias", "spread"), [(1.0, 0.3), (3.0, 0.8), (0.2, 1.5)])
def test_bounds_hold_as_often_as_they_say(bias: float, spread: float) -> None:
    chance = Random(1)
    ratios = [bias * chance.lognormvariate(0.0, spread) for _ in range(4000)]
    by_half = by_most = 0
    for at in range(KEPT, len(ratios)):
        end = Calibration(ratios[at - KEPT : at]).applied(10.0)
        by_half += 10.0 * ratios[at] <= end.p50_s
        by_most += 10.0 * ratios[at] <= end.p90_s
    tried = len(ratios) - KEPT
    assert by_half / tried == pytest.approx(0.5, abs=0.03)
    assert by_most / tried == pytest.approx(0.9, abs=0.03)


def test_those_that_are_running_longer_already_are_compared_with_such() -> None:
    found = Calibration([0.5] * 50 + [1.0] * 30 + [2.0] * 20)
    assert found.applied(10.0).p50_s == pytest.approx(5.0, abs=5.0)
    late = found.applied(10.0, since_s=12.0)
    assert (late.p50_s, late.p90_s) == (8.0, 8.0)
    later_than_any = found.applied(10.0, since_s=30.0)
    assert (later_than_any.p50_s, later_than_any.p90_s) == (30.0, 60.0)


@given(RATIOS, st.floats(0, 1e7), st.floats(0, 1e7))
def test_they_are_in_order_and_never_negative(ratios: list[float], end_s: float, since_s: float) -> None:
    end = Calibration(ratios).applied(end_s, since_s=since_s)
    assert 0 <= end.p50_s <= end.p90_s < math.inf


def test_the_newest_count() -> None:
    assert Calibration([1.0] * KEPT + [9.0] * KEPT).applied(1.0).p90_s == 1.0


def test_little_that_was_learned_is_not_believed_at_once() -> None:
    assert Calibration().applied(10.0).p50_s == 10.0
    assert Calibration([100.0]).applied(10.0).p50_s < 20.0


def test_the_more_of_it_is_waiting_the_higher_the_kind() -> None:
    kinds = [kind_of(10.0 + waits, 10.0) for waits in (0.0, 5.0, 20.0, 500.0)]
    assert kinds == list(KINDS[:4])
    assert kind_of(5.0, 0.0) == KINDS[3]
