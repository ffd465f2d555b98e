"""Outputs on their way from the node into the store."""

import asyncio
import gc
import json
import weakref
from typing import Any

import pytest

from comfy_fleet.adapters.telemetry import NullTelemetry
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import LeaseLost, NodeError, OutputGone, OutputLimit, OutputRefused, StoreDown
from comfy_fleet.domain.jobs.job import Attempt, Job, Output, OutputKind
from comfy_fleet.domain.jobs.outputs import FileRef, InlineBytes, InlineText, OutputItem, Source
from comfy_fleet.services import collector, store_retry
from comfy_fleet.services.collector import AT_ONCE, FETCH_TRIES, Collector, OutputLimits, Sharing
from tests.factories import a_claim, running_job
from tests.fakes.assets import FakeAssetStore
from tests.fakes.comfyui import FakeNodeApi
from tests.fakes.runs import FakeRunStore
from tests.fleet import until
from tests.unit.test_pictures import GRAPH, MAKERS, POSTED, graph_in


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

    def __init__(
        self, *, behind: int = 0, slots: int = 64, graph: Any = b"{}", job: Any = None, **limits: Any
    ) -> None:
        self.nodes, self.runs = FakeNodeApi(), FakeRunStore()
        self.assets = FakeAssetStore(self.runs)
        self.claim = a_claim(job, jobs_behind=behind, graph=graph)
        self.runs.hold(self.claim)
        self.collector = Collector(
            self.claim,
            runs=self.runs,
            nodes=self.nodes,
            assets=self.assets,
            limits=OutputLimits(**limits),
            sharing=Sharing(slots),
            telemetry=NullTelemetry(),
        )

    @property
    def committed(self) -> list[Output]:
        return list(self.runs.runs["r"].outputs.values())


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


async def test_a_picture_is_stored_with_the_graph_as_submitted() -> None:
    came = MAKERS["png tEXt"](POSTED)
    world = World(graph=json.dumps(GRAPH).encode())
    world.nodes.files = {"a.png": came, "b.png": came[:-1]}
    world.collector.add([item("a.png"), item("b.png"), item("c.png", InlineBytes(came))])
    assert await world.collector.settled() == []
    assert world.assets.outputs["b.png"] == came[:-1]
    for name in ("a.png", "c.png"):
        assert graph_in(world.assets.outputs[name]) == GRAPH
    stored = {output.name: output for output in world.committed}["a.png"]
    assert stored.size_bytes == len(world.assets.outputs["a.png"]) != len(came)


async def test_files_texts_and_pictures_from_frames_are_stored_and_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "LINGER_S", 30)  # a slow machine changes nothing
    world = World()
    world.nodes.files = {"a.png": b"file"}
    items = [item("a.png"), item("b.txt", InlineText("näher")), item("c.png", InlineBytes(b"frame"))]
    assert await world.collector.stored(items)
    assert await world.collector.settled() == []
    await world.collector.commit_last()
    assert world.assets.outputs == {"a.png": b"file", "b.txt": "näher".encode(), "c.png": b"frame"}
    assert world.nodes.viewed == ["a.png"]
    output = next(output for output in world.committed if output.name == "a.png")
    assert (output.asset_id, output.node_id, output.size_bytes) == ("a-a.png", "n-a.png", 4)


@pytest.mark.parametrize("away", [1, FETCH_TRIES + 3])
async def test_an_output_outlives_a_restart_of_redis(away: int) -> None:
    world = World()
    world.nodes.files = {"a.png": b"file"}
    world.assets.troubles = [StoreDown("away")] * away
    world.runs.troubles = [StoreDown("away")] * away
    world.collector.add([item("a.png"), item("b.png", InlineBytes(b"frame"))])
    assert await world.collector.settled() == []
    assert world.assets.outputs == {"a.png": b"file", "b.png": b"frame"}
    assert {output.name for output in world.committed} == {"a.png", "b.png"}


async def test_what_is_named_twice_is_fetched_once() -> None:
    world = World()
    world.nodes.files = {"a.png": b"1"}
    twice = item("a.png")
    world.collector.add([twice])
    await world.collector.stored([twice, item("a.png", index=1)])
    world.collector.left([twice])
    assert await world.collector.settled() == []
    assert (world.nodes.viewed, len(world.collector)) == (["a.png", "a.png"], 2)


async def test_a_large_output_is_not_waited_for() -> None:
    world = World()
    world.nodes.files = {"a.png": b"1", "b.mp4": b"2"}
    world.nodes.slow["b.mp4"] = asyncio.Event()
    assert not await world.collector.stored([item("a.png"), item("b.mp4")])
    await until(lambda: world.committed, what="the small one is stored")
    assert [output.name for output in world.committed] == ["a.png"]
    world.nodes.slow["b.mp4"].set()
    assert await world.collector.settled() == []
    await world.collector.commit_last()
    assert len(world.committed) == 2


async def test_the_last_output_of_a_run_that_is_over_is_left_to_the_write_that_ends_it() -> None:
    world = World()
    world.nodes.files = {"a.png": b"1", "b.png": b"2"}
    world.collector.add([item("a.png")])
    await until(lambda: world.committed, what="one is committed while the run goes on")
    assert await world.collector.stored([item("a.png"), item("b.png")])
    assert await world.collector.settled() == [] and world.collector.last is not None
    assert world.collector.last.output.name == world.collector.last.asset.file_path == "b.png"
    assert [output.name for output in world.committed] == ["a.png"]
    for _ in range(2):
        await world.collector.commit_last()
        assert [output.name for output in world.committed] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "job",
    [
        running_job(client_id="c"),  # its client is told of each file before the end
        running_job(attempts=(Attempt(run="r0", node="g1", started_at=0, ended_at=1, counted=True),)),
    ],
)
async def test_no_output_waits_for_the_end_that_somebody_needs_before(job: Job) -> None:
    world = World(job=job)
    world.nodes.files = {"a.png": b"1"}
    assert await world.collector.stored([item("a.png")])
    assert world.collector.last is None and len(world.committed) == 1


async def test_bytes_that_are_there_already_don_t_wait_for_the_end() -> None:
    world = World()
    world.nodes.files = {"a.png": b"1", "b.png": b"1"}
    world.collector.add([item("a.png")])
    await until(lambda: world.committed, what="one is committed")
    assert await world.collector.stored([item("a.png"), item("b.png")])
    assert world.collector.last is None and len(world.committed) == 2


async def test_with_others_waiting_outputs_begin_when_the_run_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "LINGER_S", 30)
    monkeypatch.setattr(collector, "YIELD_S", 0.5)
    world = World(behind=1)
    world.nodes.files = {"a.png": b"1", "b.png": b"2"}
    world.collector.add([item("a.png")])
    await turns()
    assert not world.nodes.viewed
    world.collector.left([item("a.png"), item("b.png")])
    await turns()
    assert not world.nodes.viewed  # the node's next job first
    async with asyncio.timeout(15):
        assert await world.collector.settled() == []
    assert sorted(world.nodes.viewed) == ["a.png", "b.png"]


async def test_a_run_that_goes_on_for_long_has_its_outputs_stored_meanwhile() -> None:
    world = World(behind=1)
    world.nodes.files = {"a.png": b"1"}
    world.collector.add([item("a.png")])
    await until(lambda: world.committed, what="it is stored")


async def test_a_node_that_stumbles_is_asked_again() -> None:
    world = World()
    world.nodes.files = {"a.png": b"1"}
    world.nodes.file_troubles["a.png"] = [NodeError("broke off")] * (FETCH_TRIES - 1)
    world.collector.add([item("a.png")])
    assert await world.collector.settled() == []
    assert len(world.nodes.viewed) == FETCH_TRIES and len(world.committed) == 1


async def test_what_cannot_be_had_is_told() -> None:
    world = World()
    world.nodes.files = {"good.png": b"1"}
    world.nodes.file_troubles = {
        "gone.png": [OutputGone("404")] * 99,
        "bad.png": [NodeError("broke off")] * FETCH_TRIES,
    }
    world.collector.add([item("gone.png"), item("bad.png"), item("good.png")])
    broken = await world.collector.settled()
    told = {(str(error), error.details["node_id"]) for error in broken if isinstance(error, NodeError)}
    assert told == {("404", "n-gone.png"), ("broke off", "n-bad.png")}
    assert world.collector.gone == {"n-gone.png"}
    assert [output.name for output in world.committed] == ["good.png"]


async def test_a_lost_lease_is_no_lost_output() -> None:
    world = World()
    world.nodes.files = {"a.png": b"1"}
    world.nodes.file_troubles["gone.png"] = [OutputGone("404")] * 99
    world.runs.lose("r")
    world.collector.add([item("gone.png"), item("a.png")])
    with pytest.raises(LeaseLost):
        await world.collector.settled()


async def test_nothing_is_fetched_after_a_cancel() -> None:
    world = World()
    world.nodes.slow["a.png"] = asyncio.Event()
    world.collector.add([item("a.png")])
    await until(lambda: world.nodes.viewed, what="it is asked for")
    world.collector.cancel()
    (error,) = await world.collector.settled()
    assert isinstance(error, asyncio.CancelledError) and not world.assets.outputs


async def test_a_file_that_is_named_before_it_is_there_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "LATE_S", 30)  # a slow machine changes nothing
    world = World()
    world.nodes.files = {"a.png": b"1"}
    world.nodes.file_troubles["a.png"] = [OutputGone("404")] * (FETCH_TRIES + 3)
    world.collector.add([item("a.png")])
    assert await world.collector.settled() == []
    assert len(world.committed) == 1 and not world.collector.gone


@pytest.mark.parametrize("error", [OutputGone("404"), OutputRefused("400"), NodeError("broke off")])
async def test_a_lost_preview_is_no_loss_beside_a_real_output(error: Exception) -> None:
    world = World()
    world.nodes.files = {"good.png": b"1"}
    world.nodes.file_troubles["preview.png"] = [error] * 99
    world.collector.add([item("good.png"), item("preview.png", temporary=True)])
    assert await world.collector.settled() == []
    assert [output.name for output in world.committed] == ["good.png"]


@pytest.mark.parametrize("other", ["nothing", "a preview", "a lost output"])
async def test_a_lost_preview_is_told_where_no_real_output_is(other: str) -> None:
    world = World()
    world.nodes.files = {"second.png": b"1"}
    world.nodes.file_troubles = {
        "preview.png": [OutputGone("404")] * 99,
        "real.png": [OutputGone("404")] * 99,
    }
    world.collector.add([item("preview.png", temporary=True)])
    if other == "a preview":
        world.collector.add([item("second.png", temporary=True)])
    elif other == "a lost output":
        world.collector.add([item("real.png")])
    assert await world.collector.settled()


@pytest.mark.parametrize("where", ["output", "temp"])
async def test_a_file_whose_folder_is_not_told_is_looked_for_in_both(where: str) -> None:
    world = World()
    world.nodes.files = {f"{where}/a.glb": b"1"}
    world.collector.add([item("a.glb", FileRef("a.glb", "", "output", "temp"))])
    assert await world.collector.settled() == []
    assert len(world.committed) == 1


async def test_what_is_refused_by_its_name_is_asked_for_once() -> None:
    world = World()
    world.nodes.file_troubles["a..b.png"] = [OutputRefused("400")] * 9
    world.collector.add([item("a..b.png")])
    (error,) = await world.collector.settled()
    assert isinstance(error, OutputRefused) and error.details["node_id"] == "n-a..b.png"
    assert world.nodes.viewed == ["a..b.png"] and not world.collector.gone


@pytest.mark.parametrize("told", [True, False], ids=["length told", "no length"])
async def test_a_full_disk_is_waited_out_without_the_node(told: bool) -> None:
    world = World()
    world.nodes.files = {"big.bin": bytes(5000), "small.png": b"1"}
    world.nodes.tells_length = told
    world.assets.room = 2000
    world.collector.add([item("big.bin"), item("small.png")])
    await until(
        lambda: world.runs.waiting_for and world.committed,
        what="the small one is stored, the large one waits",
    )
    await asyncio.sleep(0.02)
    assert [output.name for output in world.committed] == ["small.png"]
    assert world.runs.waiting_for == ["the fleet's disk is full"]
    asked = len(world.nodes.viewed)
    assert asked <= (2 if told else 5)  # without a length, what came so far is what it needs at least
    assert world.nodes.under_way == 0
    world.assets.room = None
    assert await world.collector.settled() == []
    assert {output.name for output in world.committed} == {"big.bin", "small.png"}
    assert world.runs.waiting_for[-1] is None


async def test_texts_and_pictures_from_frames_wait_for_room_too() -> None:
    world = World()
    world.assets.room = 2
    items = [item("a.txt", InlineText("hello")), item("b.png", InlineBytes(b"frame"))]
    assert not await world.collector.stored(items)
    world.assets.room = None
    assert await world.collector.settled() == []
    assert world.assets.outputs == {"a.txt": b"hello", "b.png": b"frame"}


async def test_a_cancel_ends_the_wait_for_room() -> None:
    world = World()
    world.nodes.files = {"a.png": b"12"}
    world.assets.room = 1
    world.collector.add([item("a.png")])
    await until(lambda: world.runs.waiting_for, what="it waits")
    world.collector.cancel()
    (error,) = await world.collector.settled()
    assert isinstance(error, asyncio.CancelledError)
    assert world.runs.waiting_for == ["the fleet's disk is full", None]


async def test_more_outputs_than_a_job_may_have_are_not_fetched() -> None:
    world = World(outputs=3)
    world.nodes.files = {f"{n}.png": b"1" for n in range(9)}
    world.nodes.slow["0.png"] = asyncio.Event()
    world.collector.add([item(f"{n}.png") for n in range(3)])
    await until(lambda: len(world.committed) == 2, what="two of them are stored")
    world.collector.add([item(f"{n}.png") for n in range(9)])
    (error,) = await world.collector.settled()
    assert isinstance(error, OutputLimit) and error is world.collector.over
    assert error.details == {"limit": "max_outputs", "value": 3}
    assert "3 outputs (FLEET_MAX_OUTPUTS)" in str(error)
    assert len(world.nodes.viewed) == 3  # what is under way is dropped, what is stored stays
    assert len(world.committed) == 2


@pytest.mark.parametrize("told", [True, False], ids=["length told", "no length"])
@pytest.mark.parametrize(
    ("limit", "name"), [("output_bytes", "max_output_bytes"), ("job_bytes", "max_job_bytes")]
)
async def test_an_output_that_is_too_large_ends_the_collection(limit: str, name: str, told: bool) -> None:
    world = World(**{limit: 2500})
    world.nodes.files = {"good.png": b"1", "big.bin": bytes(10_000)}
    world.nodes.tells_length = told
    world.collector.add([item("good.png")])
    await until(lambda: world.committed, what="the small one is stored")
    world.collector.add([item("big.bin")])
    (error,) = await world.collector.settled()
    assert isinstance(error, OutputLimit)
    assert (error.details["limit"], error.details["value"]) == (name, 2500)
    assert f"FLEET_{name.upper()}" in str(error) and "2.5 kB" in str(error)
    assert list(world.assets.outputs) == ["good.png"] and world.nodes.viewed.count("big.bin") == 1


async def test_what_was_not_kept_does_not_count_as_a_jobs_bytes() -> None:
    world = World(job_bytes=6000)
    world.nodes.files = {"a.bin": bytes(5000)}
    world.assets.troubles = [StoreDown("away")] * 3  # stored only at the fourth time
    world.collector.add([item("a.bin")])
    assert await world.collector.settled() == []


async def test_an_output_that_takes_for_ever_ends_the_collection() -> None:
    world = World(output_s=0.02)
    world.nodes.slow["a.png"] = asyncio.Event()
    world.collector.add([item("a.png")])
    (error,) = await world.collector.settled()
    assert isinstance(error, OutputLimit) and error.details["limit"] == "output_timeout_s"
    assert error.details["node_id"] == "n-a.png"


@pytest.mark.parametrize(("slots", "most"), [(64, AT_ONCE), (3, 3)], ids=["a run's", "the process's"])
async def test_only_some_outputs_are_fetched_at_once(slots: int, most: int) -> None:
    world = World(slots=slots)
    gate = asyncio.Event()
    names = [f"{n}.png" for n in range(40)]
    world.nodes.files = dict.fromkeys(names, b"1")
    world.nodes.slow = dict.fromkeys(names, gate)
    world.collector.add([item(name) for name in names])
    await until(lambda: world.nodes.under_way == most, what="all slots are taken")
    await turns()
    gate.set()
    assert await world.collector.settled() == []
    assert (world.nodes.most, len(world.committed)) == (most, 40)


async def test_who_takes_a_run_over_is_told_what_is_still_to_be_had() -> None:
    world = World()
    world.nodes.files = {"a.png": b"1"}
    items = [item("a.png"), item("b.txt", InlineText("here")), item("c.png", InlineBytes(b"1"))]
    world.collector.add(items[:2])
    assert await world.collector.settled() == []
    assert world.collector.unsafe(items) == [items[0], items[2]]


async def test_what_is_stored_takes_no_memory_any_more() -> None:
    class Text(str):
        """It can be told when it is gone."""

        __slots__ = ("__weakref__",)

    world, text = World(), Text("x" * 100_000)
    gone = weakref.ref(text)
    items = [item("b.txt", InlineText(text)), item("c.png", InlineBytes(b"y" * 100_000))]
    world.assets.troubles = [StoreDown("away")]
    world.collector.add(items)
    assert world.collector.held_bytes == sum(one.held_bytes for one in items) >= 200_000
    assert await world.collector.settled() == []
    assert world.collector.held_bytes == 0
    assert [len(data) for data in world.assets.outputs.values()] == [100_000, 100_000]
    del items, text
    gc.collect()
    assert gone() is None
