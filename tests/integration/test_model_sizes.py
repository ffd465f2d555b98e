"""The sizes of nodes' model files, asked in the background and shared through a real Redis."""

import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.model_sizes import RedisModelSizes
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.jobs.model_files import MOST_BYTES
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading
from comfy_fleet.services.fleet_model_sizes import AGAIN_S, FRESH_S, FleetModelSizes
from comfy_fleet.timeouts import Timeout
from tests.fakes.comfyui import FakeNodeApi
from tests.fleet import until
from tests.integration.api_kit import object_info, running

GIB = 2**30
TEXT = {"input": {"required": {"text": ["STRING", {}]}}, "output": [], "output_node": True}
GRAPH = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}}}
GUESSED = (("checkpoints/a.safetensors", 2 * GIB),)


@dataclass
class Nodes:
    """A fleet's nodes by name."""

    states: dict[str, NodeState] = field(default_factory=dict)
    inventories: list[Inventory] = field(default_factory=list)

    def add(self, name: str, *, has: str = "x", verdict: str = "up") -> None:
        node = Node(name=name, url=f"http://{name}.test:1")
        self.states[name] = replace(NodeState(node=node), verdict=verdict, reading=Reading(inventory=has))


class World:
    """Nodes with their files, and processes that know the sizes of these."""

    def __init__(self, redis: FleetRedis) -> None:
        self.nodes = Nodes()
        self.api = FakeNodeApi()
        self.redis = redis
        self.now = 1000.0

    def serve(self, name: str, size: Any, *, has: str = "x", verdict: str = "up") -> None:
        """Add a node that says that its checkpoint has this size."""
        self.nodes.add(name, has=has, verdict=verdict)
        self.api.listings[name] = {
            "/experiment/models": [{"name": "checkpoints", "folders": ["/m"]}],
            "/experiment/models/checkpoints": [{"name": "a.safetensors", "pathIndex": 0, "size": size}],
        }

    def process(self) -> FleetModelSizes:
        return FleetModelSizes(self.nodes, self.api, RedisModelSizes(self.redis), clock=lambda: self.now)

    async def later(self, seconds: float) -> None:
        """Let time pass, also for the store."""
        self.now += seconds
        await self.redis.delete(self.redis.keyspace.model_sizes_asked)

    @property
    def asked(self) -> set[str]:
        return {name for name, _, _ in self.api.listed}


@pytest.fixture
def world(redis: FleetRedis) -> World:
    return World(redis)


async def test_a_submit_never_waits_and_knows_more_after_the_first_look(world: World) -> None:
    world.serve("g1", 5 * GIB)
    known = world.process()
    assert known.of(GRAPH) == GUESSED
    await known.look()
    assert known.of(GRAPH) == (("checkpoints/a.safetensors", 5 * GIB),)


async def test_one_process_asks_for_all_and_a_new_one_knows_it_at_once(world: World) -> None:
    world.serve("g1", 5 * GIB)
    await world.process().look()
    asked = len(world.api.listed)
    second = world.process()
    await second.look()
    assert second.of(GRAPH) == (("checkpoints/a.safetensors", 5 * GIB),)
    await world.later(FRESH_S - 1)
    await second.look()
    assert len(world.api.listed) == asked


async def test_nodes_are_asked_again_in_time_and_if_others_come(world: World) -> None:
    world.serve("g1", 5 * GIB)
    known = world.process()
    await known.look()
    world.serve("g1", 6 * GIB)
    await world.later(FRESH_S)
    await known.look()
    assert known.of(GRAPH)[0][1] == 6 * GIB
    world.serve("g2", 7 * GIB, has="y")
    await known.look()
    assert "g2" not in world.asked, f"it is asked at most every {AGAIN_S} s"
    await world.later(AGAIN_S)
    await known.look()
    assert known.of(GRAPH)[0][1] == 7 * GIB, "of two sizes that equally many tell, the larger one"


async def test_some_nodes_of_each_kind_are_asked(world: World) -> None:
    for number in range(300):
        world.serve(f"g{number}", 5 * GIB)
    world.serve("odd", 1, has="y")
    await world.process().look()
    assert len(world.asked) == 4
    assert "odd" in world.asked


async def test_a_lie_counts_less_than_what_two_others_say(world: World) -> None:
    world.serve("g1", 5 * GIB)
    world.serve("g2", 10**30)
    world.serve("g3", 5 * GIB)
    known = world.process()
    await known.look()
    assert known.of(GRAPH)[0][1] == 5 * GIB


@pytest.mark.parametrize("size", [10**30, -5, "5", None, True, float("nan"), {}, [[]]])
async def test_sizes_that_make_no_sense(world: World, size: Any) -> None:
    world.serve("g1", size)
    known = world.process()
    await known.look()
    expected = {repr(10**30): MOST_BYTES, "-5": 0}.get(repr(size), 2 * GIB)
    assert known.of(GRAPH)[0][1] == expected


@pytest.mark.parametrize("answer", [None, 7, {}, [7, {"name": 7}, {"name": "../x"}, {"name": "a/b"}]])
async def test_folders_that_make_no_sense(world: World, answer: Any) -> None:
    world.serve("g1", 5 * GIB)
    world.api.listings["g1"]["/experiment/models"] = answer
    known = world.process()
    await known.look()
    assert known.of(GRAPH) == GUESSED
    assert [path for _, path, _ in world.api.listed] == ["/experiment/models"]


async def test_a_node_that_hangs_costs_nothing(world: World) -> None:
    world.serve("g1", 5 * GIB)
    world.api.gates["g1"] = asyncio.Event()
    known = world.process()
    looking = asyncio.create_task(known.look())
    await until(lambda: bool(world.api.listed), what="it is asked")
    assert known.of(GRAPH) == GUESSED
    world.api.gates["g1"].set()
    await looking
    assert known.of(GRAPH)[0][1] == 5 * GIB


async def test_what_only_a_node_has_that_is_down_is_remembered(world: World) -> None:
    world.serve("g1", 5 * GIB)
    await world.process().look()
    world.nodes.add("g1", verdict="down")
    world.nodes.add("g2", has="y")
    world.api.listings["g2"] = {}
    await world.later(FRESH_S)
    known = world.process()
    await known.look()
    assert "g2" in world.asked
    assert known.of(GRAPH)[0][1] == 5 * GIB


@pytest.mark.parametrize("content", [b"", b"x", b"x\x9c\x03\x00", b"\x00" * 100])
async def test_what_is_stored_and_can_t_be_read_is_asked_for_again(world: World, content: bytes) -> None:
    world.serve("g1", 5 * GIB)
    fields: dict[Any, Any] = {"content": content, "digest": b"d", "of": b"o", "at": b"999"}
    await world.redis.hset(world.redis.keyspace.model_sizes, mapping=fields)
    known = world.process()
    await known.look()
    assert known.of(GRAPH)[0][1] == 5 * GIB


async def test_a_job_carries_its_models(redis_port: int, redis: FleetRedis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        api.info.listings["g1"] = {
            "/experiment/models": [{"name": "vae"}],
            "/experiment/models/vae": [{"name": "mine.safetensors", "size": 300}],
        }
        await api.add_node("g1")
        loader = {"class_type": "TextOfANodePack", "inputs": {"text": "mine.safetensors"}}
        size = {"width": 64, "height": 64, "batch_size": 1}
        graph = {
            "1": {"class_type": "EmptyImage", "inputs": {**size, "color": 0}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
            "3:4": loader,
        }
        api.info.serve("g1", {**object_info(), "TextOfANodePack": TEXT})
        keys = redis.keyspace

        async def files() -> Any:
            job = await api.submit(graph)
            key: Any = await redis.hget(keys.job(job["id"]), "set")
            found = await redis.get(keys.sched_set(key.decode())) if key else None
            return found and json.loads(found)

        async with Timeout(60):
            while await files() != [["vae/mine.safetensors", 300]]:
                await asyncio.sleep(0.05)
