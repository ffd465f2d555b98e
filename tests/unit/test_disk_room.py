"""How much of the disk is left, in words, and who may still use it."""

import pytest

from comfy_fleet.domain.disk_room import Room, floor_of, size_text


def room(free: int, floor: int = 1000) -> Room:
    return Room(path="/data", free_bytes=free, total_bytes=10_000, floor_bytes=floor)


@pytest.mark.parametrize(
    ("total", "wanted", "floor"),
    [
        (24 * 2**20, None, 2_516_582),
        (2 * 10**12, None, 512 * 10**6),
        (2 * 10**12, 10**9, 10**9),
        (24 * 2**20, 0, 0),
        (0, None, 0),
    ],
)
def test_the_floor_suits_large_and_small_disks(total: int, wanted: int | None, floor: int) -> None:
    assert floor_of(total, wanted) == floor


def test_a_full_disk_says_what_is_left_and_what_it_needs() -> None:
    assert room(1000).lacks(1000) is None and not room(1000).full
    assert room(999).full
    assert room(999).lacks(2_500_000) == "the fleet's disk is full: 999 B left at /data, needs 2.5 MB"
    assert room(0).reserve_bytes == 500


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (7, "7 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (20_000, "20 kB"),
        (999_700, "1.0 MB"),
        (1_540_000, "1.5 MB"),
        (21 * 10**6, "21 MB"),
        (1_540_000_000, "1.5 GB"),
        (3 * 10**15, "3000 TB"),
    ],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size_text(count) == text
