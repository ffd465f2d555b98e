"""Pools under the rules, simulated: bounds, drains, and no flapping."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scaled_days import bursty_day, mean_load
from comfy_fleet.domain.scaling.rules import ScalingRules
from comfy_fleet.planning.scaled_pool import ScaledPool, oracle
from comfy_fleet.planning.trace import TraceJob

HOUR_S = 3600.0
RULES = ScalingRules(minimum=1, maximum=6)


def jobs_at(moments: list[float], run_s: float) -> list[TraceJob]:
    return [TraceJob(id=str(number), submitted=at, run_s=run_s) for number, at in enumerate(sorted(moments))]


def square(*, on_s: float, off_s: float, each_s: float, run_s: float, until: float) -> list[TraceJob]:
    """Return jobs that come each ``each_s`` for ``on_s``, and not at all for ``off_s``, in turns."""
    moments, at = [], 0.0
    while at < until:
        moments += [at + step * each_s for step in range(int(on_s / each_s))]
        at += on_s + off_s
    return jobs_at([one for one in moments if one < until], run_s)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 2 * HOUR_S), st.integers(1, 80), st.sampled_from([1.0, 10.0, 40.0])),
        max_size=12,
    ),
    st.sampled_from([0.0, 60.0, 300.0]),
    st.integers(0, 3),
    st.integers(3, 8),
)
def test_bursts_of_any_kind_keep_the_bounds(
    bursts: list[tuple[float, int, float]], boot_s: float, minimum: int, maximum: int
) -> None:
    jobs = sorted(
        (
            TraceJob(id=f"{place}-{number}", submitted=at, run_s=run_s)
            for place, (at, count, run_s) in enumerate(bursts)
            for number in range(count)
        ),
        key=lambda job: job.submitted,
    )
    rules = ScalingRules(minimum=minimum, maximum=maximum)
    found = ScaledPool(rules, boot_s=boot_s).run(jobs, until=4 * HOUR_S)
    assert (found.wait.count if found.wait else 0) == len(jobs)  # each job has run
    assert minimum <= found.least
    assert found.most <= maximum
    assert found.interrupted == 0  # a node that works is drained first
    assert found.turns(rules.cool_down_s) == 0
    assert found.gpu_s >= found.work_s


@pytest.mark.parametrize(("each_s", "run_s"), [(2.0, 3.0), (10.0, 40.0), (1.0, 0.5), (9.0, 40.0)])
def test_a_steady_load_comes_to_rest(each_s: float, run_s: float) -> None:
    jobs = square(on_s=6 * HOUR_S, off_s=0, each_s=each_s, run_s=run_s, until=6 * HOUR_S)
    found = ScaledPool(RULES, boot_s=60).run(jobs, until=6 * HOUR_S)
    assert [at for at, _ in found.changes if at > 2 * HOUR_S] == []


@pytest.mark.parametrize("period_s", [60.0, 240.0])
def test_a_square_wave_that_is_shorter_than_the_rules_comes_to_rest(period_s: float) -> None:
    jobs = square(on_s=period_s / 2, off_s=period_s / 2, each_s=5, run_s=40, until=6 * HOUR_S)
    found = ScaledPool(RULES, boot_s=60).run(jobs, until=6 * HOUR_S)
    assert [at for at, _ in found.changes if at > 2 * HOUR_S] == []


def test_a_slow_square_wave_turns_twice_a_period() -> None:
    jobs = square(on_s=HOUR_S, off_s=2 * HOUR_S, each_s=10, run_s=40, until=12 * HOUR_S)
    found = ScaledPool(RULES, boot_s=60).run(jobs, until=12 * HOUR_S)
    assert 4 <= found.turns(12 * HOUR_S) + 1 <= 2 * 4


def test_the_oracle_waits_no_longer_than_it_may_and_needs_less() -> None:
    jobs = bursty_day(seed=5, day_s=6 * HOUR_S)
    # One node more than there are jobs at once is never the limit.
    known = oracle(jobs, boot_s=60, patience_s=30, minimum=1, maximum=1000, until=6 * HOUR_S)
    assert known.wait is not None and known.wait.most <= 30
    fixed = ScaledPool(ScalingRules(minimum=known.most, maximum=known.most, shrink=None), boot_s=60).run(
        jobs, until=6 * HOUR_S
    )
    assert known.gpu_s < fixed.gpu_s
    assert known.work_s == pytest.approx(fixed.work_s) == pytest.approx(mean_load(jobs, 1.0))


def test_a_fixed_pool_never_changes() -> None:
    jobs = bursty_day(seed=5, day_s=6 * HOUR_S)
    found = ScaledPool(ScalingRules(minimum=4, maximum=4, shrink=None), boot_s=60).run(jobs, until=6 * HOUR_S)
    assert (found.most, found.least, list(found.changes)) == (4, 4, [])
    assert found.gpu_s == pytest.approx(4 * 6 * HOUR_S, rel=0.1)
