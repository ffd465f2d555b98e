"""A node that answers whatever it is told to, on a real socket, and everything that the fleet asks nodes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import recordings, values
from benchmarks.fuzz.target import right
from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.timeouts import Timeout

_ASKED = (
    *("post", "queue", "history", "stats", "inventory", "listing", "view", "holds", "upload", "raw", "free"),
    *("interrupt", "preview"),
)
_WITHIN_S = 15.0
_HEADS = [
    b"HTTP/1.1 200 OK\r\nX-Fleet-Node: g1\r\nContent-Type: application/json\r\n",
    b"HTTP/1.1 400 Bad Request\r\nX-Fleet-Node: g1\r\n",
    b"HTTP/1.1 302 Found\r\nX-Fleet-Node: g1\r\nLocation: http://127.0.0.1:1/\r\n",
    b"HTTP/1.1 503 Service Unavailable\r\n",
    b"HTTP/1.1 200 OK\r\nX-Fleet-Node: g1\r\nContent-Encoding: gzip\r\n",
]
_ENDS = (b"length", b"close", b"chunked", b"short", b"long")


def node_answers() -> st.SearchStrategy[Any]:
    """Draw a question, and the bytes that answer it."""
    bodies = [
        *recordings.answers("/history"),
        *recordings.answers("/queue"),
        *recordings.answers("/prompt"),
        recordings.answer("GET_system_stats"),
        {"queue_running": [[0, recordings.RUN, {}, {}, []]], "queue_pending": []},
        {"name": "a.png", "subfolder": "", "type": "input"},
        recordings.classes(4),
        ["a", "b"],
    ]
    return st.tuples(
        st.sampled_from(_ASKED),
        st.sampled_from(_HEADS) | values.changed_bytes(_HEADS),
        st.sampled_from(_ENDS),
        values.changed_json(bodies),
    )


class _Node:
    """The server's side."""

    def __init__(self) -> None:
        self.answer = b""
        self.url = ""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Talk(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._server = server


class _Talk(asyncio.Protocol):
    def __init__(self, node: _Node) -> None:
        self._node = node
        self._asked = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        # An answer may come before the whole request has; it is always the last of its connection.
        self._asked += data
        if b"\r\n\r\n" in self._asked and not self._transport.is_closing():
            self._transport.write(self._node.answer)
            self._transport.close()


async def _content() -> AsyncIterator[bytes]:
    yield b"bytes"


_RUNNER = asyncio.Runner()
_NODE = _Node()


def node_answer(case: tuple[str, bytes, bytes, bytes]) -> None:
    """Ask; whatever comes, the answer is one of those that are documented."""
    asked, head, end, body = case
    if not _NODE.url:
        _RUNNER.run(_NODE.start())
    _NODE.answer = _whole(head, end, body)
    _RUNNER.run(_ask(asked))


def _whole(head: bytes, end: bytes, body: bytes) -> bytes:
    match end:
        case b"length":
            return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        case b"short":
            return head + b"Content-Length: %d\r\n\r\n" % (len(body) + 9) + body
        case b"long":
            return head + b"Content-Length: %d\r\n\r\n" % (len(body) // 2) + body
        case b"chunked":
            return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        case _:
            return head + b"\r\n" + body


async def _ask(asked: str) -> None:
    run, ref = recordings.RUN, FileRef("a.png", "", "output")
    async with Timeout(_WITHIN_S), NodeClient(_NODE.url) as nodes:
        match asked:
            case "post":
                await nodes.post_prompt("g1", graph={}, run=run, job="j")
            case "queue":
                await nodes.queue_state("g1", run)
            case "history":
                await nodes.history("g1", run)
            case "interrupt":
                right(isinstance(await nodes.interrupt("g1", run), bool), "interrupt")
            case "holds":
                right(isinstance(await nodes.holds("g1", ref, size_bytes=5), bool), "holds")
            case _:
                with contextlib.suppress(NodeError):
                    await _ask_or_refuse(nodes, asked, ref)


async def _ask_or_refuse(nodes: NodeClient, asked: str, ref: FileRef) -> None:
    match asked:
        case "stats":
            await nodes.system_stats("g1")
        case "inventory":
            await nodes.inventory("g1")
        case "listing":
            await nodes.listing("g1", "/models")
        case "view":
            async with nodes.view("g1", ref) as content:
                async for _ in content.chunks:
                    pass
        case "upload":
            await nodes.upload(
                "g1", name="a.png", subfolder="x", content=_content(), content_type="image/png", size_bytes=5
            )
        case "raw":
            await nodes.raw("g1", "GET", "/x")
        case "preview":
            await nodes.preview("g1", folder="loras", index=0, name="x")
        case "free":
            await nodes.free("g1")
