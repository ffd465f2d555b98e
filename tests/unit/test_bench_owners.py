"""How two owners' shares of GPU time are counted."""

import pytest

from benchmarks.owners import JOB_S, Span, measured

WINDOW_S = 4.0


def spans(pattern: str) -> list[Span]:
    """Return one computation a second on one node: ``2`` and ``1`` are the owners', ``.`` is nobody's."""
    names = {"2": "two", "1": "one"}
    return [
        (names[sign], 100.0 + second, 101.0 + second) for second, sign in enumerate(pattern) if sign in names
    ]


@pytest.mark.parametrize(
    ("pattern", "off", "worst"),
    [("221221", 1 / 6, 1 / 2), ("22122211", 1 / 6, 1 / 2), ("22222", 1 / 3, 1.0), ("2212.21", 1 / 12, 3 / 4)],
)
def test_the_window_that_is_furthest_from_two_thirds_counts(pattern: str, off: float, worst: float) -> None:
    found = measured(spans(pattern), 100.0, float(len(pattern)), WINDOW_S, len(pattern))
    assert found.off == pytest.approx(off)
    assert found.worst == pytest.approx(worst)
    assert found.used_s == {"two": pattern.count("2"), "one": pattern.count("1")}
    assert (found.jobs, found.job_s, found.window_s) == (len(pattern), JOB_S, WINDOW_S)
