"""All ways by which a job comes into what waits and leaves it: the indexes always agree with the records."""

import asyncio
import random
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement, PromptFields
from comfy_fleet.ports.runs import Claim
from tests.integration.redis_kit import BROKEN, add_nodes, claim, submit
from tests.older_version import older

PLACEMENTS = (Placement(), Placement(pool="big"), Placement(pool="big", spill=("*",)))
SETS = ((), (("checkpoints/a", 2**34),), (("checkpoints/a", 2**34), ("loras/x", 2**20)), (("unet/b", 2**33),))
NODES = ("g1", "g2", "g3")


class Disorder:
    """Does things to a fleet's jobs in an order that a seed says."""

    def __init__(self, stores: Stores, seed: int) -> None:
        self.stores = stores
        self.chance = random.Random(seed)
        self.tenants = {"eve": "studio"} if seed % 2 else {}
        self.jobs: list[Job] = []
        self.runs: list[Claim] = []

    async def step(self) -> None:
        ways = (self.submits, self.submits, self.submits, self.claims, self.claims, self.ends, self.cancels)
        await self.chance.choice((*ways, self.gives_back, self.loses, self.others))()

    async def submits(self) -> None:
        pick = self.chance.choice
        prompt = PromptFields(front=pick((False, False, True)), number=pick((None, None, 2.5)))
        owner = pick(("ada", "bob", "eve"))
        job = await submit(
            self.stores,
            owner=owner,
            tenant=self.tenants.get(owner, ""),
            placement=pick(PLACEMENTS),
            priority=pick((-5, 0, 0, 100)),
            tier=pick((0, 1, 1, 2)),
            models=pick(SETS),
            weight=pick((1.0, 1.0, 3.0)),
            deadline_s=pick((None, None, 0.02, 60.0)),
            finish_by=pick((None, None, 2e9)),
            able=pick(((), NODES)),
            prompt=prompt,
        )
        self.jobs.append(job)

    async def claims(self) -> None:
        got = await self.stores.runs.claim(
            node=self.chance.choice(NODES),
            placements=self.chance.sample(PLACEMENTS, self.chance.randint(1, 3)),
            run=str(uuid4()),
            token="t",
            dispatcher="d",
            ttl_s=5,
            pool="big",
            patience_s=self.chance.choice((0.0, 0.01, 60.0)),
        )
        if isinstance(got, Claim):
            self.runs.append(got)

    def _run(self) -> Claim | None:
        return self.runs.pop(self.chance.randrange(len(self.runs))) if self.runs else None

    async def ends(self) -> None:
        if run := self._run():
            if self.chance.random() < 0.5:
                await self.stores.runs.left(run, [])
            status = self.chance.choice((JobStatus.SUCCEEDED, JobStatus.FAILED))
            await self.stores.runs.finish(run, status, error=None, duration_s=0.1)

    async def gives_back(self) -> None:
        if run := self._run():
            moved = self.chance.choice((None, *PLACEMENTS))
            counts = self.chance.random() < 0.3
            await self.stores.runs.requeue(run, counts=counts, reason=BROKEN, placement=moved)

    async def loses(self) -> None:
        if run := self._run():
            await self.stores.runs.hand_over([run])
            held = await self.stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=9)
            self.runs += [one.claim for one in held]

    async def cancels(self) -> None:
        some = self.chance.sample(self.jobs, min(2, len(self.jobs)))
        if self.chance.random() < 0.5:
            for owner in ("ada", "bob", "eve"):
                await self.stores.jobs.withdraw(owner, [job.id for job in some])
        else:
            stores = self.chance.choice((self.stores, older(self.stores, 2)))
            for job in some:
                await stores.jobs.request_cancel(job.id)

    async def others(self) -> None:
        node, chance = self.chance.choice(NODES), self.chance
        await chance.choice(
            (
                lambda: self.stores.runs.overdue(9),
                lambda: self.stores.nodes.cordon(node, reason="fans"),
                lambda: self.stores.nodes.uncordon(node),
                lambda: self.stores.nodes.report(
                    node, verdict=chance.choice(("up", "down", "drain")), why=""
                ),
                lambda: self.stores.nodes.started(node),
                lambda: self.stores.nodes.record_failure(node, kind="oom", limit=99, reason="x"),
                lambda: self.stores.nodes.record_failure(node, kind="gpu", limit=2, reason="x"),
                lambda: older(self.stores, 2).runs.overdue(9),
            )
        )()


async def agrees(stores: Stores) -> None:
    """Compare everything that follows from the jobs' records with them; no job is past its deadline."""
    await stores.runs.overdue(1000)
    await stores.redis.delete("fleet:queued:tended")
    await stores.runs.tend()
    client: Any = stores.redis
    waiting: dict[str, dict[bytes, bytes]] = {}
    running: Counter[str] = Counter()
    for key in await client.keys("fleet:job:*"):
        if key.count(b":") == 2:
            record = await client.hgetall(key)
            if record[b"status"] == b"queued":
                waiting[key.decode().removeprefix("fleet:job:")] = record
            elif record[b"status"] in (b"running", b"canceling"):
                running[record[b"owner"].decode()] += 1

    async def members(pattern: str) -> Counter[str]:
        keys = await client.keys(pattern)
        return Counter([raw.decode() for key in keys for raw in await client.zrange(key, 0, -1)])

    once = Counter(list(waiting))
    assert await members("fleet:queued") == once
    assert await members("fleet:sched:jobs:*") == await members("fleet:sched:loads:*") == once
    assert await members("fleet:sched:turns:*") + await members("fleet:sched:late:*") == once
    counts = {name.decode(): int(raw) for name, raw in (await client.hgetall("fleet:sched:count")).items()}
    assert counts == Counter(record[b"placement"].decode() for record in waiting.values())
    assert {one.placement.key: one.count for one in await stores.runs.waiting()} == counts
    for job_id, record in waiting.items():
        at = await client.zscore("fleet:queued", job_id)
        assert at == float(record[b"rank"])
    owners = {(record[b"placement"].decode(), record[b"owner"].decode()) for record in waiting.values()}
    tenants = {
        (record[b"placement"].decode(), record.get(b"tenant", b"").decode()) for record in waiting.values()
    }
    tenanted = await client.exists("fleet:sched:tenanted")
    for key in await client.keys("fleet:sched:owners:*"):
        placement, tab, tenant = key.decode().removeprefix("fleet:sched:owners:").partition("\t")
        for name in await client.zrange(key, 0, -1):
            if tab and not tenant:
                tenants.remove((placement, name.decode().removeprefix("/")))
            else:
                owners.remove((placement, name.decode()))
                assert (placement, tenant) in tenants or tenanted
    assert not owners
    assert not tenants or not tenanted
    for record in waiting.values():
        owner = record[b"owner"].decode()
        places = {one[b"placement"] for one in waiting.values() if one[b"owner"] == record[b"owner"]}
        active = int(await client.hget(f"fleet:sched:used:{owner}", "active"))
        assert active == len(places) + running[owner], owner
    seconds = guessed = 0.0
    for key in await client.keys("fleet:sched:backlog:*"):
        seconds += sum(float(raw.split()[0]) for raw in (await client.hgetall(key)).values())
        guessed += sum(int(raw.split()[2]) for raw in (await client.hgetall(key)).values())
    known = [float(record[b"run_s"]) for record in waiting.values() if b"run_s" in record]
    assert abs(seconds - sum(known)) < 0.001
    assert guessed == len(waiting) - len(known)


@pytest.mark.parametrize("seed", range(12))
async def test_what_claims_choose_by_follows_from_the_records(stores: Stores, seed: int) -> None:
    await add_nodes(stores, *NODES)
    disorder = Disorder(stores, seed)
    for at in range(120):
        await disorder.step()
        if at % 20 == 19:
            await asyncio.sleep(0.02)  # deadlines pass
            await agrees(stores)
    for owner in ("ada", "bob", "eve"):
        await stores.jobs.withdraw(owner, [job.id for job in disorder.jobs])
    for run in disorder.runs:
        await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=0.1)
    await agrees(stores)
    kinds = (
        "jobs",
        "turns",
        "late",
        "loads",
        "owners",
        "unpassed",
        "passed",
        "family",
        "backlog",
        "pressure",
    )
    left = [key for kind in kinds for key in await stores.redis.keys(f"fleet:sched:{kind}:*")]
    assert left == [] and await stores.jobs.depth() == 0


async def test_indexes_that_were_lost_are_made_anew(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    jobs = [await submit(stores, owner=owner) for owner in ("ada", "bob", "ada")]
    client: Any = stores.redis
    await client.delete(*await client.keys("fleet:sched:*"))
    assert await stores.runs.waiting() == []
    await stores.runs.tend()
    assert [one.count > 0 for one in await stores.runs.waiting()] == [True]
    found = set()
    for _ in jobs:
        run = await claim(stores)
        found.add(run.job.id)
        await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None)
    assert found == {job.id for job in jobs}


async def test_jobs_of_tenants_are_found_after_the_note_of_them_was_lost(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores, owner="ada", tenant="studio")
    client: Any = stores.redis
    await client.delete("fleet:sched:tenanted")  # it ends after 30 days, and a queue may last longer
    await stores.runs.tend()
    assert (await claim(stores)).job.id == job.id


async def test_the_places_of_many_jobs_are_read_together(stores: Stores) -> None:
    jobs = [await submit(stores, priority=number) for number in range(5)]
    other = await submit(stores, owner="ada", placement=Placement(pool="big"))
    await stores.jobs.request_cancel(jobs[2].id)
    ids = [job.id for job in (*jobs, other)]
    places = await stores.jobs.positions([*ids, "unknown"])
    assert places == {ids[4]: 1, ids[3]: 2, ids[1]: 3, ids[0]: 4, ids[5]: 5}
    assert [await stores.jobs.position(job) for job in jobs] == [4, 3, None, 2, 1]
