"""What a node has on its card and in its memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.schedule.model_set import NO_MODELS
from comfy_fleet.domain.schedule.scheduled_node import GIB
from comfy_fleet.domain.schedule.warmth import Missing, Warmth
from tests.unit.schedule.kit import models, node

A, B, C = models("a"), models("b"), models("c")


def test_from_the_disk_then_from_memory_then_there() -> None:
    warmth = Warmth(node())
    assert warmth.load_s(A) == pytest.approx(9.0)
    assert warmth.use(A) == []
    assert warmth.load_s(A) == 0.0
    assert warmth.use(B) == ["a"]
    assert warmth.load_s(A) == pytest.approx(1.5)


def test_memory_forgets_what_was_used_longest_ago() -> None:
    warmth = Warmth(node(ram_gib=40))
    for each in (A, B, C):
        warmth.use(each)
    assert warmth.load_s(A) == pytest.approx(9.0)
    assert warmth.load_s(B) == pytest.approx(1.5)


def test_only_what_the_last_run_used_is_on_the_card_whatever_the_room() -> None:
    warmth, small = Warmth(node()), models("s", gib=4)
    warmth.use(small)
    assert warmth.use(models("t", "s", gib=4)) == []
    assert warmth.use(NO_MODELS) == ["t", "s"]
    assert not warmth.card and warmth.load_s(small) == pytest.approx(1 / 3)


def test_only_what_is_missing_counts() -> None:
    warmth = Warmth(node())
    warmth.use(models("a", "lora1", gib=12))
    assert warmth.missing(models("a", "lora2", gib=12)) == Missing(GIB // 8, 0)


@pytest.mark.parametrize(("took_s", "then_s"), [(9.0, 9.0), (18.0, 10.6), (900.0, 11.6), (4.5, 6.9)])
def test_measured_loads_correct_the_rate_step_by_step(took_s: float, then_s: float) -> None:
    warmth = Warmth(node())
    warmth.measured(warmth.missing(A), took_s)
    assert warmth.load_s(A) == pytest.approx(then_s, abs=0.05)


def test_a_rate_comes_close_to_what_is_measured() -> None:
    warmth = Warmth(node())
    for _ in range(20):
        warmth.measured(warmth.missing(A), 3.0)
    assert warmth.load_s(A) == pytest.approx(3.0, rel=0.05)
    warmth.measured(Missing(0, 0), 5.0)  # it was thought to be there
    warmth.measured(warmth.missing(A), 0.0)  # and now it was
    assert warmth.load_s(A) == pytest.approx(3.0, rel=0.05)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 30)), max_size=40))
def test_no_level_has_more_than_it_can_hold(uses: list[tuple[str, int]]) -> None:
    warmth = Warmth(node(ram_gib=32))
    for name, gib in uses:
        loaded = models(f"{name}{gib}", gib=gib)
        gone = warmth.use(loaded)
        assert loaded.family in warmth.card and not set(gone) & set(warmth.card)
        assert dict(warmth.card) == dict(loaded.files)
        assert sum(warmth.memory.values()) <= 32 * GIB
