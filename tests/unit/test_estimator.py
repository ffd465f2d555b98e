"""When jobs will have ended, and how often the store is asked for it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement, Progress
from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.domain.schedule.standing import Standing, Underway
from comfy_fleet.ports.jobs import Waits
from comfy_fleet.services.estimator import (
    LEARN_S,
    LONGEST_RETRY_S,
    LOOK_S,
    NO_NODE_RETRY_S,
    Estimator,
    whole_seconds,
)
from tests.factories import running_job
from tests.fakes.estimates import FakeEstimateStore
from tests.fakes.runs import FakeJobStore

WAITING = running_job(status=JobStatus.QUEUED, created_at=1000.0)
RUNNING = running_job()
SURE = [1.0] * 50


class Jobs(FakeJobStore):
    """Jobs that stand somewhere."""

    standing: Standing | None = Standing(run_s=10.0)
    asked: str | None = None

    async def waits(self, job: Job, *, node: str | None = None) -> Waits:
        self.answer("waits")
        self.asked = node
        return Waits(standing=self.standing)


class World:
    """Nodes, and an estimator that looks at them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.down = False
        self.looks = 0
        self.states = [NodeState(node=Node(name=name, url=f"http://{name}:1")) for name in "ab"]
        self.store, self.jobs = FakeEstimateStore(), Jobs()
        self.store.learned = dict.fromkeys(("wait0", "wait1", "run"), SURE)
        self.estimator = Estimator(self.store, self.jobs, self, monotonic=lambda: self.now)

    async def usable(self, placement: Placement | None) -> Sequence[NodeState]:
        if placement is None:
            self.looks += 1
            await asyncio.sleep(0)
        if self.down:
            raise StoreDown("away")
        return self.states

    def busy(self, number: int, free_in_s: float | None = None) -> None:
        state = self.states[number] = replace(self.states[number], run="r")
        if free_in_s is not None:
            self.store.free[state.node.name] = free_in_s

    async def p50(self, job: Job = WAITING) -> float | None:
        end = (await self.estimator.outlook(job)).end
        return None if end is None else end.p50_s


async def test_a_waiting_job_is_estimated_by_nodes_that_can_run_it() -> None:
    world = World()
    assert await world.p50() == 10.0 and world.jobs.asked == "a"
    assert world.store.noted == {"j": ("wait0", 10.0)}
    world.busy(0, 30.0)
    world.busy(1, 4.0)
    world.now += 2 * LOOK_S
    assert await world.p50() == 14.0 and world.jobs.asked == "b"
    assert world.store.calls["note"] == 1  # the first is what it is held to


async def test_nodes_of_unknown_ends_take_half_a_run_more() -> None:
    world = World()
    world.store.run_s = 8.0
    world.busy(0)
    world.busy(1)
    assert await world.p50() == 14.0


async def test_nothing_is_made_up() -> None:
    world = World()
    world.jobs.standing = None
    assert await world.p50() is None and await world.p50(RUNNING) is None
    world.jobs.standing = Standing(run_s=10.0)
    world.states = []
    world.now += 2 * LOOK_S
    assert await world.p50() is None
    assert await world.estimator.retry_after() == NO_NODE_RETRY_S
    done = running_job(status=JobStatus.SUCCEEDED)
    assert await world.p50(done) is None and whole_seconds(done, None) == 0
    assert await world.estimator.whole_seconds(WAITING) is None


async def test_what_was_learned_counts_and_is_read_now_and_then() -> None:
    world = World()
    assert await world.p50() == 10.0
    world.store.learned = {"wait0": [3.0] * 50}
    for _ in range(3):
        world.now += 2 * LOOK_S
        assert await world.p50() == 10.0
    world.now += LEARN_S
    assert await world.p50() == 30.0
    assert await world.estimator.whole_seconds(WAITING) == 30


async def test_a_run_is_judged_by_its_time_and_its_progress() -> None:
    world = World()
    world.store.runs["j"] = Underway(since_s=4.0, run_s=10.0)
    assert await world.p50(RUNNING) == pytest.approx(6.0)
    half = replace(RUNNING, progress=Progress(value=0.5, nodes_done=1, nodes_total=2))
    assert await world.p50(half) == pytest.approx(6.0)  # progress alone would say 4.5
    world.store.runs["j"] = Underway(since_s=4.0, run_s=10.0, own_kind=False)
    assert await world.p50(half) == pytest.approx(4.5)
    world.store.runs["j"] = Underway(since_s=12.0, run_s=10.0)
    assert await world.p50(half) == pytest.approx(8.5)  # later than usual: progress says more
    world.store.runs["j"] = Underway(since_s=25.0, run_s=10.0)
    assert await world.p50(RUNNING) == 25.0  # later than any before


async def test_cheap_nodes_that_come_first_promise_no_early_end() -> None:
    world = World()
    world.store.runs["j"] = Underway(since_s=0.1, run_s=10.0)
    most_nodes = replace(RUNNING, progress=Progress(value=12 / 13, nodes_done=12, nodes_total=13))
    assert await world.p50(most_nodes) == pytest.approx(9.9)


async def test_an_end_is_near_only_by_jobs_of_its_kind() -> None:
    world = World()
    soon = world.estimator.soon
    assert not await soon(WAITING, 1000.1)
    world.jobs.standing = Standing(run_s=0.1)
    assert await soon(WAITING, 1000.1) and not await soon(WAITING, 1001.0)
    world.jobs.standing = Standing(run_s=0.1, own_kind=False)
    assert not await soon(WAITING, 1000.1)
    for since_s, own_kind, near in (
        (9.9, True, True),
        (9.9, False, False),
        (5.0, True, False),
        (99, True, False),
    ):
        world.store.runs["j"] = Underway(since_s=since_s, run_s=10.0, own_kind=own_kind)
        assert await soon(RUNNING, 0.0) is near
    assert not await soon(running_job(status=JobStatus.FAILED), 0.0)


async def test_a_full_queue_has_room_when_a_node_is_free() -> None:
    world = World()
    assert await world.estimator.retry_after() == 1  # nothing is known
    for run_s, expected in ((50.0, 25), (1000.0, LONGEST_RETRY_S)):
        world.store.run_s = run_s
        world.now += 2 * LOOK_S
        assert await world.estimator.retry_after() == expected
    world.store.run_s = 2.0
    world.busy(0, 40.0)
    world.busy(1, 7.5)
    world.now += 2 * LOOK_S
    assert await world.estimator.retry_after() == 8


async def test_an_estimate_does_not_fail_because_it_can_not_be_remembered() -> None:
    world = World()
    await world.estimator.retry_after()  # has looked
    world.store.down = True
    assert await world.p50() == 10.0 and world.store.noted == {}


async def test_many_that_ask_at_once_look_at_the_nodes_once() -> None:
    world = World()
    for looks in (1, 2):
        world.now += 2 * LOOK_S
        await asyncio.gather(*(world.estimator.retry_after() for _ in range(100)))
        assert world.looks == looks


async def test_whoever_asks_is_told_that_the_store_is_away_and_the_next_one_looks_again() -> None:
    world = World()
    world.down = True
    found = await asyncio.gather(*(world.estimator.retry_after() for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [StoreDown] * 3 and world.looks == 1
    world.down = False
    assert await world.estimator.retry_after() >= 1


async def test_one_that_gives_up_costs_the_others_nothing() -> None:
    world = World()
    first, second = (asyncio.create_task(world.estimator.retry_after()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second >= 1 and world.looks == 1
    with pytest.raises(asyncio.CancelledError):
        await first
