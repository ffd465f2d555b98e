"""Where jobs go after failures, and what becomes of nodes; registry, store and nodes are played."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import orjson
import pytest

from comfy_fleet.domain.errors import InvalidWorkflow, NodeError, NotFound, StoreDown
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus, Placement
from comfy_fleet.domain.jobs.run_messages import RunResult
from comfy_fleet.domain.nodes.eligibility import GIB, Requirements
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading
from comfy_fleet.domain.nodes.pool import Pool, PoolDefaults
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry, PoolStore
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.failure_policy import PATIENCE, REST_S, FailureLimits, FailurePolicy
from comfy_fleet.services.node_directory import NodeDirectory
from tests.factories import GRAPH

CARDS = {"small": 12, "mid": 16, "large": 24}


class World:
    """Nodes with cards of some GiB; ``foreign`` is what others hold there."""

    def __init__(self, **cards: int) -> None:
        self.cards = cards or CARDS
        self.foreign: dict[str, int] = {}
        self.has: dict[str, Inventory] = {}
        self.digest = ""
        self.changed_at = 0.0
        self.strikes: list[tuple[str, str]] = []
        self.limits: list[int] = []
        self.wanted: list[str] = []
        self.freed: list[str] = []
        self.oom: dict[str, int] = {}
        self.silent = False
        self.hangs = False
        self.away = False
        self.needs_kept: dict[str, Any] = {}
        self.pool: Pool | None = Pool(name="default")

    async def states(self) -> list[NodeState]:
        if self.away:
            raise StoreDown("away")
        return [
            NodeState(
                node=Node(name=name, url=f"http://{name}:1"),
                reading=Reading(
                    vram_bytes=size * GIB,
                    inventory=name if name in self.has else self.digest,
                    changed_at=self.changed_at,
                ),
            )
            for name, size in sorted(self.cards.items())
        ]

    async def strike(self, name: str, *, kind: str, limit: int, reason: str) -> bool:
        self.strikes.append((name, kind))
        self.limits.append(limit)
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
        if self.hangs:
            await asyncio.Event().wait()
        if self.silent:
            raise NodeError("no answer")
        total = self.cards[node] * GIB
        free = total - self.foreign.get(node, 0) * GIB
        figures = {"vram_total": total, "vram_free": free, "torch_vram_total": 0, "torch_vram_free": 0}
        return {"devices": [{"type": "cuda", **figures}]}

    async def get(self, name: str) -> Pool:
        if self.pool is None:
            raise StoreDown("away")
        return self.pool

    async def free(self, node: str) -> None:
        self.freed.append(node)

    async def failure_policy(self, limits: FailureLimits | None = None) -> FailurePolicy:
        directory = NodeDirectory(cast(NodeRegistry, self), cast(InventoryStore, self))
        await directory.look()
        return FailurePolicy(
            cast(NodeRegistry, self),
            cast(InventoryStore, self),
            self,
            directory,
            cast(PoolStore, self),
            limits or FailureLimits(),
        )


def claim(node: str, placement: Placement | None = None) -> Claim:
    job = Job(
        id="j", owner="o", status=JobStatus.RUNNING, created_at=100, expires_at=200, graph_hash="h",
        profile="p", placement=placement or Placement(),
    )  # fmt: skip
    return Claim(job=job, graph=orjson.dumps(GRAPH), run="r", node=node, token="t", attempt=0)


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
    assert (world.oom, world.freed, world.strikes) == ({"p": 12 * GIB}, ["small"], [("small", "oom")])
    assert world.limits == [5 * PATIENCE]  # the card's size is the likelier reason
    assert found.rest_s == 0.0  # its card is too small for this job, not for the next one


async def test_a_pool_may_keep_its_models_after_out_of_memory() -> None:
    world = World()
    world.pool = Pool(name="default", free_on_oom=False)
    failure_policy = await world.failure_policy()
    found = await failure_policy.after(claim("small"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert world.freed == []
    world.pool = None  # nobody says: as everywhere
    await failure_policy.after(claim("small"), failed("out_of_memory"))
    assert world.freed == ["small"]
    defaults = PoolDefaults(free_on_oom=False, former={"default": Pool(name="default", free_on_oom=True)})
    await (await world.failure_policy(FailureLimits(pools=defaults))).after(
        claim("mid"), failed("out_of_memory")
    )
    assert world.freed == ["small", "mid"]
    world.pool = Pool(name="default", free_on_oom=False)  # its own says more than a setting's former form
    await (await world.failure_policy(FailureLimits(pools=defaults))).after(
        claim("mid"), failed("out_of_memory")
    )
    assert world.freed == ["small", "mid"]


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
    world.foreign["one"] = 10
    found = await (await world.failure_policy()).after(claim("one"), failed("out_of_memory"))
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
    found = await (await lone.failure_policy()).after(claim("one"), failed("out_of_memory"))
    assert found is not None and found.placement == Placement()  # once more, when there is room again
    assert "of which others hold 10 GiB" in found.error.message and found.counts
    assert found.rest_s == REST_S


async def test_a_little_that_others_hold_changes_nothing() -> None:
    world = World(one=24, two=24)
    world.foreign["two"] = 1
    tried = Placement(without=frozenset({"one"}), above=24 * GIB)
    found = await (await world.failure_policy()).after(claim("two", tried), failed("out_of_memory"))
    assert found is not None and (found.placement, found.rest_s) == (None, 0.0)
    assert "the largest node that can run it" in found.error.message


async def test_an_attempt_counts_where_not_every_card_left_is_larger() -> None:
    world = World(one=24, two=24, big=48)
    world.foreign["one"] = 10
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
    world.silent = True
    found = await (await world.failure_policy()).after(claim("new"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.above, found.counts, world.oom) == (0, True, {})


async def test_a_job_does_not_wait_for_a_node_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfy_fleet.services.failure_policy.ASK_S", 0.01)
    world = World()
    world.hangs = True
    found = await (await world.failure_policy()).after(claim("small"), failed("out_of_memory"))
    assert found is not None and found.placement is not None
    assert (found.placement.above, world.freed) == (12 * GIB, [])


async def test_a_silent_node_counts_with_its_whole_card() -> None:
    world = World()
    world.silent = True
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
    assert world.wanted == ["mid"]
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
    world.digest = digest
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
    world.has = {"small": parse({"SaveImage": {"output_node": True}}), "large": parse(good)}
    world.changed_at = changed_at
    failure_policy = await world.failure_policy()
    moved = await failure_policy.misfit(claim("small"), GRAPH)
    assert (moved is not None) == moves
    assert await failure_policy.misfit(claim("large"), GRAPH) is None
    assert await failure_policy.misfit(claim("mid"), GRAPH) is None  # not known: it decides by itself
    if moved is not None:
        assert world.needs_kept[moved.needs].classes == {"EmptyImage"}
        assert failure_policy._directory.able(moved) == {"large", "mid"}


async def test_a_job_keeps_its_needs_and_gets_those_that_came() -> None:
    world = World()
    loader = {"input": {"required": {"vae_name": [["b.pt"]]}}, "output_node": True}
    world.has = {"small": parse({"VAELoader": loader})}
    world.changed_at = 150.0
    world.needs_kept["k"] = Requirements(
        classes=frozenset({"Rare"}), choices=frozenset({("Rare", "x", "a.pt")})
    )
    graph = {**GRAPH, "3": {"class_type": "VAELoader", "inputs": {"vae_name": "a.pt"}}}
    moved = await (await world.failure_policy()).misfit(claim("small", Placement(needs="k")), graph)
    assert moved is not None
    kept = world.needs_kept[moved.needs]
    assert kept.classes == {"Rare", "EmptyImage", "SaveImage"}
    assert kept.choices == {("Rare", "x", "a.pt"), ("VAELoader", "vae_name", "a.pt")}


async def test_a_node_whose_limits_changed_is_named_where_needs_can_not_say_it() -> None:
    world = World()
    narrow = {"input": {"required": {"width": ["INT", {"max": 8}]}}, "output": ["IMAGE"]}
    world.has = {"small": parse({"EmptyImage": narrow, "SaveImage": {"output_node": True}})}
    world.changed_at = 150.0
    moved = await (await world.failure_policy()).misfit(claim("small"), GRAPH)
    assert moved == Placement(without=frozenset({"small"}))


async def test_while_redis_is_away_the_last_that_was_known_of_the_nodes_counts() -> None:
    world = World()
    failure_policy = await world.failure_policy()
    world.away = True
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
    world.has = {"small": parse(CLASSES), "large": parse(reads_all)}
    world.changed_at = 150.0
    failure_policy = await world.failure_policy()
    assert failure_policy.fitted(claim("small"), graph).keys() == GRAPH.keys()
    assert failure_policy.unseen(claim("small")) == [world.has["small"]]
    with pytest.raises(InvalidWorkflow):
        failure_policy.fitted(claim("large"), graph)
    with pytest.raises(InvalidWorkflow):  # it is not known what it has, so it may read what any other does
        failure_policy.fitted(claim("mid"), graph)
    assert len(failure_policy.unseen(claim("mid")) or ()) == 2
    del world.has["large"]
    assert (await world.failure_policy()).fitted(claim("mid"), graph).keys() == GRAPH.keys()
    world.changed_at = 50.0
    assert (await world.failure_policy()).unseen(claim("small")) is None
