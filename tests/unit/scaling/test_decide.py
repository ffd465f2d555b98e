"""When a pool grows and shrinks."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.scaling.decide import PoolStrength, decide, grows_after
from comfy_fleet.domain.scaling.looks import PoolLook, with_look
from comfy_fleet.domain.scaling.rules import GrowRule, GrowSignal, ScalingRules, ShrinkRule

RULES = ScalingRules(minimum=1, maximum=8)
LONG_AGO = -math.inf


def watched(
    span_s: float, *, nodes: int, busy: int, waiting: int = 0, oldest_s: float = 0.0, ended: int = 0
) -> tuple[PoolLook, ...]:
    """Return looks every 5 s that all show the same."""
    times = range(0, int(span_s) + 1, 5)
    return tuple(
        PoolLook(
            at=1000.0 + at, waiting=waiting, oldest_s=oldest_s, nodes=nodes, busy=busy, ended=ended * at // 5
        )
        for at in times
    )


def change(
    looks: Sequence[PoolLook],
    strength: PoolStrength,
    rules: ScalingRules = RULES,
    changed_at: float = LONG_AGO,
) -> int:
    now = looks[-1].at if looks else 0.0
    return decide(rules, looks, strength, now=now, changed_at=changed_at).change


def test_a_long_wait_adds_a_node_once_it_has_lasted() -> None:
    strength = PoolStrength(ready=2)
    assert change(watched(115, nodes=2, busy=2, waiting=3, oldest_s=31), strength) == 0
    assert change(watched(120, nodes=2, busy=2, waiting=3, oldest_s=31), strength) == 1
    assert change(watched(300, nodes=2, busy=2, waiting=3, oldest_s=30), strength) == 0


def test_a_backlog_adds_two() -> None:
    strength = PoolStrength(ready=2)
    assert change(watched(295, nodes=2, busy=2, waiting=51), strength) == 0
    assert change(watched(300, nodes=2, busy=2, waiting=51), strength) == 2
    assert change(watched(300, nodes=2, busy=2, waiting=50), strength) == 0


def test_a_break_begins_the_time_anew() -> None:
    looks = list(watched(200, nodes=2, busy=2, waiting=3, oldest_s=31))
    looks[-10] = replace(looks[-10], oldest_s=29.0)
    assert change(looks, PoolStrength(ready=2)) == 0


def test_a_node_that_boots_counts_as_capacity() -> None:
    looks = watched(300, nodes=2, busy=2, waiting=60, oldest_s=100)
    assert change(looks, PoolStrength(ready=2, booting=1)) == 1
    assert change(looks, PoolStrength(ready=2, booting=2)) == 0
    assert change(looks, PoolStrength(ready=2, booting=6)) == 0


def test_the_time_of_a_rule_for_more_begins_when_a_node_has_come() -> None:
    rules = replace(RULES, cool_down_s=10.0)
    looks = watched(300, nodes=2, busy=2, waiting=3, oldest_s=100)
    assert change(looks, PoolStrength(ready=2), rules, changed_at=looks[-1].at - 60) == 0
    assert change(looks, PoolStrength(ready=2), rules, changed_at=looks[-1].at - 120) == 1


def test_nothing_changes_while_it_cools_down() -> None:
    rules = replace(RULES, cool_down_s=500.0)
    looks = watched(600, nodes=4, busy=0)
    assert change(looks, PoolStrength(ready=4, removable=4), rules, changed_at=looks[-1].at - 499) == 0
    assert change(looks, PoolStrength(ready=4, removable=4), rules, changed_at=looks[-1].at - 500) == -1


def test_jobs_that_wait_beside_idle_nodes_add_none() -> None:
    # A job that needs what no node has would otherwise fill the pool up to its maximum.
    looks = watched(600, nodes=4, busy=1, waiting=60, oldest_s=600)
    assert change(looks, PoolStrength(ready=4)) == 0
    assert change(looks, PoolStrength(ready=4), replace(RULES, least_busy=0.0)) == 2


def test_at_the_maximum_a_node_that_drains_is_taken_back() -> None:
    looks = watched(120, nodes=7, busy=7, waiting=3, oldest_s=31)
    assert change(looks, PoolStrength(ready=7, others=1)) == 0
    assert change(looks, PoolStrength(ready=7, others=1, draining=1)) == 1


def test_a_pool_without_any_node_grows_from_nothing() -> None:
    looks = watched(120, nodes=0, busy=0, waiting=1, oldest_s=31)
    assert change(looks, PoolStrength(ready=0), replace(RULES, minimum=0)) == 1


def test_what_is_missing_is_ordered_at_once_up_to_the_maximum() -> None:
    rules = replace(RULES, minimum=3)
    assert change((), PoolStrength(ready=1), rules, changed_at=0.0) == 2
    assert change((), PoolStrength(ready=1, booting=2), rules) == 0
    assert change((), PoolStrength(ready=1, others=6), rules) == 1
    assert change((), PoolStrength(ready=1, others=7), rules) == 0


def test_an_idle_pool_gives_one_up_at_a_time_and_keeps_the_minimum() -> None:
    looks = watched(600, nodes=3, busy=0)
    assert change(looks, PoolStrength(ready=3, removable=3)) == -1
    assert change(looks, PoolStrength(ready=3, removable=0)) == 0
    assert change(looks, PoolStrength(ready=1, removable=1)) == 0
    assert change(looks, PoolStrength(ready=3, booting=1, removable=3)) == 0
    assert change(watched(595, nodes=3, busy=0), PoolStrength(ready=3, removable=3)) == 0
    assert change(looks, PoolStrength(ready=3, removable=3), replace(RULES, shrink=None)) == 0


def test_a_pool_above_its_maximum_gives_one_up() -> None:
    looks = watched(600, nodes=9, busy=9)
    assert change(looks, PoolStrength(ready=9, removable=1)) == -1


def test_none_goes_if_a_rule_for_more_would_hold_without_it() -> None:
    # For 3 of 10 minutes all four work, on jobs of 40 s, then none: 27 % busy. Three could not keep up.
    calm = list(watched(600, nodes=4, busy=0))
    burst = [replace(look, busy=4, oldest_s=10.0) if 100 <= look.at - 1000 < 260 else look for look in calm]
    strength = PoolStrength(ready=4, removable=4)
    assert change(calm, strength) == -1
    assert grows_after(RULES, burst, nodes=3) == RULES.grow[0]
    assert change(burst, strength) == 0
    # With one more node than the burst needs, that one may go.
    assert change(burst, PoolStrength(ready=5, removable=5)) == -1


def test_none_goes_while_a_job_waits_too_long_however_idle_the_nodes_are() -> None:
    looks = list(watched(600, nodes=4, busy=0))
    looks[-1] = replace(looks[-1], waiting=1, oldest_s=31.0)
    assert change(looks, PoolStrength(ready=4, removable=4)) == 0


def test_the_last_node_goes_only_if_nothing_came() -> None:
    rules = replace(RULES, minimum=0)
    looks = list(watched(600, nodes=1, busy=0))
    assert change(looks, PoolStrength(ready=1, removable=1), rules) == -1
    looks[5] = replace(looks[5], busy=1)
    assert change(looks, PoolStrength(ready=1, removable=1), rules) == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"oldest_s": math.nan},
        {"oldest_s": math.inf},
        {"oldest_s": -1.0},
        {"waiting": -5},
        {"busy": 9},
        {"at": math.nan},
    ],
)
def test_numbers_that_no_fleet_has_make_it_unreadable(odd: dict[str, float]) -> None:
    looks = watched(600, nodes=2, busy=2, waiting=90, oldest_s=90)
    strange = replace(looks[-1], at=looks[-1].at + 5)
    after = with_look(looks, replace(strange, **odd), keep_s=600, most_gap_s=15)  # type: ignore[arg-type]
    assert after == ()
    assert change(after, PoolStrength(ready=2)) == 0


def test_a_gap_and_a_clock_that_goes_back_begin_the_looks_anew() -> None:
    looks = watched(600, nodes=2, busy=2)
    for at in (looks[-1].at + 16, looks[-1].at - 1):
        late = replace(looks[-1], at=at)
        assert with_look(looks, late, keep_s=600, most_gap_s=15) == (late,)


def test_looks_are_kept_for_as_long_as_a_rule_needs_them() -> None:
    looks: tuple[PoolLook, ...] = ()
    for look in watched(2000, nodes=1, busy=0):
        looks = with_look(looks, look, keep_s=600, most_gap_s=15)
    assert looks[-1].at - looks[0].at == 600


rules_of_any_kind = st.builds(
    ScalingRules,
    minimum=st.integers(0, 4),
    maximum=st.integers(4, 9),
    cool_down_s=st.sampled_from([0.0, 60.0, 300.0]),
    grow=st.lists(
        st.builds(
            GrowRule,
            signal=st.sampled_from(GrowSignal),
            above=st.floats(0, 100),
            for_s=st.sampled_from([0.0, 30.0, 120.0]),
            add=st.integers(1, 1000),
        ),
        max_size=3,
    ).map(tuple),
    shrink=st.none()
    | st.builds(ShrinkRule, busy_below=st.floats(0, 1), for_s=st.sampled_from([30.0, 300.0])),
    least_busy=st.floats(0, 1),
)
strengths = st.builds(
    PoolStrength,
    ready=st.integers(0, 12),
    booting=st.integers(0, 12),
    others=st.integers(4, 12),
    draining=st.integers(0, 4),
    removable=st.integers(0, 12),
) | st.builds(PoolStrength, ready=st.integers(0, 12), removable=st.integers(0, 12))


@st.composite
def any_looks(draw: st.DrawFn) -> tuple[PoolLook, ...]:
    looks: tuple[PoolLook, ...] = ()
    at = 0.0
    for _ in range(draw(st.integers(0, 30))):
        at += draw(st.sampled_from([0.0, 5.0, 10.0, 40.0]))
        look = PoolLook(
            at=at,
            waiting=draw(st.integers(-1, 10**9)),
            oldest_s=draw(st.floats(allow_nan=True)),
            nodes=draw(st.integers(0, 12)),
            busy=draw(st.integers(0, 12)),
            ended=draw(st.integers(0, 100)),
        )
        looks = with_look(looks, look, keep_s=300, most_gap_s=15)
    return looks


@settings(max_examples=60, deadline=None)
@given(rules_of_any_kind, any_looks() | st.just(watched(600, nodes=4, busy=1)), strengths)
def test_whatever_is_seen_the_bounds_hold(
    rules: ScalingRules, looks: tuple[PoolLook, ...], strength: PoolStrength
) -> None:
    now = looks[-1].at if looks else 0.0
    found = decide(rules, looks, strength, now=now, changed_at=LONG_AGO)
    assert found.why
    after = strength.capacity + found.change
    if found.change > 0:
        assert after <= rules.maximum
        if new := found.change - min(found.change, strength.draining):
            assert strength.capacity + strength.others + new <= rules.maximum
    if found.change < 0:
        assert found.change == -1 and strength.removable
        assert after >= min(rules.minimum, rules.maximum)
        if strength.capacity <= rules.maximum:  # a rule, and not the maximum, takes it
            assert strength.booting == 0
            assert grows_after(rules, looks, nodes=strength.ready - 1) is None
            last = looks[-1]
            for rule in rules.grow if len(looks) > 1 else ():
                assert not rule.holds_at(oldest_s=last.oldest_s, waiting=last.waiting)


@settings(max_examples=30, deadline=None)
@given(any_looks(), st.integers(1, 6))
def test_fewer_nodes_never_make_fewer_rules_hold(looks: tuple[PoolLook, ...], nodes: int) -> None:
    rules = replace(RULES, grow=(GrowRule(signal=GrowSignal.WAIT, above=20, for_s=60, add=1),))
    for more, fewer in pairwise(range(nodes + 6, nodes - 1, -1)):
        if grows_after(rules, looks, nodes=more):
            assert grows_after(rules, looks, nodes=fewer)
