"""Where jobs go after failures, and what becomes of nodes; registry, store and nodes are played."""

from collections.abc import Mapping
from typing import Any, cast

import orjson
import pytest

from comfy_fleet.domain.by_pool import ByPool
from comfy_fleet.domain.eligibility import GIB
from comfy_fleet.domain.errors import NodeError, NotFound
from comfy_fleet.domain.inventory import Inventory, parse
from comfy_fleet.domain.job import Job, JobError, JobStatus, Placement
from comfy_fleet.domain.node import Node, NodeState, Reading
from comfy_fleet.domain.run import Verdict
from comfy_fleet.ports import Claim, InventoryStore, NodeRegistry
from comfy_fleet.services.atlas import Atlas
from comfy_fleet.services.care import REST_S, Care, CareLimits
from tests.factories import GRAPH

CARDS = {"small": 12, "mid": 16, "large": 24}


class World:
    """Nodes with cards of some GiB; ``foreign`` is what others hold there."""

    def __init__(self, **cards: int) -> None:
        self.cards = cards or CARDS
        self.foreign: dict[str, int] = {}
        self.has: dict[str, Inventory] = {}
        self.changed_at = 0.0
        self.strikes: list[tuple[str, str]] = []
        self.wanted: list[str] = []
        self.freed: list[str] = []
        self.oom: dict[str, int] = {}
        self.silent = False
        self.needs_kept: dict[str, Any] = {}

    async def states(self) -> list[NodeState]:
        return [
            NodeState(
                node=Node(name=name, url=f"http://{name}:1"),
                reading=Reading(
                    vram_bytes=size * GIB,
                    inventory=name if name in self.has else "",
                    changed_at=self.changed_at,
                ),
            )
            for name, size in sorted(self.cards.items())
        ]

    async def strike(self, name: str, *, kind: str, limit: int, reason: str) -> bool:
        self.strikes.append((name, kind))
        return len(self.strikes) >= limit

    async def want_reading(self, name: str) -> None:
        if name not in self.cards:
            raise NotFound(name)
        self.wanted.append(name)

    async def load(self, digest: str) -> Inventory | None:
        return self.has.get(digest)

    async def needs(self, key: str) -> Any:
        return self.needs_kept.get(key)

    async def keep_needs(self, needs: Any) -> None:
        self.needs_kept[needs.key] = needs

    async def note_oom(self, profile: str, size: int, *, ttl_s: int) -> int:
        self.oom[profile] = max(size, self.oom.get(profile, 0))
        return self.oom[profile]

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        if self.silent:
            raise NodeError("no answer")
        total = self.cards[node] * GIB
        free = total - self.foreign.get(node, 0) * GIB
        figures = {"vram_total": total, "vram_free": free, "torch_vram_total": 0, "torch_vram_free": 0}
        return {"devices": [{"type": "cuda", **figures}]}

    async def free(self, node: str) -> None:
        self.freed.append(node)

    async def care(self, limits: CareLimits | None = None) -> Care:
        atlas = Atlas(cast(NodeRegistry, self), cast(InventoryStore, self))
        await atlas.look()
        return Care(cast(NodeRegistry, self), cast(InventoryStore, self), self, atlas, limits or CareLimits())


def claim(node: str, placement: Placement | None = None) -> Claim:
    job = Job(
        id="j", owner="o", status=JobStatus.RUNNING, created_at=100, expires_at=200, graph_hash="h",
        profile="p", placement=placement or Placement(),
    )  # fmt: skip
    return Claim(job=job, graph=orjson.dumps(GRAPH), run="r", node=node, token="t", attempt=0)


def failed(code: str, *, exclude: bool = False) -> Verdict:
    return Verdict(
        kind="failed",
        error=JobError(code=code, message="boom"),
        counts=True,
        retryable=True,
        exclude_node=exclude,
    )


async def test_out_of_memory_goes_to_a_larger_card_for_free() -> None:
    world = World()
    found = await (await world.care()).after(claim("small"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.above, found.placement.without, found.counts) == (
        12 * GIB,
        frozenset({"small"}),
        False,
    )
    assert (world.oom, world.freed, world.strikes) == ({"p": 12 * GIB}, ["small"], [("small", "oom")])
    assert found.rest_s == 0.0  # its card is too small for this job, not for the next one


async def test_a_pool_may_keep_its_models_after_out_of_memory() -> None:
    world = World()
    care = await world.care(CareLimits(free=ByPool(usual=1, pools={"default": 0})))
    found = await care.after(claim("small"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert world.freed == []


async def test_out_of_memory_on_the_largest_card_is_the_end() -> None:
    world = World()
    found = await (await world.care()).after(claim("large"), failed("out_of_memory"))
    assert found is not None and found.placement is None
    assert found.error.message == "out of memory on large (24 GiB), the largest node that can run it: boom"


async def test_another_card_of_the_same_size_gets_one_try() -> None:
    world = World(one=24, two=24)
    care = await world.care()
    found = await care.after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.without, found.counts) == (frozenset({"one"}), True)
    found = await care.after(claim("two", found.placement), failed("out_of_memory"))
    assert found is not None and found.placement is None


async def test_memory_that_others_hold_is_not_the_card_s_fault() -> None:
    world = World(one=24, two=24)
    world.foreign["one"] = 10
    found = await (await world.care()).after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.above, found.placement.without, found.counts) == (
        14 * GIB,
        frozenset({"one"}),
        True,
    )
    assert world.oom == {"p": 14 * GIB}
    assert found.rest_s == REST_S  # until its agent has told HAProxy
    lone = World(one=24)
    lone.foreign["one"] = 10
    found = await (await lone.care()).after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement == Placement()  # once more, when there is room again
    assert "of which others hold 10 GiB" in found.error.message and found.counts
    assert found.rest_s == REST_S


async def test_a_silent_node_counts_with_its_whole_card() -> None:
    world = World()
    world.silent = True
    found = await (await world.care()).after(claim("mid"), failed("out_of_memory"))
    assert found is not None and found.placement is not None and found.placement.above == 16 * GIB


async def test_gpu_faults_go_elsewhere_and_count_against_the_node() -> None:
    world = World()
    found = await (await world.care()).after(claim("mid"), failed("gpu_fault", exclude=True))
    assert found is not None and found.placement is not None
    assert (found.placement.without, found.counts) == (frozenset({"mid"}), True)
    assert world.strikes == [("mid", "gpu")]
    lone = World(one=24)
    found = await (await lone.care()).after(claim("one"), failed("gpu_fault", exclude=True))
    assert found is not None and found.placement == Placement()  # it may be cured by a restart


async def test_a_refusal_has_the_node_read_again() -> None:
    world = World()
    care = await world.care()
    found = await care.after(claim("mid"), failed("invalid_workflow", exclude=True))
    assert found is not None and found.placement is not None and found.placement.without == {"mid"}
    assert world.wanted == ["mid"]
    last = Placement(without=frozenset({"small", "large"}))
    found = await care.after(claim("mid", last), failed("invalid_workflow", exclude=True))
    assert found is not None and found.placement is None  # nobody is left
    assert await care.after(claim("gone"), failed("invalid_workflow", exclude=True)) is not None


async def test_other_failures_are_nothing_special() -> None:
    care = await World().care()
    assert await care.after(claim("mid"), failed("node_execution_error")) is None
    assert await care.after(claim("mid"), Verdict(kind="succeeded")) is None


@pytest.mark.parametrize(("changed_at", "moves"), [(50.0, False), (150.0, True)])
async def test_only_nodes_that_changed_since_are_looked_at(changed_at: float, moves: bool) -> None:
    world = World()
    good = {name: {"input": {}, "output_node": True} for name in ("EmptyImage", "SaveImage")}
    world.has = {"small": parse({"SaveImage": {"output_node": True}}), "large": parse(good)}
    world.changed_at = changed_at
    care = await world.care()
    moved = await care.misfit(claim("small"), GRAPH)
    assert (moved is not None) == moves
    assert await care.misfit(claim("large"), GRAPH) is None
    assert await care.misfit(claim("mid"), GRAPH) is None  # not known: it decides by itself
    if moved is not None:
        assert world.needs_kept[moved.needs].classes == {"EmptyImage"}
        assert care._atlas.able(moved) == {"large", "mid"}
