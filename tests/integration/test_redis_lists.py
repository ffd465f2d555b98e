"""Lists of many jobs: bounded, complete, and without what only one job's own page shows."""

from dataclasses import replace
from itertools import chain
from typing import Any

import orjson
import pytest

from comfy_fleet.adapters.redis import jobs as jobs_module
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import JobError, JobFilter, JobStatus
from tests.integration.redis_kit import add_nodes, claim, output, stored, submit

MAKE = """
local t = tonumber(ARGV[3])
for i = 1, tonumber(ARGV[1]) do
  local id, at = string.format('%s%07d', ARGV[2], i), string.format('%.6f', t + i * tonumber(ARGV[4]))
  redis.call('HSET', 'fleet:job:' .. id, 'owner', 'ann', 'status', 'succeeded', 'created', at, 'expires', at,
    'graph', 'g', 'priority', 0, 'placement', 'default', 'metadata', '{"a":"b","n":"' .. i % 1000 .. '"}')
  redis.call('ZADD', 'fleet:jobs', at, id)
  redis.call('ZADD', 'fleet:jobs:ann', at, id)
end
"""


async def make(
    stores: Stores, count: int, *, prefix: str = "j", at: float = 1e9, apart_s: float = 1.0
) -> None:
    client: Any = stores.redis
    await client.eval(MAKE, 0, count, prefix, at, apart_s)


async def pages(stores: Stores, **wanted: Any) -> list[list[str]]:
    """Follow a list to its end."""
    found, cursor = [], None
    while True:
        page = await stores.jobs.find(JobFilter(owner="ann", cursor=cursor, **wanted))
        found.append([job.id for job in page.jobs])
        if (cursor := page.next_cursor) is None:
            return found
        assert len(found) < 1000


async def test_a_filter_that_matches_nothing_is_answered_in_bounded_pages(stores: Stores) -> None:
    await make(stores, 100_000)
    found = await pages(stores, limit=1, metadata={"a": "nope"})
    assert len(found) >= 100_000 // jobs_module.LOOKED_AT
    assert not any(found)


@pytest.mark.parametrize("filters", [{"statuses": frozenset({JobStatus.FAILED})}, {"workflow": "x"}])
async def test_states_and_workflows_filter_as_well(stores: Stores, filters: dict[str, Any]) -> None:
    await make(stores, 10)
    assert await pages(stores, limit=1, **filters) == [[]]
    client: Any = stores.redis
    await client.hset("fleet:job:j0000003", mapping={"status": "failed", "workflow": "x"})
    assert await pages(stores, limit=2, **filters) == [["j0000003"]]


async def test_rare_matches_are_all_found_once(stores: Stores) -> None:
    await make(stores, 25_000)
    found = await pages(stores, limit=7, metadata={"n": "5", "a": "b"})
    assert all(len(page) <= 7 for page in found)
    assert [*chain(*found)] == [f"j{number:07d}" for number in range(24_005, 0, -1000)]


async def test_jobs_of_one_moment_are_told_once(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "WINDOW", 10)
    monkeypatch.setattr(jobs_module, "LOOKED_AT", 25)
    await make(stores, 101, apart_s=0)
    every = [f"j{number:07d}" for number in range(101, 0, -1)]
    assert [*chain(*await pages(stores, limit=7))] == every
    assert [*chain(*await pages(stores, limit=7, metadata={"a": "b"}))] == every


@pytest.mark.parametrize("filters", [{}, {"metadata": {"a": "b"}}])
async def test_jobs_that_come_meanwhile_change_no_later_page(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any]
) -> None:
    monkeypatch.setattr(jobs_module, "WINDOW", 4)
    await make(stores, 40)
    seen: list[str] = []
    cursor = None
    real = Scripts.call

    async def meanwhile(scripts: Scripts, name: str, *args: Any, **more: Any) -> Any:
        if name == "briefs":
            await make(stores, 3, prefix=f"new{len(seen)}-", at=2e9 + len(seen))
        return await real(scripts, name, *args, **more)

    monkeypatch.setattr(Scripts, "call", meanwhile)
    while True:
        page = await stores.jobs.find(JobFilter(owner="ann", limit=5, cursor=cursor, **filters))
        seen += [job.id for job in page.jobs]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == [f"j{number:07d}" for number in range(40, 0, -1)]


async def test_a_list_reads_neither_outputs_nor_the_details_of_large_errors(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    await submit(stores, params={"prompt": "x" * 100_000})
    run = await claim(stores)
    await stores.runs.commit(run, stored(run, output()))
    one = (await client.hvals(f"fleet:job:{run.job.id}:outputs"))[0]
    await client.hset(f"fleet:job:{run.job.id}:outputs", mapping={str(n): one for n in range(5000)})
    error = JobError(
        code="node_execution_error",
        message="it broke",
        node_id="3",
        traceback="t" * 30_000,
        details={"x": "y" * 9000},
    )
    await stores.runs.finish(run, JobStatus.FAILED, error=error, duration_s=None)
    await client.config_resetstat()
    (job,) = (await stores.jobs.find(JobFilter(owner=None))).jobs
    assert job.outputs == () and job.output_count == 5001 and job.params == {}
    assert job.error == JobError(code="node_execution_error", message="it broke", node_id="3")
    assert "cmdstat_hgetall" not in await client.info("commandstats")
    assert len(orjson.dumps(job.error.details)) < 10
    whole = await stores.jobs.get(run.job.id)
    assert whole and whole.error == error and len(whole.outputs) == 5001


async def test_a_list_leaves_out_the_stories_of_runs(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    run = await claim(stores)
    details = {"story": ["0.000 Opened -> posting: PostPrompt"] * 100, "limit": "run_timeout_s", "list": []}
    error = JobError(code="run_timeout", message="it took too long", traceback="line 1", details=details)
    await stores.runs.finish(run, JobStatus.FAILED, error=error, duration_s=None)
    (job,) = (await stores.jobs.find(JobFilter(owner=None))).jobs
    assert job.error == replace(error, details={"limit": "run_timeout_s", "list": []})
    whole = await stores.jobs.get(run.job.id)
    assert whole and whole.error == error


@pytest.mark.parametrize("cursor", ["x", "aW5mIHg", "bmFuIGE", "MSAy", "", "é"])
async def test_a_cursor_of_nobody_is_refused(stores: Stores, cursor: str) -> None:
    with pytest.raises(BadInput, match="cursor"):
        await stores.jobs.find(JobFilter(owner="ann", cursor=cursor))
