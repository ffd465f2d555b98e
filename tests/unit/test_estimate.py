import heapq
from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.estimate import evened, retry_after, seconds_left, seconds_running

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


# -- in virtual time: a queue of jobs that are all there at once, on nodes of any speed ---------------------


def worked(nodes: Mapping[str, float], jobs: Iterable[float]) -> list[tuple[float, str, float]]:
    """Work jobs off in their order; returns when each ended, where, and what it took.

    Args:
        nodes: How often a node is slower than the fastest.
        jobs: What each takes on the fastest node.
    """
    free = [(0.0, slowness, name) for name, slowness in nodes.items()]
    heapq.heapify(free)
    ended = []
    for seconds in jobs:
        at, slowness, name = heapq.heappop(free)
        ended.append((at + seconds * slowness, name, seconds * slowness))
        heapq.heappush(free, (at + seconds * slowness, slowness, name))
    return sorted(ended)


def estimated(
    nodes: Mapping[str, float], runs: Sequence[tuple[float, str]], ahead: int, *, measured: bool
) -> float:
    rates = {name: 1 / slowness if measured else 1.0 for name, slowness in nodes.items()}
    took = [seconds for seconds, _ in runs]
    left = seconds_left(
        took, evened(runs, rates, list(nodes)), ahead=ahead, busy=len(nodes), nodes=len(nodes)
    )
    assert left is not None
    return left


FLEETS = {
    "equal": dict.fromkeys("abcde", 2.0),
    "two fast, three slow": {"a": 1.0, "b": 1.0, "c": 2.0, "d": 2.0, "e": 2.0},
    "one fast, one very slow": {"a": 1.0, "b": 4.0},
    "all different": {"a": 1.0, "b": 1.5, "c": 2.5, "d": 3.5},
}
MIXED = [1.0, 1.0, 1.0, 1.0, 6.0]


@pytest.mark.parametrize("kinds", [[1.0], MIXED], ids=["one kind", "short and long"])
@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("nodes", FLEETS.values(), ids=FLEETS)
def test_the_last_of_a_long_queue_is_told_when_it_ends(
    nodes: Mapping[str, float], measured: bool, kinds: list[float]
) -> None:
    """From the runs of an earlier queue, also where nobody has measured the nodes' speeds yet."""
    earlier = worked(nodes, kinds * 40)
    runs = [(took, name) for _, name, took in earlier][-60:-10]
    last = worked(nodes, kinds * 60)[-1][0]
    told = estimated(nodes, runs, len(kinds) * 60 - 1 - len(nodes), measured=measured)
    assert told == pytest.approx(last, rel=0.1, abs=2 * max(kinds) * max(nodes.values()))


def test_a_quiet_time_on_the_fast_nodes_promises_nothing_for_a_long_queue() -> None:
    nodes = FLEETS["two fast, three slow"]
    quiet = [(1.0, "a"), (1.0, "b")] * 25
    last = worked(nodes, [1.0] * 200)[-1][0]
    assert estimated(nodes, quiet, 199, measured=True) == pytest.approx(last, rel=0.06)


def test_mixed_nodes_are_not_taken_for_their_fastest() -> None:
    """200 jobs, two nodes that take 1 s and three that take 2 s: 57 s of work, not 40 s."""
    nodes = FLEETS["two fast, three slow"]
    runs = [(took, name) for _, name, took in worked(nodes, [1.0] * 200)][-50:]
    assert estimated(nodes, runs, 199, measured=False) == pytest.approx(59, abs=2)


def test_equal_nodes_are_told_as_they_were() -> None:
    runs = [(0.5, name) for name in "abcde"] * 10
    assert estimated(dict.fromkeys("abcde", 1.0), runs, 95, measured=True) == pytest.approx(9.5 + 0.25 + 0.5)


def test_runs_of_nodes_that_are_gone_count_as_they_are() -> None:
    assert evened([(4.0, "gone"), (1.0, "a")], {"a": 2.0, "b": 1.0}, ["a", "b"]) == [4.0, 2.0 / 1.5]
    assert evened([(4.0, "a")], {"a": 2.0}, []) == [4.0]


@pytest.mark.parametrize(
    ("took", "nodes", "seconds"),
    [([], 3, 1), ([0.1], 3, 1), ([60.0], 2, 30), ([9.0, 12.0], 4, 3), ([7200.0], 1, 60), ([5.0], 0, 30)],
)
def test_when_a_full_queue_has_room(took: list[float], nodes: int, seconds: int) -> None:
    assert retry_after(took, nodes=nodes) == seconds
