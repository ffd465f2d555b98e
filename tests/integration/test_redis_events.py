"""Events of jobs over Redis: their order, and a server that comes late."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from comfy_fleet.adapters.redis.client import connect_once, subscriber
from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import (
    JobStatus,
    Progress,
)
from tests.conftest import free_port
from tests.integration.haproxy_kit import eventually
from tests.integration.redis_kit import add_nodes, claim, output, stored, submit
from tests.stream_server import StreamServer


async def test_events_come_in_order_with_the_run(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    async with stores.events.subscribe(job.id) as events:
        got = await claim(stores)
        await stores.runs.progress(got, Progress(value=0.1, nodes_done=0, nodes_total=2))
        await stores.runs.commit(got, stored(got, output()))
        await stores.runs.commit(
            replace(got), stored(replace(got), output(asset_id="again"))
        )  # the same place: no second output
        await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)
        seen = []
        async for event in events:
            seen.append(event)
            if event.type == "status" and event.data["status"] == "succeeded":
                break
    assert [e.type for e in seen] == ["status", "progress", "output", "status"]
    assert [e.seq for e in seen] == sorted(e.seq for e in seen)
    assert {e.run for e in seen} == {got.run}


async def test_events_come_once_redis_is_there_even_if_it_was_away_at_first(
    redis: Any, redis_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    listening = subscriber(f"redis://127.0.0.1:{port}/0")
    events = RedisEvents(listening)

    async def first() -> bytes:
        async with events.channel("news") as queue:
            return await queue.get()

    reading = asyncio.create_task(first())
    await eventually("it has met a closed port", lambda: "event connection lost" in caplog.text)
    async with StreamServer(partial(_relay, redis_port), port):
        async with asyncio.timeout(60):
            while not reading.done():
                await redis.publish("news", "good")
                await asyncio.sleep(0.05)
        assert await reading == b"good"
        await events.close()
        await listening.aclose()


async def heard(events: RedisEvents, channel: str, entered: asyncio.Event) -> bytes:
    """Return the first message of a channel."""
    async with events.channel(channel) as queue:
        entered.set()
        return await queue.get()


async def published_until(redis: Any, channel: str, reading: asyncio.Task[bytes]) -> bytes:
    """Publish until a reader has got it; return what it got."""
    async with asyncio.timeout(60):
        while not reading.done():
            await redis.publish(channel, channel)
            await asyncio.sleep(0.05)
    return await reading


async def test_who_begins_to_listen_while_redis_is_away_hears_it_later_like_the_others(
    redis: Any, redis_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    relay = partial(_relay, redis_port)
    port = free_port()
    listening = connect_once(f"redis://127.0.0.1:{port}/0")
    events = RedisEvents(listening)
    here, there = asyncio.Event(), asyncio.Event()
    async with StreamServer(relay, port):
        early = asyncio.create_task(heard(events, "early", here))
        async with asyncio.timeout(60):
            await here.wait()
    await eventually("it is known that Redis is away", lambda: "event connection lost" in caplog.text)
    late = asyncio.create_task(heard(events, "late", there))
    async with asyncio.timeout(60):
        await there.wait()
    async with StreamServer(relay, port):
        assert await published_until(redis, "late", late) == b"late"
        assert await published_until(redis, "early", early) == b"early"
        await events.close()
        await listening.aclose()


async def test_who_keeps_a_list_of_nodes_hears_of_nodes_and_of_no_job(stores: Stores) -> None:
    async with stores.events.channel("fleet:wake:nodes") as queue:
        for _ in range(20):
            await submit(stores)
        await add_nodes(stores, "g1")
        async with asyncio.timeout(60):
            assert await queue.get() == b"nodes"
        assert queue.empty()


async def _relay(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    there, back = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(4096):
            target.write(data)
        target.close()

    try:
        await asyncio.gather(copy(reader, back), copy(there, writer))
    finally:
        back.transport.abort()
