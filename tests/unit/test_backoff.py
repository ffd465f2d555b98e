"""Pauses after failures."""

from comfy_fleet.domain.backoff import Backoff


def test_the_pause_doubles_up_to_its_limit() -> None:
    backoff = Backoff(first_s=0.5, longest_s=10)
    assert [backoff.pause_s(n) for n in (1, 2, 3, 4, 5, 6, 1000)] == [0.5, 1, 2, 4, 8, 10, 10]
