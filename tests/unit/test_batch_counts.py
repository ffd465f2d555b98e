"""What people read of a batch's counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from comfy_fleet.cli.batches import counts_of, follow


def batch(status: str, waiting: int, **counts: int) -> dict[str, Any]:
    states = (
        "pending",
        "queued",
        "running",
        "canceling",
        "succeeded",
        "failed",
        "canceled",
        "expired",
        "refused",
    )
    found = {one: counts.get(one, 0) for one in states}
    total = sum(found.values())
    return {"id": "b", "status": status, "waiting": waiting, "counts": found, "total": total}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (batch("queueing", 3, pending=3, queued=2), "3 pending, 2 queued"),
        (batch("queueing", 4, queued=2, canceled=5), "2 queued, 5 canceled; of these, 4 wait to run again"),
        (batch("completed", 0, succeeded=2, failed=1), "2 succeeded, 1 failed"),
    ],
)
def test_items_that_are_to_run_again_are_told_apart(found: dict[str, Any], text: str) -> None:
    assert counts_of(found) == text


def test_what_is_to_run_again_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [batch("queueing", 3, queued=1, succeeded=6, failed=3), batch("completed", 0, succeeded=10)]
    said: list[tuple[str, float]] = []

    class Answers:
        def get(self, *_: Any, **__: Any) -> dict[str, Any]:
            return left.pop(0)

    @contextmanager
    def progress_bar(*_: Any, **__: Any) -> Iterator[Any]:
        yield lambda text, share: said.append((text, share))

    monkeypatch.setattr("comfy_fleet.cli.watching.progress_bar", progress_bar)
    monkeypatch.setattr("comfy_fleet.cli.batches.LOOK_S", 0)
    assert follow(Answers(), "b")["status"] == "completed"  # type: ignore[arg-type]
    assert said == [("6 of 10 done", 0.6), ("10 of 10 done", 1.0)]
