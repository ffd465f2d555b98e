"""Whatever happens to equal jobs, in whatever order: each ends once, and none waits for ever."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import LeaseLost
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus, OwnerEvent, Placement
from comfy_fleet.domain.jobs.merge_key import MergeKey
from comfy_fleet.domain.jobs.result_keys import ResultKeys
from comfy_fleet.ports.runs import Claim, StoredOutput
from tests.integration.redis_kit import BROKEN, add_nodes, claim, output, submit

KEYS = Keyspace()
ALIKE = ResultKeys(wanted="k", kept=("k",), versions=("",))
GRAPH_FAULT = JobError(code="node_execution_error", message="no")


async def commit(stores: Stores, claim: Claim, index: int) -> None:
    """Commit an output whose bytes are stored."""
    made = output(index, hash=f"blake3:{index:064}")
    asset = Asset(
        id=made.asset_id,
        owner="local",
        hash=made.hash,
        size_bytes=3,
        content_type="image/png",
        file_path=made.name,
        path=f"blobs/{made.asset_id}",
        created_at=1.0,
        expires_at=claim.job.expires_at,
        job_id=claim.job.id,
    )
    await stores.runs.commit(claim, StoredOutput(asset=asset, output=made))


class _World:
    """Equal jobs, two nodes, and everything that may happen."""

    def __init__(self, stores: Stores, seed: int) -> None:
        self.stores, self.random = stores, random.Random(seed)
        self.jobs: list[str] = []
        self.claims: list[Claim] = []
        self.history: list[str] = []

    async def step(self) -> None:
        """Let one thing happen."""
        name = self.random.choice(
            ["submit", "submit", "claim", "claim", "cancel", "finish", "fail", "requeue", "commit", "tend"]
        )
        self.history.append(name)
        await getattr(self, name)()

    async def submit(self) -> None:
        fields: dict[str, Any] = {"priority": self.random.randint(0, 3), "tier": self.random.choice([1, 2])}
        job = await submit(self.stores, results=ALIKE, max_attempts=2, **fields)
        self.jobs.append(job.id)

    async def claim(self) -> None:
        free = [node for node in ("g1", "g2") if all(one.node != node for one in self.claims)]
        if not free:
            return
        waiting = await self.stores.runs.waiting()
        if not waiting:
            return
        got = await self.stores.runs.claim(
            node=free[0],
            placements=[waiting[0].placement],
            run=str(uuid4()),
            token=uuid4().hex,
            dispatcher="d1",
            ttl_s=60,
        )
        if isinstance(got, Claim):
            self.claims.append(got)

    async def cancel(self) -> None:
        if self.jobs:
            await self.stores.jobs.request_cancel(self.random.choice(self.jobs))

    def _one(self) -> Claim | None:
        return self.claims.pop(self.random.randrange(len(self.claims))) if self.claims else None

    async def finish(self) -> None:
        if (claim := self._one()) is not None:
            await commit(self.stores, claim, 5)
            await self.stores.runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=1.0)

    async def fail(self) -> None:
        if (claim := self._one()) is not None:
            await self.stores.runs.finish(claim, JobStatus.FAILED, error=GRAPH_FAULT, duration_s=None)

    async def requeue(self) -> None:
        if (claim := self._one()) is not None:
            await self.stores.runs.requeue(claim, counts=self.random.random() < 0.5, reason=BROKEN)

    async def commit(self) -> None:
        if self.claims:
            await commit(self.stores, self.random.choice(self.claims), self.random.randint(0, 2))

    async def tend(self) -> None:
        await self.stores.runs.tend(every_s=0.001)

    async def settle(self) -> None:
        """Run whatever waits, until nothing does."""
        for _ in range(400):
            await self.claim()
            while self.claims:
                await self.finish()
            await self.tend()
            states = {one.status for one in await self.loaded()}
            if all(status.terminal for status in states):
                return
        raise AssertionError(f"jobs are stuck after {self.history}")

    async def loaded(self) -> list[Job]:
        return [job for job in await self.stores.jobs.load(self.jobs) if job is not None]


@pytest.mark.parametrize("seed", range(40))
async def test_each_job_ends_once_in_any_order_of_things(stores: Stores, seed: int) -> None:
    await add_nodes(stores, "g1", "g2")
    world = _World(stores, seed)
    async with stores.events.clients("local") as feed:
        for _ in range(60):
            await world.step()
        await world.settle()
        ends = Counter[str]()
        await stores.redis.publish(KEYS.owner_events("local"), b"{}")
        async with asyncio.timeout(60):
            while sum(ends.values()) < len(world.jobs):
                ends.update(
                    one.job_id
                    for one in await feed.news()
                    if isinstance(one, OwnerEvent) and one.status.terminal
                )
    assert ends == Counter(dict.fromkeys(world.jobs, 1))
    jobs = await world.loaded()
    assert all(job.outputs for job in jobs if job.status is JobStatus.SUCCEEDED)
    redis = stores.redis
    assert await redis.zcard(KEYS.queued) == 0
    await world.tend()
    assert [key async for key in redis.scan_iter("fleet:flight:*:jobs")] == []
    assert await redis.zcard(KEYS.live("local")) == 0
    kept = [output.asset_id for job in jobs for output in job.outputs]
    assert len(kept) == len(set(kept)), "no file is two jobs'"
    records = [await redis.hget(KEYS.asset(asset_id), "job_id") for asset_id in kept]
    assert records == [job.id.encode() for job in jobs for _ in job.outputs]


async def test_a_run_that_was_handed_over_writes_for_its_new_job(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    first = await submit(stores, results=ALIKE)
    second = await submit(stores, results=ALIKE)
    got = await stores.runs.claim(
        node="g1", placements=[first.placement], run=str(uuid4()), token="t", dispatcher="d1", ttl_s=60
    )
    assert isinstance(got, Claim)
    await commit(stores, got, 0)
    canceled = await stores.jobs.request_cancel(first.id)
    assert canceled is not None
    assert (canceled.status, canceled.outputs) == (JobStatus.CANCELED, ())
    await commit(stores, got, 1)
    beat = await stores.runs.beat("d1", [got], ttl_s=60)
    assert (beat.lost, beat.cancel) == (frozenset(), frozenset()), "the run goes on"
    assert await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1.0) == "succeeded"
    heir = await stores.jobs.get(second.id)
    assert heir is not None
    assert (heir.status, len(heir.outputs), heir.run) == (JobStatus.SUCCEEDED, 2, got.run)
    assert not heir.cached
    assert [one.run for one in heir.attempts] == [got.run]
    after = await stores.jobs.get(first.id)
    assert after is not None
    assert (after.status, after.outputs) == (JobStatus.CANCELED, ())
    with pytest.raises(LeaseLost):
        await commit(stores, got, 2)


async def test_a_run_that_was_handed_over_leaves_its_files_where_they_were(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await stores.redis.hset(KEYS.node("g1"), mapping={"host": "h", "cleans": "1"})
    first = await submit(stores, results=ALIKE)
    await submit(stores, results=ALIKE)
    got = await stores.runs.claim(
        node="g1", placements=[first.placement], run=str(uuid4()), token="t", dispatcher="d1", ttl_s=60
    )
    assert isinstance(got, Claim)
    await stores.jobs.request_cancel(first.id)
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
    assert await stores.redis.zrange(KEYS.cleanup("h"), 0, -1) == [f"g1 {first.id} {got.run}".encode()]


async def test_who_takes_over_anothers_seed_keeps_its_result_as_that_seeds(stores: Stores) -> None:
    await add_nodes(stores, "g1")

    def drawn(seed: int) -> dict[str, Any]:
        keys = ResultKeys(wanted="any", kept=(f"seed-{seed}", "any"), versions=("",), any_seed=True)
        return {"results": keys, "params": {"seed": seed}}

    first, second = await submit(stores, **drawn(1)), await submit(stores, **drawn(2))
    assert second.params == {"seed": 1}
    await stores.jobs.request_cancel(first.id)
    got = await claim(stores)
    assert (got.job.id, got.job.params) == (second.id, {"seed": 1})
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
    kept = [await stores.redis.exists(KEYS.result("local", key)) for key in ("seed-1", "seed-2", "any")]
    assert kept == [1, 0, 1], "nobody who sends the seed 2 gets a picture of the seed 1"


async def commands(stores: Stores) -> int:
    """Return how many commands Redis has carried out, those of scripts included."""
    stats = await stores.redis.info("commandstats")
    return sum(facts["calls"] for facts in stats.values())


async def test_a_leader_leaves_at_the_same_cost_however_many_follow(stores: Stores) -> None:
    cost = []
    for count in (10, 100):
        keys = ResultKeys(wanted=f"k{count}", kept=(f"k{count}",), versions=("",))
        jobs = [await submit(stores, results=keys) for _ in range(count)]
        before = await commands(stores)
        await stores.jobs.request_cancel(jobs[0].id)
        cost.append(await commands(stores) - before)
        last = await stores.jobs.get(jobs[-1].id)
        assert last is not None
        assert last.status is JobStatus.QUEUED
    assert cost[1] <= cost[0] + 10


async def test_one_call_gives_followers_so_many_outputs_and_no_more(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    jobs = [await submit(stores, results=ALIKE) for _ in range(21)]
    got = await claim(stores)
    for index in range(100):
        await commit(stores, got, index)
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
    states = Counter(job.status for job in await stores.jobs.load([one.id for one in jobs]) if job)
    assert 1 < states[JobStatus.SUCCEEDED] <= 4
    await stores.runs.tend(every_s=60)
    ended = [job for job in await stores.jobs.load([one.id for one in jobs]) if job]
    assert {(job.status, len(job.outputs)) for job in ended} == {(JobStatus.SUCCEEDED, 100)}


async def claim_several(stores: Stores, node: str) -> list[str]:
    """Start the next jobs on a node, as one prompt if they can be merged; return their ids."""
    got = await stores.runs.claim(
        node=node,
        placements=[Placement()],
        run=str(uuid4()),
        token="t",
        dispatcher="d1",
        ttl_s=60,
        runs=[str(uuid4()) for _ in range(3)],
    )
    assert isinstance(got, Claim)
    return [got.job.id, *(one.job.id for one in got.others)]


async def test_who_has_followers_runs_in_no_batch(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    fields: dict[str, Any] = {
        "merge": MergeKey(text="batch:x", most=4, window_s=0.0, seed=1, count=1),
        "results": ALIKE,
    }
    jobs = [await submit(stores, **fields) for _ in range(2)]
    others = [await submit(stores, merge=fields["merge"]) for _ in range(2)]
    assert await claim_several(stores, "g1") == [jobs[0].id]
    assert await claim_several(stores, "g2") == [one.id for one in others]
    await stores.jobs.request_cancel(jobs[0].id)
    heir = await stores.jobs.get(jobs[1].id)
    assert heir is not None
    assert heir.status is JobStatus.RUNNING, "the run is its own now, as no batch's could be"


async def test_nobody_follows_a_job_that_runs_in_a_batch(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    merge = MergeKey(text="batch:x", most=4, window_s=0.0, seed=1, count=1)
    for results in (ALIKE, replace(ALIKE, wanted="j", kept=("j",))):
        await submit(stores, merge=merge, results=results)
    assert len(await claim_several(stores, "g1")) == 2
    late = await submit(stores, results=ALIKE)
    assert late.status is JobStatus.QUEUED
    assert [one.count for one in await stores.runs.waiting()] == [1]
