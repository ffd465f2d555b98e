"""Webhooks are delivered although receivers are away and the processes that send them are killed."""

import asyncio
import os
import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest

from comfy_fleet.adapters.redis.webhooks import RedisWebhooks
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.nodes.node import Node
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_process import api_process
from tests.integration.webhook_kit import receiver

JOBS = int(os.environ.get("FLEET_TEST_WEBHOOK_JOBS", "30"))
"""More in a long run."""


def api(
    redis_port: int, folder: Path
) -> AbstractAsyncContextManager[tuple[httpx.AsyncClient, subprocess.Popen[bytes]]]:
    """Run ``fleet api``, whose pauses between tries are short."""
    backoff = "0.2,0.4" + ",1" * 18
    return api_process(redis_port, folder, FLEET_WEBHOOK_ALLOW="127.0.0.1", FLEET_WEBHOOK_BACKOFF_S=backoff)


@pytest.mark.timeout(240)
async def test_each_end_is_delivered_though_the_receiver_is_away_and_the_api_is_killed_twice(
    redis_port: int, stores: Stores, tmp_path: Path
) -> None:
    await stores.nodes.add(Node(name="g1", url="http://127.0.0.1:9"))
    webhooks = RedisWebhooks(stores.redis, stores.events)
    port = free_port()
    ids = []

    async def tried() -> int:
        return sum(one.attempts > 0 for one in await webhooks.messages("local", failed=False, limit=1000))

    async with api(redis_port, tmp_path) as (client, process):
        for color in range(JOBS):
            body = {"workflow": picture(color), "webhook_url": f"http://127.0.0.1:{port}/{color}"}
            answer = await client.post("/api/v2/jobs", json=body)
            assert answer.status_code == 201, answer.text
            ids.append(answer.json()["id"])
            await client.post(f"/api/v2/jobs/{ids[-1]}/cancel")
        await until(tried, what="the receiver is missed")
        process.kill()  # while nobody takes anything
    async with receiver(port) as shop:
        shop.held = asyncio.Event()
        async with api(redis_port, tmp_path) as (client, process):
            await until(lambda: shop.open, what="a message is on its way", timeout_s=60)
            process.kill()  # before the receiver has answered
        shop.held.set()
        async with api(redis_port, tmp_path) as (client, process):
            secret = (await client.get("/api/v1/webhooks/secret")).json()["secret"]
            wanted = {f"msg_{job_id}_canceled" for job_id in ids}
            await until(lambda: {*shop.counts} == wanted, what="each is delivered", timeout_s=120)
            for one in shop.taken:
                assert f"msg_{one.verified(secret)['data']['id']}_canceled" == one.id
            assert await webhooks.messages("local", failed=True, limit=9) == []
