"""Leases that are kept without a run."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from comfy_fleet.services import lease_holder
from comfy_fleet.services.lease_holder import LeaseHolder
from tests.factories import a_claim
from tests.fakes.comfyui import FakeLease
from tests.fakes.runs import FakeRunStore
from tests.fleet import until


class World:
    """Who has which node, and what is done with the leases."""

    def __init__(self, **runs: str) -> None:
        self.runs = FakeRunStore()
        for node, run in runs.items():
            self.runs.hold(a_claim(node=node, run=run))
        self.free: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.lease_holder = LeaseHolder(self.runs, spawn=self._spawn, on_free=self.free.append)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def looked(self, what: str) -> None:
        await until(lambda: self.runs.calls["lease_of"] > 2, what=what)

    async def over(self) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*self.tasks)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_holder, "LOOK_S", 0.005)


async def test_a_second_lease_is_kept_until_the_run_that_has_the_node_is_over() -> None:
    world, lease = World(g1="r"), FakeLease("g1")
    world.lease_holder.park(lease, "r")
    await world.looked("it is looked at again and again")
    assert not lease.over.is_set() and world.free == []
    world.runs.runs.clear()
    world.runs.hold(a_claim(run="another"))
    await world.over()
    assert lease.over.is_set() and world.free == ["g1"]


async def test_one_lease_is_enough_to_keep_a_node() -> None:
    first, second, other = FakeLease("g1"), FakeLease("g1"), FakeLease("g2")
    world = World(g1="r", g2="s")
    for lease, run in ((first, "r"), (second, "r"), (other, "s")):
        world.lease_holder.park(lease, run)
    assert [lease.over.is_set() for lease in (first, second, other)] == [False, True, False]
    world.runs.runs.clear()
    await world.over()
    assert sorted(world.free) == ["g1", "g2"]  # the second one never was the node's
    world.lease_holder.park(again := FakeLease("g1"), "t")
    assert not again.over.is_set()
    await world.over()


async def test_a_parked_lease_that_closes_is_parked_no_more() -> None:
    world, lease = World(g1="r"), FakeLease("g1")
    world.lease_holder.park(lease, "r")
    lease.over.set()
    await world.over()
    assert world.free == ["g1"]


async def test_a_node_rests_for_its_time_and_is_free_then() -> None:
    world, lease, loop = World(), FakeLease("g1"), asyncio.get_running_loop()
    before = loop.time()
    world.lease_holder.rest(lease, 0.05)
    await asyncio.sleep(0)
    assert not lease.over.is_set() and world.free == []
    await world.over()
    assert loop.time() - before >= 0.049
    assert lease.over.is_set() and world.free == ["g1"]


async def test_a_stop_lets_a_resting_node_go_without_asking_for_it() -> None:
    world, lease = World(), FakeLease("g1")
    world.lease_holder.rest(lease, 60)
    await asyncio.sleep(0)
    world.tasks[0].cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    assert lease.over.is_set() and world.free == []


async def test_a_lease_is_kept_while_redis_is_away() -> None:
    world, lease = World(g1="r"), FakeLease("g1")
    world.runs.down = True
    world.lease_holder.park(lease, "r")
    await world.looked("it is asked for in vain")
    assert not lease.over.is_set()
    world.runs.down = False
    looks = world.runs.calls["lease_of"]
    await until(lambda: world.runs.calls["lease_of"] > looks, what="Redis is back")
    assert not lease.over.is_set()
    world.runs.runs.clear()
    await world.over()
    assert world.free == ["g1"]


async def test_a_defect_while_a_lease_is_parked_keeps_nobody_from_the_node() -> None:
    world, lease = World(g1="r1"), FakeLease("g1")
    world.runs.troubles = [ValueError("a defect")]
    world.lease_holder.park(lease, "r1")
    with pytest.raises(ValueError, match="a defect"):
        await world.over()
    assert lease.over.is_set() and world.free == ["g1"]
    again = FakeLease("g1")
    world.lease_holder.park(again, "r1")
    assert not again.over.is_set(), "it is not taken for parked"
    world.tasks.pop().cancel()
    world.tasks.clear()
