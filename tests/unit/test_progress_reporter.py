"""What a run tells while it computes, and to whom; the store is played."""

import asyncio
from base64 import b64decode
from typing import Any, cast

import pytest

from comfy_fleet.domain.errors import LeaseLost, StoreDown
from comfy_fleet.domain.jobs.job import Job, JobStatus, Progress
from comfy_fleet.domain.jobs.run_messages import ShowPreview
from comfy_fleet.ports.runs import Claim, RunStore
from comfy_fleet.services import progress_reporter
from comfy_fleet.services.progress_reporter import MAX_PREVIEW_BYTES, ProgressReporter
from tests.fleet import until

JOB = Job(id="j", owner="o", status=JobStatus.RUNNING, created_at=0, expires_at=9, graph_hash="h")
CLAIM = Claim(job=JOB, graph=b"{}", run="r", node="g1", token="t", attempt=0)


class Store:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.listening = False
        self.asked = 0
        self.values: list[float] = []
        self.pictures: list[bytes] = []
        self.trouble: list[Exception] = []
        self.reporter = ProgressReporter(cast(RunStore, self), CLAIM, lambda: 0.0)

    async def progress(self, claim: Claim, progress: Progress) -> None:
        if self.trouble:
            raise self.trouble.pop()
        self.values.append(progress.value)

    async def followed(self, claim: Claim) -> bool:
        self.asked += 1
        return self.listening

    async def preview(self, claim: Claim, data: dict[str, Any]) -> None:
        self.pictures.append(b64decode(data["data_base64"]))

    def tell(self, value: float) -> None:
        self.reporter.progress(Progress(value=value, nodes_done=0, nodes_total=1))

    def show(self, picture: bytes) -> None:
        self.reporter.preview(ShowPreview("1", "image/jpeg", picture))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(progress_reporter, "EVERY_S", 0.002)
    return Store()


async def test_a_preview_waits_until_somebody_follows(store: Store) -> None:
    store.show(b"1")
    store.show(b"2")
    await until(lambda: store.asked > 2, what="it was looked whether anybody listens")
    assert store.pictures == []
    store.listening = True
    await until(lambda: store.pictures, what="the latest goes out")
    store.show(b"3")
    await until(lambda: len(store.pictures) == 2, what="the next one, too")
    assert store.pictures == [b"2", b"3"]
    store.reporter.close()


async def test_nobody_is_asked_about_where_there_is_no_preview(store: Store) -> None:
    store.tell(0.1)
    await until(lambda: store.values, what="progress is written")
    store.tell(0.2)
    await until(lambda: len(store.values) == 2, what="the next one, too")
    assert store.asked == 0
    store.reporter.close()


async def test_a_picture_that_is_too_large_is_no_preview(store: Store) -> None:
    store.listening = True
    store.show(bytes(MAX_PREVIEW_BYTES))
    store.show(bytes(MAX_PREVIEW_BYTES + 1))
    await until(lambda: store.pictures, what="the other one goes out")
    assert [len(picture) for picture in store.pictures] == [MAX_PREVIEW_BYTES]
    store.reporter.close()


@pytest.mark.parametrize("error", [StoreDown("away"), ValueError("a defect")])
async def test_trouble_with_one_snapshot_ends_nothing(store: Store, error: Exception) -> None:
    store.trouble = [error]
    store.tell(0.1)
    await until(lambda: not store.trouble, what="it was tried")
    store.tell(0.2)
    await until(lambda: store.values == [0.2], what="the next one is written")
    store.reporter.close()


async def test_whoever_lost_the_run_tells_nothing_more(store: Store) -> None:
    store.trouble = [LeaseLost("another one has it")]
    store.tell(0.1)
    await until(lambda: not store.trouble, what="it was tried")
    store.tell(0.2)
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert store.values == []
    assert store.reporter.last is not None and store.reporter.last.value == 0.2
