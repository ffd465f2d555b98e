"""Which nodes are asked for, and what is claimed for them; store, registry and HAProxy are played."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from random import Random
from typing import Any, Literal, cast

import pytest

from comfy_fleet.adapters.telemetry import NullTelemetry
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.domain.nodes.node_order import ByShare, NodeOrder, Nodes
from comfy_fleet.ports.comfyui import Lease, Leases, NoLease
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry
from comfy_fleet.ports.runs import Claim, Refused, RunStore
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.services.seekers import BETTER_GAPS_S, MAX_WISH, PARALLEL, RECLAIM_S, UNAVAILABLE_S, Seekers
from tests.fleet import until

ANY = Placement()


class Granted:
    """A lease on a node."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.released = False

    def release(self) -> None:
        self.released = True


class World:
    """Nodes that are free, jobs that wait, and what was asked and claimed."""

    def __init__(
        self, *nodes: str, jobs: int = 0, pools: dict[str, str] | None = None, seed: int = 1
    ) -> None:
        self.chance = Random(seed).random
        self.pools = pools or dict.fromkeys(nodes, "default")
        self.free = list(self.pools)
        self.jobs = jobs
        self.time = 0.0
        self.on_ask: Callable[[str], None] = lambda pool: None
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.offered: list[Sequence[Placement]] = []
        self.granted: list[Granted] = []
        self.claims: list[Claim] = []
        self.taken: list[tuple[str, str]] = []
        self.refusal: Refused | Exception | None = None
        self.no_lease: Literal["busy", "error"] = "busy"
        self.tasks: set[asyncio.Task[None]] = set()
        self.ids = count()
        self.occupying: set[str] = set()
        self.looked = 0
        self.may = True
        self.frozen: str | None = ""
        self.weights: dict[str, int] = {}
        self.verdicts: dict[str, str] = {}
        self.order: NodeOrder = ByShare(self.chance)
        self.directory = NodeDirectory(cast(NodeRegistry, self), cast(InventoryStore, self))

    @asynccontextmanager
    async def seekers(self) -> AsyncIterator[Seekers]:
        await self.directory.look()
        yield Seekers(
            self.directory,
            cast(RunStore, self),
            cast(Leases, self),
            order=self.order,
            name="d1",
            lease_ttl_s=5,
            now=lambda: self.time,
            new_id=lambda: f"id-{next(self.ids)}",
            chance=self.chance,
            spawn=self.spawn,
            on_claim=lambda claim, lease, asked: self.claims.append(claim),
            on_taken=lambda lease, run: self.taken.append((lease.node, run)),
            may=lambda: self.may,
            telemetry=NullTelemetry(),
        )
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def idle(self) -> None:
        await until(lambda: not self.tasks, what="nobody seeks")

    async def states(self) -> list[NodeState]:
        return [
            NodeState(
                node=Node(name=n, url=f"http://{n}:1", pool=p, weight=self.weights.get(n, 100)),
                verdict=self.verdicts.get(n, "up"),
            )
            for n, p in self.pools.items()
        ]

    async def lease(self, *, run: str, pool: str, nodes: Sequence[str] = ()) -> Lease | NoLease:
        self.asked.append((pool, tuple(nodes)))
        self.time += 0.002
        self.on_ask(pool)
        await asyncio.sleep(0)
        able = nodes or [name for name, where in self.pools.items() if where == pool]
        name = next((name for name in able if name in self.free), None)
        if name == self.frozen:
            await asyncio.sleep(60)
        if name is None:
            return NoLease(why=self.no_lease, detail="")
        self.free.remove(name)
        self.granted.append(Granted(name))
        return cast(Lease, self.granted[-1])

    async def occupied(self, nodes: Sequence[str]) -> frozenset[str]:
        self.looked += 1
        await asyncio.sleep(0)
        return frozenset(nodes) & self.occupying

    async def claim(
        self, *, node: str, placements: Sequence[Placement], run: str, **_: Any
    ) -> Claim | Refused:
        self.offered.append(placements)
        if isinstance(self.refusal, Exception):
            raise self.refusal
        if self.refusal or not self.jobs:
            return self.refusal or Refused(why="empty")
        self.jobs -= 1
        self.occupying.add(node)
        job = Job(id="j", owner="o", status=JobStatus.RUNNING, created_at=0, expires_at=9, graph_hash="h")
        return Claim(job=job, graph=b"{}", run=run, node=node, token="t", attempt=0, behind=self.jobs)


async def test_one_wake_up_fills_all_nodes_and_asks_for_no_more_than_jobs_wait() -> None:
    for nodes, jobs, claimed in ((6, 20, 6), (6, 3, 3)):
        world = World(*(f"g{i}" for i in range(nodes)), jobs=jobs)
        async with world.seekers() as seekers:
            seekers.wanted(ANY)
            await world.idle()
        assert len({claim.node for claim in world.claims}) == len(world.claims) == claimed
        runs = {claim.run for claim in world.claims}
        assert len(runs) == claimed
        idle = [lease for lease in world.granted if lease.node not in {claim.node for claim in world.claims}]
        assert all(lease.released for lease in idle)


async def test_a_class_asks_for_a_few_nodes_at_a_time() -> None:
    world = World("g1", jobs=20)
    async with world.seekers() as seekers:
        for _ in range(9):
            seekers.wanted(ANY)
        assert len(world.tasks) == PARALLEL


async def test_a_claim_tells_how_many_jobs_wait_that_nobody_seeks_a_node_for() -> None:
    world = World("g1", "g2", "g3", jobs=2)
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.behind for claim in world.claims] == [0, 0] and len(world.asked) == 2
    world = World("g1", jobs=4)
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.behind for claim in world.claims] == [3]


async def test_only_able_nodes_are_wished_and_none_is_named_where_all_are_able() -> None:
    world = World(*(f"g{i}" for i in range(MAX_WISH + 20)))
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        seekers.wanted(Placement(without=frozenset({"g1"})))
        await world.idle()
    (_, none), (_, named) = sorted(world.asked, key=lambda asked: len(asked[1]))
    assert none == () and len(set(named)) == MAX_WISH and "g1" not in named
    assert named != tuple(sorted(named))


async def test_a_freed_node_is_asked_for_by_name_while_its_jobs_wait() -> None:
    world = World("g1", "g2", jobs=1)
    async with world.seekers() as seekers:
        seekers.freed("g1")  # nothing waits, as far as we know
        assert not world.tasks
        seekers.wanted(ANY)
        await world.idle()
        seekers.freed("g1")  # that was the last one
        assert not world.tasks
        world.free, world.jobs = [], 1
        seekers.wanted(ANY)
        await world.idle()
        world.asked.clear()
        world.on_ask = lambda pool: world.free.extend(["g1"] * (len(world.asked) == 4))
        seekers.freed("g1")  # HAProxy sees it a little later
        await world.idle()
    assert world.asked == [("default", ("g1",))] * 4
    assert world.claims[-1].node == "g1" and len(world.claims) == 2


@pytest.mark.parametrize("why", ["busy", "error"])
async def test_a_freed_node_that_stays_busy_is_left_to_the_next_look(why: Literal["busy", "error"]) -> None:
    world = World("g1", jobs=1)
    world.free, world.no_lease = [], why
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        world.asked.clear()
        seekers.freed("g1")
        await world.idle()
        assert seekers._look.is_set()
    assert len(world.asked) == (1 if why == "error" else RECLAIM_S / 0.002)


async def test_a_busy_class_is_not_asked_for_again_at_once_unless_something_changes() -> None:
    world = World("g1", jobs=2)
    world.free = []
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        seekers.wanted(ANY)
        assert not world.tasks and len(world.asked) == 1
        world.free = ["g1"]
        seekers.look_again()
        assert seekers._look.is_set()
        seekers.wanted(ANY)
        await world.idle()
    assert len(world.claims) == 1


SPILLING = Placement(pool="big", spill=("default",))
POOLS = {"big": "big", "small": "default"}
UNEQUAL = {"fast": 100, "slow": 7}


async def test_a_node_of_a_later_pool_is_taken_at_once_while_the_first_pool_is_at_work() -> None:
    world = World(pools=POOLS, jobs=1)
    world.free, world.occupying = ["small"], {"big"}
    async with world.seekers() as seekers:
        seekers.wanted(SPILLING)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["small"]
    assert (len(world.asked), world.looked) == (2, 1)


async def test_a_node_of_a_later_pool_is_given_back_if_one_of_the_first_became_free() -> None:
    world = World(pools=POOLS, jobs=1)
    world.free = ["small"]
    async with world.seekers() as seekers:
        world.on_ask = lambda pool: world.free.extend(["big"] * (pool == "default"))
        seekers.wanted(SPILLING)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["big"]
    assert [(lease.node, lease.released) for lease in world.granted] == [("small", True), ("big", False)]


async def test_a_much_faster_node_that_is_free_is_taken_instead() -> None:
    world = World("slow", "fast", jobs=1)
    world.weights = UNEQUAL
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["fast"]
    assert [(lease.node, lease.released) for lease in world.granted] == [("slow", True), ("fast", False)]


@pytest.mark.parametrize(
    ("pools", "wish"), [({"fast": "default", "slow": "default"}, ANY), (POOLS, SPILLING)]
)
async def test_whoever_was_given_a_better_node_claims_before_who_got_the_other(
    pools: dict[str, str], wish: Placement
) -> None:
    better, ours = pools
    world = World(pools=pools, jobs=1)
    world.weights = UNEQUAL
    world.free = [ours]  # another dispatcher has just been given the better one, for the same job
    async with world.seekers() as seekers:
        seekers.wanted(wish)
        await until(lambda: world.looked > 2, what="it waits for the other one")
        assert not world.offered
        world.occupying, world.jobs = {better}, 0  # which claims now
        await world.idle()
        assert world.offered and world.granted[0].released and not world.claims
        world.jobs, world.free, world.looked = 1, [ours], 0
        seekers.wanted(wish)  # the better one is at work: a job that is left goes to the other
        await world.idle()
    assert [claim.node for claim in world.claims] == [ours] and world.looked == 1


async def test_a_better_node_that_is_kept_for_no_run_is_not_waited_for_long() -> None:
    world = World("fast", "slow", jobs=1)
    world.weights, world.free = UNEQUAL, ["slow"]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["slow"] and world.looked == len(BETTER_GAPS_S)


async def test_a_better_node_that_does_not_answer_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("comfy_fleet.services.seekers.BETTER_TIMEOUT_S", 0.01)
    world = World("slow", "fast", jobs=1)
    world.weights, world.frozen = UNEQUAL, "fast"
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["slow"] and not world.granted[0].released


async def test_of_the_better_nodes_the_fastest_is_taken() -> None:
    for seed in range(8):
        world = World("slow", "middle", "fast", jobs=1, seed=seed)
        world.weights = {"slow": 10, "middle": 40, "fast": 100}
        async with world.seekers() as seekers:
            seekers.wanted(ANY)
            await world.idle()
        assert [claim.node for claim in world.claims] == ["fast"]
        assert all(lease.released for lease in world.granted if lease.node != "fast")


class Warm:
    """Another order: nodes that have the model come first, whatever their pool or weight."""

    as_haproxy = False

    def __init__(self, *names: str) -> None:
        self.names = names

    def wish(self, placement: Placement, able: Nodes) -> list[str]:
        return sorted(able, key=lambda name: (name not in self.names, name))

    def better(
        self, placement: Placement, granted: str, pools: Sequence[tuple[str, Nodes]]
    ) -> Mapping[str, Sequence[str]]:
        if granted in self.names:
            return {}
        return {
            pool: [name for name in self.wish(placement, nodes) if name in self.names]
            for pool, nodes in pools
        }


async def test_another_order_decides_what_is_asked_for() -> None:
    world = World("a", "b", "c", jobs=2)
    world.weights, world.order = {"a": 100, "b": 100, "c": 7}, Warm("c", "b")
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert world.asked[0] == ("default", ("b", "c", "a"))  # though every node is able
    assert [claim.node for claim in world.claims] == ["b", "c"]
    assert not any(lease.released for lease in world.granted if lease.node != "a")


async def test_another_order_decides_which_nodes_are_better_than_the_granted_one() -> None:
    for warm, claimed in (("slow", "slow"), ("elsewhere", "fast")):
        world = World("fast", "slow", jobs=1)
        world.weights, world.order = UNEQUAL, Warm(warm)
        world.free = ["fast"]
        async with world.seekers() as seekers:
            world.on_ask = lambda pool, world=world: world.free.extend(["slow"] * (len(world.asked) == 1))  # type: ignore[misc]
            seekers.wanted(ANY)
            await world.idle()
        assert [claim.node for claim in world.claims] == [claimed], warm


async def test_a_better_node_that_is_not_to_be_had_costs_only_the_first_job_a_wait() -> None:
    world = World("fast", "slow-1", "slow-2", "slow-3", jobs=3)
    world.weights = {"fast": 100, "slow-1": 7, "slow-2": 7, "slow-3": 7}
    world.free = ["slow-1"]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await until(lambda: world.claims, what="the first job has its node")
        world.looked, world.free = 0, ["slow-2"]
        seekers.look_again()
        seekers.wanted(ANY)
        await world.idle()
        assert world.looked <= 2  # nothing is left to wait for
        world.time += UNAVAILABLE_S
        world.free = ["slow-3", "fast"]
        world.asked.clear()
        seekers.look_again()
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["slow-1", "slow-2", "fast"]


async def test_who_was_refused_the_node_that_is_given_back_may_ask_again_at_once() -> None:
    world = World(pools=POOLS, jobs=1)
    world.free = ["small"]
    async with world.seekers() as seekers:

        def on_ask(pool: str) -> None:
            if pool == "default":
                world.free.append("big")
                seekers._busy_until[ANY] = 1e9  # somebody else was refused a moment ago

        world.on_ask = on_ask
        seekers.wanted(SPILLING)
        await world.idle()
        assert [claim.node for claim in world.claims] == ["big"]
        assert ANY not in seekers._busy_until and seekers._look.is_set()


async def test_a_node_that_was_granted_before_a_stop_is_given_back() -> None:
    world = World("g1", jobs=1)
    async with world.seekers() as seekers:
        world.on_ask = lambda pool: seekers.stop()
        seekers.wanted(ANY)
        await world.idle()
    assert world.granted[0].released and not world.offered


@pytest.mark.parametrize(
    ("weights", "verdict"),
    [
        ({"fast": 100, "slow": 60}, "up"),
        ({"fast": 100, "slow": 7}, "drain"),
        ({"fast": 7, "slow": 100}, "up"),
    ],
)
async def test_nobody_asks_for_a_node_that_is_not_much_faster_or_takes_no_jobs(
    weights: dict[str, int], verdict: str
) -> None:
    world = World("slow", "fast", jobs=1)
    world.weights, world.verdicts = weights, {"fast": verdict}
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["slow"] and len(world.asked) == 1


async def test_a_slow_node_is_given_back_if_the_wait_for_a_faster_one_is_cut_short() -> None:
    world = World("fast", "slow", jobs=1)
    world.weights, world.free = UNEQUAL, ["slow"]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await until(lambda: world.granted, what="a node is granted")
    assert world.granted[0].released and not world.offered


async def test_a_node_is_offered_to_all_classes_that_may_use_it_but_for_those_with_a_better_one() -> None:
    world = World(pools={"big": "big", "small": "default"}, jobs=9)
    world.free = []
    elsewhere, spilling = (
        Placement(without=frozenset({"small"})),
        Placement(pool="big", spill=("default",)),
    )
    async with world.seekers() as seekers:
        for placement in (Placement(pool="default"), elsewhere, spilling):
            seekers._known.add(placement)
        assert seekers._fitting("small", ANY) == [ANY, *(seekers._known - {elsewhere, ANY})]
        seekers.wanted(spilling)
        assert spilling not in seekers._fitting("small", ANY)
        assert spilling in seekers._fitting("big", ANY)


async def test_a_lease_on_a_node_that_a_run_has_is_handed_on_to_be_kept() -> None:
    world = World("g1", jobs=1)
    world.refusal = Refused(why="leased", run="r")
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert world.taken == [("g1", "r")] and not world.granted[0].released


@pytest.mark.parametrize("refusal", [Refused(why="cordoned"), Refused(why="empty"), StoreDown("gone")])
async def test_a_lease_without_a_claim_is_given_back(refusal: Refused | Exception) -> None:
    world = World("g1", jobs=1)
    world.refusal = refusal
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert world.granted[0].released and not world.claims


async def test_jobs_behind_a_broken_one_are_claimed_at_once() -> None:
    world = World("g1", "g2", jobs=1)

    def first_only(pool: str) -> None:
        world.refusal = Refused(why="broken") if not world.granted else None

    world.on_ask = first_only
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert world.granted[0].released and len(world.claims) == 1


async def test_nothing_is_claimed_after_a_stop() -> None:
    world = World("g1", "g2", jobs=9)
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        seekers.stop()
        await world.idle()
        acts: list[Callable[[], None]] = [lambda: seekers.wanted(ANY), lambda: seekers.freed("g1")]
        for act in acts:
            act()
            assert not world.tasks
    assert not world.asked
