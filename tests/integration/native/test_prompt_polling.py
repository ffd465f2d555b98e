"""What editors ask for again after each change: large graphs are read from the store once."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobError, JobStatus
from comfy_fleet.domain.jobs.prompt_entries import ListedState
from comfy_fleet.services.prompt_items import PromptItems
from tests.integration.api_kit import Api, running
from tests.integration.native.prompts_kit import claim_next, end, post

PATHS = ("/queue", "/history", "/api/jobs")


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        await started.add_node()
        yield started


async def seen(api: Api) -> list[Any]:
    """Ask for everything that an editor asks for."""
    return [(await api.client.get(path)).json() for path in PATHS]


async def read(api: Api) -> int:
    """Return how many records, graphs and the like were read since this was asked last."""
    client: Any = api.stores.redis
    stats = await client.info("commandstats")
    await client.config_resetstat()
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "strlen", "hgetall"))


async def three(api: Api) -> None:
    """One prompt that is over, with an error of 40 kB, one that runs, and one that waits."""
    extra = {"extra_pnginfo": {"workflow": {"note": "x" * 100_000}}}
    for color in range(3):
        await post(api.client, color, extra_data=extra)
    error = JobError(code="execution_failed", message="y" * 40_000)
    await end(api, await claim_next(api), JobStatus.FAILED, error=error)
    await claim_next(api)


async def test_large_prompts_are_read_once_however_often_they_are_asked_for(api: Api) -> None:
    await three(api)
    first = await seen(api)
    queue, history, jobs = first
    assert [len(queue[name]) for name in ("queue_running", "queue_pending")] == [1, 1]
    (entry,) = history.values()
    for item in (entry["prompt"], *queue["queue_running"], *queue["queue_pending"]):
        assert item[2].keys() == {"1", "2"}
        assert len(item[3]["extra_pnginfo"]["workflow"]["note"]) == 100_000
    assert len(jobs["jobs"][-1]["execution_error"]["exception_message"]) >= 40_000
    await read(api)
    for _ in range(3):
        assert await seen(api) == first
    assert await read(api) == 0


async def test_what_changes_is_told_at_once(api: Api) -> None:
    names = [await post(api.client, color) for color in range(3)]
    for at, name in enumerate(names):
        queue, history, jobs = await seen(api)
        assert [item[1] for item in queue["queue_pending"]] == names[at:]
        assert list(history) == names[:at]
        assert [job["status"] for job in reversed(jobs["jobs"])] == ["completed"] * at + ["pending"] * (
            3 - at
        )
        claim = await claim_next(api)
        queue, history, _ = await seen(api)
        assert [item[1] for item in queue["queue_running"]] == [name]
        assert list(history) == names[:at]
        await end(api, claim, ui={"2": {"text": [str(at)]}})
    _, history, _ = await seen(api)
    assert [entry["outputs"]["2"]["text"] for entry in history.values()] == [["0"], ["1"], ["2"]]
    await api.client.post("/history", json={"delete": names[:1]})
    for _ in range(2):
        queue, history, jobs = await seen(api)
        assert list(history) == names[1:]
        assert [job["id"] for job in jobs["jobs"]] == names[:0:-1]


async def test_what_is_kept_is_limited_in_bytes(api: Api) -> None:
    await three(api)
    (over,) = await api.stores.prompts.history("local", 0, -1)
    prompts = await api.stores.prompts.queue("local")
    kept = PromptItems(api.stores.prompts)
    expected = await kept.queue(prompts, 10**9)
    one = len(expected[0])
    items = kept
    for most in (0, one, 4 * one, 5 * one, 6 * one, 20 * one):
        items = PromptItems(api.stores.prompts, most_bytes=most)
        for _ in range(3):
            assert await items.queue(prompts, 10**9) == expected
            assert (await items.history([over], 10**9))[1]
            assert await items.of([(over, ListedState.FAILED)])
            assert 0 <= items.kept_bytes <= most
    assert items.kept_bytes > 3 * one
