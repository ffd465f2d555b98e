"""How batches end, and what is left of them, on a real API and Redis. Nothing runs."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.integration.api_kit import Api, code, running, upload
from tests.integration.batch_kit import folder, item, keys, post, queued, show
from tests.integration.test_input_urls import png


@pytest.fixture
async def api(redis_port: int, redis: Any, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path / "data", workflows=folder(tmp_path)) as made:
        await made.add_node()
        await upload(made, png(), "cat.png")
        yield made


async def test_cancel_and_retry_what_was_canceled(api: Api) -> None:
    batch = await post(api, {"items": [item(prefix=f"n{n}") for n in range(30)]})
    canceled = await api.client.post(f"/api/v1/batches/{batch['id']}/cancel")
    assert (canceled.json()["status"], canceled.json()["counts"]["canceled"]) == ("completed", 30)
    assert await api.stores.jobs.depth() == 0
    again = await api.client.post(f"/api/v1/batches/{batch['id']}/retry", json={})
    assert again.json()["retried"] == 0, "canceled ones only on request"
    body = {"statuses": ["canceled", "failed"]}
    key = {"Idempotency-Key": "r"}
    again = await api.client.post(f"/api/v1/batches/{batch['id']}/retry", json=body, headers=key)
    assert again.json()["retried"] == 30, again.text
    same = await api.client.post(f"/api/v1/batches/{batch['id']}/retry", json=body, headers=key)
    assert (same.json(), same.headers["Idempotency-Replayed"]) == (again.json(), "true")
    found = await queued(api, batch, 30)
    assert (found["status"], await api.stores.jobs.depth()) == ("running", 30)


async def test_two_equal_retries_at_once_are_one(api: Api) -> None:
    batch = await post(api, {"items": [item(prefix=f"n{n}") for n in range(3)]})
    await queued(api, batch, 3)
    path, told = f"/api/v1/batches/{batch['id']}", list[str]()
    await api.client.post(f"{path}/cancel")
    api.deps.batch_maker._telemetry = SimpleNamespace(submitted=lambda job: told.append(job.id))  # noqa: SLF001
    body, key = {"statuses": ["canceled"]}, {"Idempotency-Key": "r"}
    both = await asyncio.gather(*(api.client.post(f"{path}/retry", json=body, headers=key) for _ in range(2)))
    assert [one.status_code for one in both] == [200, 200]
    assert len(told) == 3
    again = await api.client.post(f"{path}/retry", json=body, headers=key)
    assert (again.json()["retried"], again.headers["Idempotency-Replayed"]) == (3, "true")
    await queued(api, batch, 3)


async def test_a_batch_that_can_not_be_read_holds_no_other_up(api: Api) -> None:
    client: Any = api.stores.redis
    await client.hset("fleet:batch:broken", mapping={"owner": "default", "begun": "1"})
    await client.rpush("fleet:batch:broken:pending", b"\x00\x00\x00\x02{[")
    await client.zadd("fleet:batches:busy", {"broken": 1})
    batch = await post(api, {"items": [item(prefix="a")]})
    await queued(api, batch, 1)


async def test_a_batch_goes_with_its_jobs(api: Api) -> None:
    batch = await post(api, {"items": [item(prefix="a"), item(prefix="b")]})
    found = await queued(api, batch, 2)
    await api.client.post(f"/api/v1/batches/{batch['id']}/cancel")
    for one in found["items"]:
        assert (await show(api, batch))["total"] == 2
        assert (await api.client.delete(f"/api/v1/jobs/{one['job_id']}")).status_code == 204
    assert (await api.client.get(f"/api/v1/batches/{batch['id']}")).status_code == 404
    assert await keys(api, "fleet:batch*") == []


async def test_a_removed_batch_takes_its_jobs_along(api: Api) -> None:
    batch = await post(api, {"items": [item(prefix=f"n{n}") for n in range(3)]})
    found = await queued(api, batch, 3)
    path = f"/api/v1/batches/{batch['id']}"
    assert code(await api.client.delete(path)) == (409, "conflict")
    await api.client.post(f"{path}/cancel")
    await api.client.post(f"{path}/retry", json={"statuses": ["canceled"]})
    again = await queued(api, batch, 3)
    ids = {one["job_id"] for one in (*found["items"], *again["items"])}
    assert len(ids) == 6
    other = await api.client.post("/api/v1/workflows/card/jobs", json=item(prefix="other"))
    assert (await api.client.delete(f"{path}?cancel=true")).status_code == 204
    assert (await api.client.delete(path)).status_code == 404
    for job_id in ids:
        assert (await api.client.get(f"/api/v1/jobs/{job_id}")).status_code == 404
    assert (await api.client.get(f"/api/v1/jobs/{other.json()['id']}")).status_code == 200
    assert await keys(api, "fleet:batch*") == []


async def test_a_job_names_its_batch(api: Api) -> None:
    batch = await post(api, {"items": [{"custom_id": "a fox, 7", **item()}]})
    found = await queued(api, batch, 1)
    job_id = found["items"][0]["job_id"]
    shown = (await api.client.get(f"/api/v1/jobs/{job_id}")).json()
    (listed,) = (await api.client.get("/api/v1/jobs")).json()["jobs"]
    for job in (shown, listed):
        assert (job["batch_id"], job["custom_id"]) == (batch["id"], "a fox, 7")
    single = await api.client.post(f"/api/v1/jobs/{job_id}/cancel")
    again = await api.client.post(f"/api/v1/jobs/{single.json()['id']}/retry", json={})
    assert "batch_id" not in again.json(), "a job that is repeated by itself is in no batch"


async def test_jobs_that_a_version_without_batches_forgets_leave_no_batch_behind(api: Api) -> None:
    client: Any = api.stores.redis
    batch = await post(api, {"items": [item(prefix=f"n{n}") for n in range(4)]})
    first, second, *_ = (await queued(api, batch, 4))["items"]
    await client.delete(f"fleet:job:{first['job_id']}")
    await api.deps.batches.tend(batch["id"], first=0, most=10)
    assert (await show(api, batch))["counts"]["queued"] == 3
    await client.delete(f"fleet:job:{second['job_id']}")
    canceled = (await api.client.post(f"/api/v1/batches/{batch['id']}/cancel")).json()
    assert (canceled["status"], canceled["counts"]["canceled"]) == ("completed", 2)
    for one in (await show(api, batch))["items"]:
        await client.delete(f"fleet:job:{one['job_id']}")
    await api.deps.batch_keeper.tend()
    assert (await api.client.get(f"/api/v1/batches/{batch['id']}")).status_code == 404
    assert await keys(api, "fleet:batch*") == []


async def test_what_a_version_without_batches_has_ended_is_seen(api: Api) -> None:
    batch = await post(api, {"items": [item()]})
    found = await queued(api, batch, 1)
    client: Any = api.stores.redis
    await client.hset(f"fleet:job:{found['items'][0]['job_id']}", "status", "succeeded")
    await api.deps.batches.tend(batch["id"], first=0, most=10)
    assert (await show(api, batch))["status"] == "completed"


async def test_pages_of_batches_and_items(api: Api) -> None:
    made = [await post(api, {"items": [item(prefix=f"{n}-{m}") for m in range(5)]}) for n in range(3)]
    first = (await api.client.get("/api/v1/batches?limit=2")).json()
    rest = (await api.client.get(f"/api/v1/batches?limit=2&cursor={first['next_cursor']}")).json()
    assert [one["id"] for one in first["batches"] + rest["batches"]] == [one["id"] for one in reversed(made)]
    await queued(api, made[0], 5)
    names: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await show(api, made[0], f"?limit=2&status=queued{cursor and f'&cursor={cursor}'}")
        names += [one["custom_id"] for one in page["items"]]
        cursor = page["next_cursor"]
    assert names == ["1", "2", "3", "4", "5"]
    for query in ("?status=done", "?cursor=x", "?cursor=queued.x"):
        assert (await api.client.get(f"/api/v1/batches/{made[0]['id']}{query}")).status_code == 400


async def test_events_tell_each_item_and_the_end(api: Api) -> None:
    batch = await post(api, {"items": [item(prefix="a"), item(prefix="b")]})
    told: list[tuple[str, dict[str, Any]]] = []
    canceled = False
    async with api.client.stream("GET", f"/api/v1/batches/{batch['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told.append((name, json.loads(line.removeprefix("data: "))))
                if not canceled:
                    canceled = True
                    await api.client.post(f"/api/v1/batches/{batch['id']}/cancel")
    assert told[0][0] == "batch"
    ends = {data["custom_id"]: data["status"] for name, data in told if name == "item"}
    assert ends == {"1": "canceled", "2": "canceled"}
    assert told[-1][0] == "batch" and told[-1][1]["status"] == "completed"
