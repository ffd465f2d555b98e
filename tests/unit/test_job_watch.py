"""Watching a job, event by event."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from comfy_fleet.domain.jobs.job import Job, JobEvent, JobStatus, Output, OutputKind, Progress
from comfy_fleet.domain.schedule.calibration import EndEstimate
from comfy_fleet.services.estimator import Outlook
from comfy_fleet.services.job_watch import Alive, Seen, Status, StreamPace, watch
from tests.factories import running_job
from tests.fakes.runs import FakeEvents, FakeJobStore
from tests.fleet import until

JOB = running_job(status=JobStatus.QUEUED, expires_at=10, seq=1)
OUTPUT = Output(
    asset_id="a1", node_id="2", key="images", index=0, name="x.png", kind=OutputKind.IMAGE,
    content_type="image/png", size_bytes=1, hash="blake3:00",
)  # fmt: skip


class World:
    """A job, and who watches it."""

    def __init__(self, job: Job = JOB) -> None:
        self.jobs, self.events = FakeJobStore(job), FakeEvents()
        self.jobs.places["j"] = 3
        self.outlook = Outlook()
        self.asked = 0

    async def look(self, _: Job) -> Outlook:
        self.asked += 1
        return self.outlook

    @property
    def subscribed(self) -> int:
        return self.events.subscribers["j"]

    def tell(self, seq: int, type_: str, run: str | None, **data: Any) -> None:
        self.events.tell(JobEvent(job_id="j", seq=seq, type=type_, run=run, data=data))

    def set(self, **changes: Any) -> None:
        self.jobs.held["j"] = replace(self.jobs.held["j"], **changes)


QUICK = StreamPace(progress_s=0.02, position_s=0.02, reread_s=0.05, alive_s=10)


async def watched(
    store: World, closing: asyncio.Event, pace: StreamPace | None = None
) -> AsyncIterator[list[Seen]]:
    async with store.events.subscribe("j") as stream:
        now = await store.jobs.snapshot("j")
        assert now is not None
        async for some in watch(now, stream, jobs=store.jobs, outlook=store.look, closing=closing, pace=pace):
            yield some


def start(store: World, pace: StreamPace = QUICK) -> tuple[list[Seen], "asyncio.Task[None]", asyncio.Event]:
    seen: list[Seen] = []
    closing = asyncio.Event()

    async def run() -> None:
        async for some in watched(store, closing, pace):
            seen.extend(some)

    return seen, asyncio.create_task(run()), closing


def end(store: World, seq: int, **changes: Any) -> None:
    store.set(status=JobStatus.SUCCEEDED, seq=seq, **changes)
    store.tell(seq, "status", "r1", status="succeeded")


async def test_missed_outputs_come_before_the_end() -> None:
    store = World()
    seen, task, _ = start(store)
    await until(lambda: seen, what="it is told")
    end(store, 9, outputs=(OUTPUT,), run="r1")  # everything in between was lost
    await asyncio.wait_for(task, 5)
    assert seen == [
        Status(status=JobStatus.QUEUED, queue_position=3),
        OUTPUT,
        Status(status=JobStatus.SUCCEEDED),
    ]
    assert store.subscribed == 0


async def test_a_lost_last_event_is_found_in_the_record() -> None:
    store = World()
    seen, task, _ = start(store)
    await until(lambda: seen, what="it is told")
    store.set(status=JobStatus.FAILED, seq=9)
    await asyncio.wait_for(task, 5)
    assert seen[-1] == Status(status=JobStatus.FAILED)


async def test_stale_and_foreign_events_say_nothing() -> None:
    store = World(replace(JOB, status=JobStatus.RUNNING, run="r1", seq=5))
    seen, task, _ = start(store, replace(QUICK, reread_s=60))
    await until(lambda: seen, what="it is told")
    store.tell(4, "progress", "r1", value=0.1, nodes_done=0, nodes_total=1)  # the record has it
    store.tell(6, "progress", "r0", value=0.2, nodes_done=0, nodes_total=1)  # an earlier run
    store.tell(7, "progress", "r1", value=0.3, nodes_done=0, nodes_total=1, novel="field")
    await until(lambda: len(seen) > 1, what="it is told")
    assert seen[1] == Progress(value=0.3, nodes_done=0, nodes_total=1)
    end(store, 8)
    await asyncio.wait_for(task, 5)
    assert len(seen) == 3


@pytest.mark.parametrize("shown", [False, True])
async def test_how_far_it_came_is_told_with_its_end_and_once(shown: bool) -> None:
    whole = Progress(value=1.0, nodes_done=2, nodes_total=2)
    job = replace(JOB, status=JobStatus.RUNNING, run="r1", seq=5)
    store = World(replace(job, progress=whole) if shown else job)
    together: list[list[Seen]] = []

    async def run() -> None:
        async for some in watched(store, asyncio.Event()):
            together.append(some)  # noqa: PERF401 - the test looks at it meanwhile

    task = asyncio.create_task(run())
    await until(lambda: together, what="it is told")
    store.tell(
        6, "status", "r1", status="succeeded", progress={"value": 1.0, "nodes_done": 2, "nodes_total": 2}
    )
    await asyncio.wait_for(task, 5)
    assert together[-1] == [*([] if shown else [whole]), Status(status=JobStatus.SUCCEEDED)]
    assert len(together) == 2


async def test_an_output_is_told_once() -> None:
    store = World(replace(JOB, status=JobStatus.RUNNING, run="r1", outputs=(OUTPUT,), seq=5))
    seen, task, _ = start(store)
    store.tell(6, "output", "r1", **{**vars(OUTPUT), "kind": "image"})
    await until(lambda: not store.events.unread("j") and len(seen) >= 2, what="it is told")
    end(store, 7)
    await asyncio.wait_for(task, 5)
    assert [one for one in seen if isinstance(one, Output)] == [OUTPUT]


async def test_a_new_run_is_followed() -> None:
    store = World(replace(JOB, status=JobStatus.RUNNING, run="r1", seq=5))
    seen, task, _ = start(store, replace(QUICK, reread_s=60))
    await until(lambda: seen, what="it is told")
    store.set(status=JobStatus.QUEUED, run=None, seq=6)
    store.tell(6, "status", None, status="queued")
    await until(lambda: len(seen) == 2, what="it is told")
    store.set(status=JobStatus.RUNNING, run="r2", seq=7)
    store.tell(7, "status", "r2", status="running")
    store.tell(8, "progress", "r2", value=0.5, nodes_done=0, nodes_total=1)
    await until(lambda: len(seen) == 4, what="it is told")
    assert seen[1] == Status(status=JobStatus.QUEUED, queue_position=3)
    assert isinstance(seen[3], Progress)
    end(store, 9)
    await asyncio.wait_for(task, 5)


async def test_a_restart_of_the_store_is_outlived() -> None:
    store = World()
    seen, task, _ = start(store)
    await until(lambda: seen, what="it is told")
    reads = store.jobs.calls["get"]
    store.jobs.down = True
    await until(lambda: store.jobs.calls["get"] >= reads + 3, what="it is read in vain")
    assert not task.done()
    store.jobs.down = False
    store.set(status=JobStatus.CANCELED, seq=4)
    await asyncio.wait_for(task, 5)
    assert seen[-1] == Status(status=JobStatus.CANCELED)


async def test_forgotten_jobs_and_closing_servers_end_it() -> None:
    store = World()
    seen, task, _ = start(store)
    await until(lambda: seen, what="it is told")
    store.jobs.held.clear()
    await asyncio.wait_for(task, 5)
    store = World()
    seen, task, closing = start(store)
    await until(lambda: seen, what="it is told")
    closing.set()
    await asyncio.wait_for(task, 5)
    assert store.subscribed == 0


async def test_silence_is_broken_now_and_then() -> None:
    store = World()
    seen, task, closing = start(store, replace(QUICK, alive_s=0.02))
    await until(lambda: sum(isinstance(one, Alive) for one in seen) >= 2, what="it is told")
    closing.set()
    await task


async def test_a_final_job_needs_no_event() -> None:
    store = World(replace(JOB, status=JobStatus.EXPIRED))
    seen, task, _ = start(store)
    await asyncio.wait_for(task, 5)
    assert seen == [Status(status=JobStatus.EXPIRED)]


async def test_the_end_is_estimated_anew_now_and_then_while_it_waits() -> None:
    store = World()
    first, later = (EndEstimate(p50_s=seconds, p90_s=9.0) for seconds in (4.0, 2.0))
    store.outlook = Outlook(end=first)
    seen, task, closing = start(store, replace(QUICK, estimate_s=0.1))
    queued = partial(Status, status=JobStatus.QUEUED, queue_position=3)
    await until(lambda: len(seen) == 2, what="a snapshot, and an estimate")
    reads, asked = store.jobs.calls["position"], store.asked
    await until(lambda: store.asked > asked + 1, what="it is estimated again")
    assert store.jobs.calls["position"] - reads > store.asked - asked  # not as often as its place is read
    assert seen == [queued(), queued(end=first)]
    store.outlook = Outlook(end=later)
    await until(lambda: len(seen) == 3, what="the new estimate")
    assert seen[2] == queued(end=later)
    end(store, 2)
    await task
    assert seen[-1] == Status(status=JobStatus.SUCCEEDED)
    closing.set()
