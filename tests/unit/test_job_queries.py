"""Estimates, and how often the store is asked for them."""

import asyncio
from collections.abc import Sequence

import pytest

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.services.job_queries import LOOK_S, Estimator
from tests.fakes.nodes import FakeNodeRegistry
from tests.fakes.runs import FakeJobStore


class World(FakeNodeRegistry):
    """A registry that takes its time."""

    now = 0.0

    async def states(self) -> Sequence[NodeState]:
        await asyncio.sleep(0)
        return await super().states()

    @property
    def looks(self) -> int:
        return self.calls["states"]

    def estimator(self) -> Estimator:
        jobs = FakeJobStore()
        jobs.latest = [(2.0, "a")]
        return Estimator(jobs, self, clock=lambda: self.now, monotonic=lambda: self.now)


async def test_many_that_ask_at_once_look_at_the_nodes_once() -> None:
    world = World()
    estimator = world.estimator()
    for looks in (1, 2):
        world.now += 2 * LOOK_S
        await asyncio.gather(*(estimator.retry_after() for _ in range(100)))
        assert world.looks == looks


async def test_whoever_asks_is_told_that_the_store_is_away_and_the_next_one_looks_again() -> None:
    world = World()
    estimator = world.estimator()
    world.down = True
    found = await asyncio.gather(*(estimator.retry_after() for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [StoreDown] * 3 and world.looks == 1
    world.down = False
    assert await estimator.retry_after() >= 1


async def test_one_that_gives_up_costs_the_others_nothing() -> None:
    world = World()
    estimator = world.estimator()
    first, second = (asyncio.create_task(estimator.retry_after()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second >= 1 and world.looks == 1
    with pytest.raises(asyncio.CancelledError):
        await first
