"""Bodies that trickle, stall, or that nobody reads, on a real connection."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from comfy_fleet.api.body_pace import BodyPace
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

PACE = BodyPace(window_s=1.0, window_bytes=1000, linger_s=0.3)


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    write_keys((tmp_path / "keys"), "ann ann-key-0123456789\n")
    async with running(redis_port, tmp_path, pace=PACE, keys_file=tmp_path / "keys") as api:
        yield api


async def ask(
    api: Api, *headers: str, piece: bytes, every_s: float, most: int = 10_000, orderly: bool = False
) -> tuple[bytes, float]:
    """Send a head and then pieces until the API closes; return what it said, and after how many seconds."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    writer.write("\r\n".join(["POST /api/v2/jobs HTTP/1.1", "Host: 127.0.0.1", *headers, "\r\n"]).encode())

    async def send() -> None:
        for _ in range(most):
            writer.write(piece)
            await asyncio.sleep(every_s)

    sending = asyncio.create_task(send())
    try:
        said = b""
        # Closed while more comes in, the connection may also end with a reset.
        with contextlib.nullcontext() if orderly else contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(60):
                while chunk := await reader.read(65536):
                    said += chunk
        return said, time.monotonic() - began
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


KEY = "Authorization: Bearer ann-key-0123456789"


@pytest.mark.parametrize("length", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
async def test_a_body_that_trickles_is_given_up(api: Api, length: str) -> None:
    piece = b"1\r\n \r\n" if "chunked" in length else b" "
    said, took = await ask(api, KEY, length, piece=piece, every_s=0.02)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in said
    assert b"connection: close" in said
    assert took >= PACE.window_s


async def test_a_body_that_stalls_is_given_up(api: Api) -> None:
    said, took = await ask(api, KEY, "Content-Length: 100000", piece=b" " * 5000, every_s=0, most=1)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert took >= PACE.window_s


async def test_a_slow_body_that_keeps_its_pace_is_read_to_its_end(api: Api) -> None:
    count = 50
    headers = KEY, f"Content-Length: {count * 1000}", "Connection: close"
    said, took = await ask(api, *headers, piece=b" " * 1000, every_s=0.05, most=count)
    assert said.startswith(b"HTTP/1.1 400 ")  # all blanks are no JSON
    assert b"the body is not JSON" in said
    assert took > 2 * PACE.window_s


async def test_a_refused_body_is_not_waited_for(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    write_keys((tmp_path / "keys"), "ann ann-key-0123456789\n")
    patient = replace(PACE, window_s=3600.0)  # only because it is refused does it end before the client tires
    async with running(redis_port, tmp_path, pace=patient, keys_file=tmp_path / "keys") as api:
        said, _ = await ask(api, "Content-Length: 100000", piece=b" ", every_s=0.02)
    assert said.startswith(b"HTTP/1.1 401 ")
    assert said.endswith(b"}}")  # the whole answer


async def test_a_refused_body_that_comes_whole_is_taken(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    """Closing while it is on its way would reset the connection, and could cost the client the answer."""
    write_keys((tmp_path / "keys"), "ann ann-key-0123456789\n")
    patient = replace(PACE, linger_s=3600.0)
    async with running(redis_port, tmp_path, pace=patient, keys_file=tmp_path / "keys") as api:
        said, _ = await ask(
            api, "Content-Length: 3000000", piece=b" " * 3_000_000, every_s=0, most=1, orderly=True
        )
    assert said.startswith(b"HTTP/1.1 401 ")
    assert said.endswith(b"}}")
