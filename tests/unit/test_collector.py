"""Outputs on their way from the node into the store; both are played."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from comfy_fleet.adapters.telemetry import NullTelemetry
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import (
    LeaseLost,
    NodeError,
    NoRoom,
    OutputGone,
    OutputLimit,
    OutputRefused,
    StoreDown,
)
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import Job, JobStatus, Output, OutputKind
from comfy_fleet.domain.jobs.outputs import FileRef, InlineBytes, InlineText, OutputItem, Source
from comfy_fleet.ports.assets import AssetStore, Content
from comfy_fleet.ports.comfyui import NodeApi
from comfy_fleet.ports.runs import Claim, RunStore
from comfy_fleet.services import collector, store_retry
from comfy_fleet.services.collector import AT_ONCE, FETCH_TRIES, Collector, OutputLimits, Sharing
from tests.fleet import until

JOB = Job(id="j", owner="o", status=JobStatus.RUNNING, created_at=0, expires_at=9, graph_hash="h")


def item(name: str, source: Source | None = None, *, index: int = 0, temporary: bool = False) -> OutputItem:
    return OutputItem(
        node_id=f"n-{name}",
        key="images",
        index=index,
        name=name,
        kind=OutputKind.IMAGE,
        content_type="image/png",
        source=source or FileRef(filename=name, subfolder="", type="temp" if temporary else "output"),
        temporary=temporary,
    )


class World:
    """A node's files, and what is stored and committed of them."""

    def __init__(self, *, behind: int = 0, slots: int = 64, **limits: Any) -> None:
        self.free: int | None = None  # bytes left on the fleet's disk
        self.told_length = True
        self.waits_for: list[str | None] = []
        self.under_way = self.most = 0
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
            claim,
            runs=cast(RunStore, self),
            nodes=cast(NodeApi, self),
            assets=cast(AssetStore, self),
            limits=OutputLimits(**limits),
            sharing=Sharing(slots),
            telemetry=NullTelemetry(),
        )

    @asynccontextmanager
    async def view(self, node: str, ref: FileRef) -> AsyncIterator[Content]:
        assert node == "g1"
        self.asked.append(ref.filename)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if ref.filename in self.slow:
                await self.slow[ref.filename].wait()
            if problems := self.problems.get(ref.filename):
                raise problems.pop(0)
            if ref.or_type or ref.filename not in self.files:
                if f"{ref.type}/{ref.filename}" not in self.files:
                    raise OutputGone("404")
                data = self.files[f"{ref.type}/{ref.filename}"]
            else:
                data = self.files[ref.filename]

            async def chunks() -> AsyncIterator[bytes]:
                for start in range(0, len(data), 1000):
                    yield data[start : start + 1000]

            yield Content(chunks=chunks(), length=len(data) if self.told_length else None)
        finally:
            self.under_way -= 1

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        assert output
        if self.free is not None and size_bytes > self.free:
            raise NoRoom("the fleet's disk is full")

    async def waits(self, claim: Claim, why: str | None) -> None:
        self.waits_for.append(why)

    async def add_output(self, *, chunks: AsyncIterator[bytes], name: str, **facts: Any) -> Asset:
        assert (facts["owner"], facts["job_id"], facts["expires_at"]) == ("o", "j", 9)
        assert (facts["run"], facts["token"]) == ("r", "t")
        data = b""
        async for chunk in chunks:
            data += chunk
            self.check_room(len(data), output=True)
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
    monkeypatch.setattr(collector, "FETCH_GAP_S", 0.001)
    monkeypatch.setattr(collector, "LATE_S", 0.02)
    monkeypatch.setattr(collector, "LATE_PREVIEW_S", 0.01)
    monkeypatch.setattr(collector, "ROOM_GAP_S", 0.001)
    monkeypatch.setattr(store_retry, "BACKOFF", Backoff(first_s=0.001, longest_s=0.004))


async def test_files_texts_and_pictures_from_frames_are_stored_and_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "LINGER_S", 30)  # a slow machine changes nothing
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
    monkeypatch.setattr(collector, "LINGER_S", 30)
    monkeypatch.setattr(collector, "YIELD_S", 0.5)
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
    world.problems = {"gone.png": [OutputGone("404")] * 99, "bad.png": [NodeError("broke off")] * FETCH_TRIES}
    world.collector.add([item("gone.png"), item("bad.png"), item("good.png")])
    broken = await world.collector.settled()
    told = {(str(error), error.details["node_id"]) for error in broken if isinstance(error, NodeError)}
    assert told == {("404", "n-gone.png"), ("broke off", "n-bad.png")}
    assert world.collector.gone == {"n-gone.png"}
    assert [output.name for output in world.committed] == ["good.png"]


async def test_a_lost_lease_is_no_lost_output() -> None:
    world = World()
    world.files = {"a.png": b"1"}
    world.problems["gone.png"] = [OutputGone("404")] * 99
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


async def test_a_file_that_is_named_before_it_is_there_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "LATE_S", 30)  # a slow machine changes nothing
    world = World()
    world.files = {"a.png": b"1"}
    world.problems["a.png"] = [OutputGone("404")] * (FETCH_TRIES + 3)
    world.collector.add([item("a.png")])
    assert await world.collector.settled() == []
    assert len(world.committed) == 1 and not world.collector.gone


@pytest.mark.parametrize("error", [OutputGone("404"), OutputRefused("400"), NodeError("broke off")])
async def test_a_lost_preview_is_no_loss_beside_a_real_output(error: Exception) -> None:
    world = World()
    world.files = {"good.png": b"1"}
    world.problems["preview.png"] = [error] * 99
    world.collector.add([item("good.png"), item("preview.png", temporary=True)])
    assert await world.collector.settled() == []
    assert [output.name for output in world.committed] == ["good.png"]


@pytest.mark.parametrize("other", ["nothing", "a preview", "a lost output"])
async def test_a_lost_preview_is_told_where_no_real_output_is(other: str) -> None:
    world = World()
    world.files = {"second.png": b"1"}
    world.problems = {"preview.png": [OutputGone("404")] * 99, "real.png": [OutputGone("404")] * 99}
    world.collector.add([item("preview.png", temporary=True)])
    if other == "a preview":
        world.collector.add([item("second.png", temporary=True)])
    elif other == "a lost output":
        world.collector.add([item("real.png")])
    assert await world.collector.settled()


@pytest.mark.parametrize("where", ["output", "temp"])
async def test_a_file_whose_folder_is_not_told_is_looked_for_in_both(where: str) -> None:
    world = World()
    world.files = {f"{where}/a.glb": b"1"}
    world.collector.add([item("a.glb", FileRef("a.glb", "", "output", "temp"))])
    assert await world.collector.settled() == []
    assert len(world.committed) == 1


async def test_what_is_refused_by_its_name_is_asked_for_once() -> None:
    world = World()
    world.problems["a..b.png"] = [OutputRefused("400")] * 9
    world.collector.add([item("a..b.png")])
    (error,) = await world.collector.settled()
    assert isinstance(error, OutputRefused) and error.details["node_id"] == "n-a..b.png"
    assert world.asked == ["a..b.png"] and not world.collector.gone


@pytest.mark.parametrize("told", [True, False], ids=["length told", "no length"])
async def test_a_full_disk_is_waited_out_without_the_node(told: bool) -> None:
    world = World()
    world.files = {"big.bin": bytes(5000), "small.png": b"1"}
    world.told_length = told
    world.free = 2000
    world.collector.add([item("big.bin"), item("small.png")])
    await until(
        lambda: world.waits_for and world.committed, what="the small one is stored, the large one waits"
    )
    await asyncio.sleep(0.02)
    assert [output.name for output in world.committed] == ["small.png"]
    assert world.waits_for == ["the fleet's disk is full"]
    asked = len(world.asked)
    assert asked <= (2 if told else 5)  # without a length, what came so far is what it needs at least
    assert world.under_way == 0
    world.free = None
    assert await world.collector.settled() == []
    assert {output.name for output in world.committed} == {"big.bin", "small.png"}
    assert world.waits_for[-1] is None


async def test_texts_and_pictures_from_frames_wait_for_room_too() -> None:
    world = World()
    world.free = 2
    items = [item("a.txt", InlineText("hello")), item("b.png", InlineBytes(b"frame"))]
    assert not await world.collector.stored(items)
    world.free = None
    assert await world.collector.settled() == []
    assert world.stored == {"a.txt": b"hello", "b.png": b"frame"}


async def test_a_cancel_ends_the_wait_for_room() -> None:
    world = World()
    world.files = {"a.png": b"12"}
    world.free = 1
    world.collector.add([item("a.png")])
    await until(lambda: world.waits_for, what="it waits")
    world.collector.cancel()
    (error,) = await world.collector.settled()
    assert isinstance(error, asyncio.CancelledError)
    assert world.waits_for == ["the fleet's disk is full", None]


async def test_more_outputs_than_a_job_may_have_are_not_fetched() -> None:
    world = World(outputs=3)
    world.files = {f"{n}.png": b"1" for n in range(9)}
    world.slow["0.png"] = asyncio.Event()
    world.collector.add([item(f"{n}.png") for n in range(3)])
    await until(lambda: len(world.committed) == 2, what="two of them are stored")
    world.collector.add([item(f"{n}.png") for n in range(9)])
    (error,) = await world.collector.settled()
    assert isinstance(error, OutputLimit) and error is world.collector.over
    assert error.details == {"limit": "max_outputs", "value": 3}
    assert "3 outputs (FLEET_MAX_OUTPUTS)" in str(error)
    assert len(world.asked) == 3  # what is under way is dropped, what is stored stays
    assert len(world.committed) == 2


@pytest.mark.parametrize("told", [True, False], ids=["length told", "no length"])
@pytest.mark.parametrize(
    ("limit", "name"), [("output_bytes", "max_output_bytes"), ("job_bytes", "max_job_bytes")]
)
async def test_an_output_that_is_too_large_ends_the_collection(limit: str, name: str, told: bool) -> None:
    world = World(**{limit: 2500})
    world.files = {"good.png": b"1", "big.bin": bytes(10_000)}
    world.told_length = told
    world.collector.add([item("good.png")])
    await until(lambda: world.committed, what="the small one is stored")
    world.collector.add([item("big.bin")])
    (error,) = await world.collector.settled()
    assert isinstance(error, OutputLimit)
    assert (error.details["limit"], error.details["value"]) == (name, 2500)
    assert f"FLEET_{name.upper()}" in str(error) and "2.5 kB" in str(error)
    assert list(world.stored) == ["good.png"] and world.asked.count("big.bin") == 1


async def test_what_was_not_kept_does_not_count_as_a_jobs_bytes() -> None:
    world = World(job_bytes=6000)
    world.files = {"a.bin": bytes(5000)}
    world.away = 3  # stored only at the fourth time
    world.collector.add([item("a.bin")])
    assert await world.collector.settled() == []


async def test_an_output_that_takes_for_ever_ends_the_collection() -> None:
    world = World(output_s=0.02)
    world.slow["a.png"] = asyncio.Event()
    world.collector.add([item("a.png")])
    (error,) = await world.collector.settled()
    assert isinstance(error, OutputLimit) and error.details["limit"] == "output_timeout_s"
    assert error.details["node_id"] == "n-a.png"


@pytest.mark.parametrize(("slots", "most"), [(64, AT_ONCE), (3, 3)], ids=["a run's", "the process's"])
async def test_only_some_outputs_are_fetched_at_once(slots: int, most: int) -> None:
    world = World(slots=slots)
    gate = asyncio.Event()
    names = [f"{n}.png" for n in range(40)]
    world.files = dict.fromkeys(names, b"1")
    world.slow = dict.fromkeys(names, gate)
    world.collector.add([item(name) for name in names])
    await until(lambda: world.under_way == most, what="all slots are taken")
    await turns()
    gate.set()
    assert await world.collector.settled() == []
    assert (world.most, len(world.committed)) == (most, 40)


async def test_who_takes_a_run_over_is_told_what_is_still_to_be_had() -> None:
    world = World()
    world.files = {"a.png": b"1"}
    items = [item("a.png"), item("b.txt", InlineText("here")), item("c.png", InlineBytes(b"1"))]
    world.collector.add(items[:2])
    assert await world.collector.settled() == []
    assert world.collector.unsafe(items) == [items[0], items[2]]


async def test_what_is_stored_takes_no_memory_any_more() -> None:
    world = World()
    items = [item("b.txt", InlineText("x" * 100_000)), item("c.png", InlineBytes(b"y" * 100_000))]
    world.away = 1
    world.collector.add(items)
    assert world.collector.held_bytes == sum(one.held_bytes for one in items) >= 200_000
    assert await world.collector.settled() == []
    assert world.collector.held_bytes == 0
    assert {name: len(data) for name, data in world.stored.items()} == {"b.txt": 100_000, "c.png": 100_000}
    kept = world.collector._items.values()
    assert sum(one.held_bytes for one in kept) < 1000
