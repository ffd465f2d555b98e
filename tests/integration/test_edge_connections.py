"""Many connections at the edge: of one address, and with heads that never end."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from pathlib import Path

from tests.integration.edge_kit import Edge, edge_of
from tests.integration.haproxy_kit import eventually

SLOW = 1500


@contextlib.asynccontextmanager
async def opened(edge: Edge, count: int, source: str) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Hold connections open that say half a request, half of them at the console."""
    async with contextlib.AsyncExitStack() as stack:
        writers = []
        for number in range(count):
            port = edge.settings.console_port if number % 2 else edge.settings.port
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            except ConnectionResetError:  # closed at once: its last ones may be far too many
                continue
            stack.callback(writer.close)
            writer.write(b"GET /api/v1/jobs HTTP/1.1\r\nHost: a\r\nX-Slow:")
            writers.append(writer)
        yield writers


async def said_to(edge: Edge, source: str) -> bytes:
    """Return what one more connection of an address is answered; nothing if it is closed at once."""
    with contextlib.suppress(ConnectionError):
        local = (source, 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.port, local_addr=local)
        with contextlib.closing(writer):
            writer.write(b"GET /api/v1/jobs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return await reader.read()
    return b""


async def test_one_address_has_so_many_connections_and_others_get_in(tmp_path: Path) -> None:
    async with edge_of(tmp_path, connection_limit=20) as edge:

        async def status_of(source: str, expected: bytes | None) -> bool:
            said = await said_to(edge, source)
            return said == b"" if expected is None else said.startswith(expected)

        async with opened(edge, 19, "127.0.0.2"):
            assert await status_of("127.0.0.2", b"HTTP/1.1 200 ")
            async with opened(edge, 1, "127.0.0.2") as (last,):
                await eventually("it is one too many", lambda: status_of("127.0.0.2", b"HTTP/1.1 429 "))
                refused = await said_to(edge, "127.0.0.2")
                assert b"\r\nretry-after: 10\r\n" in refused.lower()
                assert b'"too_many_connections"' in refused
                assert b"FLEET_CONNECTION_LIMIT" in refused
                assert await status_of("127.0.0.3", b"HTTP/1.1 200 ")
                last.write(b" x\r\n\r\n")  # those who were there first are served
                await last.drain()
            await eventually("it is counted no more", lambda: status_of("127.0.0.2", b"HTTP/1.1 200 "))
        async with opened(edge, 41, "127.0.0.2"):
            await eventually("the next is closed at once", lambda: status_of("127.0.0.2", None))
            assert await status_of("127.0.0.3", b"HTTP/1.1 200 ")


async def test_a_trusted_proxys_connections_are_not_counted(tmp_path: Path) -> None:
    async with edge_of(tmp_path, connection_limit=2, trusted_proxies="127.0.0.2") as edge:
        for source, status in (("127.0.0.2", b"200"), ("127.0.0.3", b"429")):
            async with opened(edge, 3, source):
                for _ in range(3):
                    assert (await said_to(edge, source)).startswith(b"HTTP/1.1 " + status)


async def test_heads_that_never_end_are_given_up_and_delay_nobody(tmp_path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    async with edge_of(tmp_path) as edge:
        given_up: list[bytes] = []

        async def trickle() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.port)
            with contextlib.closing(writer):
                writer.write(b"GET /api/v1/jobs HTTP/1.1\r\nHost: a\r\nX-Slow:")
                answer = asyncio.create_task(reader.read())
                while not answer.done():
                    await asyncio.wait([answer], timeout=2)
                    writer.write(b" ")
                given_up.append(answer.result())

        slow = [asyncio.create_task(trickle()) for _ in range(SLOW)]
        try:
            looked = 0
            while len(given_up) < SLOW:
                for ended in (task for task in slow if task.done()):
                    ended.result()  # what went wrong is told
                assert (await edge.http.get("/api/v1/jobs")).status_code == 200
                looked += 1
                await asyncio.sleep(0.05)
        finally:
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        assert looked > 2
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in given_up)
