"""An ordered index against a sorted list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.schedule.ordered_index import BLOCK, OrderedIndex

NAMES = st.sampled_from([f"m{i}" for i in range(12)])
CALLS = st.lists(
    st.one_of(st.tuples(NAMES, st.integers(0, 5).map(float)), st.tuples(NAMES, st.none())), max_size=60
)


@given(CALLS)
def test_it_is_always_sorted(calls: list[tuple[str, float | None]]) -> None:
    index, expected = OrderedIndex(), dict[str, float]()
    for name, key in calls:
        if key is None:
            index.discard(name)
            expected.pop(name, None)
        else:
            index.put(name, key)
            expected[name] = key
        entries = sorted((value, each) for each, value in expected.items())
        assert index.head(100) == entries
        assert index.first() == (entries[0] if entries else None)
        assert len(index) == len(entries) and (name in index) == (name in expected)
        assert index.key_of(name) == expected.get(name)


@pytest.mark.parametrize("step", [1, -1, 7])
def test_many_entries_go_through_several_blocks(step: int) -> None:
    count = 4 * BLOCK + 1
    index = OrderedIndex()
    for i in range(count):
        index.put(f"{i:06}", float(i * step % count))
    entries = sorted((float(i * step % count), f"{i:06}") for i in range(count))
    assert index.head(count) == entries
    for place in (0, BLOCK, count // 2, count - 1):
        assert index.before(entries[place][1]) == place
    while len(index):
        first = index.first()
        assert first == entries.pop(0)
        index.discard(first[1])
        if entries:
            last = entries.pop()
            index.discard(last[1])
    assert index.first() is None and index.head(3) == []


def test_what_is_not_there_has_no_place() -> None:
    with pytest.raises(KeyError):
        OrderedIndex().before("nobody")
    assert OrderedIndex().key_of("nobody") is None
