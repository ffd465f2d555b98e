"""Answers of a node that come byte by byte without end: given up by the limit's name, whatever was asked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from comfy_fleet.adapters.comfyui.answer_limits import AnswerLimits
from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.jobs.run_messages import AskFailed, PostUnknown
from tests.stream_server import StreamServer

HEAD = b"HTTP/1.1 200 OK\r\nX-Fleet-Node: g1\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n["
LIMITS = AnswerLimits(size=2**20, seconds=0.3)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.fixture
async def nodes() -> AsyncIterator[NodeClient]:
    async with (
        StreamServer(trickle) as server,
        NodeClient(f"http://127.0.0.1:{server.port}", limits=LIMITS) as client,
    ):
        yield client


async def test_an_answer_that_trickles_without_end_is_given_up(nodes: NodeClient) -> None:
    run = str(uuid4())
    async with asyncio.timeout(30):
        for asked in (await nodes.queue_state("g1", run), await nodes.history("g1", run)):
            assert isinstance(asked, AskFailed) and asked.kind == "unusable"
            assert "FLEET_NODE_ANSWER_S" in asked.why
        posted = await nodes.post_prompt("g1", graph={}, run=run, job="j")
        assert isinstance(posted, PostUnknown)  # the node may have taken it
        with pytest.raises(NodeError, match="FLEET_NODE_ANSWER_S"):
            await nodes.system_stats("g1")
        assert not await nodes.interrupt("g1", run)
