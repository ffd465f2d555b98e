"""What ``scripts/soak`` relies on: a receiver that can be away, and the look at jobs' ends."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import pytest
from standardwebhooks.webhooks import Webhook as Signer

from benchmarks.ends import EndsAudit
from benchmarks.hook_receiver import HookReceiver, Mood
from benchmarks.stage import Fleet
from benchmarks.visits import Ended
from benchmarks.vitals import KeyKinds
from comfy_fleet.bootstrap import Stores
from comfy_fleet.settings import Settings
from tests.fleet import until

SECRET, OTHER = "whsec_" + "QUFB" * 8, "whsec_" + "QkJC" * 8


@pytest.fixture
async def shop() -> AsyncIterator[HookReceiver]:
    async with HookReceiver() as receiver:
        receiver.secrets = {"ann": SECRET}
        yield receiver


async def post(shop: HookReceiver, message: str, secret: str = SECRET, owner: str = "ann") -> int:
    """Post a message as the fleet does; returns the status."""
    now, body = datetime.now(UTC), '{"type":"job.succeeded"}'
    headers = {
        "webhook-id": message,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(secret).sign(message, now, body),
    }
    async with httpx.AsyncClient(timeout=20) as http:
        return (await http.post(f"{shop.url}/{owner}", content=body, headers=headers)).status_code


async def test_a_receiver_takes_what_its_owner_s_secret_has_signed_alone(shop: HookReceiver) -> None:
    assert await post(shop, "msg_1") == 204
    assert await post(shop, "msg_1") == 204
    assert await post(shop, "msg_2", OTHER) == 400
    assert await post(shop, "msg_3", owner="eve") == 400
    assert shop.taken == {"msg_1": 2}
    assert shop.forged.total() == 2


async def test_a_receiver_is_away_in_each_way_and_comes_back(shop: HookReceiver) -> None:
    await shop.feel(Mood.REFUSES)
    with pytest.raises(httpx.ConnectError):
        await post(shop, "msg_1")
    await shop.feel(Mood.FAILS)
    assert await post(shop, "msg_1") == 500
    await shop.feel(Mood.HANGS)
    waiting = asyncio.create_task(post(shop, "msg_1"))
    await until(lambda: shop.asked[Mood.HANGS.value] == 1, what="it is asked")
    await shop.feel(Mood.TAKES)
    with pytest.raises(httpx.TransportError):
        await waiting
    assert shop.taken == {}
    assert await post(shop, "msg_1") == 204
    assert shop.taken == {"msg_1": 1}


def ended(job_id: str, status: str = "succeeded", *, removed: bool = False) -> Ended:
    return Ended(id=job_id, way="graph", user="ann", status=status, removed=removed)


async def test_a_job_that_ended_twice_or_otherwise_is_found(
    redis_port: int, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.ends.AFTER_S", 0.0)
    keys, store = stores.redis.keyspace, cast(Any, stores.redis)
    for job_id, status, ends in (
        ("fine", "succeeded", 1),
        ("changed", "canceled", 1),
        ("twice", "succeeded", 2),
        ("gone", None, 0),
        ("removed", None, 0),
    ):
        if status:
            await store.hset(keys.job(job_id), "status", status)
        for _ in range(ends):
            await store.xadd(keys.rq_results(job_id), {"a": "b"})
    settings = Settings(redis_url=f"redis://127.0.0.1:{redis_port}/0")
    audit = EndsAudit(cast(Fleet, type("One", (), {"settings": settings})))
    ids = ["fine", "changed", "twice", "gone"]
    audit.add(
        [*ids, "removed", "open"],
        [*(ended(one) for one in ids), ended("removed", removed=True), ended("fine")],
    )
    task = asyncio.create_task(audit.run())
    try:
        await until(lambda: audit.looked == 5, what="all are looked at")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert audit.unfinished == {"open"}
    assert sorted(line.split()[0] for line in audit.wrong) == ["changed", "fine", "gone", "twice"]


async def test_keys_are_counted_by_kind(stores: Stores) -> None:
    keys, store = stores.redis.keyspace, cast(Any, stores.redis)
    for number in range(3):
        await store.hset(keys.job(f"{number}b1ed575-26e6-44ad-bb86-28d9a390a866"), "status", "queued")
    await store.set("somebody:elses", 1)
    counted = await KeyKinds(keys).count(store)
    assert (counted["job"], counted["somebody:elses"]) == (3, 1)
