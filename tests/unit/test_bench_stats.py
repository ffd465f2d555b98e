"""The arithmetic behind the published figures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stats import TIMES, Spread, added, computing, covered, median, percentile

values = st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=200)


def test_percentiles_are_measured_values() -> None:
    hundred = [float(n) for n in range(1, 101)]
    assert percentile(hundred, 99) == 99
    assert percentile(hundred, 100) == 100
    assert percentile(hundred, 0.1) == 1
    assert percentile([7.0], 99) == 7
    # 99 % of 200 values are at or below the 198th.
    assert percentile([float(n) for n in range(200, 0, -1)], 99) == 198


@given(values, st.floats(min_value=0.5, max_value=100))
def test_enough_values_lie_at_or_below_a_percentile(measured: list[float], percent: float) -> None:
    at = percentile(measured, percent)
    assert at in measured
    assert sum(value <= at for value in measured) >= percent / 100 * len(measured) - 1e-9


def test_what_is_added_is_measured_trip_by_trip() -> None:
    # A slow minute in which both were slow adds nothing.
    assert added([1.5, 1.25, 9.5], [1.0, 1.0, 9.0]).p50 == 0.5
    with pytest.raises(ValueError, match="longer"):
        added([1.0], [1.0, 2.0])


def test_medians_of_odd_and_even_counts() -> None:
    assert median([3.0, 1.0, 2.0]) == 2
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5


@pytest.mark.parametrize("wrong", [0, -1, 100.5])
def test_a_percentage_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], wrong)


def test_nothing_measured_is_an_error_and_not_a_zero() -> None:
    for calculate in (lambda: percentile([], 50), lambda: median([]), lambda: Spread.of([])):
        with pytest.raises(ValueError, match="at least one value"):
            calculate()
    with pytest.raises(ValueError, match="computed"):
        computing([[], []], submitted=0)


def test_a_spread_names_its_ends() -> None:
    spread = Spread.of([2.0, 9.0, 4.0])
    assert (spread.count, spread.least, spread.p50, spread.p99, spread.most) == (3, 2, 4, 9, 9)


def test_a_spread_of_seconds_is_said_and_fills_its_columns() -> None:
    spread = Spread.of([0.12, 0.5678, 0.3])
    assert spread.words() == "median 0.30 s, most 0.57 s of 3"
    assert dict(zip(TIMES, spread.row(), strict=True)) == {
        "times": "3",
        "median s": "0.30",
        "least s": "0.12",
        "most s": "0.57",
    }
    assert spread.row(3) == ["3", "0.300", "0.120", "0.568"]


def test_a_spread_of_seconds_is_said_in_milliseconds() -> None:
    spread = Spread.of([0.00812, 0.0456, 0.0129])
    assert spread.words_ms() == "13 ms, p99 46 ms"
    assert spread.words_ms(1) == "12.9 ms, p99 46 ms"
    assert spread.row_ms() == ["12.90", "45.60", "8.12"]
    assert spread.row_ms(1) == ["12.9", "45.6", "8.1"]


def test_overlaps_count_once() -> None:
    assert covered([(0, 2), (1, 3), (5, 6)]) == 4
    assert covered([(0, 10), (2, 3)]) == 10
    assert covered([]) == 0
    with pytest.raises(ValueError, match="before its start"):
        covered([(2, 1)])


def test_share_of_two_gpus() -> None:
    # The first computes 4 of the 5 seconds, the second 3; the submit came half a second before.
    used = computing([[(1, 3), (4, 6)], [(1, 2), (2.5, 4.5)]], submitted=0.5)
    assert used.window_s == 5
    assert used.makespan_s == 5.5
    assert used.share == pytest.approx(0.7)
    assert used.share_from_submit == pytest.approx(7 / 11)
    assert used.gap_s == pytest.approx(0.75)
    assert used.jobs_per_s == pytest.approx(0.8)


def test_a_gpu_that_did_nothing_counts_as_idle() -> None:
    assert computing([[(0, 2)], []], submitted=0).share == 0.5
    assert computing([[(0, 2)]], submitted=0).gap_s == 0
