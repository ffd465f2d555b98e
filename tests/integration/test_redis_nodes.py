"""The registry of nodes in Redis, and its news of changes."""

import asyncio
from contextlib import aclosing

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import Conflict, NotFound
from comfy_fleet.domain.node import Node
from tests.integration.redis_kit import add_nodes


async def test_the_registry_refuses_twins_and_announces_changes(stores: Stores) -> None:
    changes = stores.nodes.changes()
    await anext(changes)
    await add_nodes(stores, "g1")
    async with asyncio.timeout(2):
        await anext(changes)
    with pytest.raises(Conflict, match="exists already"):
        await stores.nodes.add(Node(name="g1", url="http://127.0.0.1:1"))
    with pytest.raises(Conflict, match="is node g1 already"):
        await stores.nodes.add(Node(name="g2", url="http://127.0.0.1:9000"))
    await stores.nodes.cordon("g1", reason="why not")
    async with asyncio.timeout(2):
        await anext(changes)
    node = await stores.nodes.get("g1")
    assert node and (node.cordoned, node.cordon_reason) == (True, "why not")
    with pytest.raises(NotFound):
        await stores.nodes.cordon("g9", reason="")
    await stores.nodes.report("g1", verdict="up", why="")
    assert (await stores.nodes.states())[0].verdict == "up"
    await changes.aclose()


async def test_no_flood_of_other_messages_hides_a_change_of_the_nodes(stores: Stores) -> None:
    async with aclosing(stores.nodes.changes()) as changes:
        await anext(changes)
        await stores.redis.publish("fleet:wake", "nodes")
        for number in range(600):  # more than wait for a slow reader
            await stores.redis.publish("fleet:wake", f"job {number}")
        async with asyncio.timeout(2):  # long before it would look by itself
            await anext(changes)


async def test_nodes_are_the_same_objects_until_something_about_them_changes(stores: Stores) -> None:
    for name in ("a", "b"):
        await stores.nodes.add(Node(name=name, url=f"http://{name}:1"))
    before = await stores.nodes.states()
    await stores.nodes.cordon("b", reason="x")
    after = await stores.nodes.states()
    assert after[0] is before[0] and after[1] is not before[1]
    assert after[1].node.cordoned and (await stores.nodes.state("b")) is after[1]
    await stores.nodes.remove("a")
    assert [state.node.name for state in await stores.nodes.states()] == ["b"]
    assert await stores.nodes.state("a") is None
    await stores.nodes.add(Node(name="c", url="http://a:1"))  # the address is free again
