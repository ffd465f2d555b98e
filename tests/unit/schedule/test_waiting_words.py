"""Why a job waits, in words."""

import pytest

from comfy_fleet.domain.schedule.waiting_words import QueuePlace, words

NODES = frozenset({"gpu3", "gpu4"})


@pytest.mark.parametrize(
    ("place", "node_free", "expected"),
    [
        (QueuePlace(ahead=0), True, None),
        (QueuePlace(ahead=0), False, None),
        (QueuePlace(ahead=3), False, "behind 3 of your own"),
        (QueuePlace(ahead=3, share_used=True), False, "behind 3 of your own"),
        (QueuePlace(ahead=0, share_used=True), False, "your share is used"),
        (
            QueuePlace(ahead=0, overdue_in_s=19.2, holder="gpu3", free_in_s=5.0),
            False,
            "gpu3 has the model: at most 20 s more",
        ),
        (QueuePlace(ahead=2, overdue_in_s=0.0, holder="gpu3"), False, "the next free node takes it"),
        (QueuePlace(ahead=0, overdue_in_s=-7.0, holder="gpu3"), True, "the next free node takes it"),
        (QueuePlace(ahead=0, overdue_in_s=9.0), False, "the next free node takes it"),
        (QueuePlace(ahead=0, overdue_in_s=9.0, holder="gone"), False, "the next free node takes it"),
        (
            QueuePlace(ahead=0, holder="gpu3", free_in_s=4.2),
            True,
            "gpu3 has the model, and is free in about 5 s",
        ),
        (QueuePlace(ahead=0, holder="gpu3", free_in_s=4.2), False, None),  # all are busy: the next free one
        (QueuePlace(ahead=0, holder="gpu3", free_in_s=0.0), True, None),  # it takes it at once
        (QueuePlace(ahead=0, holder="gone", free_in_s=4.2), True, None),
    ],
)
def test_words(place: QueuePlace, node_free: bool, expected: str | None) -> None:
    assert words(place, usable=NODES, node_free=node_free) == expected
