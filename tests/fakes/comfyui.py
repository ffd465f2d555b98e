"""ComfyUI servers in memory: leases on them, and what they answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from comfy_fleet.domain.errors import NodeError, OutputGone
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.graphs.object_info import Packer
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.domain.jobs.run_messages import Binary, Frame
from comfy_fleet.ports.assets import Content
from comfy_fleet.ports.comfyui import NoLease, RawAnswer
from tests.fakes.base import Fake, unplayed


class FakeLease:
    """A lease on a node.

    Attributes:
        sent: The frames that its node sends.
        over: Set once it is released or its websocket has closed.
        released: Whether it was given back.
    """

    close_reason = ""
    limit = ""

    def __init__(self, node: str, on_release: Callable[[str], None] = lambda node: None) -> None:
        self.node = node
        self.sent: list[Frame | Binary] = []
        self.over = asyncio.Event()
        self.released = False
        self._on_release = on_release

    async def frames(self) -> AsyncIterator[Frame | Binary]:
        for frame in self.sent:
            yield frame
        await self.over.wait()

    async def answers(self, within_s: float) -> bool:
        return not self.over.is_set()

    def release(self) -> None:
        if not self.released:
            self._on_release(self.node)
        self.released = True
        self.over.set()


class FakeLeases(Fake):
    """HAProxy's lease frontend, with one slot for each node.

    Attributes:
        pools: The pool of each node.
        free: Nodes that can be granted, in the order in which HAProxy would take them.
        asked: Every request: pool and nodes.
        granted: Every lease.
        refusal: Why nothing is granted.
        frozen: A node that answers nothing at all.
        on_ask: Called with the pool of each request.
    """

    def __init__(self, pools: Mapping[str, str]) -> None:
        super().__init__()
        self.pools = pools
        self.free = list(pools)
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.granted: list[FakeLease] = []
        self.refusal = NoLease(why="busy")
        self.frozen = ""
        self.on_ask: Callable[[str], None] = lambda pool: None

    async def lease(self, *, run: str, pool: str, nodes: Sequence[str] = ()) -> FakeLease | NoLease:
        self.answer("lease")
        self.asked.append((pool, tuple(nodes)))
        self.on_ask(pool)
        await asyncio.sleep(0)
        able = nodes or [name for name, where in self.pools.items() if where == pool]
        name = next((name for name in able if name in self.free and self.pools[name] == pool), None)
        if name is None:
            return self.refusal
        if name == self.frozen:
            await asyncio.Event().wait()
        self.free.remove(name)
        self.granted.append(FakeLease(name, self.free.append))
        return self.granted[-1]


class FakeNodeApi(Fake):
    """ComfyUI's HTTP API on named nodes.

    Attributes:
        classes: What each node answers to ``/object_info``; None: it is down.
        early: How many questions to each node come before it is there.
        stats: What each node answers to ``/system_stats``; a node without is asked in vain.
        hangs: Whether ``/system_stats`` is never answered.
        files: What the nodes' files hold, by name, or by ``type/name`` for what is not in ``output``.
        file_troubles: What asking for a file raises, one each time.
        slow: What each file waits for before it is sent.
        tells_length: Whether it says how long a file is.
        listings: What each node answers to its lists, by path; a node without is asked in vain.
        pictures: Previews of models, by ``FOLDER/INDEX/NAME``.
        gates: What questions for lists, and calls that are passed on, wait for, by node.
        raws: What each node answers to calls that are passed on, by path; a node without is called in vain.
        passed: Every such call: node, method, path, headers, body.
        listed: Every question for a list or a preview.
        freed: Nodes that were asked to unload their models.
        told_to_free: What they were told: whether to unload models, and to free memory.
        asked: Every node whose inventory was asked for.
        viewed: Every file that was asked for.
        inputs: What was put into each node's input folder, by ``SUBFOLDER/NAME``.
        under_way: How many files are being sent.
        most: How many were at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.classes: dict[str, Mapping[str, Any] | None] = {}
        self.early: dict[str, int] = {}
        self.stats: dict[str, Mapping[str, Any]] = {}
        self.hangs = False
        self.files: dict[str, bytes] = {}
        self.file_troubles: dict[str, list[Exception]] = {}
        self.slow: dict[str, asyncio.Event] = {}
        self.tells_length = True
        self.listings: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, bytes] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.raws: dict[str, dict[str, RawAnswer]] = {}
        self.passed: list[tuple[str, str, str, dict[str, str], bytes]] = []
        self.listed: list[tuple[str, str, dict[str, str]]] = []
        self.freed: list[str] = []
        self.told_to_free: list[tuple[bool, bool]] = []
        self.asked: list[str] = []
        self.viewed: list[str] = []
        self.inputs: dict[str, dict[str, bytes]] = {}
        self.under_way = self.most = 0

    def serve(self, node: str, classes: Mapping[str, Any], *, comfyui: str = "0.3.64") -> None:
        """Have a node be up, with these classes and no GPU."""
        self.classes[node] = classes
        self.stats[node] = {"system": {"comfyui_version": comfyui}, "devices": []}

    async def inventory(self, node: str) -> Inventory:
        self.asked.append(node)
        self.answer("inventory")
        answer = self.classes.get(node)
        early = self.early.get(node, 0)
        if early:
            self.early[node] = early - 1
        if answer is None or early:
            raise NodeError(f"node {node} does not answer")
        parsed, packer = parse(answer), Packer()
        for name, body in answer.items():
            if name in parsed.classes:
                packer.add(name, body, parsed.classes[name])
        return replace(parsed, object_info=packer.end())

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        self.answer("system_stats")
        if self.hangs:
            await asyncio.Event().wait()
        if node not in self.stats:
            raise NodeError(f"node {node} does not answer")
        return self.stats[node]

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        self.answer("listing")
        self.listed.append((node, path, dict(query or {})))
        if (gate := self.gates.get(node)) is not None:
            await gate.wait()
        if (known := self.classes.get(node)) and path.startswith("/object_info/"):
            class_type = path.removeprefix("/object_info/")
            return {class_type: known[class_type]} if class_type in known else {}
        if (answers := self.listings.get(node)) is None:
            raise NodeError(f"node {node} does not answer")
        return answers.get(path)

    async def preview(self, node: str, *, folder: str, index: int, name: str) -> bytes | None:
        self.answer("preview")
        self.listed.append((node, f"preview {folder}/{index}/{name}", {}))
        if node not in self.listings:
            raise NodeError(f"node {node} does not answer")
        return self.pictures.get(f"{folder}/{index}/{name}")

    async def raw(
        self,
        node: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        most: int | None = None,
    ) -> RawAnswer:
        self.answer("raw")
        self.passed.append((node, method, path, dict(headers or {}), body))
        if (gate := self.gates.get(node)) is not None:
            await gate.wait()
        if (answers := self.raws.get(node)) is None:
            raise NodeError(f"node {node} can't be reached", details={"node": node})
        found = answers.get(path, RawAnswer(status=404, headers={}, body=b""))
        if most is not None and len(found.body) > most:
            raise NodeError(f"node {node}: it has more than {most} bytes", details={"node": node})
        return found

    async def free(self, node: str, *, unload_models: bool = True, free_memory: bool = True) -> None:
        self.answer("free")
        self.freed.append(node)
        self.told_to_free.append((unload_models, free_memory))

    @asynccontextmanager
    async def view(self, node: str, ref: FileRef) -> AsyncIterator[Content]:
        self.answer("view")
        self.viewed.append(ref.filename)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if (gate := self.slow.get(ref.filename)) is not None:
                await gate.wait()
            if troubles := self.file_troubles.get(ref.filename):
                raise troubles.pop(0)
            yield self._content(ref)
        finally:
            self.under_way -= 1

    def _content(self, ref: FileRef) -> Content:
        typed, plain = f"{ref.type}/{ref.filename}", ref.filename
        data = self.files.get(typed) if ref.or_type else self.files.get(plain, self.files.get(typed))
        if data is None:
            raise OutputGone(f"no file {ref.filename}")
        return Content(chunks=chunks(data), length=len(data) if self.tells_length else None)

    async def holds(self, node: str, ref: FileRef, *, size_bytes: int) -> bool:
        self.answer("holds")
        found = self.inputs.get(node, {}).get(f"{ref.subfolder}/{ref.filename}")
        return found is not None and len(found) == size_bytes

    async def upload(
        self,
        node: str,
        *,
        name: str,
        subfolder: str,
        content: AsyncIterator[bytes],
        content_type: str,
        size_bytes: int | None = None,
    ) -> FileRef:
        self.answer("upload")
        data = b"".join([chunk async for chunk in content])
        self.inputs.setdefault(node, {})[f"{subfolder}/{name}"] = data
        return FileRef(name, subfolder, "input")

    post_prompt = queue_state = history = interrupt = delete_pending = unplayed


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Yield bytes in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
