"""Where jobs go after failures, and what becomes of nodes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest

from comfy_fleet.domain.errors import InvalidWorkflow, StoreDown
from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.domain.jobs.job import JobError, Placement
from comfy_fleet.domain.jobs.run_messages import RunResult
from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.eligibility import GIB, Requirements
from comfy_fleet.domain.nodes.node import Reading
from comfy_fleet.domain.nodes.pool import Pool, PoolDefaults
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.failure_policy import PATIENCE, REST_S, FailureLimits, FailurePolicy
from comfy_fleet.services.memory_prediction import MemoryPrediction
from comfy_fleet.services.node_directory import NodeDirectory
from tests.factories import GRAPH, a_claim, running_job
from tests.fakes.comfyui import FakeNodeApi
from tests.fakes.memory import FakeMemoryStore
from tests.fakes.nodes import FakeInventoryStore, FakeNodeRegistry, FakePoolStore

CARDS = {"small": 12, "mid": 16, "large": 24}


class World:
    """Nodes with cards of some GiB."""

    def __init__(self, **cards: int) -> None:
        self.registry = FakeNodeRegistry()
        self.inventories = FakeInventoryStore(self.registry)
        self.pools = FakePoolStore()
        self.memory = FakeMemoryStore()
        self.time = 200.0
        self.nodes = FakeNodeApi()
        for name, size in (cards or CARDS).items():
            self.registry.put(name, reading=Reading(vram_bytes=size * GIB))
            self.held_by_others(name, 0)

    def held_by_others(self, name: str, size: int) -> None:
        """Have other programs hold some GiB of a node's card."""
        total = self.registry.held[name].reading.vram_bytes
        free = {"vram_total": total, "vram_free": total - size * GIB}
        self.nodes.stats[name] = {
            "devices": [{"type": "cuda", **free, "torch_vram_total": 0, "torch_vram_free": 0}]
        }

    def read(self, **facts: Any) -> None:
        """Change what every node told of itself."""
        for name, state in self.registry.held.items():
            self.registry.put(name, reading=replace(state.reading, **facts))

    def has(self, name: str, classes: Mapping[str, Any]) -> None:
        """Have it known which classes a node has."""
        self.inventories.inventories[name] = parse(classes)
        reading = self.registry.held[name].reading
        self.registry.put(name, reading=replace(reading, inventory=name))

    @property
    def strikes(self) -> list[tuple[str, str]]:
        return [(node, kind) for node, kind, _ in self.registry.strikes]

    @property
    def limits(self) -> list[int]:
        return [limit for _, _, limit in self.registry.strikes]

    async def failure_policy(self, limits: FailureLimits | None = None) -> FailurePolicy:
        self.directory = NodeDirectory(self.registry, self.inventories)
        await self.directory.look()
        return FailurePolicy(
            self.registry,
            self.inventories,
            self.nodes,
            self.directory,
            self.pools,
            MemoryPrediction(self.memory, keep_s=60),
            limits or FailureLimits(),
            clock=lambda: self.time,
        )


def claim(node: str, placement: Placement | None = None) -> Claim:
    job = running_job(created_at=100, expires_at=200, profile="p", placement=placement or Placement())
    return a_claim(job, graph=orjson.dumps(GRAPH), node=node)


def failed(code: str, *, exclude: bool = False) -> RunResult:
    return RunResult(
        kind="failed",
        error=JobError(code=code, message="boom"),
        counts=True,
        retryable=True,
        exclude_node=exclude,
    )


async def test_out_of_memory_goes_to_a_larger_card_for_free() -> None:
    world = World()
    found = await (await world.failure_policy()).after(claim("small"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.above, found.placement.without, found.counts) == (
        12 * GIB,
        frozenset({"small"}),
        False,
    )
    assert (world.inventories.too_small, world.nodes.freed, world.strikes) == (
        {"p": 12 * GIB},
        ["small"],
        [("small", "oom")],
    )
    assert world.limits == [5 * PATIENCE]  # the card's size is the likelier reason
    assert found.rest_s == 0.0  # its card is too small for this job, not for the next one


async def test_a_pool_may_keep_its_models_after_out_of_memory() -> None:
    world = World()
    await world.pools.set(Pool(name="default", free_on_oom=False))
    failure_policy = await world.failure_policy()
    found = await failure_policy.after(claim("small"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert world.nodes.freed == []
    world.pools.down = True  # nobody says: as everywhere
    await failure_policy.after(claim("small"), failed("out_of_memory"))
    assert world.nodes.freed == ["small"]
    defaults = PoolDefaults(free_on_oom=False, former={"default": Pool(name="default", free_on_oom=True)})
    await (await world.failure_policy(FailureLimits(pools=defaults))).after(
        claim("mid"), failed("out_of_memory")
    )
    assert world.nodes.freed == ["small", "mid"]
    world.pools.down = False  # its own says more than a setting's former form
    await (await world.failure_policy(FailureLimits(pools=defaults))).after(
        claim("mid"), failed("out_of_memory")
    )
    assert world.nodes.freed == ["small", "mid"]


async def test_out_of_memory_on_the_largest_card_is_the_end() -> None:
    world = World()
    found = await (await world.failure_policy()).after(claim("large"), failed("out_of_memory"))
    assert found is not None and found.placement is None
    assert world.limits == [5]
    assert found.error.message == "out of memory on large (24 GiB), the largest node that can run it: boom"


async def test_another_card_of_the_same_size_gets_one_try() -> None:
    world = World(one=24, two=24, three=24)
    failure_policy = await world.failure_policy()
    found = await failure_policy.after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.without, found.counts) == (frozenset({"one"}), True)
    found = await failure_policy.after(claim("two", found.placement), failed("out_of_memory"))
    assert found is not None and found.placement is None


async def test_memory_that_others_hold_is_not_the_card_s_fault() -> None:
    world = World(one=24, two=24)
    world.held_by_others("one", 10)
    found = await (await world.failure_policy()).after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.above, found.placement.without, found.counts) == (
        14 * GIB,
        frozenset({"one"}),
        True,
    )
    assert world.inventories.too_small == {"p": 14 * GIB}
    assert found.rest_s == REST_S  # until its agent has told HAProxy
    lone = World(one=24)
    lone.held_by_others("one", 10)
    found = await (await lone.failure_policy()).after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement == Placement()  # once more, when there is room again
    assert "of which others hold 10 GiB" in found.error.message and found.counts
    assert found.rest_s == REST_S


async def test_a_little_that_others_hold_changes_nothing() -> None:
    world = World(one=24, two=24)
    world.held_by_others("two", 1)
    tried = Placement(without=frozenset({"one"}), above=24 * GIB)
    found = await (await world.failure_policy()).after(claim("two", tried), failed("out_of_memory"))
    assert found is not None and (found.placement, found.rest_s) == (None, 0.0)
    assert "the largest node that can run it" in found.error.message


async def test_an_attempt_counts_where_not_every_card_left_is_larger() -> None:
    world = World(one=24, two=24, big=48)
    world.held_by_others("one", 10)
    found = await (await world.failure_policy()).after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement is not None and found.counts


async def test_what_was_learnt_of_a_larger_card_is_kept() -> None:
    found = await (await World().failure_policy()).after(
        claim("small", Placement(above=16 * GIB)), failed("out_of_memory")
    )
    assert found is not None and found.placement is not None
    assert found.placement.above == 16 * GIB


async def test_cards_of_unknown_size_may_be_larger_and_teach_nothing() -> None:
    world = World(one=24, new=0)
    found = await (await world.failure_policy()).after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.without, found.counts) == (frozenset({"one"}), True)
    world = World(new=0, big=24)
    world.nodes.stats.clear()
    found = await (await world.failure_policy()).after(claim("new"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.above, found.counts, world.inventories.too_small) == (0, True, {})


async def test_a_job_does_not_wait_for_a_node_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfy_fleet.services.failure_policy.ASK_S", 0.01)
    world = World()
    world.nodes.hangs = True
    found = await (await world.failure_policy()).after(claim("small"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.above, world.nodes.freed) == (12 * GIB, [])


async def test_a_silent_node_counts_with_its_whole_card() -> None:
    world = World()
    world.nodes.stats.clear()
    found = await (await world.failure_policy()).after(claim("mid"), failed("out_of_memory"))
    assert found is not None and found.placement is not None and found.placement.above == 16 * GIB


async def test_gpu_faults_go_elsewhere_and_count_against_the_node() -> None:
    world = World()
    found = await (await world.failure_policy()).after(claim("mid"), failed("gpu_fault", exclude=True))
    assert found is not None and found.placement is not None
    assert (found.placement.without, found.counts) == (frozenset({"mid"}), True)
    assert world.strikes == [("mid", "gpu")]
    lone = World(one=24)
    found = await (await lone.failure_policy()).after(claim("one"), failed("gpu_fault", exclude=True))
    assert found is not None and found.placement == Placement()  # it may be cured by a restart


async def test_a_refusal_has_the_node_read_again() -> None:
    world = World()
    failure_policy = await world.failure_policy()
    found = await failure_policy.after(claim("mid"), failed("invalid_workflow", exclude=True))
    assert found is not None and found.placement is not None and found.placement.without == {"mid"}
    assert [n for n, state in world.registry.held.items() if state.reading.wanted] == ["mid"]
    last = Placement(without=frozenset({"small", "large"}))
    found = await failure_policy.after(claim("mid", last), failed("invalid_workflow", exclude=True))
    assert found is not None and found.placement is None  # nobody is left
    assert await failure_policy.after(claim("gone"), failed("invalid_workflow", exclude=True)) is not None


@pytest.mark.parametrize(
    ("reason", "digest", "left"),
    [
        ("return_type_mismatch", "same", None),
        ("custom_validation_failed", "same", {"a", "b"}),  # a file in the node's own input folder, perhaps
        ("return_type_mismatch", "", {"a", "b"}),
    ],
)
async def test_two_alike_nodes_that_refuse_a_graph_speak_for_all(
    reason: str, digest: str, left: set[str] | None
) -> None:
    world = World(a=8, b=8, c=8, d=8)
    world.read(inventory=digest)
    failure_policy = await world.failure_policy()
    details = {"node_errors": {"1": [{"field": "x", "reason": reason, "message": "no"}]}}
    error = JobError(code="invalid_workflow", message="no", details=details)
    verdict = RunResult(kind="rejected", error=error, counts=False, retryable=True, exclude_node=True)
    first = await failure_policy.after(claim("a"), verdict)
    assert first is not None and first.placement is not None and first.placement.without == {"a"}
    second = await failure_policy.after(claim("b", first.placement), verdict)
    assert second is not None
    assert (second.placement.without if second.placement else None) == left


async def test_other_failures_are_nothing_special() -> None:
    failure_policy = await World().failure_policy()
    assert await failure_policy.after(claim("mid"), failed("node_execution_error")) is None
    assert await failure_policy.after(claim("mid"), RunResult(kind="succeeded")) is None


@pytest.mark.parametrize(("changed_at", "moves"), [(50.0, False), (100.0, False), (150.0, True)])
async def test_only_nodes_that_changed_since_are_looked_at(changed_at: float, moves: bool) -> None:
    world = World()
    good = {name: {"input": {}, "output_node": True} for name in ("EmptyImage", "SaveImage")}
    world.has("small", {"SaveImage": {"output_node": True}})
    world.has("large", good)
    world.read(changed_at=changed_at)
    failure_policy = await world.failure_policy()
    moved = await failure_policy.misfit(claim("small"), GRAPH)
    assert (moved is not None) == moves
    assert await failure_policy.misfit(claim("large"), GRAPH) is None
    assert await failure_policy.misfit(claim("mid"), GRAPH) is None  # not known: it decides by itself
    if moved is not None:
        assert world.inventories.requirements[moved.needs].classes == {"EmptyImage"}
        assert world.directory.able(moved) == {"large", "mid"}


async def test_a_job_keeps_its_needs_and_gets_those_that_came() -> None:
    world = World()
    loader = {"input": {"required": {"vae_name": [["b.pt"]]}}, "output_node": True}
    world.has("small", {"VAELoader": loader})
    world.read(changed_at=150.0)
    world.inventories.requirements["k"] = Requirements(
        classes=frozenset({"Rare"}), choices=frozenset({("Rare", "x", "a.pt")})
    )
    graph = {**GRAPH, "3": {"class_type": "VAELoader", "inputs": {"vae_name": "a.pt"}}}
    moved = await (await world.failure_policy()).misfit(claim("small", Placement(needs="k")), graph)
    assert moved is not None
    kept = world.inventories.requirements[moved.needs]
    assert kept.classes == {"Rare", "EmptyImage", "SaveImage"}
    assert kept.choices == {("Rare", "x", "a.pt"), ("VAELoader", "vae_name", "a.pt")}


async def test_a_node_whose_limits_changed_is_named_where_needs_can_not_say_it() -> None:
    world = World()
    narrow = {"input": {"required": {"width": ["INT", {"max": 8}]}}, "output": ["IMAGE"]}
    world.has("small", {"EmptyImage": narrow, "SaveImage": {"output_node": True}})
    world.read(changed_at=150.0)
    moved = await (await world.failure_policy()).misfit(claim("small"), GRAPH)
    assert moved == Placement(without=frozenset({"small"}))


async def test_while_redis_is_away_the_last_that_was_known_of_the_nodes_counts() -> None:
    world = World()
    failure_policy = await world.failure_policy()
    world.registry.troubles = [StoreDown("away")]
    found = await failure_policy.after(claim("small"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert found.placement.above == 12 * GIB


SAVE = {"input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING"]}}, "output_node": True}
CLASSES: dict[str, Any] = {
    "EmptyImage": {"input": {}, "output": ["IMAGE"]},
    "SaveImage": SAVE,
    "Loose": {"input": {}},
}


async def test_what_a_changed_node_would_read_is_checked_before_it_is_posted() -> None:
    graph = {**GRAPH, "9": {"class_type": "Loose", "inputs": {"x": ["77", 0]}}}
    reads_all = {**CLASSES, "Loose": {"input": {}, "output_node": True}}
    world = World()
    world.has("small", CLASSES)
    world.has("large", reads_all)
    world.read(changed_at=150.0)
    failure_policy = await world.failure_policy()
    assert failure_policy.fitted(claim("small"), graph).keys() == GRAPH.keys()
    assert failure_policy.unseen(claim("small")) == [world.inventories.inventories["small"]]
    with pytest.raises(InvalidWorkflow):
        failure_policy.fitted(claim("large"), graph)
    with pytest.raises(InvalidWorkflow):  # it is not known what it has, so it may read what any other does
        failure_policy.fitted(claim("mid"), graph)
    assert len(failure_policy.unseen(claim("mid")) or ()) == 2
    del world.inventories.inventories["large"]
    assert (await world.failure_policy()).fitted(claim("mid"), graph).keys() == GRAPH.keys()
    world.read(changed_at=50.0)
    assert (await world.failure_policy()).unseen(claim("small")) is None


# -- cards that are too small ------------------------------------------------------------------------------

WORK = Workload(family="checkpoints/a", model_bytes=6 * GIB, pixels=4.0)


def working(node: str, placement: Placement | None = None, *, pixels: float = 4.0) -> Claim:
    found = claim(node, placement)
    return replace(found, job=replace(found.job, workload=replace(WORK, pixels=pixels)))


async def test_a_failure_keeps_like_jobs_from_cards_of_that_size() -> None:
    world = World()
    policy = await world.failure_policy()
    assert await policy.misfit(working("small"), GRAPH) is None
    await policy.after(working("small"), failed("out_of_memory"))
    assert await policy.misfit(working("small", pixels=5.0), GRAPH) == Placement(above=12 * GIB)
    assert await policy.misfit(working("small", pixels=3.0), GRAPH) is None  # it computes less
    assert await policy.misfit(working("mid"), GRAPH) is None
    assert await policy.misfit(claim("small"), GRAPH) is None  # nobody knows what it loads


async def test_a_job_goes_to_the_largest_card_if_all_are_too_small() -> None:
    world = World()
    policy = await world.failure_policy()
    for name in ("mid", "large"):
        await policy.after(working(name), failed("out_of_memory"))
    assert await policy.misfit(working("small"), GRAPH) == Placement(above=16 * GIB)
    assert await policy.misfit(working("mid"), GRAPH) == Placement(above=16 * GIB)
    assert await policy.misfit(working("large"), GRAPH) is None
    only = Placement(nodes=frozenset({"small"}))
    assert await policy.misfit(working("small", only), GRAPH) is None


async def test_a_job_that_has_just_come_is_not_looked_at_again() -> None:
    world = World()
    policy = await world.failure_policy()
    await world.memory.note(WORK, owner="o", room=12 * GIB, fits=False, ttl_s=60)  # another dispatcher's
    world.time = 100.1  # it came at 100
    assert await policy.misfit(working("small"), GRAPH) is None
    world.time = 101.0
    assert await policy.misfit(working("small"), GRAPH) == Placement(above=12 * GIB)


async def test_after_a_failure_even_those_are() -> None:
    world = World()
    policy = await world.failure_policy()
    await policy.after(working("small"), failed("out_of_memory"))
    world.time = 100.1
    assert await policy.misfit(working("small"), GRAPH) == Placement(above=12 * GIB)


async def test_what_others_held_does_not_count_against_the_card() -> None:
    world = World()
    policy = await world.failure_policy()
    world.held_by_others("large", 14)
    await policy.after(working("large"), failed("out_of_memory"))
    (seen,) = world.memory.families["checkpoints/a"].fails
    assert seen.room == 10 * GIB
    assert await policy.misfit(working("small"), GRAPH) is None
