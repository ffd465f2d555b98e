"""The client's own line: calls wait for a connection instead of failing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection

from comfy_fleet.adapters.redis.client import FleetRedis, connect
from comfy_fleet.adapters.redis.clock import ServerClock
from comfy_fleet.domain.errors import StoreDown, StoreRefuses
from tests.stream_server import StreamServer

CONNECTIONS = 4


@pytest.fixture
async def client(redis: FleetRedis, redis_port: int) -> AsyncIterator[FleetRedis]:
    made = connect(f"redis://127.0.0.1:{redis_port}/0", connections=CONNECTIONS, wait_s=5)
    yield made
    await made.aclose()


async def one_call(client: FleetRedis, number: int) -> None:
    await client.incr("calls")
    async with client.pipeline(transaction=number % 2 == 0) as pipe:
        pipe.incr("calls")
        await pipe.execute()


async def test_more_calls_than_connections_wait_for_each_other(client: FleetRedis, redis: FleetRedis) -> None:
    await asyncio.gather(*(one_call(client, number) for number in range(300)))
    assert await redis.get("calls") == b"600"
    own = [line for line in await redis.client_list() if line["addr"]]
    assert len(own) <= CONNECTIONS + 1


async def test_a_call_that_finds_no_connection_in_time_was_not_made(
    redis: FleetRedis, redis_port: int
) -> None:
    client = connect(f"redis://127.0.0.1:{redis_port}/0", connections=1, wait_s=0.05)
    holder: asyncio.Future[Any] = asyncio.ensure_future(client.blpop(["never"], timeout=5))
    while not any(line["cmd"] == "blpop" for line in await redis.client_list()):
        await asyncio.sleep(0.01)
    with pytest.raises(StoreRefuses, match="FLEET_REDIS_CONNECTIONS"):
        await client.incr("calls")
    await redis.rpush("never", "x")
    await holder
    assert await client.get("calls") is None
    await client.aclose()


@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_server_that_takes_a_call_and_does_not_answer_is_asked_once(pipelined: bool) -> None:
    taken = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            if b"GET" in data:
                taken.append(data)
            else:
                writer.write(b"+OK\r\n" * data.count(b"*"))

    async with StreamServer(silent) as server:
        client = connect(f"redis://127.0.0.1:{server.port}/0", answer_s=0.5)
        pipe = client.pipeline(transaction=False)
        pipe.get("x")
        with pytest.raises(StoreDown):
            await (pipe.execute() if pipelined else client.get("x"))
        assert len(taken) == 1
        await client.aclose()


@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_connection_that_uvloop_has_closed_is_replaced(
    client: FleetRedis, monkeypatch: pytest.MonkeyPatch, pipelined: bool
) -> None:
    await client.ping()
    send, refused = AbstractConnection.send_packed_command, list[Any]()

    async def closed_at_first(connection: Any, *args: Any, **options: Any) -> None:
        if not refused:
            refused.append(connection)
            await connection.disconnect(nowait=True)
            await _closed()
        await send(connection, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", closed_at_first)
    pipe = client.pipeline(transaction=False)
    pipe.ping()
    assert await (pipe.execute() if pipelined else client.ping()) in (True, [True])
    assert refused


async def test_a_subscription_that_uvloop_has_closed_is_down(redis: FleetRedis) -> None:
    pubsub = redis.pubsub()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PubSub, "execute_command", _closed)
        with pytest.raises(StoreDown):
            await pubsub.subscribe("x")


async def _closed(*args: object) -> None:
    raise RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed")


async def test_canceled_calls_keep_no_connection(client: FleetRedis) -> None:
    async def hurried(number: int) -> None:
        try:
            async with asyncio.timeout(0.0002 * (number % 40)):
                for _ in range(20):
                    await one_call(client, number)
        except TimeoutError:
            pass

    await asyncio.gather(*map(hurried, range(200)))
    await asyncio.gather(*(one_call(client, number) for number in range(2 * CONNECTIONS)))


async def test_the_servers_clock_is_counted_on_between_two_questions(client: FleetRedis) -> None:
    own = [1000.0]
    clock = ServerClock(client, monotonic=lambda: own[0])
    seconds, _ = await client.time()
    first = await clock()
    assert abs(first - seconds) < 30
    own[0] += 20
    assert await clock() == first + 20  # not asked again so soon
    own[0] += 20
    assert abs(await clock() - first) < 30  # asked again: 40 s have not gone by there
