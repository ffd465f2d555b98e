"""Inventories in memory, with a registry and nodes that the test plays."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from comfy_fleet.domain.errors import InvalidWorkflow, NodeError
from comfy_fleet.domain.graph import check
from comfy_fleet.domain.node import Node
from comfy_fleet.ports import NodeRegistry
from comfy_fleet.services.inventories import NodeInventories
from tests.factories import GRAPH


def classes(*names: str) -> dict[str, Any]:
    return {name: {"input": {"required": {}}, "output": [], "output_node": True} for name in names}


class World:
    """Registry and nodes in one."""

    def __init__(self, **nodes: Mapping[str, Any] | None) -> None:
        self.answers = dict(nodes)
        self.asked: list[str] = []
        self.changed = asyncio.Event()
        self.now = 0.0

    async def nodes(self) -> list[Node]:
        return [Node(name=name, url=f"http://{name}:1") for name in sorted(self.answers)]

    async def changes(self) -> AsyncIterator[None]:
        while True:
            yield
            await self.changed.wait()
            self.changed.clear()

    async def object_info(self, node: str) -> Mapping[str, Any]:
        self.asked.append(node)
        answer = self.answers[node]
        if answer is None:
            raise NodeError("down")
        return answer


@asynccontextmanager
async def inventories(world: World) -> AsyncIterator[NodeInventories]:
    made = NodeInventories(cast(NodeRegistry, world), world, monotonic=lambda: world.now)
    task = asyncio.create_task(made.run())
    async with asyncio.timeout(5):
        while made._asking or len(world.asked) < len(world.answers):
            await asyncio.sleep(0.001)
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


ALL = classes("EmptyImage", "SaveImage")


async def test_alike_nodes_share_one_inventory() -> None:
    async with inventories(World(a=ALL, b=dict(reversed(ALL.items())), c=classes("Odd"))) as known:
        assert len(known._shared) == 2
        placement = await known.placement(check(GRAPH), pool="default")
        assert placement.able(["a", "b", "c", "new"]) == {"a", "b", "new"}


async def test_the_shorter_list_names_who_may() -> None:
    odd = check({"1": {"class_type": "Odd", "inputs": {}}})
    async with inventories(World(a=ALL, b=ALL, c=classes("Odd"))) as known:
        placement = await known.placement(odd, pool="default")
        assert placement.nodes == {"c"}


async def test_nodes_that_cant_be_asked_decide_by_themselves() -> None:
    async with inventories(World(a=None)) as known:
        assert (await known.placement(check(GRAPH), pool="default")).key == "default"
        assert known.uploads() is None


async def test_refused_only_after_a_second_look() -> None:
    world = World(a=classes("SaveImage"), b=classes("Odd"))
    async with inventories(world) as known:
        world.now = 10
        world.answers["a"] = ALL  # somebody installed it just now
        assert (await known.placement(check(GRAPH), pool="default")).able(["a", "b"]) == {"a"}
        world.answers["a"] = classes("SaveImage")  # and took it away again
        world.now = 100
        asked = len(world.asked)
        world.changed.set()
        async with asyncio.timeout(5):
            while known._asking or len(world.asked) < asked + 2:
                await asyncio.sleep(0.001)
        world.now = 110
        with pytest.raises(InvalidWorkflow) as caught:
            await known.placement(check(GRAPH), pool="default")
        details = caught.value.details
        assert set(details["nodes"]) == {"a", "b"}
        assert list(details["node_errors"]) == ["1"]  # told by the node that lacks least
        asked = len(world.asked)
        with pytest.raises(InvalidWorkflow):
            await known.placement(check(GRAPH), pool="default")
        assert len(world.asked) == asked  # not again within the same two seconds


async def test_other_pools_dont_count() -> None:
    async with inventories(World(a=classes("Odd"))) as known:
        assert (await known.placement(check(GRAPH), pool="big")).key == "big"


async def test_removed_nodes_are_forgotten() -> None:
    world = World(a=ALL, b=classes("Odd"))
    async with inventories(world) as known:
        del world.answers["a"]
        world.changed.set()
        async with asyncio.timeout(5):
            while "a" in known._known:
                await asyncio.sleep(0.001)
        with pytest.raises(InvalidWorkflow):
            await known.placement(check(GRAPH), pool="default")


async def test_any_node_asks_when_it_knows_none() -> None:
    world = World()
    known = NodeInventories(cast(NodeRegistry, world), world)
    assert not await known.any_node()
    world.answers["a"] = ALL
    assert await known.any_node()
