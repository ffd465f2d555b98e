"""Predicting jobs' memory, and learning from their ends."""

import pytest

from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.eligibility import GIB
from comfy_fleet.domain.nodes.memory_need import NO_NEED, MemoryNeed
from comfy_fleet.services.memory_prediction import FRESH_S, MOST_KEPT, TOLD_S, MemoryPrediction
from tests.fakes.memory import FakeMemoryStore


class World:
    """One process's predictions, by a clock that is set."""

    def __init__(self) -> None:
        self.store = FakeMemoryStore()
        self.time = 0.0
        self.memory = MemoryPrediction(self.store, keep_s=60, now=lambda: self.time)


def job(pixels: float = 1.0, *, family: str = "checkpoints/a", gib: int = 6) -> Workload:
    return Workload(family=family, model_bytes=gib * GIB, pixels=pixels)


async def test_a_failure_counts_at_once() -> None:
    world = World()
    assert await world.memory.need(job(), "ada") == MemoryNeed(peak=6 * GIB)
    await world.memory.failed(job(), "ada", 12 * GIB)
    assert (await world.memory.need(job(), "ada")).least == 12 * GIB + 1


async def test_another_process_hears_of_it_soon() -> None:
    world = World()
    await world.memory.need(job(), "ada")
    await MemoryPrediction(world.store, keep_s=60).failed(job(), "ada", 12 * GIB)
    assert (await world.memory.need(job(), "ada")).least == 0
    world.time = FRESH_S
    assert (await world.memory.need(job(), "ada")).least == 12 * GIB + 1


async def test_what_was_read_serves_many_jobs() -> None:
    world = World()
    for pixels in range(100):
        await world.memory.need(job(pixels), "ada")
    assert world.store.calls["known"] == 1


async def test_a_success_is_told_if_it_says_something_new() -> None:
    world = World()
    for pixels in (2, 1, 2, 2.5, 2):
        await world.memory.succeeded(job(pixels), "ada", 12 * GIB)
    assert world.store.calls["note"] == 2
    await world.memory.succeeded(job(1), "ada", 16 * GIB)
    assert world.store.calls["note"] == 3
    world.time = TOLD_S
    await world.memory.succeeded(job(1), "ada", 12 * GIB)
    assert world.store.calls["note"] == 4


async def test_a_success_after_a_failure_is_news() -> None:
    world = World()
    await world.memory.succeeded(job(), "ada", 24 * GIB)
    await world.memory.failed(job(), "ada", 24 * GIB)
    await world.memory.succeeded(job(), "ada", 24 * GIB)
    assert world.store.calls["note"] == 3
    assert world.store.families["checkpoints/a"].fits


@pytest.mark.parametrize(("workload", "room"), [(None, 12 * GIB), (job(), 0)])
async def test_without_a_model_or_a_card_nothing_is_learned(workload: Workload | None, room: int) -> None:
    world = World()
    await world.memory.succeeded(workload, "ada", room)
    await world.memory.failed(workload, "ada", room)
    assert not world.store.calls
    assert await world.memory.need(None, "ada") == NO_NEED


async def test_a_store_that_is_away_stops_nothing() -> None:
    world = World()
    world.store.down = True
    assert await world.memory.need(job(), "ada") == NO_NEED
    await world.memory.succeeded(job(), "ada", 12 * GIB)
    await world.memory.failed(job(), "ada", 12 * GIB)


async def test_it_remembers_a_limited_number_of_families() -> None:
    world = World()
    for number in range(3 * MOST_KEPT):
        await world.memory.need(job(family=f"checkpoints/{number}"), "ada")
    assert world.store.calls["known"] == 3 * MOST_KEPT
    await world.memory.need(job(family="checkpoints/0"), "ada")
    assert world.store.calls["known"] == 3 * MOST_KEPT + 1  # forgotten
