"""What the nodes have, as the API knows it, and who can run what."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from comfy_fleet.adapters.redis.inventories import pack, unpack
from comfy_fleet.domain.errors import InvalidWorkflow
from comfy_fleet.domain.graphs import graph_problems
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.eligibility import GIB, PlacementRequest, Requirements
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading
from comfy_fleet.services.inventories import MOST_ABLE, NodeInventories
from comfy_fleet.services.inventory_refresher import AT_ONCE, NEW_AGAIN_S
from comfy_fleet.services.node_directory import NodeDirectory
from tests.factories import GRAPH
from tests.fakes.comfyui import FakeNodeApi
from tests.fakes.nodes import FakeInventoryStore, FakeNodeRegistry
from tests.fleet import until


def classes(*names: str) -> dict[str, Any]:
    return {name: {"input": {"required": {}}, "output": [], "output_node": True} for name in names}


class World:
    """Registry, store and nodes. A name is a node's with what it answers; None: it is down."""

    def __init__(self, **nodes: Mapping[str, Any] | None) -> None:
        self.now = time.time()
        self.registry = FakeNodeRegistry()
        self.registry.every_s = 60
        self.store = FakeInventoryStore(self.registry)
        self.store.clock = lambda: self.now
        self.nodes = FakeNodeApi()
        for name, classes in nodes.items():
            self.join(name, classes)

    def join(
        self, name: str, classes: Mapping[str, Any] | None, *, verdict: str = "up", early: int = 0
    ) -> None:
        """Register a node; so many questions to it come too early."""
        self.nodes.classes[name] = classes
        self.nodes.early[name] = early
        self.has_vram(name, 0)
        self.registry.put(name, verdict=verdict)

    def has_vram(self, name: str, size: int) -> None:
        device = {"type": "cuda", "vram_total": size}
        self.nodes.stats[name] = {"system": {"comfyui_version": "0.3.64"}, "devices": [device]}

    def set(self, name: str, **fields: Any) -> None:
        """Register a node with these fields."""
        self.registry.put(name, node=Node(name=name, url=f"http://{name}.test:1", **fields))

    def was_read(self, name: str) -> bool:
        return bool(self.registry.held[name].reading.inventory)

    @property
    def asked(self) -> list[str]:
        return self.nodes.asked


@asynccontextmanager
async def inventories(world: World) -> AsyncIterator[NodeInventories]:
    made = NodeInventories(world.registry, world.store, world.nodes, clock=lambda: world.now)
    task = asyncio.create_task(made.run())
    await until(lambda: len(world.asked) >= len(world.registry.held), what="every node is asked")
    await idle(made)
    await made.look()
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def idle(known: NodeInventories) -> None:
    await until(lambda: not known.refresher.asking, what="no node is asked")


ALL = classes("EmptyImage", "SaveImage")


async def able(world: World, placement: Placement) -> frozenset[str]:
    """Return which nodes a dispatcher would give a job of this class to."""
    directory = NodeDirectory(world.registry, world.store)
    await directory.look()
    await directory.learn([placement])
    return directory.able(placement)


async def test_alike_nodes_share_one_inventory() -> None:
    world = World(a=ALL, b=dict(reversed(ALL.items())), c=classes("Odd"))
    async with inventories(world) as known:
        assert len(known.declared().inventories) == 2
        placement = await known.placement(check(GRAPH), PlacementRequest())
        assert placement.needs and not placement.nodes
        assert await able(world, placement) == {"a", "b"}


async def test_what_every_node_can_run_needs_no_queue_of_its_own() -> None:
    async with inventories(World(a=ALL, b=ALL)) as known:
        assert (await known.placement(check(GRAPH), PlacementRequest())).key == "default"


async def test_a_node_that_joins_later_takes_what_waits() -> None:
    world = World(a=ALL, c=classes("Odd"))
    async with inventories(world) as known:
        placement = await known.placement(check(GRAPH), PlacementRequest())
        assert await able(world, placement) == {"a"}
        world.join("new", ALL)
        world.join("odd", classes("Odd"))
        await known.refresher.refresh(["new", "odd"], patience_s=5)
        await known.look()
        assert await able(world, placement) == {"a", "new"}


@pytest.mark.parametrize(("verdict", "asked"), [("new", 3), ("up", 1), ("drain", 1)])
async def test_a_node_that_just_joined_is_read_without_another_word(verdict: str, asked: int) -> None:
    world = World(old=ALL)
    async with inventories(world) as known:
        world.join("new", ALL, verdict=verdict, early=2)
        await followed(world, known, "new")
        assert world.asked.count("new") == asked
        assert world.was_read("new") == (verdict == "new")


async def followed(world: World, known: NodeInventories, name: str) -> None:
    """Have the registry looked at; returns once a node was asked and no other one is."""
    world.registry.announce()
    await until(lambda: name in world.asked, what="it is asked")
    await idle(known)


class ComesUpMeanwhile(FakeNodeApi):
    """A node was asked too early, and is known to be up when the answer to that arrives."""

    def __init__(self, registry: FakeNodeRegistry) -> None:
        super().__init__()
        self._registry = registry

    async def inventory(self, node: str) -> Inventory:
        if self.early.get(node):
            looks = self._registry.calls["states"]
            self._registry.put(node, verdict="up")
            self._registry.announce()
            await until(lambda: self._registry.calls["states"] > looks, what="it is seen that it is up")
        return await super().inventory(node)


async def test_a_node_that_comes_up_while_it_is_asked_too_early_is_asked_again() -> None:
    world = World(old=ALL)
    answers, world.nodes = world.nodes, ComesUpMeanwhile(world.registry)
    world.nodes.classes, world.nodes.stats = answers.classes, answers.stats
    async with inventories(world) as known:
        world.join("new", ALL, verdict="new", early=1)
        await followed(world, known, "new")
        assert world.asked.count("new") == 2
        assert world.was_read("new")


async def test_a_node_that_joins_and_stays_away_is_left_alone() -> None:
    world = World(old=ALL)
    async with inventories(world) as known:
        world.join("new", ALL, verdict="new", early=1000)
        await followed(world, known, "new")
        assert world.asked.count("new") == len(NEW_AGAIN_S) + 1


async def test_many_that_join_together_are_asked_once_each_until_they_are_up() -> None:
    world = World(old=ALL)
    names = [f"n{number}" for number in range(5 * AT_ONCE)]
    async with inventories(world) as known:
        for name in names:
            world.join(name, ALL, verdict="new", early=1000)
        await followed(world, known, max(names))
        counts = [world.asked.count(name) for name in names]
        assert min(counts) == 1
        assert counts[: 4 * AT_ONCE] == [1] * (4 * AT_ONCE)


async def test_nodes_that_cant_be_asked_decide_by_themselves() -> None:
    async with inventories(World(a=None)) as known:
        assert (await known.placement(check(GRAPH), PlacementRequest())).key == "default"
        assert not known.declared().inventories


@pytest.mark.parametrize(
    ("verdict", "added_s_ago", "refused"),
    [
        *(("down", 310, True), ("new", 310, True)),
        *(("down", 290, False), ("up", 310, False), ("drain", 310, False)),
    ],
)
async def test_a_node_that_has_never_answered_is_hoped_for_only_for_some_minutes(
    verdict: str, added_s_ago: float, refused: bool
) -> None:
    world = World(odd=classes("Odd"))
    async with inventories(world) as known:
        world.join("away", None, verdict=verdict)
        world.set("away", added_at=world.now - added_s_ago)
        await known.look()
        if not refused:
            placement = await known.placement(check(GRAPH), PlacementRequest())
            assert await able(world, placement) == {"away"}
            return
        with pytest.raises(InvalidWorkflow, match="away: it has not answered since it was added") as caught:
            await known.placement(check(GRAPH), PlacementRequest())
        assert caught.value.details["nodes"].keys() == {"odd", "away"}
        # It may be the only one, or one of those that can run it.
        world.join("odd", ALL)
        await known.refresher.refresh(["odd"], patience_s=5)
        await known.look()
        placement = await known.placement(check(GRAPH), PlacementRequest())
        assert await able(world, placement) == {"odd", "away"}


async def test_refused_only_after_a_second_look() -> None:
    world = World(a=classes("SaveImage"), b=classes("Odd"))
    async with inventories(world) as known:
        world.now += 10
        world.nodes.classes["a"] = ALL  # somebody installed it just now
        assert await able(world, await known.placement(check(GRAPH), PlacementRequest())) == {"a"}
        world.nodes.classes["a"] = classes("SaveImage")  # and took it away again
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


async def test_a_wrong_value_for_a_class_that_few_nodes_have_is_told_as_that() -> None:
    graph = check({**GRAPH, "3": {"class_type": "Grow", "inputs": {"by": 9, "image": ["1", 0]}}})
    grows = classes("Grow")
    grows["Grow"]["input"]["required"] = {"by": ["INT", {"max": 8}], "how": ["STRING", {}]}
    async with inventories(World(a=ALL, b={**ALL, **grows}, c=ALL)) as known:
        with pytest.raises(InvalidWorkflow) as caught:
            await known.placement(graph, PlacementRequest())
    defects = caught.value.details["node_errors"]
    assert [(node, [one["reason"] for one in found]) for node, found in defects.items()] == [
        ("3", ["missing_input", "out_of_range"])
    ]
    assert "together" not in caught.value.details


async def test_pools_are_wanted_preferred_or_spilled_into() -> None:
    world = World(a=ALL, b=ALL, c=classes("Odd"))
    world.set("b", pool="big")
    world.set("c", pool="odd")
    async with inventories(world) as known:
        graph = check(GRAPH)
        assert await able(world, await known.placement(graph, PlacementRequest())) == {"a"}
        assert await able(world, await known.placement(graph, PlacementRequest(pool="big"))) == {"b"}
        spilling = await known.placement(graph, PlacementRequest(pool="big", spill_to=("default",)))
        assert spilling.pools(["big", "default", "odd"]) == ("big", "default")
        preferring = await known.placement(graph, PlacementRequest(prefer="odd"))
        assert preferring.pools(["big", "default", "odd"]) == ("odd", "big", "default")
        assert await able(world, preferring) == {"a", "b"}
        with pytest.raises(InvalidWorkflow, match="c: has no class"):
            await known.placement(graph, PlacementRequest(pool="odd"))
        with pytest.raises(InvalidWorkflow, match="no node is in pool none: name one of big, default, odd"):
            await known.placement(graph, PlacementRequest(pool="none"))


async def test_declared_memory_zone_and_labels() -> None:
    world = World(a=ALL, b=ALL)
    world.has_vram("a", 12 * GIB)
    world.has_vram("b", 24 * GIB)
    world.set("a", zone="z1")
    world.set("b", labels={"kind": "fast"})
    async with inventories(world) as known:
        graph = check(GRAPH)
        assert await able(world, await known.placement(graph, PlacementRequest(vram_bytes=16 * GIB))) == {"b"}
        assert await able(world, await known.placement(graph, PlacementRequest(zone="z1"))) == {"a"}
        assert await able(world, await known.placement(graph, PlacementRequest(labels={"kind": "fast"}))) == {
            "b"
        }
        with pytest.raises(InvalidWorkflow, match="a: has 12 GiB of VRAM, not 32 GiB"):
            await known.placement(graph, PlacementRequest(vram_bytes=32 * GIB))


async def test_a_submit_names_some_of_the_nodes_that_can_run_it() -> None:
    world = World(**{f"n{number}": ALL for number in range(24)}, odd=classes("Odd"))
    async with inventories(world) as known:
        placement = await known.placement(check(GRAPH), PlacementRequest())
        assert known.able_nodes(placement) == tuple(f"n{number}" for number in range(0, 24, 3))
        assert known.able_nodes(Placement(pool="elsewhere")) == ()
        for number in range(20):
            world.registry.put(f"n{number}", verdict="down")
        await known.look()
        assert known.able_nodes(placement) == ("n20", "n21", "n22", "n23")
        for number in range(20, 24):
            world.registry.put(f"n{number}", verdict="down")
        await known.look()
        assert len(known.able_nodes(placement)) == MOST_ABLE, "they may come back"


async def test_removed_nodes_are_forgotten() -> None:
    world = World(a=ALL, b=classes("Odd"))
    async with inventories(world) as known:
        await world.registry.remove("a")
        await until(lambda: "a" not in known.known, what="it is forgotten")
        with pytest.raises(InvalidWorkflow):
            await known.placement(check(GRAPH), PlacementRequest())


async def test_any_node_asks_when_it_knows_none() -> None:
    world = World()
    known = NodeInventories(world.registry, world.store, world.nodes)
    assert not await known.any_node()
    world.join("a", ALL)
    assert await known.any_node()


async def test_a_look_that_took_long_shows_nothing_older_than_a_later_one() -> None:
    gate = asyncio.Event()

    class Slow(FakeNodeRegistry):
        async def states(self) -> Sequence[NodeState]:
            found = await super().states()
            if self.calls["states"] == 1:
                await gate.wait()
            return found

    registry = Slow([Node(name="old", url="http://old.test:1")])
    directory = NodeDirectory(registry, FakeInventoryStore(registry))
    first = asyncio.create_task(directory.look())
    await asyncio.sleep(0)
    await registry.remove("old")
    await registry.add(Node(name="new", url="http://new.test:1"))
    await directory.look()
    gate.set()
    await first
    assert list(directory.states) == ["new"]


async def test_looks_at_once_show_each_inventory_as_one() -> None:
    """Whoever compares them by identity would find a node's own among none of the fleet's."""
    both_ask, first_shown = asyncio.Event(), asyncio.Event()
    digest, packed = pack(parse(ALL))

    class Slow(FakeInventoryStore):
        async def load(self, digest: str) -> Inventory | None:
            await super().load(digest)
            if self.calls["load"] == 1:
                await both_ask.wait()
            else:
                both_ask.set()
                await first_shown.wait()
            return unpack(packed)

    registry = FakeNodeRegistry()
    registry.put("a", reading=Reading(inventory=digest, read_at=1))
    store = Slow(registry)
    directory = NodeDirectory(registry, store)
    first, second = asyncio.create_task(directory.look()), asyncio.create_task(directory.look())
    await first
    first_shown.set()
    await second
    assert store.calls["load"] == 2
    (candidate,) = directory.candidates
    assert [candidate.inventory] == list(directory.inventories)
    assert candidate.inventory is directory.inventories[0]


@pytest.mark.parametrize(("nodes", "inputs"), [(1, 6000), (600, 1), (20, 300)])
async def test_large_graphs_of_any_shape_are_compared_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, nodes: int, inputs: int
) -> None:
    world = World(a=classes("A"))
    seen: list[bool] = []
    found = graph_problems.findings

    def findings(*args: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return found(*args)

    monkeypatch.setattr(graph_problems, "findings", findings)
    wide = {
        str(id_): {"class_type": "A", "inputs": {f"x{i}": i for i in range(inputs)}} for id_ in range(nodes)
    }
    async with inventories(world) as known:
        await known.placement(check({"1": {"class_type": "A", "inputs": {}}}), PlacementRequest())
        await known.placement(check(wide), PlacementRequest())
    assert seen == [True, False]


async def test_classes_that_come_while_others_are_read_are_read_later() -> None:
    known = {Placement(needs="a"): 1, Placement(needs="b"): 1}

    class Growing(FakeInventoryStore):
        async def needs(self, key: str) -> Requirements | None:
            known[Placement(needs=f"{key}+")] = 1
            return await super().needs(key)

    store = Growing(FakeNodeRegistry())
    directory = NodeDirectory(store.registry, store)
    await directory.learn(known)
    assert store.calls["needs"] == 2
    await directory.learn(known)
    assert store.calls["needs"] == 4
