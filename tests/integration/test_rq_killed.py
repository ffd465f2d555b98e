"""Processes that take what RQ's clients enqueue are killed: each entry becomes one job."""

import asyncio
import os
from pathlib import Path
from random import Random

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import JobFilter
from comfy_fleet.domain.nodes.node import Node
from tests.fleet import until
from tests.integration.api_process import api_process
from tests.integration.rq_kit import CARD, RUN, Client

ENTRIES = int(os.environ.get("FLEET_TEST_RQ_ENTRIES", "150"))
"""More in a long run."""
KILLS = max(2, ENTRIES // 100)


@pytest.mark.timeout(240)
async def test_no_entry_is_lost_or_doubled_though_who_takes_them_is_killed(
    redis_port: int, stores: Stores, tmp_path: Path
) -> None:
    await stores.nodes.add(Node(name="g1", url="http://127.0.0.1:9"))
    client, drawn = Client(redis_port), Random(7)

    async def jobs() -> int:
        return await stores.jobs.depth()

    made = await client.call(lambda: [client.queue.enqueue(RUN, kwargs=CARD) for _ in range(ENTRIES)])
    for kill in range(KILLS):
        async with api_process(redis_port, tmp_path, FLEET_QUEUE_DEPTH="100000") as (_, process):
            least = (kill + 1) * ENTRIES // (KILLS + 2)

            async def some(least: int = least) -> bool:
                return await jobs() >= least

            await until(some, what="some are taken", timeout_s=60)
            await asyncio.sleep(drawn.random() * 0.05)
            process.kill()
    async with api_process(redis_port, tmp_path, FLEET_QUEUE_DEPTH="100000"):

        async def all_taken() -> bool:
            return await jobs() >= ENTRIES and not await stores.redis.exists("fleet:inbox:taken")

        await until(all_taken, what="all are taken", timeout_s=90)
        page = await stores.jobs.find(JobFilter(owner="local", limit=1))
        assert page.jobs and await jobs() == ENTRIES == len({job.id for job in made})
        assert {await client.status(job.id) for job in made[:: max(1, ENTRIES // 20)]} == {"queued"}
