"""A server that sends interim heads instead of an answer holds nobody."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from comfy_fleet.adapters.comfyui.head_limits import MAX_INTERIM
from comfy_fleet.adapters.comfyui.node_client import NODE, NodeClient
from comfy_fleet.domain.errors import NodeError, NodeFault
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.domain.jobs.run_messages import AskFailed, HistoryAnswered, PostUnknown
from tests.stream_server import StreamServer

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ANSWER = f"HTTP/1.1 200 OK\r\n{NODE}: g1\r\nContent-Length: 2\r\n\r\n{{}}".encode()


@contextlib.asynccontextmanager
async def node(*parts: bytes, endless: bytes = b"") -> AsyncIterator[tuple[NodeClient, list[str]]]:
    """Serve each request these parts, then what has no end; yields a client and the faults it was told."""
    faults: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                for part in parts:
                    writer.write(part)
                while endless:
                    writer.write(endless)
                    await writer.drain()

    async with (
        StreamServer(serve) as server,
        NodeClient(
            f"http://127.0.0.1:{server.port}",
            on_fault=lambda name, fault: faults.append(f"{name}: {fault.message}"),
        ) as client,
    ):
        yield client, faults


@pytest.mark.parametrize("interim", [HINTS, CONTINUE, CONTINUE * 1000])
async def test_without_end_they_are_the_nodes_fault(interim: bytes) -> None:
    async with node(endless=interim) as (client, faults), asyncio.timeout(10):
        answer = await client.history("g1", "run")
        assert isinstance(answer, AskFailed)
        assert answer.kind == "unusable"
        with pytest.raises(NodeFault, match="interim heads"):
            await client.inventory("g1")
        assert isinstance(await client.post_prompt("g1", graph={}, run="r", job="j"), PostUnknown)
        with pytest.raises(NodeError):
            async with client.view("g1", FileRef("x", "", "output")):
                pass
        assert len(faults) == 3
        assert all(f"more than {MAX_INTERIM} interim heads" in fault for fault in faults)


async def test_a_few_are_skipped_each_time() -> None:
    async with node(HINTS * MAX_INTERIM, ANSWER) as (client, faults), asyncio.timeout(10):
        for _ in range(3):
            assert isinstance(await client.history("g1", "run"), HistoryAnswered)
        assert not faults
