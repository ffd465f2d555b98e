"""Indexes of waiting jobs that are lost, or replaced by something else: no job is lost, and nothing stops."""

from itertools import product
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.adapters.redis import upkeep
from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.ports.runs import Claim, Refused
from tests.fleet import until
from tests.integration.redis_kit import BROKEN, add_nodes, claim, submit
from tests.integration.test_waiting_jobs import agrees

GIB = 2**30
A, B = (("checkpoints/a", 18 * GIB),), (("checkpoints/b", 18 * GIB),)
BIG = Placement(pool="big", spill=("*",))
PATTERNS = {
    name: key.pattern
    for name, key in vars(Keyspace).items()
    if hasattr(key, "pattern") and (key.pattern == "queued" or key.pattern.startswith("sched:"))
}
WAYS = ("lost", "another type")
HASHES = ("sched_backlog", "sched_clock", "sched_count", "sched_node", "sched_profile", "sched_used")


class Traffic:
    """Jobs of three owners that wait and run."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.jobs: list[Job] = []
        self.started: list[str] = []
        self.canceled: set[str] = set()

    async def submits(self, owner: str, models: Any = A, placement: Placement | None = None) -> Job:
        job = await submit(
            self.stores,
            owner=owner,
            tenant="studio" if owner in ("eve", "zoe") else "",
            models=models,
            placement=placement or Placement(),
            profile="p",
            able=("g1",),
        )
        self.jobs.append(job)
        return job

    async def asks(self, node: str, *, patience_s: float = 0.0) -> Claim | Refused:
        """Look for a job as a dispatcher does: in the classes that wait."""
        placements = [one.placement for one in await self.stores.runs.waiting()]
        got = await self.stores.runs.claim(
            node=node,
            placements=placements or [Placement(), BIG],
            run=str(uuid4()),
            token=uuid4().hex,
            dispatcher="d",
            ttl_s=5,
            pool="default",
            peers=2,
            patience_s=patience_s,
        )
        if isinstance(got, Claim):
            self.started.append(got.job.id)
        return got

    async def starts(self, node: str) -> Claim:
        got = await self.asks(node)
        assert isinstance(got, Claim)
        return got

    async def ends(self, run: Claim) -> None:
        status = await self.stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=0.1)
        assert status is JobStatus.SUCCEEDED

    async def begins(self) -> tuple[Claim, Claim]:
        """Let there be every kind of index; return two runs."""
        client: Any = self.stores.redis
        for _ in range(2):
            await self.submits("ada")
        await self.submits("bob", models=())
        await self.submits("eve", models=B)
        for _ in range(3):
            await self.ends(await self.starts("g1"))
        await client.hset("fleet:sched:profile:p", "run_s", "1")  # so that some are ahead of others
        await client.lpush("fleet:sched:errors:run", "1.5")  # how far an estimate was off
        for owner in ("ada", "ada", "bob", "bob"):
            await self.submits(owner, models=A if owner == "ada" else B)
        await self.submits("bob", models=A, placement=BIG)
        await self.submits("zoe", models=A)
        runs = await self.starts("g1"), await self.starts("g2")
        assert isinstance(await self.asks("g3", patience_s=60.0), Refused)  # passes a job over
        await self.stores.memory.note(
            Workload(family="checkpoints/a", model_bytes=18 * GIB, pixels=1e6),
            owner="ada",
            room=GIB,
            fits=True,
            ttl_s=60,
        )
        return runs

    async def goes_on(self, first: Claim, second: Claim) -> None:
        """Let everything happen once that writes to indexes."""
        runs, jobs, nodes = self.stores.runs, self.stores.jobs, self.stores.nodes
        waiting = [job for job in self.jobs if job.id not in self.started]
        assert waiting
        for job in waiting[:2]:
            await runs.waiting()
            await jobs.position(job)
            await self.stores.redis.delete("fleet:queued:tended")
        await jobs.depth()
        await self.submits("ada")
        await self.submits("new", models=B, placement=BIG)
        await jobs.request_cancel(waiting[0].id)
        self.canceled.add(waiting[0].id)
        assert await jobs.withdraw(waiting[1].owner, [waiting[1].id]) == 1
        self.canceled.add(waiting[1].id)
        await runs.overdue(9)
        await runs.left(first, [])
        await self.ends(first)
        assert await runs.requeue(second, counts=False, reason=BROKEN) is JobStatus.QUEUED
        self.started.remove(second.job.id)
        await nodes.cordon("g2", reason="fans")
        await nodes.uncordon("g2")
        await nodes.report("g1", verdict="down", why="")
        await nodes.report("g1", verdict="up", why="")
        if isinstance(got := await self.asks("g1"), Claim):
            await self.ends(got)

    async def is_right_again(self) -> None:
        """Compare depth, places and counts with what waits, after upkeep."""
        stores = self.stores
        await stores.redis.delete("fleet:queued:tended")
        await stores.runs.tend()
        waiting = [job.id for job in self.jobs if job.id not in {*self.started, *self.canceled}]
        assert await stores.jobs.depth() == len(waiting)
        places = await stores.jobs.positions(waiting)
        assert sorted(places.values()) == list(range(1, len(waiting) + 1)) and len(places) == len(waiting)
        assert sum(one.count for one in await stores.runs.waiting()) == len(waiting)

    async def drains(self) -> None:
        """Run all that waits to its end: each job starts once, as soon as nodes look for it."""

        async def some() -> bool:
            for node in ("g1", "g2", "g3"):
                if isinstance(got := await self.asks(node), Claim):
                    await self.ends(got)
            return not await self.stores.jobs.depth()

        client: Any = self.stores.redis
        await client.delete(*await client.keys("fleet:sched:profile:*"), "none")
        for node in ("g1", "g2", "g3"):  # nothing takes long
            key = f"fleet:sched:node:{node}"
            if await client.type(key) != b"hash":
                await client.delete(key)
            await client.hset(key, mapping={"disk_rate": "1e15", "ram_rate": "1e15"})
        await client.hset("fleet:sched:profile:*", "run_s", "0.001")
        await until(some, what="all jobs have ended")
        assert sorted(self.started) == sorted(job.id for job in self.jobs if job.id not in self.canceled)
        for job in self.jobs:
            ended = await self.stores.jobs.get(job.id)
            expected = JobStatus.CANCELED if job.id in self.canceled else JobStatus.SUCCEEDED
            assert ended and ended.status is expected
        assert await self.stores.runs.waiting() == []


async def lose(stores: Stores, name: str, way: str) -> int:
    """Delete or replace all keys of a kind; return how many there were."""
    client: Any = stores.redis
    pattern = Keyspace().whole("".join("*" if part.isupper() else part for part in _words(PATTERNS[name])))
    keys = await client.keys(pattern)
    for key in keys:
        kind = await client.type(key)
        if way == "no number":
            await client.hset(key, mapping=dict.fromkeys(await client.hkeys(key), "mine"))
            continue
        await client.delete(key)
        if way != "lost":
            await (client.rpush(key, "mine") if kind == b"string" else client.set(key, "mine"))
    return len(keys)


def _words(pattern: str) -> list[str]:
    words = [""]
    for sign in pattern:
        if words[-1] and words[-1].isupper() != sign.isupper():
            words.append("")
        words[-1] += sign
    return words


@pytest.mark.parametrize(
    ("name", "way"), [*product(PATTERNS, WAYS), *((name, "no number") for name in HASHES)]
)
async def test_no_job_is_lost_with_an_index(stores: Stores, name: str, way: str) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1", "g2", "g3")
    traffic = Traffic(stores)
    runs = await traffic.begins()
    assert await lose(stores, name, way), "there must be something to lose"
    await traffic.goes_on(*runs)
    await traffic.is_right_again()
    await lose(stores, name, way)  # and nothing is written before upkeep
    await traffic.is_right_again()
    await traffic.drains()
    if name == "sched_pools":  # else nobody would be known to hold what jobs for any pool load
        assert await client.type("fleet:sched:pools") == b"set"


@pytest.mark.parametrize("way", WAYS)
async def test_no_job_is_lost_with_all_indexes(stores: Stores, way: str) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    traffic = Traffic(stores)
    for run in await traffic.begins():
        await traffic.ends(run)
    for name in PATTERNS:
        await lose(stores, name, way)
    await traffic.is_right_again()
    for name in PATTERNS:
        await lose(stores, name, "lost")
    await agrees(stores)


async def test_upkeep_goes_on_while_something_is_wrong(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "CALM_S", 0.0)
    monkeypatch.setattr(upkeep, "LOOKED_AT_ONCE", 20)  # two jobs that are put right
    jobs = [await submit(stores, owner=f"o{number % 7}") for number in range(60)]
    await stores.redis.delete("fleet:queued")
    await stores.runs.tend()
    assert await stores.jobs.depth() == 60
    assert len(await stores.jobs.positions([job.id for job in jobs])) == 60
    calls = (await stores.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    await stores.redis.delete("fleet:queued:tended")
    await stores.runs.tend()
    after = (await stores.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert after - calls == 2, "nothing is wrong any more, neither here nor with jobs that share runs"


async def test_a_full_redis_lets_runs_end(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    first, second = [await submit(stores) for _ in range(2)]
    await submit(stores)
    run, other = await claim(stores), await claim(stores, "g2")
    await stores.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreDown, match="maxmemory"):
            await submit(stores)
        assert await stores.runs.stage(run, ["asset-1"], keep_s=60.0) is not None
        await stores.runs.accepted(run)
        assert not (await stores.runs.beat("d1", [run], ttl_s=5)).lost
        await stores.runs.left(run, [{"file": "a.png"}])
        assert (
            await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
            is JobStatus.SUCCEEDED
        )
        assert await stores.runs.requeue(other, counts=True, reason=BROKEN) is JobStatus.QUEUED
        again = await claim(stores)
    finally:
        await stores.redis.config_set("maxmemory", 0)
    assert {run.job.id, other.job.id} == {first.id, second.id} and again.job.id == other.job.id
