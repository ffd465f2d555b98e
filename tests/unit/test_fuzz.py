"""The short version of ``scripts/fuzz``, and that it would tell of a fault."""

import pytest
from hypothesis import strategies as st

from benchmarks.fuzz import inside
from benchmarks.fuzz.target import Target
from benchmarks.fuzz.targets import INSIDE


@pytest.mark.parametrize("target", INSIDE, ids=lambda target: target.name)
def test_nothing_goes_wrong(target: Target) -> None:
    finding, cases = inside.one_round(target, "short", 10)
    assert finding is None
    assert cases >= 10
    for data in target.corpus[:5]:
        target.check(data)


def test_a_fault_is_told_with_a_small_case_and_comes_again() -> None:
    def check(data: list[int]) -> None:
        if sum(data) > 100:
            raise ValueError(f"{sum(data)} is too much")

    target = Target(name="x", group="frames", cases=st.lists(st.integers(0, 1000)), check=check)
    finding, _ = inside.one_round(target, "1:0", 200)
    assert finding is not None
    assert (finding.what, finding.case) == ("ValueError: 101 is too much", "[101]")
    assert inside.one_round(target, "1:0", 200)[0] == finding


def test_a_hang_is_a_finding() -> None:
    def check(data: int) -> None:
        while True:
            pass

    with pytest.raises(inside.Hangs), inside.at_most(0.05):
        check(1)
