"""Websocket frames that are cheap to send and dear to take."""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator

import pytest

from comfy_fleet.adapters.comfyui.lease import (
    MAX_CONTROLS,
    MAX_FRAGMENTS,
    MAX_FRAMES,
    LeaseClient,
    WebsocketLease,
)
from comfy_fleet.domain.jobs.run_messages import Binary, Frame
from tests.stream_server import StreamServer

KIB = 1024
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PART = b"\x00\x00"
PING = b"\x89\x01x"


def frame(opcode: int, body: bytes, *, fin: bool = True) -> bytes:
    return bytes([(0x80 if fin else 0) | opcode, 127]) + len(body).to_bytes(8, "big") + body


@contextlib.asynccontextmanager
async def lease(first: bytes, endless: bytes = b"") -> AsyncIterator[WebsocketLease]:
    """A lease of a node that sends this."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            key = next(value for name, value in lines.items() if name.lower() == b"sec-websocket-key")
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"X-Fleet-Node: g1\r\nSec-WebSocket-Accept: "
                + base64.b64encode(hashlib.sha1(key + GUID).digest())
                + b"\r\n\r\n"
                + first
            )
            while endless:
                writer.write(endless)
                await writer.drain()
            await reader.read(1)  # the goodbye, or its end
        ended.set()

    async with StreamServer(serve) as server:
        found = await LeaseClient(f"ws://127.0.0.1:{server.port}", max_frame_bytes=KIB * KIB).lease(
            run="r", pool="default"
        )
        assert isinstance(found, WebsocketLease)
        yield found
        found.release()
        await ended.wait()


@pytest.mark.parametrize(
    ("first", "endless", "why"),
    [
        (b"\x01\x00", PART * 10_000, f"in more than {MAX_FRAGMENTS} parts"),
        (b"\x02\x00", b"\x00\x01y" * 10, f"in more than {MAX_FRAGMENTS} parts"),
        (b"", PING * 10_000, f"more than {MAX_CONTROLS} websocket pings in a second"),
        (b"", b"\x8a\x00" * 10_000, f"more than {MAX_CONTROLS} websocket pings in a second"),
    ],
)
async def test_a_flood_ends_the_websocket_with_the_limit(first: bytes, endless: bytes, why: str) -> None:
    async with lease(first, endless) as found, asyncio.timeout(10):
        assert [one async for one in found.frames()] == []
        assert found.limit.startswith("node g1 sent ")
        assert why in found.limit


@pytest.mark.parametrize("tiny", [frame(1, b"{}"), b"\x81\x02{}", b"\x82\x00"])
async def test_a_flood_of_whole_messages_ends_the_websocket_and_holds_nobody_up(tiny: bytes) -> None:
    turns = 0

    async def beside() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with lease(b"", tiny * 10_000) as found, asyncio.timeout(30):
        other = asyncio.create_task(beside())
        async for _ in found.frames():
            pass
        other.cancel()
        assert f"more than {MAX_FRAMES} websocket frames" in found.limit
        assert turns > MAX_FRAMES / 500


async def test_a_burst_of_thousands_passes_in_order() -> None:
    sent = [frame(1, b'{"type": "%d"}' % number) for number in range(5_000)]
    async with lease(b"".join(sent) + b"\x88\x00") as found, asyncio.timeout(30):
        assert [one async for one in found.frames()] == [Frame(str(number), {}) for number in range(5_000)]
        assert not found.limit


@pytest.mark.parametrize("cut", [1, 300 * KIB, 600 * KIB, 900 * KIB - 1])
async def test_large_messages_arrive_whole_between_small_ones(cut: int) -> None:
    large = bytes(range(256)) * 4 * 900
    sent = [
        frame(1, b'{"type": "a"}'),
        frame(2, large),
        frame(2, large[:cut], fin=False),
        PING,
        frame(0, large[cut:]),
        frame(1, b'{"type": "b"}'),
        b"\x88\x00",
    ]
    async with lease(b"".join(sent)) as found, asyncio.timeout(10):
        assert [one async for one in found.frames()] == [
            Frame("a", {}),
            Binary(large),
            Binary(large),
            Frame("b", {}),
        ]


async def test_few_parts_and_pings_pass_and_keep_their_kind() -> None:
    parts = [frame(1, b'{"type": "a", "data"', fin=False), PING, PART * 5, frame(0, b": {}}")]
    sent = [*parts, frame(2, b"\0\0\0\1"), PING * 5, frame(1, b'{"type": "b"}'), b"\x88\x00"]
    async with lease(b"".join(sent)) as found, asyncio.timeout(10):
        assert [one async for one in found.frames()] == [
            Frame("a", {}),
            Binary(b"\0\0\0\1"),
            Frame("b", {}),
        ]
        assert not found.limit


async def test_a_text_that_takes_four_times_its_bytes_breaks_the_frame_limit() -> None:
    text = '{"type": "x", "data": {"a": "\N{SLIGHTLY SMILING FACE}'.encode() + b"x" * (900 * KIB) + b'"}}'
    async with lease(frame(1, text)) as found, asyncio.timeout(10):
        assert [one async for one in found.frames()] == []
        assert "FLEET_NODE_FRAME_BYTES" in found.limit
