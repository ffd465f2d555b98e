"""ComfyUI's jobs API, which today's editor asks after each change."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.prompt_lists import RedisPromptLists
from comfy_fleet.domain.jobs.job import JobError, JobStatus
from comfy_fleet.domain.jobs.prompt_entries import ListedState
from comfy_fleet.ports.prompts import PromptFilter
from tests.factories import picture
from tests.integration.api_kit import Api, running
from tests.integration.native.prompts_kit import claim_next, end, post

UI: dict[str, dict[str, Any]] = {
    "2": {"images": [{"filename": "t_00001_.png", "subfolder": "", "type": "output"}]},
    "3": {"text": ["text"]},
}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        await started.add_node()
        yield started


async def listed(api: Api, query: str = "") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    answer = await api.client.get(f"/api/jobs?{query}")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {"jobs", "pagination"}
    return body["jobs"], body["pagination"]


async def at_every_stage(api: Api) -> dict[str, str]:
    """Return prompts by what became of them, the oldest first."""
    made: dict[str, str] = {}
    for kind in ("completed", "failed", "cancelled", "running", "waiting", "removed"):
        more = {"extra_data": {"extra_pnginfo": {"workflow": {"id": "w-1"}}}} if kind != "failed" else {}
        made[kind] = await post(api.client, len(made), **more)
        if kind in ("waiting", "removed"):
            continue
        claim = await claim_next(api)
        if kind == "completed":
            await end(api, claim, ui=UI)
        elif kind == "failed":
            await end(api, claim, JobStatus.FAILED, error=JobError(code="node_lost", message="gone"))
        elif kind == "cancelled":
            await api.client.post(f"/api/jobs/{made[kind]}/cancel")
            await end(api, claim, JobStatus.CANCELED)
    await api.client.post("/queue", json={"delete": [made["removed"]]})
    return made


async def test_what_the_editor_asks_for(api: Api) -> None:
    made = await at_every_stage(api)
    jobs, pagination = await listed(api, "status=in_progress,pending&limit=200&offset=0")
    assert pagination == {"offset": 0, "limit": 200, "total": 2, "has_more": False}
    for job in jobs:
        assert isinstance(job.pop("create_time"), int)
    shown = {"outputs_count": 0, "previewable_outputs_count": 0, "workflow_id": "w-1"}
    assert jobs == [
        {"id": made["waiting"], "status": "pending", "priority": 5, **shown},
        {"id": made["running"], "status": "in_progress", "priority": 4, **shown},
    ]
    jobs, pagination = await listed(api, "status=completed,failed,cancelled&limit=2&offset=0")
    assert [job["id"] for job in jobs] == [made["cancelled"], made["failed"]]
    assert pagination == {"offset": 0, "limit": 2, "total": 3, "has_more": True}
    error = jobs[1]["execution_error"]
    assert (error["exception_message"], error["exception_type"]) == ("gone", "node_lost")
    assert all(isinstance(error[name], str) for name in ("node_id", "node_type"))
    jobs, pagination = await listed(api, "status=completed,failed,cancelled&limit=2&offset=2")
    assert pagination["has_more"] is False
    (job,) = jobs
    assert job["execution_end_time"] >= job["execution_start_time"] >= job["create_time"] > 1e12
    for name in ("create_time", "execution_start_time", "execution_end_time"):
        del job[name]
    assert job == {
        "id": made["completed"],
        "status": "completed",
        "priority": 1,
        "outputs_count": 1,
        "previewable_outputs_count": 1,
        "preview_output": {**UI["2"]["images"][0], "nodeId": "2", "mediaType": "images"},
        "workflow_id": "w-1",
    }


async def test_filters_and_orders(api: Api) -> None:
    made = await at_every_stage(api)
    order = [made[kind] for kind in ("completed", "failed", "cancelled", "running", "waiting")]

    async def shown(query: str) -> list[str]:
        jobs, pagination = await listed(api, query)
        assert pagination["total"] >= len(jobs)
        return [job["id"] for job in jobs]

    assert await shown("") == order[::-1]
    assert (await listed(api))[1]["limit"] is None
    assert await shown("sort_order=asc") == order
    assert await shown("sort_order=ASC&sort_by=CREATED_AT&limit=2&offset=1") == order[1:3]
    assert await shown("status=completed") == [made["completed"]]
    assert await shown("status=Completed,%20FAILED") == [made["failed"], made["completed"]]
    assert await shown("status=,") == []
    assert await shown("offset=-4") == order[::-1]
    assert await shown("offset=99") == []
    assert await shown("workflow_id=w-1") == [name for name in order[::-1] if name != made["failed"]]
    assert await shown("workflow_id=w-1&status=pending") == [made["waiting"]]
    assert await shown("workflow_id=none") == []
    assert set(await shown("sort_by=execution_duration")) == set(order)
    assert await shown("sort_by=execution_duration&status=completed") == [made["completed"]]


async def test_pages_over_several_states_end_after_so_many_jobs(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await at_every_stage(api)
    monkeypatch.setattr("comfy_fleet.adapters.redis.prompt_lists.LOOKED_AT", 3)

    async def asked(query: str) -> tuple[list[str], bool]:
        jobs, pagination = await listed(api, query)
        assert pagination["total"] == 5
        return [job["id"] for job in jobs], pagination["has_more"]

    assert await asked("sort_order=asc&offset=2&limit=2") == ([made["cancelled"]], True)
    assert await asked("sort_order=asc&offset=3&limit=2") == ([], False)
    assert await asked("offset=2147483647") == ([], False)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "status=bogus",
            f"Invalid status value(s): bogus. Valid values: {', '.join(ListedState)}",
        ),
        ("limit=0", "limit must be a positive integer"),
        ("limit=x", "limit must be an integer"),
        ("offset=x", "offset must be an integer"),
        ("sort_by=x", "sort_by must be 'created_at' or 'execution_duration'"),
        ("sort_order=x", "sort_order must be 'asc' or 'desc'"),
    ],
)
async def test_a_wrong_query_is_refused_in_comfyuis_words(api: Api, query: str, message: str) -> None:
    answer = await api.client.get(f"/api/jobs?{query}")
    assert (answer.status_code, answer.json()) == (400, {"error": message})


async def test_one_job(api: Api) -> None:
    made = await at_every_stage(api)
    assert (await api.client.get(f"/api/jobs/{made['waiting']}")).json()["status"] == "pending"
    assert "outputs" not in (await api.client.get(f"/api/jobs/{made['running']}")).json()
    job = (await api.client.get(f"/api/jobs/{made['completed']}")).json()
    assert job["outputs"] == UI
    entry = (await api.client.get(f"/history/{made['completed']}")).json()[made["completed"]]
    assert job["execution_status"] == entry["status"]
    assert job["workflow"] == {"prompt": picture(0), "extra_data": entry["prompt"][3]}
    for name in (str(uuid4()), "nope", made["removed"]):
        answer = await api.client.get(f"/api/jobs/{name}")
        assert (answer.status_code, answer.json()) == (404, {"error": "Job not found"})
    assert (await api.client.get("/jobs")).status_code == 404


async def test_canceling(api: Api) -> None:
    made = await at_every_stage(api)

    async def cancel(name: str) -> bool:
        answer = await api.client.post(f"/api/jobs/{name}/cancel")
        assert answer.status_code == 200
        assert answer.json().keys() == {"cancelled"}
        return bool(answer.json()["cancelled"])

    assert [await cancel(made[kind]) for kind in ("completed", "failed", "cancelled")] == [False] * 3
    assert [await cancel(made["running"]) for _ in range(2)] == [True, True]
    assert [await cancel(made["waiting"]), await cancel(made["waiting"]), await cancel("nope")] == [
        *(True, False, False)
    ]
    more = [await post(api.client, 50 + color) for color in range(2)]
    for sent, cancelled in (([*more, str(uuid4())], True), (more, False), ([], False)):
        answer = await api.client.post("/api/jobs/cancel", json={"job_ids": sent})
        assert (answer.status_code, answer.json()) == (200, {"cancelled": cancelled})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            b'{"job_ids": ["nope", 3]}',
            {"error": "job_ids contains invalid id(s)", "invalid_ids": ["nope", "3"]},
        ),
        (b"{}", {"error": "job_ids must be a list"}),
        (b"[]", {"error": "job_ids must be a list"}),
        (b"null", {"error": "job_ids must be a list"}),
        (b"", {"error": "Request body must be valid JSON"}),
    ],
)
async def test_a_wrong_list_to_cancel_is_refused_in_comfyuis_words(
    api: Api, body: bytes, told: dict[str, Any]
) -> None:
    answer = await api.client.post("/api/jobs/cancel", content=body)
    assert (answer.status_code, answer.json()) == (400, told)


async def test_jobs_of_an_earlier_version_are_listed(api: Api) -> None:
    made = await at_every_stage(api)
    keys = api.stores.redis.keyspace
    lists = await api.stores.redis.keys(f"{keys.namespace}:listed*")
    history = await api.stores.redis.keys(f"{keys.namespace}:history*")
    live = await api.stores.redis.keys(f"{keys.namespace}:live*")
    await api.stores.redis.delete(*lists, *history, *live)
    newer = RedisPromptLists(api.stores.redis, api.stores.jobs)  # of a process that starts now
    page = await newer.page(PromptFilter(owner="local", states=frozenset(ListedState), oldest_first=True))
    jobs, _ = await listed(api, "sort_order=asc")
    assert [job["id"] for job in jobs] == [
        made[kind] for kind in ("completed", "failed", "cancelled", "running", "waiting")
    ]
    assert page.total == 5
    assert len((await api.client.get("/history")).json()) == 3
    assert len((await api.client.get("/queue")).json()["queue_pending"]) == 1


async def test_a_list_that_an_earlier_version_left_behind_is_put_right(api: Api) -> None:
    made = await at_every_stage(api)
    await listed(api)
    keys = api.stores.redis.keyspace
    # That version has started one job, and forgotten another.
    await api.stores.redis.hset(keys.job(made["waiting"]), mapping={"status": "running", "started": "1"})
    await api.stores.redis.delete(keys.job(made["failed"]))
    jobs, pagination = await listed(api, "status=pending")
    assert (jobs, pagination["total"]) == ([], 0)
    jobs, pagination = await listed(api)
    assert [(job["id"], job["status"]) for job in jobs][:2] == [
        (made["waiting"], "in_progress"),
        (made["running"], "in_progress"),
    ]
    assert pagination["total"] == 4
