from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.estimate import seconds_left, seconds_running

SECONDS = st.lists(st.floats(0.01, 1e4), max_size=50)


def test_nobody_knows_without_measurements_or_nodes() -> None:
    assert seconds_left([], [], ahead=0, busy=0, nodes=3) is None
    assert seconds_left([1.0], [1.0], ahead=0, busy=0, nodes=0) is None
    assert seconds_running([], elapsed_s=1) is None


def test_a_free_node_takes_it_at_once() -> None:
    assert seconds_left([4.0, 6.0, 5.0], [100.0], ahead=0, busy=1, nodes=2) == 5.0


def test_others_stand_in_until_it_was_measured_itself() -> None:
    assert seconds_left([], [3.0], ahead=0, busy=0, nodes=1) == 3.0
    assert seconds_left([3.0], [], ahead=2, busy=0, nodes=1) == 9.0


def test_nodes_work_side_by_side() -> None:
    assert seconds_left([2.0], [10.0], ahead=4, busy=2, nodes=2) == (4 * 10 + 2 * 10 / 2) / 2 + 2


def test_what_runs_gets_shorter_but_never_negative() -> None:
    assert seconds_running([10.0], elapsed_s=4) == 6
    assert seconds_running([10.0], elapsed_s=40) == 0


@given(SECONDS, SECONDS, st.integers(0, 1000), st.integers(0, 50), st.integers(1, 50))
def test_a_longer_queue_never_helps(
    own: list[float], every: list[float], ahead: int, busy: int, n: int
) -> None:
    one = seconds_left(own, every, ahead=ahead, busy=busy, nodes=n)
    two = seconds_left(own, every, ahead=ahead + 1, busy=busy, nodes=n)
    assert (one is None) == (two is None) == (not own and not every)
    if one is not None and two is not None:
        assert 0 <= one <= two
