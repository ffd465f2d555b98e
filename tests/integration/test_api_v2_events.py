"""Comfy API v2: a job's live events."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from comfy_low.sse import SSEDecoder
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobError, JobStatus, Progress
from comfy_fleet.services.job_watch import StreamPace
from tests.factories import GRAPH
from tests.integration.api_kit import Api, running


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, max_streams=3) as started:
        await started.add_node()
        yield started


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only events move a stream: it never looks at the record again."""
    never = StreamPace(progress_s=3600, position_s=3600, reread_s=3600, alive_s=3600)
    monkeypatch.setattr("comfy_fleet.services.job_watch.StreamPace", lambda: never)


class Stream:
    """What came so far, with arrival times."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []
        self.ended = asyncio.Event()
        self._more = asyncio.Condition()

    async def read(self, answer: httpx.Response) -> None:
        decoder = SSEDecoder()
        async for line in answer.aiter_lines():
            for event in decoder.push(line):
                self.events.append((event.event, event.data))
                self.times.append(time.perf_counter())
                async with self._more:
                    self._more.notify_all()
        self.ended.set()

    async def count(self, number: int) -> None:
        async with asyncio.timeout(60), self._more:
            await self._more.wait_for(lambda: len(self.events) >= number)

    async def end(self) -> None:
        async with asyncio.timeout(60):
            await self.ended.wait()

    @property
    def kinds(self) -> list[str]:
        return [kind if kind != "status" else data["status"] for kind, data in self.events]


@asynccontextmanager
async def following(api: Api, job: dict[str, Any]) -> AsyncIterator[Stream]:
    stream = Stream()
    async with api.client.stream("GET", job["urls"]["events"]) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        task = asyncio.create_task(stream.read(answer))
        try:
            yield stream
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def progress(value: float) -> Progress:
    return Progress(
        value=value, nodes_done=1, nodes_total=2, current_node="2", current_node_class="SaveImage"
    )


async def test_a_job_from_queue_to_end(api: Api) -> None:
    job = await api.submit(GRAPH)
    async with following(api, job) as stream:
        await stream.count(1)
        assert stream.events[0] == ("status", {"status": "queued", "queue_position": 1})
        claim = await api.claim(job["id"])
        await stream.count(2)
        await api.stores.runs.progress(claim, progress(0.5))
        await stream.count(3)
        assert stream.events[2][1]["value"] == 0.5
        assert stream.events[2][1]["message"] == "SaveImage"
        await api.stores.runs.preview(
            claim, {"node_id": "2", "content_type": "image/jpeg", "data_base64": "AA=="}
        )
        await stream.count(4)
        output = await api.output(claim, b"x")
        await stream.count(5)
        assert stream.events[4][1]["id"] == output.asset_id
        await api.finish(claim)
        await stream.end()
        assert stream.kinds == ["queued", "running", "progress", "preview", "output", "succeeded"]


async def test_late_readers_get_a_snapshot(api: Api) -> None:
    job = await api.submit(GRAPH)
    claim = await api.claim(job["id"])
    await api.stores.runs.progress(claim, progress(0.25))
    await api.stores.runs.preview(
        claim, {"node_id": "2", "content_type": "image/jpeg", "data_base64": "AA=="}
    )
    await api.output(claim, b"x")
    async with following(api, job) as stream:
        await stream.count(4)
        assert stream.kinds == ["running", "progress", "output", "preview"]
    await api.finish(claim)
    async with following(api, job) as stream:
        await stream.end()
        assert stream.kinds == ["output", "succeeded"]


async def test_progress_is_throttled_and_ends_on_the_newest(api: Api) -> None:
    job = await api.submit(GRAPH)
    claim = await api.claim(job["id"])
    async with following(api, job) as stream:
        await stream.count(1)
        for step in range(60):
            await api.stores.runs.progress(claim, progress(step / 100))
            await asyncio.sleep(0.02)
        await stream.count(3)
        told = [at for at, (kind, _) in zip(stream.times, stream.events, strict=True) if kind == "progress"]
        assert len(told) <= 2 + (told[-1] - told[0]) / 0.5  # the first, one at a time's end, and two a second
        async with asyncio.timeout(60):
            while [d["value"] for k, d in stream.events if k == "progress"][-1] != 0.59:
                await asyncio.sleep(0.02)


async def test_queue_positions_move(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = StreamPace(
        reread_s=3600, alive_s=3600
    )  # whatever else it looks for would bring the position along
    monkeypatch.setattr("comfy_fleet.services.job_watch.StreamPace", lambda: patient)
    first, second = await api.submit(GRAPH), await api.submit(GRAPH)
    async with following(api, second) as stream:
        await stream.count(1)
        assert stream.events[0][1] == {"status": "queued", "queue_position": 2}
        await api.client.post(first["urls"]["cancel"])
        await stream.count(2)
        assert stream.events[1][1] == {"status": "queued", "queue_position": 1}


async def test_other_runs_events_are_dropped(api: Api, no_clock: None) -> None:
    job = await api.submit(GRAPH)
    old = await api.claim(job["id"])
    async with following(api, job) as stream:
        await stream.count(1)
        await api.stores.runs.requeue(old, counts=True, reason=JobError(code="node_lost", message="gone"))
        await stream.count(2)
        new = await api.claim(job["id"])
        await stream.count(3)
        stray = {"seq": 10_000, "type": "progress", "run": old.run, "data": {"value": 0.9, "nodes_done": 1,
                 "nodes_total": 2}}  # fmt: skip
        await api.stores.redis.publish(f"fleet:events:{job['id']}", orjson.dumps(stray))
        await api.finish(new)
        await stream.end()  # the stray one's number hides nothing
        assert stream.kinds == ["running", "queued", "running", "succeeded"]


async def test_the_last_status_waits_for_no_clock(api: Api, no_clock: None) -> None:
    job = await api.submit(GRAPH)
    claim = await api.claim(job["id"])
    async with following(api, job) as stream:
        await stream.count(1)
        await api.finish(claim)
        await stream.end()
        assert stream.kinds == ["running", "succeeded"]


async def test_canceled_and_failed_jobs_end_the_stream(api: Api) -> None:
    job = await api.submit(GRAPH)
    async with following(api, job) as stream:
        await stream.count(1)
        await api.client.post(job["urls"]["cancel"])
        await stream.end()
        assert stream.kinds[-1] == "canceled"
    job = await api.submit(GRAPH)
    claim = await api.claim(job["id"])
    async with following(api, job) as stream:
        await stream.count(1)
        await api.finish(claim, JobStatus.FAILED)
        await stream.end()
        assert stream.kinds[-1] == "failed"


async def test_streams_are_limited_and_freed_when_clients_leave(api: Api) -> None:
    job = await api.submit(GRAPH)
    async with following(api, job), following(api, job), following(api, job):
        refused = await api.client.get(job["urls"]["events"])
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_streams"
        assert int(refused.headers["retry-after"]) >= 1
        head = await api.client.head(job["urls"]["events"])  # holds nothing, so nothing limits it
        assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    async with asyncio.timeout(60):
        while api.deps.streams:
            await asyncio.sleep(0.01)
    async with following(api, job) as stream:
        await stream.count(1)


async def test_shutdown_ends_streams(
    redis_port: int, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.api.server.GRACE_S", 3600)  # only because streams end does it end at all
    async with running(redis_port, tmp_path) as api:
        await api.add_node()
        job = await api.submit(GRAPH)
        async with following(api, job) as stream:
            await stream.count(1)
            api.server.should_exit = True
            await stream.end()
            assert stream.kinds == ["queued"]
        async with asyncio.timeout(60):
            await api.serving


async def test_unknown_jobs_have_no_stream(api: Api) -> None:
    answer = await api.client.get("/api/v2/jobs/00000000-0000-0000-0000-000000000000/events")
    assert answer.status_code == 404
