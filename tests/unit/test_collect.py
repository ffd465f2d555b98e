"""Outputs on their way from the node into the store; both are played."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from comfy_fleet.domain.asset import Asset
from comfy_fleet.domain.errors import LeaseLost, NodeError, OutputGone, StoreDown
from comfy_fleet.domain.job import Job, JobStatus, Output, OutputKind
from comfy_fleet.domain.outputs import FileRef, InlineBytes, InlineText, OutputItem, Source
from comfy_fleet.ports import AssetStore, Claim, NodeApi, RunStore
from comfy_fleet.services import collect, insist
from comfy_fleet.services.collect import FETCH_TRIES, Collector
from tests.fleet import until

JOB = Job(id="j", owner="o", status=JobStatus.RUNNING, created_at=0, expires_at=9, graph_hash="h")


def item(name: str, source: Source | None = None, *, index: int = 0) -> OutputItem:
    return OutputItem(
        node_id=f"n-{name}",
        key="images",
        index=index,
        name=name,
        kind=OutputKind.IMAGE,
        content_type="image/png",
        source=source or FileRef(filename=name, subfolder="", type="output"),
    )


class World:
    """A node's files, and what is stored and committed of them."""

    def __init__(self, *, behind: int = 0) -> None:
        self.files: dict[str, bytes] = {}
        self.problems: dict[str, list[Exception]] = {}
        self.slow: dict[str, asyncio.Event] = {}
        self.asked: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.committed: list[Output] = []
        self.lease_lost = False
        self.away = 0
        claim = Claim(job=JOB, graph=b"{}", run="r", node="g1", token="t", attempt=0, behind=behind)
        self.collector = Collector(
            claim, runs=cast(RunStore, self), nodes=cast(NodeApi, self), assets=cast(AssetStore, self)
        )

    @asynccontextmanager
    async def view(self, node: str, ref: FileRef) -> AsyncIterator[AsyncIterator[bytes]]:
        assert node == "g1"
        self.asked.append(ref.filename)
        if ref.filename in self.slow:
            await self.slow[ref.filename].wait()
        if problems := self.problems.get(ref.filename):
            raise problems.pop(0)

        async def chunks() -> AsyncIterator[bytes]:
            yield self.files[ref.filename]

        yield chunks()

    async def add_output(self, *, chunks: AsyncIterator[bytes], name: str, **facts: Any) -> Asset:
        assert (facts["owner"], facts["job_id"], facts["expires_at"]) == ("o", "j", 9)
        data = b"".join([chunk async for chunk in chunks])
        self._answer()
        self.stored[name] = data
        return Asset(
            id=f"a-{name}", owner="o", hash="blake3:0", size_bytes=len(data),
            content_type=facts["content_type"], file_path=name, path=name, created_at=0,
        )  # fmt: skip

    async def output(self, claim: Claim, output: Output) -> None:
        self._answer()
        if self.lease_lost:
            raise LeaseLost("another dispatcher has it")
        self.committed.append(output)

    def _answer(self) -> None:
        self.away -= 1
        if self.away >= 0:
            raise StoreDown("Redis is away")


async def turns() -> None:
    """Let everything happen that needs no time."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "FETCH_GAP_S", 0.001)
    monkeypatch.setattr(insist, "GAP_S", (0.001, 0.004))


async def test_files_texts_and_pictures_from_frames_are_stored_and_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collect, "LINGER_S", 30)  # a slow machine changes nothing
    world = World()
    world.files = {"a.png": b"file"}
    items = [item("a.png"), item("b.txt", InlineText("näher")), item("c.png", InlineBytes(b"frame"))]
    assert await world.collector.stored(items)
    assert await world.collector.settled() == []
    assert world.stored == {"a.png": b"file", "b.txt": "näher".encode(), "c.png": b"frame"}
    assert world.asked == ["a.png"]
    output = next(output for output in world.committed if output.name == "a.png")
    assert (output.asset_id, output.node_id, output.size_bytes) == ("a-a.png", "n-a.png", 4)


@pytest.mark.parametrize("away", [1, FETCH_TRIES + 3])
async def test_an_output_outlives_a_restart_of_redis(away: int) -> None:
    world = World()
    world.files = {"a.png": b"file"}
    world.away = away
    world.collector.add([item("a.png"), item("b.png", InlineBytes(b"frame"))])
    assert await world.collector.settled() == []
    assert world.stored == {"a.png": b"file", "b.png": b"frame"}
    assert {output.name for output in world.committed} == {"a.png", "b.png"}


async def test_what_is_named_twice_is_fetched_once() -> None:
    world = World()
    world.files = {"a.png": b"1"}
    twice = item("a.png")
    world.collector.add([twice])
    await world.collector.stored([twice, item("a.png", index=1)])
    world.collector.left([twice])
    assert await world.collector.settled() == []
    assert (world.asked, len(world.collector)) == (["a.png", "a.png"], 2)


async def test_a_large_output_is_not_waited_for() -> None:
    world = World()
    world.files = {"a.png": b"1", "b.mp4": b"2"}
    world.slow["b.mp4"] = asyncio.Event()
    assert not await world.collector.stored([item("a.png"), item("b.mp4")])
    await until(lambda: world.committed, what="the small one is stored")
    assert [output.name for output in world.committed] == ["a.png"]
    world.slow["b.mp4"].set()
    assert await world.collector.settled() == []
    assert len(world.committed) == 2


async def test_with_others_waiting_outputs_begin_when_the_run_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collect, "LINGER_S", 30)
    monkeypatch.setattr(collect, "YIELD_S", 0.5)
    world = World(behind=1)
    world.files = {"a.png": b"1", "b.png": b"2"}
    world.collector.add([item("a.png")])
    await turns()
    assert not world.asked
    world.collector.left([item("a.png"), item("b.png")])
    await turns()
    assert not world.asked  # the node's next job first
    async with asyncio.timeout(15):
        assert await world.collector.settled() == []
    assert sorted(world.asked) == ["a.png", "b.png"]


async def test_a_run_that_goes_on_for_long_has_its_outputs_stored_meanwhile() -> None:
    world = World(behind=1)
    world.files = {"a.png": b"1"}
    world.collector.add([item("a.png")])
    await until(lambda: world.committed, what="it is stored")


async def test_a_node_that_stumbles_is_asked_again() -> None:
    world = World()
    world.files = {"a.png": b"1"}
    world.problems["a.png"] = [NodeError("broke off")] * (FETCH_TRIES - 1)
    world.collector.add([item("a.png")])
    assert await world.collector.settled() == []
    assert len(world.asked) == FETCH_TRIES and len(world.committed) == 1


async def test_what_cannot_be_had_is_told() -> None:
    world = World()
    world.files = {"good.png": b"1"}
    world.problems = {"gone.png": [OutputGone("404")], "bad.png": [NodeError("broke off")] * FETCH_TRIES}
    world.collector.add([item("gone.png"), item("bad.png"), item("good.png")])
    broken = await world.collector.settled()
    told = {(str(error), error.details["node_id"]) for error in broken if isinstance(error, NodeError)}
    assert told == {("404", "n-gone.png"), ("broke off", "n-bad.png")}
    assert world.asked.count("gone.png") == 1  # asking again would not bring it back
    assert world.collector.gone == {"n-gone.png"}
    assert [output.name for output in world.committed] == ["good.png"]


async def test_a_lost_lease_is_no_lost_output() -> None:
    world = World()
    world.files = {"a.png": b"1"}
    world.problems["gone.png"] = [OutputGone("404")]
    world.lease_lost = True
    world.collector.add([item("gone.png"), item("a.png")])
    with pytest.raises(LeaseLost):
        await world.collector.settled()


async def test_nothing_is_fetched_after_a_cancel() -> None:
    world = World()
    world.slow["a.png"] = asyncio.Event()
    world.collector.add([item("a.png")])
    await until(lambda: world.asked, what="it is asked for")
    world.collector.cancel()
    (error,) = await world.collector.settled()
    assert isinstance(error, asyncio.CancelledError) and not world.stored
