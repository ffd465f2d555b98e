"""Servers that are closed leave no connection open, however far it has come."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from comfy_fleet.adapters.comfyui.direct_node import DirectNode, NodeSession, trust
from comfy_fleet.adapters.telemetry import MetricsServer
from comfy_fleet.agent import AgentCheckServer
from comfy_fleet.sim import NodeOptions, SimNode
from tests.stream_server import StreamServer
from tests.tls_proxy import HOST, Authority

TURNS = range(8)  # of the loop, from a connection that the kernel has to one that is served
Loop = Callable[[], asyncio.AbstractEventLoop]
Serving = Callable[[], AbstractAsyncContextManager[int]]  # on the port that it gives


@asynccontextmanager
async def agent() -> AsyncIterator[int]:
    one = AgentCheckServer(lambda _: None, host="127.0.0.1", port=0)
    await one.start()
    yield one.port
    await one.stop()


@asynccontextmanager
async def metrics() -> AsyncIterator[int]:
    one = MetricsServer(CollectorRegistry(), host="127.0.0.1", port=0, setting="")
    await one.start()
    assert one.port is not None
    yield one.port
    await one.stop()


@asynccontextmanager
async def sim() -> AsyncIterator[int]:
    async with SimNode(NodeOptions(name="g1"), port=0) as one:
        yield one.port


@asynccontextmanager
async def of_the_tests() -> AsyncIterator[int]:
    async with StreamServer(_waits) as server:
        yield server.port


async def _waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(64 * 1024 * 1024))


def is_closed(client: socket.socket) -> bool:
    """Tell whether the other side has closed it."""
    client.setblocking(False)
    with suppress(ConnectionResetError):
        try:
            return client.recv(1) == b""
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("serving", [agent, metrics, sim, of_the_tests])
def test_a_connection_that_was_taken_just_now_is_closed(serving: Serving, loop: Loop, turns: int) -> None:
    async def closed() -> bool:
        with socket.socket() as client:
            async with serving() as port:
                client.connect(("127.0.0.1", port))
                for _ in range(turns):
                    await asyncio.sleep(0)
            return is_closed(client)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(closed())


@pytest.mark.parametrize("turns", TURNS)
async def test_so_is_one_that_still_shakes_hands(tmp_path: Path, turns: int) -> None:
    with socket.socket() as client:
        async with StreamServer(_waits, context=Authority(tmp_path).context(HOST)) as server:
            client.connect(("127.0.0.1", server.port))
            for _ in range(turns):
                await asyncio.sleep(0)
        assert is_closed(client)


async def test_so_is_one_whose_client_reads_nothing() -> None:
    with socket.socket() as client, socket.socket() as other:
        async with StreamServer(_never_read) as server:
            for one in (client, other):  # the second one: a server that serves on must not forget the first
                one.connect(("127.0.0.1", server.port))
                for _ in TURNS:
                    await asyncio.sleep(0)
            (first, _) = server.open
        assert first.get_extra_info("socket").fileno() == -1


async def test_a_node_is_left_by_whoever_gives_up_while_they_shake_hands() -> None:
    hello, left = asyncio.Event(), asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            hello.set()
        left.set()

    gc.disable()  # it would close the connection, too, but nobody knows when
    try:
        async with StreamServer(never_answer) as server, NodeSession(trust(None)) as session:
            node = DirectNode(f"https://127.0.0.1:{server.port}", session)
            asking = asyncio.create_task(node.json("/queue", timeout_s=60))
            await asyncio.wait_for(hello.wait(), 20)
            asking.cancel()
            await asyncio.wait({asking})
            await asyncio.wait_for(left.wait(), 20)
    finally:
        gc.enable()
