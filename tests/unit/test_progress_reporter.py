"""What a run tells while it computes, and to whom."""

import asyncio
from base64 import b64decode

import pytest

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import Progress
from comfy_fleet.domain.jobs.run_messages import ShowPreview
from comfy_fleet.services import progress_reporter
from comfy_fleet.services.progress_reporter import MAX_PREVIEW_BYTES, ProgressReporter
from tests.factories import a_claim
from tests.fakes.runs import FakeRunStore
from tests.fleet import until

CLAIM = a_claim()


class World(FakeRunStore):
    """A run that tells of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.hold(CLAIM)
        self.reporter = ProgressReporter(self, CLAIM, lambda: 0.0)

    @property
    def values(self) -> list[float]:
        return [progress.value for progress in self.progressed]

    @property
    def pictures(self) -> list[bytes]:
        return [b64decode(data["data_base64"]) for data in self.previews]

    def tell(self, value: float) -> None:
        self.reporter.progress(Progress(value=value, nodes_done=0, nodes_total=1))

    def show(self, picture: bytes) -> None:
        self.reporter.preview(ShowPreview("1", "image/jpeg", picture))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(progress_reporter, "EVERY_S", 0.002)
    return World()


async def test_a_preview_waits_until_somebody_follows(store: World) -> None:
    store.show(b"1")
    store.show(b"2")
    await until(lambda: store.calls["followed"] > 2, what="it was looked whether anybody listens")
    assert store.pictures == []
    async with store.events.subscribe("j"):
        await until(lambda: store.pictures, what="the latest goes out")
        store.show(b"3")
        await until(lambda: len(store.pictures) == 2, what="the next one, too")
    assert store.pictures == [b"2", b"3"]
    store.reporter.close()


async def test_nobody_is_asked_about_where_there_is_no_preview(store: World) -> None:
    store.tell(0.1)
    await until(lambda: store.values, what="progress is written")
    store.tell(0.2)
    await until(lambda: len(store.values) == 2, what="the next one, too")
    assert store.calls["followed"] == 0
    store.reporter.close()


async def test_a_picture_that_is_too_large_is_no_preview(store: World) -> None:
    async with store.events.subscribe("j"):
        store.show(bytes(MAX_PREVIEW_BYTES))
        store.show(bytes(MAX_PREVIEW_BYTES + 1))
        await until(lambda: store.pictures, what="the other one goes out")
    assert [len(picture) for picture in store.pictures] == [MAX_PREVIEW_BYTES]
    store.reporter.close()


@pytest.mark.parametrize("error", [StoreDown("away"), ValueError("a defect")])
async def test_trouble_with_one_snapshot_ends_nothing(store: World, error: Exception) -> None:
    store.troubles = [error]
    store.tell(0.1)
    await until(lambda: not store.troubles, what="it was tried")
    store.tell(0.2)
    await until(lambda: store.values == [0.2], what="the next one is written")
    store.reporter.close()


async def test_whoever_lost_the_run_tells_nothing_more(store: World) -> None:
    store.lose("r")
    store.tell(0.1)
    await until(lambda: store.calls["progress"], what="it was tried")
    store.tell(0.2)
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert store.values == []
    assert store.reporter.last is not None and store.reporter.last.value == 0.2
