"""Inventories in memory, with a registry, a store and nodes that the test plays."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from comfy_fleet.adapters.redis.inventories import pack, unpack
from comfy_fleet.domain.errors import InvalidWorkflow, NodeError
from comfy_fleet.domain.graphs import inventory
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.eligibility import GIB, PlacementRequest, Requirements
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.inventory_refresher import AT_ONCE, NEW_AGAIN_S
from comfy_fleet.services.node_directory import NodeDirectory
from tests.factories import GRAPH


def classes(*names: str) -> dict[str, Any]:
    return {name: {"input": {"required": {}}, "output": [], "output_node": True} for name in names}


class World:
    """Registry, store and nodes in one."""

    def __init__(self, **nodes: Mapping[str, Any] | None) -> None:
        self.answers = dict(nodes)
        self.fields: dict[str, dict[str, Any]] = {}
        self.vram: dict[str, int] = {}
        self.asked: list[str] = []
        self.verdicts: dict[str, str] = {}
        self.missing: dict[str, int] = {}  # so many questions come too early
        self.changed = asyncio.Event()
        self.now = time.time()
        self.readings: dict[str, Reading] = {}
        self.kept: dict[str, Inventory] = {}
        self.needs_kept: dict[str, Requirements] = {}

    async def nodes(self) -> list[Node]:
        return [state.node for state in await self.states()]

    async def states(self) -> list[NodeState]:
        return [
            NodeState(
                node=Node(name=name, url=f"http://{name}:1", **self.fields.get(name, {})),
                verdict=self.verdicts.get(name, "up"),
                reading=self.readings.get(name, Reading()),
            )
            for name in sorted(self.answers)
        ]

    async def changes(self) -> AsyncIterator[None]:
        while True:
            yield
            await self.changed.wait()
            self.changed.clear()

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        device = {"type": "cuda", "vram_total": self.vram.get(node, 0)}
        return {"system": {"comfyui_version": "0.3.64"}, "devices": [device]}

    async def inventory(self, node: str) -> Inventory:
        self.asked.append(node)
        if self.missing.get(node, 0) > 0:
            self.missing[node] -= 1
            raise NodeError("HAProxy does not know it yet")
        answer = self.answers[node]
        if answer is None:
            raise NodeError("down")
        return parse(answer)

    async def claim(self, node: str, *, ttl_s: int) -> bool:
        return node in self.answers

    async def unclaim(self, node: str, *, why: str = "") -> None:
        pass

    async def save(self, node: str, inventory: Inventory, reading: Reading) -> str:
        digest, _ = pack(inventory)
        self.kept[digest] = inventory
        self.readings[node] = replace(reading, inventory=digest, read_at=self.now)
        return "changed"

    async def load(self, digest: str) -> Inventory | None:
        return self.kept.get(digest)

    async def keep_needs(self, needs: Requirements) -> None:
        self.needs_kept[needs.key] = needs

    async def needs(self, key: str) -> Requirements | None:
        return self.needs_kept.get(key)


@asynccontextmanager
async def inventories(world: World) -> AsyncIterator[NodeInventories]:
    made = NodeInventories(
        cast(NodeRegistry, world), cast(InventoryStore, world), world, clock=lambda: world.now
    )
    task = asyncio.create_task(made.run())
    async with asyncio.timeout(5):
        while made.refresher._asking or len(world.asked) < len(world.answers):
            await asyncio.sleep(0.001)
    await made.look()
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


ALL = classes("EmptyImage", "SaveImage")


async def able(known: NodeInventories, placement: Placement) -> frozenset[str]:
    await known._directory.learn([placement])
    return known._directory.able(placement)


async def test_alike_nodes_share_one_inventory() -> None:
    async with inventories(World(a=ALL, b=dict(reversed(ALL.items())), c=classes("Odd"))) as known:
        assert len(known._directory.inventories) == 2
        placement = await known.placement(check(GRAPH), PlacementRequest())
        assert placement.needs and not placement.nodes
        assert await able(known, placement) == {"a", "b"}


async def test_what_every_node_can_run_needs_no_queue_of_its_own() -> None:
    async with inventories(World(a=ALL, b=ALL)) as known:
        assert (await known.placement(check(GRAPH), PlacementRequest())).key == "default"


async def test_a_node_that_joins_later_takes_what_waits() -> None:
    world = World(a=ALL, c=classes("Odd"))
    async with inventories(world) as known:
        placement = await known.placement(check(GRAPH), PlacementRequest())
        assert await able(known, placement) == {"a"}
        world.answers |= {"new": ALL, "odd": classes("Odd")}
        await known.refresher.refresh(["new", "odd"], patience_s=5)
        await known.look()
        assert await able(known, placement) == {"a", "new"}


async def idle(known: NodeInventories) -> None:
    async with asyncio.timeout(10):
        while known.refresher._asking:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("verdict", "asked"), [("new", 3), ("up", 1), ("drain", 1)])
async def test_a_node_that_just_joined_is_read_without_another_word(verdict: str, asked: int) -> None:
    world = World(old=ALL)
    async with inventories(world) as known:
        world.missing["new"] = 2
        world.verdicts["new"] = verdict
        world.answers["new"] = ALL
        world.changed.set()
        await asyncio.wait_for(_asked(world, "new"), 10)
        await idle(known)
        assert world.asked.count("new") == asked
        assert ("new" in world.readings) == (verdict == "new")


async def _asked(world: World, name: str) -> None:
    while name not in world.asked:
        await asyncio.sleep(0.001)


class ComesUpMeanwhile(World):
    """A node was asked too early, and is up when the answer to that arrives."""

    known: NodeInventories

    async def inventory(self, node: str) -> Inventory:
        if node == "new" and self.missing.get(node):
            self.verdicts[node] = "up"
            self.changed.set()
            async with asyncio.timeout(5):
                while self.known.refresher._verdicts[node] != "up":
                    await asyncio.sleep(0.001)
        return await super().inventory(node)


async def test_a_node_that_comes_up_while_it_is_asked_too_early_is_asked_again() -> None:
    world = ComesUpMeanwhile(old=ALL)
    async with inventories(world) as known:
        world.known = known
        world.missing["new"] = 1
        world.verdicts["new"] = "new"
        world.answers["new"] = ALL
        world.changed.set()
        await asyncio.wait_for(_asked(world, "new"), 10)
        await idle(known)
        assert world.asked.count("new") == 2
        assert "new" in world.readings


async def test_a_node_that_joins_and_stays_away_is_left_alone() -> None:
    world = World(old=ALL)
    async with inventories(world) as known:
        world.missing["new"] = 1000
        world.verdicts["new"] = "new"
        world.answers["new"] = ALL
        world.changed.set()
        await asyncio.wait_for(_asked(world, "new"), 10)
        await idle(known)
        assert world.asked.count("new") == len(NEW_AGAIN_S) + 1


async def test_many_that_join_together_are_asked_once_each_until_they_are_up() -> None:
    world = World(old=ALL)
    names = [f"n{number}" for number in range(5 * AT_ONCE)]
    async with inventories(world) as known:
        world.missing |= dict.fromkeys(names, 1000)
        world.verdicts |= dict.fromkeys(names, "new")
        world.answers |= dict.fromkeys(names, ALL)
        world.changed.set()
        await asyncio.wait_for(_asked(world, names[-1]), 10)
        await idle(known)
        counts = [world.asked.count(name) for name in names]
        assert min(counts) == 1
        assert counts[: 4 * AT_ONCE] == [1] * (4 * AT_ONCE)


async def test_nodes_that_cant_be_asked_decide_by_themselves() -> None:
    async with inventories(World(a=None)) as known:
        assert (await known.placement(check(GRAPH), PlacementRequest())).key == "default"
        assert not known.declared().inventories


async def test_refused_only_after_a_second_look() -> None:
    world = World(a=classes("SaveImage"), b=classes("Odd"))
    async with inventories(world) as known:
        world.now += 10
        world.answers["a"] = ALL  # somebody installed it just now
        assert await able(known, await known.placement(check(GRAPH), PlacementRequest())) == {"a"}
        world.answers["a"] = classes("SaveImage")  # and took it away again
        world.now += 10
        await known.refresh("a")
        world.now += 10
        with pytest.raises(InvalidWorkflow) as caught:
            await known.placement(check(GRAPH), PlacementRequest())
        assert caught.value.message == (
            "no node can run this workflow: a: has no class `EmptyImage`; "
            "b: has no class `EmptyImage`, has no class `SaveImage`"
        )
        details = caught.value.details
        assert set(details["nodes"]) == {"a", "b"}
        assert list(details["node_errors"]) == ["1"]  # told by the node that lacks least
        asked = len(world.asked)
        with pytest.raises(InvalidWorkflow):
            await known.placement(check(GRAPH), PlacementRequest())
        assert len(world.asked) == asked  # not again within the same two seconds


async def test_every_node_lacks_the_same() -> None:
    async with inventories(World(a=classes("Odd"), b=classes("Odd"))) as known:
        with pytest.raises(InvalidWorkflow, match="no node has the class `EmptyImage`"):
            await known.placement(check(GRAPH), PlacementRequest())


async def test_what_is_wrong_with_the_graph_is_not_said_of_the_nodes() -> None:
    fault = "node 2 (SaveImage): input 'filename_prefix' is missing"
    graph = check({**GRAPH, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}})
    have = classes("EmptyImage", "SaveImage")
    have["EmptyImage"]["output_node"] = False
    have["SaveImage"]["input"]["required"] = {"filename_prefix": ["STRING", {}]}
    for world in (World(a=have, b=have), World(a=have)):
        async with inventories(world) as known:
            with pytest.raises(InvalidWorkflow) as caught:
                await known.placement(graph, PlacementRequest())
            assert caught.value.message == f"no node can run this workflow: {fault}"
            with pytest.raises(InvalidWorkflow, match=r"workflow: the graph has no output node") as caught:
                await known.placement(check({"1": GRAPH["1"]}), PlacementRequest())
            assert caught.value.details["node_errors"] == {}


async def test_pools_are_wanted_preferred_or_spilled_into() -> None:
    world = World(a=ALL, b=ALL, c=classes("Odd"))
    world.fields = {"b": {"pool": "big"}, "c": {"pool": "odd"}}
    async with inventories(world) as known:
        graph = check(GRAPH)
        assert await able(known, await known.placement(graph, PlacementRequest())) == {"a"}
        assert await able(known, await known.placement(graph, PlacementRequest(pool="big"))) == {"b"}
        spilling = await known.placement(graph, PlacementRequest(pool="big", spill_to=("default",)))
        assert spilling.pools(["big", "default", "odd"]) == ("big", "default")
        preferring = await known.placement(graph, PlacementRequest(prefer="odd"))
        assert preferring.pools(["big", "default", "odd"]) == ("odd", "big", "default")
        assert await able(known, preferring) == {"a", "b"}
        with pytest.raises(InvalidWorkflow, match="c: has no class"):
            await known.placement(graph, PlacementRequest(pool="odd"))
        with pytest.raises(InvalidWorkflow, match="no node is in pool none: name one of big, default, odd"):
            await known.placement(graph, PlacementRequest(pool="none"))


async def test_declared_memory_zone_and_labels() -> None:
    world = World(a=ALL, b=ALL)
    world.vram = {"a": 12 * GIB, "b": 24 * GIB}
    world.fields = {"a": {"zone": "z1"}, "b": {"labels": {"kind": "fast"}}}
    async with inventories(world) as known:
        graph = check(GRAPH)
        assert await able(known, await known.placement(graph, PlacementRequest(vram_bytes=16 * GIB))) == {"b"}
        assert await able(known, await known.placement(graph, PlacementRequest(zone="z1"))) == {"a"}
        assert await able(known, await known.placement(graph, PlacementRequest(labels={"kind": "fast"}))) == {
            "b"
        }
        with pytest.raises(InvalidWorkflow, match="a: has 12 GiB of VRAM, not 32 GiB"):
            await known.placement(graph, PlacementRequest(vram_bytes=32 * GIB))


async def test_removed_nodes_are_forgotten() -> None:
    world = World(a=ALL, b=classes("Odd"))
    async with inventories(world) as known:
        del world.answers["a"]
        world.changed.set()
        async with asyncio.timeout(5):
            while "a" in known._directory.states:
                await asyncio.sleep(0.001)
        with pytest.raises(InvalidWorkflow):
            await known.placement(check(GRAPH), PlacementRequest())


async def test_any_node_asks_when_it_knows_none() -> None:
    world = World()
    known = NodeInventories(cast(NodeRegistry, world), cast(InventoryStore, world), world)
    assert not await known.any_node()
    world.answers["a"] = ALL
    assert await known.any_node()


async def test_a_look_that_took_long_shows_nothing_older_than_a_later_one() -> None:
    slow, states = asyncio.Event(), [[node_state("old")], [node_state("new")]]

    class Registry:
        async def states(self) -> list[NodeState]:
            found = states.pop(0)
            if found[0].node.name == "old":
                await slow.wait()
            return found

    directory = NodeDirectory(cast(NodeRegistry, Registry()), cast(InventoryStore, World()))
    first = asyncio.create_task(directory.look())
    await asyncio.sleep(0)
    await directory.look()
    slow.set()
    await first
    assert list(directory.states) == ["new"]


async def test_looks_at_once_show_each_inventory_as_one() -> None:
    """Whoever compares them by identity would find a node's own among none of the fleet's."""
    world, until_both_ask, first_shown = World(a=ALL), asyncio.Event(), asyncio.Event()
    asked: list[str] = []
    digest, packed = pack(parse(ALL))

    class Store:
        async def load(self, wanted: str) -> Inventory:
            asked.append(wanted)
            if len(asked) == 1:
                await until_both_ask.wait()
            else:
                until_both_ask.set()
                await first_shown.wait()
            return unpack(packed)

    world.readings["a"] = Reading(inventory=digest, read_at=world.now)
    directory = NodeDirectory(cast(NodeRegistry, world), cast(InventoryStore, Store()))
    first, second = asyncio.create_task(directory.look()), asyncio.create_task(directory.look())
    await first
    first_shown.set()
    await second
    assert asked == [digest, digest]
    (candidate,) = directory.candidates
    assert [candidate.inventory] == list(directory.inventories)
    assert candidate.inventory is directory.inventories[0]


def node_state(name: str) -> NodeState:
    return NodeState(node=Node(name=name, url=f"http://{name}:1"))


@pytest.mark.parametrize(("nodes", "inputs"), [(1, 6000), (600, 1), (20, 300)])
async def test_large_graphs_of_any_shape_are_compared_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, nodes: int, inputs: int
) -> None:
    world = World(a=classes("A"))
    seen: list[bool] = []
    found = inventory.findings

    def findings(*args: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return found(*args)

    monkeypatch.setattr(inventory, "findings", findings)
    wide = {
        str(id_): {"class_type": "A", "inputs": {f"x{i}": i for i in range(inputs)}} for id_ in range(nodes)
    }
    async with inventories(world) as known:
        await known.placement(check({"1": {"class_type": "A", "inputs": {}}}), PlacementRequest())
        await known.placement(check(wide), PlacementRequest())
    assert seen == [True, False]
