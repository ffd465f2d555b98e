"""Times are the server's, and what several processes write at once is not lost."""

import asyncio
from typing import Any

from comfy_fleet.adapters.redis.dispatchers import LivingDispatcher
from comfy_fleet.adapters.redis.rq_worker import RqWorker
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.services.inventories import MOST_PLACEMENTS, NodeInventories
from tests.fakes.comfyui import FakeNodeApi
from tests.integration.redis_kit import add_nodes, submit


async def test_a_deadline_counts_from_when_the_server_wrote_the_job(stores: Stores) -> None:
    job = await submit(stores, created_at=1.0, deadline_s=60)  # the submitter's clock is decades late
    seen = await stores.jobs.get(job.id)
    assert seen and seen.deadline_at and job.deadline_at
    assert abs(seen.deadline_at - seen.created_at - 60) < 0.001
    assert abs(job.deadline_at - seen.deadline_at) < 0.001
    assert await stores.runs.overdue(9) == 0


async def test_the_largest_card_that_was_too_small_stays_known(stores: Stores) -> None:
    sizes = [5, 80, 24, 12, 48, 16] * 5
    await asyncio.gather(*(stores.inventories.note_oom("big", size, ttl_s=60) for size in sizes))
    client: Any = stores.redis
    assert await client.get("fleet:oom:big") == b"80"
    assert 0 < await client.ttl("fleet:oom:big") <= 60


async def test_who_asks_what_jobs_wait_for_is_not_remembered_for_good(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    known = NodeInventories(stores.nodes, stores.inventories, FakeNodeApi())
    await known.look()
    for number in range(3 * MOST_PLACEMENTS):
        job = Job(
            id=str(number),
            owner="o",
            status=JobStatus.QUEUED,
            created_at=0,
            expires_at=9,
            graph_hash="h",
            placement=Placement(needs=f"{number:016x}"),
        )
        await known.waiting_for(job)
    assert 0 < known.remembered <= MOST_PLACEMENTS


async def test_dispatchers_that_were_killed_leave_no_names_for_good(stores: Stores) -> None:
    client: Any = stores.redis

    async def cancel(_: str) -> None:
        pass

    def worker(name: str) -> RqWorker:
        return RqWorker(stores.redis, stores.events, name, stop=cancel)

    for number in range(5):
        await worker(f"killed{number}").beat(busy=0, done=0)
        await LivingDispatcher(stores.redis, f"killed{number}").beat()
        for key in (f"rq:worker:killed{number}", f"fleet:dispatcher:killed{number}"):
            await client.delete(key)  # as its time does
    await worker("alive").beat(busy=0, done=0)
    await LivingDispatcher(stores.redis, "alive").beat()
    assert await client.smembers("fleet:dispatchers") == {b"alive"}
    for key in ("rq:workers", "rq:workers:fleet"):
        assert await client.smembers(key) == {b"rq:worker:alive"}
