"""Leases that are kept without a run; runs and leases are played."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, cast

import pytest

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.ports.comfyui import Lease
from comfy_fleet.ports.runs import RunStore
from comfy_fleet.services import lease_holder
from comfy_fleet.services.lease_holder import LeaseHolder
from tests.fleet import until


class Granted:
    """A lease on a node."""

    close_reason = ""
    limit = ""

    def __init__(self, node: str) -> None:
        self.node = node
        self.over = asyncio.Event()

    async def frames(self) -> AsyncIterator[str]:
        yield "any"
        await self.over.wait()

    def release(self) -> None:
        self.over.set()


class World:
    """Who has which node, and what the parking does."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}
        self.looks = 0
        self.free: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.lease_holder = LeaseHolder(cast(RunStore, self), spawn=self._spawn, on_free=self.free.append)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def lease_of(self, node: str) -> str | None:
        self.looks += 1
        return self.runs.get(node)

    async def over(self) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*self.tasks)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_holder, "LOOK_S", 0.005)


async def test_a_second_lease_is_kept_until_the_run_that_has_the_node_is_over() -> None:
    world, lease = World(), Granted("g1")
    world.runs["g1"] = "r"
    world.lease_holder.park(cast(Lease, lease), "r")
    await until(lambda: world.looks > 2, what="it is looked at again and again")
    assert not lease.over.is_set() and world.free == []
    world.runs["g1"] = "another"
    await world.over()
    assert lease.over.is_set() and world.free == ["g1"]


async def test_one_lease_is_enough_to_keep_a_node() -> None:
    world, first, second, other = World(), Granted("g1"), Granted("g1"), Granted("g2")
    world.runs = {"g1": "r", "g2": "s"}
    for lease, run in ((first, "r"), (second, "r"), (other, "s")):
        world.lease_holder.park(cast(Lease, lease), run)
    assert [lease.over.is_set() for lease in (first, second, other)] == [False, True, False]
    world.runs.clear()
    await world.over()
    assert sorted(world.free) == ["g1", "g2"]  # the second one never was the node's
    world.lease_holder.park(cast(Lease, again := Granted("g1")), "t")
    assert not again.over.is_set()
    await world.over()


async def test_a_parked_lease_that_closes_is_parked_no_more() -> None:
    world, lease = World(), Granted("g1")
    world.runs["g1"] = "r"
    world.lease_holder.park(cast(Lease, lease), "r")
    lease.over.set()
    await world.over()
    assert world.free == ["g1"]


async def test_a_node_rests_for_its_time_and_is_free_then() -> None:
    world, lease, loop = World(), Granted("g1"), asyncio.get_running_loop()
    before = loop.time()
    world.lease_holder.rest(cast(Lease, lease), 0.05)
    await asyncio.sleep(0)
    assert not lease.over.is_set() and world.free == []
    await world.over()
    assert loop.time() - before >= 0.049
    assert lease.over.is_set() and world.free == ["g1"]


async def test_a_stop_lets_a_resting_node_go_without_asking_for_it() -> None:
    world, lease = World(), Granted("g1")
    world.lease_holder.rest(cast(Lease, lease), 60)
    await asyncio.sleep(0)
    world.tasks[0].cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    assert lease.over.is_set() and world.free == []


async def test_a_lease_is_kept_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    world, lease = World(), Granted("g1")
    read, away = world.lease_of, 3

    async def lease_of(node: str) -> str | None:
        nonlocal away
        away -= 1
        if away >= 0:
            raise StoreDown("Redis is away")
        return await read(node)

    monkeypatch.setattr(world, "lease_of", lease_of)
    world.runs["g1"] = "r"
    world.lease_holder.park(cast(Lease, lease), "r")
    await until(lambda: world.looks > 2, what="Redis is back")
    assert not lease.over.is_set()
    world.runs.clear()
    await world.over()
    assert world.free == ["g1"]


async def test_a_defect_while_a_lease_is_parked_keeps_nobody_from_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, lease = World(), Granted("g1")

    async def breaks(node: str) -> str | None:
        raise ValueError("a defect")

    monkeypatch.setattr(world, "lease_of", breaks)
    world.lease_holder.park(cast(Lease, lease), "r1")
    with pytest.raises(ValueError, match="a defect"):
        await world.over()
    assert lease.over.is_set() and world.free == ["g1"]
    monkeypatch.undo()
    again = Granted("g1")
    world.lease_holder.park(cast(Lease, again), "r1")
    assert not again.over.is_set(), "it is not taken for parked"
    world.tasks.pop().cancel()
    world.tasks.clear()
