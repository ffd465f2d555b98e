"""The registry of nodes in Redis, and its news of changes."""

import asyncio
from contextlib import aclosing

import pytest

from comfy_fleet.adapters.redis import nodes
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import Conflict, NotFound
from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.node import Node, Reading
from tests.integration.redis_kit import BROKEN, add_nodes, claim, submit, wakes


async def test_the_registry_refuses_twins_and_announces_changes(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "LOOK_AGAIN_S", 600)
    changes = stores.nodes.changes()
    await anext(changes)
    await add_nodes(stores, "g1")
    async with asyncio.timeout(60):
        await anext(changes)
    with pytest.raises(Conflict, match="exists already"):
        await stores.nodes.add(Node(name="g1", url="http://127.0.0.1:1"))
    with pytest.raises(Conflict, match="is node g1 already"):
        await stores.nodes.add(Node(name="g2", url="http://127.0.0.1:9000"))
    await stores.nodes.cordon("g1", reason="why not")
    async with asyncio.timeout(60):
        await anext(changes)
    node = await stores.nodes.get("g1")
    assert node and (node.cordoned, node.cordon_reason) == (True, "why not")
    with pytest.raises(NotFound):
        await stores.nodes.cordon("g9", reason="")
    await stores.nodes.report("g1", verdict="up", why="")
    assert (await stores.nodes.states())[0].verdict == "up"
    await changes.aclose()


async def test_nothing_of_a_removed_node_comes_back_with_its_name(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    run = await claim(stores)
    with pytest.raises(Conflict, match=run.run):
        await stores.nodes.remove("g1")
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1, models=["m"])
    await stores.redis.sadd("fleet:node:g1:runs", "ghost")  # a leftover
    await stores.nodes.remove("g1")
    assert await stores.redis.smembers("fleet:pool:default") == set()
    await add_nodes(stores, "g1")
    assert await stores.nodes.models("g1") == []
    assert await stores.redis.smembers("fleet:pool:default") == {b"g1"}


async def test_an_order_to_a_node_that_was_just_removed_leaves_nothing(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(await stores.redis.keys("*"))
    read = stores.nodes.get

    async def then_removed(name: str) -> Node | None:
        found = await read(name)
        await stores.nodes.remove(name)
        return found

    monkeypatch.setattr(stores.nodes, "get", then_removed)
    await add_nodes(stores, "g1")
    with pytest.raises(NotFound):
        await stores.nodes.cordon("g1", reason="too late")
    with pytest.raises(NotFound):
        await stores.nodes.want_restart("g1")
    assert set(await stores.redis.keys("*")) == before


async def test_a_node_can_be_removed_from_under_its_run(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    run = await claim(stores)
    await stores.nodes.remove("g1", force=True)
    assert await stores.nodes.get("g1") is None
    again = await stores.runs.requeue(run, counts=False, reason=BROKEN)
    assert again is JobStatus.QUEUED


async def test_a_node_has_started_when_it_was_down_and_answers(stores: Stores) -> None:
    await add_nodes(stores, "g1")

    async def starts(*verdicts: str) -> int:
        for verdict in verdicts:
            await stores.nodes.report("g1", verdict=verdict, why="")
        state = await stores.nodes.state("g1")
        assert state is not None
        return state.reading.starts

    assert await starts("new", "up", "drain", "up") == 0
    assert await starts("down", "new") == 0  # HAProxy has forgotten it: nobody knows how it is
    assert await starts("down", "down", "drain") == 1
    assert await starts("down", "up") == 2


async def test_a_verdict_wakes_who_has_to_know_of_it(stores: Stores) -> None:
    await add_nodes(stores, "g1")

    async def heard(verdict: str, name: str = "g1") -> list[bytes]:
        async with wakes(stores) as called:
            await stores.nodes.report(name, verdict=verdict, why="")
        return called

    assert await heard("drain") == [b"nodes"]  # it answers: it is to be read
    assert await heard("drain") == []
    assert await heard("up") == [b"free", b"nodes"]
    assert await heard("up") == [b"free"]
    assert await heard("down") == []
    assert await heard("up") == [b"free", b"nodes"]  # it has started anew
    await stores.inventories.save("g1", parse({"A": {}}), Reading(gpu="L4", comfyui="1", vram_bytes=5))
    assert await heard("drain") == []
    assert await heard("up") == [b"free"]
    assert await heard("up", "nobody") == []


async def test_a_start_forgives_what_happened_before_it(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    for _ in range(2):
        assert not await stores.nodes.record_failure("g1", kind="oom", limit=2, reason="too often")
        await stores.nodes.started("g1")
    assert not await stores.nodes.record_failure("g1", kind="oom", limit=2, reason="too often")
    assert await stores.nodes.record_failure("g1", kind="oom", limit=2, reason="too often")
    node = await stores.nodes.get("g1")
    assert node is not None and (node.cordoned, node.cordon_reason) == (True, "too often")


async def test_a_node_s_speed_is_its_card_s(stores: Stores) -> None:
    await add_nodes(stores, "g1")

    async def read(gpu: str = "L4", vram_bytes: int = 5) -> str:
        reading = Reading(gpu=gpu, comfyui="1", vram_bytes=vram_bytes)
        return await stores.inventories.save("g1", parse({"A": {}}), reading)

    assert await read() == "changed"
    await stores.redis.hset("fleet:node:g1", mapping={"speed": "0.5", "speeds": 30})
    assert await read() == "same"
    assert await stores.redis.hexists("fleet:node:g1", "speed")
    assert await read(vram_bytes=6) == "changed"
    await read(gpu="L40S")
    assert not await stores.redis.hexists("fleet:node:g1", "speed")


async def test_no_flood_of_other_messages_hides_a_change_of_the_nodes(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "LOOK_AGAIN_S", 600)
    async with aclosing(stores.nodes.changes()) as changes:
        await anext(changes)
        await stores.redis.publish("fleet:wake:nodes", "")
        for number in range(600):  # more than wait for a slow reader
            await stores.redis.publish("fleet:wake", f"job {number}")
        async with asyncio.timeout(60):
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
