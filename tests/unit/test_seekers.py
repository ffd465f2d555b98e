"""Which nodes are asked for, and what is claimed for them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from random import Random
from typing import Any, Literal

import pytest
import uvloop

from comfy_fleet.adapters.telemetry import NullTelemetry
from comfy_fleet.domain.jobs.job import JobStatus, Placement
from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.node import Node, Reading
from comfy_fleet.domain.nodes.node_order import ByShare, NodeOrder, Nodes
from comfy_fleet.ports.comfyui import NoLease
from comfy_fleet.ports.ready_leases import ReadyBeat
from comfy_fleet.ports.runs import MAX_PLACEMENTS, Claim
from comfy_fleet.services import ready_leases
from comfy_fleet.services.claimer import Claimer
from comfy_fleet.services.node_asker import BETTER_GAPS_S, MAX_PREFERRED, UNAVAILABLE_S
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.services.ready_leases import ReadyLeases
from comfy_fleet.services.seekers import PARALLEL, RECLAIM_S, TAKEN_S, Seekers
from comfy_fleet.services.vain_looks import VainLooks
from tests.factories import a_claim
from tests.fakes.base import unplayed
from tests.fakes.comfyui import FakeLeases
from tests.fakes.nodes import FakeInventoryStore, FakeNodeRegistry
from tests.fakes.runs import FakeRunStore
from tests.fleet import until

ANY = Placement()


class NoneReady:
    """A record that is never asked for: no lease is held ready here."""

    beat = expired = give_up = unexplained = unplayed


class World:
    """Nodes that are free, jobs that wait, and what was claimed."""

    def __init__(
        self,
        *nodes: str,
        jobs: int = 0,
        pools: dict[str, str] | None = None,
        wish: Placement = ANY,
        seed: int = 1,
    ) -> None:
        self.chance = Random(seed).random
        pools = pools or dict.fromkeys(nodes, "default")
        self.registry = FakeNodeRegistry(
            Node(name=name, url=f"http://{name}.test:1", pool=pool) for name, pool in pools.items()
        )
        for name in pools:
            self.registry.put(name, verdict="up")
        self.runs = FakeRunStore(self.registry)
        self.runs.queue(jobs, wish)
        self.leases = FakeLeases(pools)
        self.order: NodeOrder = ByShare(self.chance)
        self.time = 0.0
        self.now: Callable[[], float] = lambda: self.time + 0.002 * self.leases.calls["lease"]
        self.patience_s: dict[str, float] = {}
        self.claims: list[Claim] = []
        self.taken: list[tuple[str, str]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.ids = count()
        self.directory = NodeDirectory(self.registry, FakeInventoryStore(self.registry))
        self.ready = ReadyLeases(
            NoneReady(), self.directory, self.runs, self.leases, name="d1", most=0, new_id=self.new_id
        )

    def new_id(self) -> str:
        return f"id-{next(self.ids)}"

    @asynccontextmanager
    async def seekers(self, *, looking: bool = False) -> AsyncIterator[Seekers]:
        await self.directory.look()
        made = Seekers(
            self.directory,
            self.runs,
            self.leases,
            Claimer(
                self.directory,
                self.runs,
                name="d1",
                lease_ttl_s=5,
                new_id=self.new_id,
                patience=lambda pool: self.patience_s.get(pool, 60.0),
            ),
            self.ready,
            order=self.order,
            now=self.now,
            new_id=self.new_id,
            chance=self.chance,
            spawn=self.spawn,
            on_claim=lambda claim, lease, asked: self.claims.append(claim),
            on_taken=lambda lease, run: self.taken.append((lease.node, run)),
            may=lambda: True,
            telemetry=NullTelemetry(),
        )
        look = asyncio.create_task(made.seek()) if looking else None
        if look is not None:
            await until(lambda: self.looks, what="it has looked once")
        yield made
        tasks = [*self.tasks, *([look] if look else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def idle(self) -> None:
        await until(lambda: not self.tasks, what="nobody seeks")

    @property
    def looks(self) -> int:
        """How often it was looked at the queues."""
        return self.runs.calls["waiting"]

    def weigh(self, weights: dict[str, int]) -> None:
        for name, state in self.registry.held.items():
            self.registry.put(name, node=replace(state.node, weight=weights.get(name, 100)))

    def occupy(self, node: str, run: str = "theirs") -> None:
        """Have another dispatcher's run on a node."""
        self.runs.hold(a_claim(node=node, run=run))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the queues without a reason."""
    monkeypatch.setattr("comfy_fleet.services.seekers.LOOK_AGAIN_S", (60.0, 90.0))
    monkeypatch.setattr("comfy_fleet.services.seekers.IDLE_LOOK_S", 60.0)


async def test_one_wake_up_fills_all_nodes_and_asks_for_no_more_than_jobs_wait() -> None:
    for nodes, jobs, claimed in ((6, 20, 6), (6, 3, 3)):
        world = World(*(f"g{i}" for i in range(nodes)), jobs=jobs)
        async with world.seekers() as seekers:
            seekers.wanted(ANY)
            await world.idle()
        assert len({claim.node for claim in world.claims}) == len(world.claims) == claimed
        runs = {claim.run for claim in world.claims}
        assert len(runs) == claimed
        idle = [
            lease
            for lease in world.leases.granted
            if lease.node not in {claim.node for claim in world.claims}
        ]
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
    assert [claim.jobs_behind for claim in world.claims] == [0, 0] and len(world.leases.asked) == 2
    world = World("g1", jobs=4)
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.jobs_behind for claim in world.claims] == [3]


async def test_only_able_nodes_are_wished_and_none_is_named_where_all_are_able() -> None:
    world = World(*(f"g{i}" for i in range(MAX_PREFERRED + 20)))
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        seekers.wanted(Placement(without=frozenset({"g1"})))
        await world.idle()
    (_, none), (_, named) = sorted(world.leases.asked, key=lambda asked: len(asked[1]))
    assert none == () and len(set(named)) == MAX_PREFERRED and "g1" not in named
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
        await world.runs.finish(world.claims[0], JobStatus.SUCCEEDED, error=None, duration_s=None)
        world.leases.free = []
        world.runs.queue(1)
        seekers.wanted(ANY)
        await world.idle()
        world.leases.asked.clear()
        world.leases.on_ask = lambda pool: world.leases.free.extend(["g1"] * (len(world.leases.asked) == 4))
        seekers.freed("g1")  # HAProxy sees it a little later
        await world.idle()
    assert world.leases.asked == [("default", ("g1",))] * 4
    assert world.claims[-1].node == "g1" and len(world.claims) == 2


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("why", ["busy", "error"])
async def test_a_freed_node_that_stays_busy_is_left_to_the_next_look(why: Literal["busy", "error"]) -> None:
    world = World("g1", jobs=1)
    world.leases.free, world.leases.refusal = [], NoLease(why=why)
    async with world.seekers(looking=True) as seekers:
        await world.idle()
        world.leases.asked.clear()
        looks = world.looks
        seekers.freed("g1")
        await until(lambda: world.looks > looks, what="the queues are looked at")
        await world.idle()
    assert len(world.leases.asked) == (1 if why == "error" else RECLAIM_S / 0.002)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("taken", [False, True])
async def test_a_freed_node_is_asked_for_until_its_slot_is_free_or_a_run_has_it(taken: bool) -> None:
    """On a busy machine HAProxy needs long to see that a websocket is closed; no look is due until then."""
    world = World("g1", jobs=1)
    world.leases.free, world.leases.refusal = [], NoLease(why="busy")
    async with world.seekers(looking=True) as seekers:
        await world.idle()
        world.leases.asked.clear()
        late = 0.8 * RECLAIM_S / 0.002
        world.leases.on_ask = lambda pool: world.leases.free.extend(
            ["g1"] * (len(world.leases.asked) >= late)
        )
        if taken:
            world.occupy("g1")
        seekers.freed("g1")
        await world.idle()
    assert [claim.node for claim in world.claims] == ([] if taken else ["g1"])
    assert not taken or len(world.leases.asked) <= TAKEN_S / 0.002 + 2


async def test_a_busy_class_is_not_asked_for_again_at_once_unless_something_changes() -> None:
    world = World("g1", jobs=2)
    world.leases.free = []
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        seekers.wanted(ANY)
        assert not world.tasks and len(world.leases.asked) == 1
        world.leases.free = ["g1"]
        seekers.look_again()
        seekers.wanted(ANY)
        await world.idle()
    assert len(world.claims) == 1


@pytest.mark.usefixtures("patient")
async def test_when_something_changes_the_queues_are_looked_at_at_once() -> None:
    world = World("g1", jobs=1)
    world.leases.free = []
    async with world.seekers(looking=True) as seekers:
        await world.idle()
        world.leases.free = ["g1"]
        seekers.look_again()
        await until(lambda: world.claims, what="the job has its node")


SPILLING = Placement(pool="big", spill=("default",))
POOLS = {"big": "big", "small": "default"}
UNEQUAL = {"fast": 100, "slow": 7}


async def test_a_node_of_a_later_pool_is_taken_at_once_while_the_first_pool_is_at_work() -> None:
    world = World(pools=POOLS, jobs=1, wish=SPILLING)
    world.leases.free = ["small"]
    world.occupy("big")
    async with world.seekers() as seekers:
        seekers.wanted(SPILLING)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["small"]
    assert (len(world.leases.asked), world.runs.calls["occupied"]) == (2, 1)


async def test_a_node_of_a_later_pool_is_given_back_if_one_of_the_first_became_free() -> None:
    world = World(pools=POOLS, jobs=1, wish=SPILLING)
    world.leases.free = ["small"]
    async with world.seekers() as seekers:
        world.leases.on_ask = lambda pool: world.leases.free.extend(["big"] * (pool == "default"))
        seekers.wanted(SPILLING)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["big"]
    assert [(lease.node, lease.released) for lease in world.leases.granted] == [
        ("small", True),
        ("big", False),
    ]


async def test_a_much_faster_node_that_is_free_is_taken_instead() -> None:
    world = World("slow", "fast", jobs=1)
    world.weigh(UNEQUAL)
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["fast"]
    assert [(lease.node, lease.released) for lease in world.leases.granted] == [
        ("slow", True),
        ("fast", False),
    ]


@pytest.mark.parametrize(
    ("pools", "wish"), [({"fast": "default", "slow": "default"}, ANY), (POOLS, SPILLING)]
)
async def test_whoever_was_given_a_better_node_claims_before_who_got_the_other(
    pools: dict[str, str], wish: Placement
) -> None:
    better, ours = pools
    world = World(pools=pools, jobs=1, wish=wish)
    world.weigh(UNEQUAL)
    world.leases.free = [ours]  # another dispatcher has just been given the better one, for the same job
    async with world.seekers() as seekers:
        seekers.wanted(wish)
        await until(lambda: world.runs.calls["occupied"] > 2, what="it waits for the other one")
        assert not world.runs.offered
        await world.runs.claim(
            node=better, placements=[wish], run="theirs", token="t2", dispatcher="d2", ttl_s=5
        )
        await world.idle()
        assert len(world.runs.offered) == 2 and world.leases.granted[0].released and not world.claims
        world.runs.queue(1, wish)
        world.leases.free, world.runs.calls["occupied"] = [ours], 0
        seekers.wanted(wish)  # the better one is at work: a job that is left goes to the other
        await world.idle()
    assert [claim.node for claim in world.claims] == [ours] and world.runs.calls["occupied"] == 1


async def test_a_better_node_that_is_kept_for_no_run_is_not_waited_for_long() -> None:
    world = World("fast", "slow", jobs=1)
    world.weigh(UNEQUAL)
    world.leases.free = ["slow"]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["slow"] and world.runs.calls["occupied"] == len(
        BETTER_GAPS_S
    )


async def test_a_better_node_that_does_not_answer_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("comfy_fleet.services.node_asker.BETTER_TIMEOUT_S", 0.01)
    world = World("slow", "fast", jobs=1)
    world.weigh(UNEQUAL)
    world.leases.frozen = "fast"
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["slow"] and not world.leases.granted[0].released


async def test_of_the_better_nodes_the_fastest_is_taken() -> None:
    for seed in range(8):
        world = World("slow", "middle", "fast", jobs=1, seed=seed)
        world.weigh({"slow": 10, "middle": 40, "fast": 100})
        async with world.seekers() as seekers:
            seekers.wanted(ANY)
            await world.idle()
        assert [claim.node for claim in world.claims] == ["fast"]
        assert all(lease.released for lease in world.leases.granted if lease.node != "fast")


class Warm:
    """Another order: nodes that have the model come first, whatever their pool or weight."""

    as_haproxy = False

    def __init__(self, *names: str) -> None:
        self.names = names

    def preferred(self, placement: Placement, able: Nodes) -> list[str]:
        return sorted(able, key=lambda name: (name not in self.names, name))

    def better(
        self, placement: Placement, granted: str, pools: Sequence[tuple[str, Nodes]]
    ) -> Mapping[str, Sequence[str]]:
        if granted in self.names:
            return {}
        return {
            pool: [name for name in self.preferred(placement, nodes) if name in self.names]
            for pool, nodes in pools
        }


async def test_another_order_decides_what_is_asked_for() -> None:
    world = World("a", "b", "c", jobs=2)
    world.weigh({"a": 100, "b": 100, "c": 7})
    world.order = Warm("c", "b")
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert world.leases.asked[0] == ("default", ("b", "c", "a"))  # though every node is able
    assert [claim.node for claim in world.claims] == ["b", "c"]
    assert not any(lease.released for lease in world.leases.granted if lease.node != "a")


def then_free(leases: FakeLeases, node: str, pool: str) -> None:
    """Have a node free from the first request on."""
    if len(leases.asked) == 1:
        leases.free.append(node)


async def test_another_order_decides_which_nodes_are_better_than_the_granted_one() -> None:
    for warm, claimed in (("slow", "slow"), ("elsewhere", "fast")):
        world = World("fast", "slow", jobs=1)
        world.weigh(UNEQUAL)
        world.order = Warm(warm)
        world.leases.free = ["fast"]
        async with world.seekers() as seekers:
            leases = world.leases
            leases.on_ask = lambda pool, leases=leases: leases.free.extend(
                ["slow"] * (len(leases.asked) == 1)
            )  # type: ignore[misc]
            seekers.wanted(ANY)
            await world.idle()
        assert [claim.node for claim in world.claims] == [claimed], warm


async def test_a_better_node_that_is_not_to_be_had_costs_only_the_first_job_a_wait() -> None:
    world = World("fast", "slow-1", "slow-2", "slow-3", jobs=3)
    world.weigh({"fast": 100, "slow-1": 7, "slow-2": 7, "slow-3": 7})
    world.leases.free = ["slow-1"]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await until(lambda: world.claims, what="the first job has its node")
        world.runs.calls["occupied"], world.leases.free = 0, ["slow-2"]
        seekers.look_again()
        seekers.wanted(ANY)
        await world.idle()
        assert world.runs.calls["occupied"] <= 2  # nothing is left to wait for
        world.time += UNAVAILABLE_S
        world.leases.free = ["slow-3", "fast"]
        world.leases.asked.clear()
        seekers.look_again()
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["slow-1", "slow-2", "fast"]


@pytest.mark.usefixtures("patient")
async def test_who_was_refused_the_node_that_is_given_back_may_ask_again_at_once() -> None:
    world = World(pools=POOLS)
    world.leases.free = ["small"]
    async with world.seekers(looking=True) as seekers:
        world.runs.queue(1, SPILLING)
        world.runs.queue(1)

        def on_ask(pool: str) -> None:
            if pool == "default" and world.leases.calls["lease"] == 2:
                world.leases.free.append("big")
                seekers.wanted(ANY)  # is refused: the node has just been granted

        world.leases.on_ask = on_ask
        seekers.wanted(SPILLING)
        await until(lambda: len(world.claims) == 2, what="both jobs have a node")
    assert [claim.node for claim in world.claims] == ["big", "small"]
    assert "default" in [pool for pool, _ in world.leases.asked[2:-1]]


@pytest.mark.usefixtures("patient")
async def test_a_node_that_a_class_can_not_use_hastens_none_of_its_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ready_leases, "GIVEN_S", 60.0)
    world = World(pools={"theirs": "default", "ours": "video"}, jobs=1, wish=Placement(pool="video"))
    world.leases.free, world.now = [], time.monotonic
    async with world.seekers(looking=True) as seekers:
        await world.idle()
        seekers.freed("theirs")
        seekers.look_again()
        await until(lambda: len(world.leases.asked) == 2, what="it is asked anew")
        await asyncio.sleep(0.1)
        assert len(world.leases.asked) == 2
        world.ready.freed("ours")
        seekers.look_again()
        await until(lambda: len(world.leases.asked) > 9, what="it is asked until the slot is free")


@pytest.mark.parametrize(
    ("pools", "wish"), [(POOLS, SPILLING), ({"fast": "default", "slow": "default"}, ANY)]
)
async def test_a_lease_that_was_being_taken_is_let_go_if_a_better_node_may_be_free(
    pools: dict[str, str], wish: Placement
) -> None:
    better, other = pools
    world = World(pools=pools, jobs=1, wish=wish)
    world.weigh(UNEQUAL)
    async with world.seekers() as seekers:
        leases = {}
        for node, pool in pools.items():
            granted = await world.leases.lease(run=node, pool=pool, nodes=(node,))
            assert not isinstance(granted, NoLease)
            leases[node] = granted
        seekers.wanted(wish)  # hears that both are busy
        await world.idle()
        for node in (other, better):
            world.ready.put_back((leases[node], node))
            world.ready.on_wanted(node)
            await world.idle()
    assert leases[other].released
    assert [claim.node for claim in world.claims] == [better]


async def test_a_node_that_was_granted_before_a_stop_is_given_back() -> None:
    world = World("g1", jobs=1)
    async with world.seekers() as seekers:
        world.leases.on_ask = lambda pool: seekers.stop()
        seekers.wanted(ANY)
        await world.idle()
    assert world.leases.granted[0].released and not world.runs.offered


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
    world.weigh(weights)
    world.registry.put("fast", verdict=verdict)
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["slow"] and len(world.leases.asked) == 1


async def test_a_slow_node_is_given_back_if_the_wait_for_a_faster_one_is_cut_short() -> None:
    world = World("fast", "slow", jobs=1)
    world.weigh(UNEQUAL)
    world.leases.free = ["slow"]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await until(lambda: world.leases.granted, what="a node is granted")
    assert world.leases.granted[0].released and not world.runs.offered


async def test_a_node_is_offered_to_all_classes_that_may_use_it_but_for_those_with_a_better_one() -> None:
    world = World(pools=POOLS, jobs=9)
    world.leases.free = []
    elsewhere = Placement(without=frozenset({"small"}))
    async with world.seekers() as seekers:
        for placement in (ANY, elsewhere, SPILLING):
            seekers.wanted(placement)
        await world.idle()
        seekers.look_again()
        world.leases.free = ["small"]
        seekers.wanted(ANY)
        await world.idle()
        assert world.runs.offered[-1] == [ANY, SPILLING]
        world.leases.free, world.leases.frozen = ["small", "big"], "big"
        await world.runs.finish(world.claims[0], JobStatus.SUCCEEDED, error=None, duration_s=None)
        seekers.look_again()
        seekers.wanted(SPILLING)
        seekers.wanted(ANY)
        await until(lambda: len(world.claims) == 2, what="the other class has its node")
        assert world.runs.offered[-1] == [ANY]


async def test_a_class_that_warms_a_node_is_offered_only_if_no_other_waits_for_it() -> None:
    world = World("a", jobs=9)
    world.leases.free = []
    warming = Placement(nodes=frozenset({"a"}))
    elsewhere = Placement(without=frozenset({"a"}))
    async with world.seekers() as seekers:
        for placement in (warming, elsewhere, ANY):
            seekers.wanted(placement)
        await world.idle()
        world.leases.free = ["a"]
        seekers.look_again()
        seekers.wanted(warming)
        await world.idle()
        assert world.runs.offered[-1] == [ANY]
    world = World("a", jobs=9, wish=warming)
    async with world.seekers() as seekers:
        for placement in (elsewhere, warming):
            seekers.wanted(placement)
        await world.idle()
        assert world.runs.offered[-1] == [warming]


async def test_a_lease_on_a_node_that_a_run_has_is_handed_on_to_be_kept() -> None:
    world = World("g1", jobs=1)
    world.occupy("g1", run="r")
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert world.taken == [("g1", "r")] and not world.leases.granted[0].released


@pytest.mark.parametrize("why", ["cordoned", "empty", "the store is away"])
async def test_a_lease_without_a_claim_is_given_back(why: str) -> None:
    world = World("g1", jobs=0 if why == "empty" else 1)
    async with world.seekers() as seekers:
        if why == "cordoned":
            await world.registry.cordon("g1", reason="fans")
        elif why != "empty":
            world.runs.down = True
        seekers.wanted(ANY)
        await world.idle()
    assert world.leases.granted[0].released and not world.claims


async def test_jobs_behind_a_broken_one_are_claimed_at_once() -> None:
    world = World("g1", "g2", jobs=2)
    world.runs.broken = 1
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert world.leases.granted[0].released and len(world.claims) == 1


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
    assert not world.leases.asked


# -- nodes that have a graph's results ---------------------------------------------------------------------


def with_results(world: World, left_s: float = 8.0, node: str = "g3") -> None:
    """Have the first job's results be on a node."""
    world.runs.results["j1"] = node, left_s


@pytest.mark.parametrize("left_s", [8.0, 0.0])
async def test_a_job_gets_the_free_node_that_has_its_results(left_s: float) -> None:
    world = World("g1", "g2", "g3", jobs=1)
    with_results(world, left_s)
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [(claim.job.id, claim.node) for claim in world.claims] == [("j1", "g3")]
    assert [(lease.node, lease.released) for lease in world.leases.granted] == [("g1", True), ("g3", False)]


@pytest.mark.usefixtures("patient")
async def test_while_its_node_is_at_work_others_pass_and_then_it_gets_it() -> None:
    world = World("g1", "g2", "g3", jobs=2)
    with_results(world)
    world.leases.free = ["g1", "g2"]
    world.occupy("g3")
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        assert [(claim.job.id, claim.node) for claim in world.claims] == [("j2", "g1")]
        asked = len(world.leases.asked)
        seekers.wanted(ANY)  # one more comes: it waits for nothing
        world.runs.queue(1)
        await world.idle()
        assert len(world.leases.asked) > asked
        assert [claim.job.id for claim in world.claims] == ["j2", "j3"]
        await world.runs.finish(
            a_claim(node="g3", run="theirs"), JobStatus.SUCCEEDED, error=None, duration_s=None
        )
        world.leases.free.append("g3")
        seekers.freed("g3")
        await world.idle()
    assert (world.claims[-1].job.id, world.claims[-1].node) == ("j1", "g3")


async def test_who_waits_is_looked_for_again_and_takes_any_node_in_the_end() -> None:
    world = World("g1", "g3", jobs=1)
    with_results(world, 0.02)
    world.leases.free = ["g1"]
    async with world.seekers(looking=True):
        await until(lambda: world.runs.offered, what="a node was offered")
        world.runs.results.clear()
        world.time += 1  # the time is over
        await until(lambda: world.claims, what="it has a node")
    assert [claim.node for claim in world.claims] == ["g1"]


@pytest.mark.parametrize("wish", [Placement(without=frozenset({"g3"})), ANY])
async def test_a_node_that_may_not_run_it_or_is_unknown_is_not_waited_for(wish: Placement) -> None:
    world = World("g1", *(["g3"] if wish.without else []), jobs=1, wish=wish)
    with_results(world)
    async with world.seekers() as seekers:
        seekers.wanted(wish)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["g1"]
    assert len(world.leases.asked) == 1, "nobody is asked for it"


@pytest.mark.parametrize("frozen", [True, False])
async def test_a_node_that_is_idle_and_not_to_be_had_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    monkeypatch.setattr("comfy_fleet.services.node_asker.BETTER_TIMEOUT_S", 0.01)
    world = World("g1", "g3", jobs=1)
    with_results(world, 0.0)
    if frozen:
        world.leases.frozen = "g3"
    else:
        world.leases.free = ["g1"]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["g1"]
    assert not world.leases.granted[0].released


async def test_a_node_with_an_editor_s_results_goes_to_others_last() -> None:
    world = World("g1", "g2", "g3", jobs=0)
    ours = replace(a_claim().job, id="e1", status=JobStatus.QUEUED, editor="ann")
    async with world.seekers() as seekers:
        for turn in range(3):
            world.runs.queues[ANY] = [ours]
            seekers.wanted(ANY)
            await world.idle()
            edited = world.claims[-1]
            await world.runs.finish(edited, JobStatus.SUCCEEDED, error=None, duration_s=None)
            world.leases.free = ["g1", "g2", "g3"]
            world.runs.queue(3)
            seekers.wanted(ANY)
            await world.idle()
            others = world.claims[-3:]
            assert {claim.node for claim in others} == {"g1", "g2", "g3"}
            assert others[-1].node == edited.node, turn
            for claim in others:
                await world.runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=None)
            world.leases.free = ["g1", "g2", "g3"]
            world.leases.asked.clear()
            world.runs.queue(1)
            seekers.wanted(ANY)  # its results are gone
            await world.idle()
            assert world.leases.asked == [("default", ())]
            await world.runs.finish(world.claims[-1], JobStatus.SUCCEEDED, error=None, duration_s=None)
            world.leases.free = ["g1", "g2", "g3"]


@pytest.mark.usefixtures("patient")
async def test_a_node_that_an_editor_leaves_is_not_taken_ahead_of_others() -> None:
    world = World("g1", "g2", jobs=0)
    world.runs.queues[ANY] = [replace(a_claim().job, id="e1", status=JobStatus.QUEUED, editor="ann")]
    async with world.seekers(looking=True) as seekers:
        seekers.wanted(ANY)
        await until(lambda: world.claims, what="it has a node")
        (edited,) = world.claims
        await world.runs.finish(edited, JobStatus.SUCCEEDED, error=None, duration_s=None)
        world.leases.free = ["g1", "g2"]
        world.runs.queue(1)
        seekers.freed(edited.node)
        await until(lambda: len(world.claims) == 2, what="the next job has a node")
        assert world.claims[-1].node != edited.node
        world.runs.queue(1)
        seekers.freed(edited.node)  # nothing else is free
        await until(lambda: len(world.claims) == 3, what="the last job has a node")
        assert world.claims[-1].node == edited.node


@pytest.mark.parametrize("others", [True, False])
async def test_an_editor_s_node_is_spared_where_there_is_another_one(others: bool) -> None:
    world = World("g1", *(["g2"] if others else []), jobs=0)
    world.runs.queues[ANY] = [replace(a_claim().job, id="e1", status=JobStatus.QUEUED, editor="ann")]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        (edited,) = world.claims
        await world.runs.finish(edited, JobStatus.SUCCEEDED, error=None, duration_s=None)
        world.leases.free = [edited.node]
        world.runs.queue(1)
        world.runs.sparing.clear()
        seekers.wanted(ANY)
        await world.idle()
        assert world.runs.sparing == [(edited.node, others)]


# -- jobs that are not worth their load ----------------------------------------------------------------------


async def test_a_claim_is_told_of_the_node_and_its_like() -> None:
    world = World("g1", "g2", "g3", jobs=1)
    world.registry.put(
        "g1",
        reading=Reading(gpu="NVIDIA H100 80GB", device="cuda", vram_bytes=80, ram_bytes=256),
        node=replace(world.registry.held["g1"].node, speed=0.5, weight=7, weight_by_gpu=False),
    )
    world.patience_s = {"default": 20.0}
    async with world.seekers() as seekers:
        world.leases.free = ["g1"]
        seekers.wanted(ANY)
        await world.idle()
    assert world.runs.asked[0] == {
        "node": "g1",
        "pool": "default",
        "peers": 3,
        "speed": 1.0,  # twice an RTX 4090 by its model, half of that by what was measured
        "ram": 256,
        "patience_s": 20.0,
        "able": {},
        "unable": {},
    }


@pytest.mark.parametrize("excluded", [{"g3"}, {"g2", "g3"}])
async def test_a_claim_is_told_who_can_run_what_not_every_node_can(excluded: set[str]) -> None:
    """Those that can or those that can't, whoever are fewer."""
    world = World("g1", "g2", "g3")
    some = Placement(without=frozenset(excluded))
    world.runs.queue(1, some)
    async with world.seekers() as seekers:
        world.leases.free = ["g1"]
        seekers.wanted(some)
        await world.idle()
    asked, few = world.runs.asked[0], len(excluded) == 1
    assert (asked["able"], asked["unable"]) == (({}, {some: ["g3"]}) if few else ({some: ["g1"]}, {}))


async def test_of_many_able_nodes_the_others_are_named() -> None:
    names = [f"n{number:03}" for number in range(80)]
    world = World(*names)
    some = Placement(without=frozenset({"n007"}))
    world.runs.queue(1, some)
    async with world.seekers() as seekers:
        world.leases.free = list(names)
        seekers.wanted(some)
        await world.idle()
    assert (world.runs.asked[0]["able"], world.runs.asked[0]["unable"]) == ({}, {some: ["n007"]})


@pytest.mark.usefixtures("patient")
async def test_a_node_for_which_nothing_is_worth_it_is_given_back_and_its_class_left_alone() -> None:
    world = World("g1", "g2", "g3", jobs=3)
    world.runs.vain = dict.fromkeys(("g1", "g2", "g3"), ("", 0.0))
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        assert len(world.leases.asked) == 1 and world.leases.granted[0].released and not world.claims
        seekers.look_again()
        seekers.wanted(ANY)
        await world.idle()
        assert len(world.leases.asked) == 1, "the last look was just now"
        world.time += 0.3
        seekers.wanted(ANY)
        await world.idle()
        assert len(world.leases.asked) == 2


@pytest.mark.usefixtures("patient")
async def test_a_node_that_is_freed_is_asked_for_whatever_was_in_vain_elsewhere() -> None:
    world = World("cold", "warm", jobs=4)
    world.runs.vain = {"cold": ("", 5.0)}
    world.leases.free = ["cold"]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        assert world.leases.asked == [("default", ())]
        for claimed in (1, 2, 3):
            world.leases.free = ["cold", "warm"]
            seekers.freed("warm")
            await world.idle()
            assert [claim.node for claim in world.claims] == ["warm"] * claimed
            await world.runs.finish(world.claims[-1], JobStatus.SUCCEEDED, error=None, duration_s=None)
    assert world.leases.asked[1:] == [("default", ("warm",))] * 3


async def test_a_job_goes_to_the_idle_node_that_has_its_models() -> None:
    world = World("g1", "g2", "g3", jobs=1)
    world.runs.vain = {"g1": ("g3", 1.0), "g2": ("g3", 1.0)}
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
    assert [claim.node for claim in world.claims] == ["g3"]
    assert world.leases.asked == [("default", ()), ("default", ("g3",))]
    assert [(lease.node, lease.released) for lease in world.leases.granted] == [("g1", True), ("g3", False)]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("holder", ["at work", "frozen", "of no use", "in vain, too", "gone", "not able"])
async def test_a_node_that_is_named_is_tried_once(holder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfy_fleet.services.node_asker.BETTER_TIMEOUT_S", 0.01)
    wish = Placement(without=frozenset({"g2"})) if holder == "not able" else ANY
    world = World("g1", *(["g2"] if holder != "gone" else []), jobs=2, wish=wish)
    world.runs.vain = {"g1": ("g2", 0.0), "g2": ("g1", 0.0)}
    if holder == "at work":
        world.leases.free.remove("g2")
    elif holder == "frozen":
        world.leases.frozen = "g2"
    elif holder == "of no use":
        await world.registry.cordon("g2", reason="fans")
    async with world.seekers() as seekers:
        seekers.wanted(wish)
        await world.idle()
        assert len(world.leases.asked) == (1 if holder in ("gone", "not able") else 2)
        assert not world.claims
        seekers.wanted(wish)
        assert not world.tasks, "the class is left alone for a moment"
    assert all(lease.released for lease in world.leases.granted)


async def test_a_new_job_is_offered_first_to_the_idle_node_that_has_its_models() -> None:
    world = World("g1", "g2", "g3", jobs=1)
    async with world.seekers() as seekers:
        seekers.wanted(ANY, "g2")
        await world.idle()
        assert world.leases.asked == [("default", ("g2",))] and [one.node for one in world.claims] == ["g2"]
        world.runs.queue(3)
        await world.runs.finish(world.claims[0], JobStatus.SUCCEEDED, error=None, duration_s=None)
        world.leases.free = ["g1", "g2", "g3"]
        for _ in range(3):  # one after the other, before any is claimed
            seekers.wanted(ANY, "g2")
        await world.idle()
    assert sorted(claim.node for claim in world.claims[1:]) == ["g1", "g2", "g3"]


@pytest.mark.parametrize("why", ["at work", "gone", "not able"])
async def test_a_new_job_s_node_that_is_not_to_be_had_costs_it_a_moment(why: str) -> None:
    wish = Placement(without=frozenset({"g2"})) if why == "not able" else ANY
    world = World("g1", *(["g2"] if why != "gone" else []))
    world.leases.free = ["g1"]
    async with world.seekers(looking=True) as seekers:
        world.runs.queue(1, wish)
        seekers.wanted(wish, "g2")
        await until(lambda: world.claims, what="it has another node")
    assert world.claims[0].node == "g1"


async def test_a_node_that_an_editor_will_come_back_to_is_not_offered_first() -> None:
    world = World("g1", "g2", jobs=0)
    world.runs.queues[ANY] = [replace(a_claim().job, id="e1", status=JobStatus.QUEUED, editor="ann")]
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        (edited,) = world.claims
        await world.runs.finish(edited, JobStatus.SUCCEEDED, error=None, duration_s=None)
        world.leases.free = ["g1", "g2"]
        world.runs.queue(1)
        seekers.wanted(ANY, edited.node)
        await world.idle()
    assert world.claims[-1].node != edited.node


async def test_of_many_classes_each_gets_its_turn_with_every_node() -> None:
    world = World("g1")
    world.leases.free = []
    classes = [Placement(without=frozenset({f"x{number}"})) for number in range(3 * MAX_PLACEMENTS)]
    async with world.seekers() as seekers:
        for placement in classes:
            world.runs.queue(9, placement)
            seekers.wanted(placement)
        await world.idle()
        seekers.look_again()
        for turn in range(4):
            world.leases.free = ["g1"]
            seekers.freed("g1")
            await world.idle()
            await world.runs.finish(world.claims[turn], JobStatus.SUCCEEDED, error=None, duration_s=None)
    assert all(len(set(offered)) == len(offered) == MAX_PLACEMENTS for offered in world.runs.offered)
    assert set(classes) == {one for offered in world.runs.offered for one in offered}


async def test_other_nodes_are_asked_before_those_whose_models_would_have_to_go() -> None:
    world = World("g1", "g2", "g3", jobs=0)
    loads = replace(a_claim().job, id="m1", status=JobStatus.QUEUED, workload=Workload(family="a"))

    async def claimed(seekers: Seekers, node: str = "") -> list[str]:
        world.leases.free = ["g2", "g1", "g3"]
        world.leases.asked.clear()
        world.claims.clear()
        seekers.wanted(ANY, node)
        await world.idle()
        for claim in world.claims:
            await world.runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=None)
        return [claim.node for claim in world.claims]

    async with world.seekers() as seekers:
        world.runs.queues[ANY] = [loads]
        assert await claimed(seekers, "g2") == ["g2"]
        world.runs.queue(2)
        assert sorted(await claimed(seekers)) == ["g1", "g3"]
        assert world.leases.asked[0][1][-1] == "g2"
        world.runs.queue(3)
        assert (await claimed(seekers))[-1] == "g2", "it is not kept from others"
        world.runs.queue(1)
        await claimed(seekers)
        assert world.leases.asked == [("default", ())], "a job without models has let them go"


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("classes", [1, 3, 12])
async def test_three_hundred_idle_nodes_cost_no_more_requests_than_four(classes: int, unequal: bool) -> None:
    world = World(*(f"g{number}" for number in range(300)))
    world.runs.vain = dict.fromkeys(world.leases.pools, ("", 1.0))
    world.now = time.monotonic
    if unequal:
        world.weigh({f"g{number}": 7 for number in range(100)})
    for number in range(classes):
        world.runs.queue(2, Placement(without=frozenset({f"g{number}"})))
    async with world.seekers(looking=True):
        began = time.monotonic()
        await until(lambda: len(world.leases.asked) > classes + 10, what="some requests were made")
        took_s = time.monotonic() - began
        await world.idle()
    # At first nothing is known: each class asks once.
    assert len(world.leases.asked) - classes <= (2 if unequal else 1) * (1 + 10 * took_s)
    assert all(lease.released for lease in world.leases.granted)


async def test_a_better_node_on_which_nothing_was_worth_it_is_not_asked_for_again_at_once() -> None:
    world = World("slow", "fast", jobs=2)
    world.weigh(UNEQUAL)
    world.runs.vain = {"fast": ("", 0.0)}
    async with world.seekers() as seekers:
        seekers.wanted(ANY)
        await world.idle()
        assert [lease.node for lease in world.leases.granted] == ["slow", "fast"] and not world.claims
        world.time += 0.3
        seekers.look_again()
        world.leases.free = ["slow", "fast"]
        world.leases.asked.clear()
        async with asyncio.timeout(5):
            looking = asyncio.create_task(seekers.seek())
            await until(lambda: world.claims, what="a job has a node")
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    assert world.claims[0].node == "slow"


async def test_a_lease_that_comes_back_after_the_end_is_not_held() -> None:
    world = World("g1")
    lease = await world.leases.lease(run="r1", pool="default")
    assert not isinstance(lease, NoLease)
    world.ready.stop()
    world.ready.put_back((lease, "r1"))  # its claim found no job
    assert lease.released


async def test_nodes_that_others_hold_are_not_asked_for_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ready_leases, "BEAT_S", 0.002)
    world, beats = World("g1"), count()

    class Held(NoneReady):
        async def beat(self, *_: object) -> ReadyBeat:
            next(beats)
            return ReadyBeat(holders=2, lost=frozenset())

    world.leases.free.clear()
    await world.directory.look()
    ready = ReadyLeases(
        Held(), world.directory, world.runs, world.leases, name="d1", most=16, new_id=world.new_id
    )
    ready.may = lambda node: True
    keeping = asyncio.create_task(ready.keep())
    await until(lambda: next(beats) > 40, what="it has looked many times")
    assert len(world.leases.asked) == 1
    world.registry.put("g1", verdict="down")
    await world.directory.look()
    await until(lambda: next(beats) > 80, what="it has seen that")
    world.registry.put("g1", verdict="up")
    world.leases.free.append("g1")
    await world.directory.look()
    await until(lambda: list(ready.nodes) == ["g1"], what="it holds the node once that is idle anew")
    ready.stop()
    await keeping


async def test_nodes_that_became_idle_while_others_were_held_are_told_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ready_leases, "BEAT_S", 60.0)
    world = World("g1", "g2", "g3")
    told: list[set[str]] = []

    class Told(NoneReady):
        async def beat(self, *said: Any) -> ReadyBeat:
            told.append({*said[2]})
            return ReadyBeat(holders=1, lost=frozenset())

    await world.directory.look()
    ready = ReadyLeases(
        Told(), world.directory, world.runs, world.leases, name="d1", most=16, new_id=world.new_id
    )
    ready.may = lambda node: True
    keeping = asyncio.create_task(ready.keep())
    await until(lambda: len(ready.nodes) == 3, what="it holds all nodes")

    def used(node: str) -> None:
        held = ready.take(node)
        assert held is not None
        held[0].release()

    told.clear()
    used("g1")
    ready.freed("g1")
    await asyncio.sleep(5 * ready_leases.SOON_S)
    assert told == [] and len(ready.nodes) == 2
    used("g2")
    ready.freed("g2")
    await until(lambda: len(ready.nodes) == 3, what="it holds all nodes again")
    assert told == [{"g1", "g2"}]
    ready.stop()
    await keeping


def test_a_look_that_is_due_at_once_hinders_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VainLooks, "left_s", lambda *_: 0.0001)

    async def twice() -> None:
        async with World("g1").seekers() as seekers:
            seekers.wanted(ANY)
            seekers.wanted(ANY)

    uvloop.run(twice())  # whose timers of less than half a millisecond are none
