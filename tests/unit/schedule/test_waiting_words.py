"""Why a job waits, in words."""

import pytest

from comfy_fleet.domain.schedule.waiting_words import QueuePlace, words

NODES = frozenset({"gpu3", "gpu4"})
BUSY = "all 2 able nodes are busy"
LOADED = "jobs whose models are loaded go first"


@pytest.mark.parametrize(
    ("place", "busy", "expected"),
    [
        (QueuePlace(ahead=0), None, None),
        (QueuePlace(ahead=0), BUSY, BUSY),
        (QueuePlace(ahead=3), BUSY, f"behind 3 of your own; {BUSY}"),
        (QueuePlace(ahead=3), None, "behind 3 of your own"),
        (QueuePlace(ahead=3, share_used=True), BUSY, f"behind 3 of your own; {BUSY}"),
        (QueuePlace(ahead=0, share_used=True), BUSY, f"your share is used; {BUSY}"),
        (
            QueuePlace(ahead=0, overdue_in_s=19.2, holder="gpu3", free_in_s=5.0),
            BUSY,
            "gpu3 has the model: at most 20 s more",
        ),
        (QueuePlace(ahead=2, overdue_in_s=0.0, holder="gpu3"), BUSY, f"the next free node takes it; {BUSY}"),
        (QueuePlace(ahead=0, overdue_in_s=-7.0, holder="gpu3"), None, "the next free node takes it"),
        (QueuePlace(ahead=0, overdue_in_s=9.0), BUSY, f"{LOADED}: at most 9 s more; {BUSY}"),
        (QueuePlace(ahead=0, overdue_in_s=8.1, holder="gone"), BUSY, f"{LOADED}: at most 9 s more; {BUSY}"),
        (QueuePlace(ahead=0, overdue_in_s=8.1), None, "the next free node takes it"),  # one is free
        (
            QueuePlace(ahead=0, holder="gpu3", free_in_s=4.2),
            None,
            "gpu3 has the model, and is free in about 5 s",
        ),
        (QueuePlace(ahead=0, holder="gpu3", free_in_s=4.2), BUSY, BUSY),  # all are busy: the next free one
        (QueuePlace(ahead=0, holder="gpu3", free_in_s=0.0), None, None),  # it takes it at once
        (QueuePlace(ahead=0, holder="gone", free_in_s=4.2), None, None),
    ],
)
def test_words(place: QueuePlace, busy: str | None, expected: str | None) -> None:
    assert words(place, usable=NODES, busy=busy) == expected
