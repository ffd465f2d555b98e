"""Estimates with stores that the test plays."""

import asyncio
from typing import Any, cast

import pytest

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.nodes import NodeRegistry
from comfy_fleet.services.job_queries import LOOK_S, Estimator


class World:
    """Jobs and nodes in one."""

    def __init__(self) -> None:
        self.looks = 0
        self.now = 0.0
        self.down = False

    async def states(self) -> list[NodeState]:
        self.looks += 1
        await asyncio.sleep(0)
        if self.down:
            raise StoreDown("gone", retry_after_s=1)
        return []

    async def latest_runs(self) -> list[tuple[float, str]]:
        return [(2.0, "a")]

    def estimator(self) -> Estimator:
        world = cast(Any, self)
        return Estimator(
            cast(JobStore, world),
            cast(NodeRegistry, world),
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )


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
