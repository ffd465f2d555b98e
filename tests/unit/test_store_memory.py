"""What is said of the memory of the fleet's store, and how often."""

import logging

import pytest

from comfy_fleet.domain.store_memory import StoreMemory
from comfy_fleet.services.store_memory_watch import StoreMemoryWatch

FINE, FULL = StoreMemory(used_bytes=79, most_bytes=100), StoreMemory(used_bytes=81, most_bytes=100)


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (FINE, ""),
        (FULL, "81% of Redis' maxmemory is used: a full Redis takes no new jobs"),
        (StoreMemory(used_bytes=10**12, most_bytes=0), ""),
        (
            StoreMemory(used_bytes=1, most_bytes=0, policy="allkeys-lru"),
            "maxmemory-policy is allkeys-lru: Redis may throw jobs away",
        ),
    ],
)
def test_trouble_is_a_near_limit_or_a_policy_that_loses_jobs(memory: StoreMemory, words: str) -> None:
    assert memory.trouble == words


def test_it_is_said_when_it_begins_once_an_hour_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0

    async def nothing() -> StoreMemory:
        return FINE

    watch = StoreMemoryWatch(nothing, clock=lambda: now)
    for at, memory in ((0, FINE), (60, FULL), (120, FULL), (3660, FULL), (3720, FINE), (3780, FINE)):
        now = float(at)
        watch.look(memory)
    assert caplog.messages == ["the store's memory"] * 2 + ["the store has room again"]
    assert "81%" in str(vars(caplog.records[0])["reason"])
