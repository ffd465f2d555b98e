"""Every way to submit continues its caller's trace, and names the job's; webhooks hand it on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import Job
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.integration.rq_kit import CARD, Client
from tests.integration.trace_kit import Collector, collecting
from tests.integration.webhook_kit import receiver

CALLER = "b7ad6b7169203331"
OPENAI = {"model": "image_card", "prompt": "a fox"}
FOX = {"params": {"prompt": "a fox"}}


@pytest.fixture
def folder(redis: Redis, tmp_path: Path) -> Path:
    """A new folder, beside an empty database."""
    return tmp_path


@asynccontextmanager
async def traced(
    redis_port: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Api, Collector]]:
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        settings: dict[str, Any] = {"webhook_allow": "127.0.0.1", "webhook_backoff_s": "0.2,0.4,1"}
        async with running(redis_port, folder, **settings) as api:
            await api.add_node()
            yield api, collector


def caller(number: int) -> str:
    return f"00-{number:032x}-{CALLER}-01"


async def jobs(api: Api, count: int) -> list[Job]:
    """Return all jobs once there are so many, the oldest first."""
    found: list[Job] = []

    async def there() -> bool:
        listed = (await api.client.get("/api/v1/jobs?limit=100")).json()["jobs"]
        loaded = await api.stores.jobs.load([one["id"] for one in listed][::-1])
        found[:] = [one for one in loaded if one is not None]
        return len(found) >= count

    await until(there, what=f"{count} jobs are there")
    return found


async def test_every_face_continues_the_callers_trace(
    redis_port: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(redis_port, folder, monkeypatch) as (api, collector):
        card = "/api/v1/workflows/image_card"
        asked: list[tuple[str, Any]] = [
            ("/api/v2/jobs", {"workflow": picture(1)}),
            (f"{card}/jobs", FOX),
            ("/api/v1/generate", {"prompt": "a fox"}),
            ("/prompt", {"prompt": picture(2)}),
            ("/api/prompt", {"prompt": picture(3)}),
            (f"{card}/batches", {"items": [FOX, {"params": {"prompt": "a dog"}}]}),
        ]
        for number, (path, body) in enumerate(asked, 1):
            answer = await api.client.post(path, json=body, headers={"traceparent": caller(number)})
            assert answer.is_success, (path, answer.text)
            trace_id = f"{number:032x}"
            named = answer.headers["traceparent"]
            await until(lambda: "submit" in collector.of(trace_id), what=path)  # noqa: B023 - called at once
            submits = collector.of(trace_id)["submit"]
            assert named in {f"00-{trace_id}-{one.span_id}-01" for one in submits}, path
            assert {one.parent_id for one in submits} == {CALLER} and submits[0].kind == 2
        known = await jobs(api, len(asked) + 1)
        assert len(collector.of(f"{len(asked):032x}")["submit"]) == 2
        assert {one.traceparent for one in known} == {caller(number) for number in range(1, len(asked) + 1)}

        # Two jobs of two traces in one answer: it names neither.
        alone = await api.client.post(f"{card}/batches", json={"items": [FOX, FOX]})
        assert alone.is_success and "traceparent" not in alone.headers
        # What makes no job names none, either.
        refused = await api.client.post("/api/v2/jobs", json={}, headers={"traceparent": caller(99)})
        assert refused.status_code == 422 and "traceparent" not in refused.headers

        headers = {"traceparent": caller(40)}
        asking = api.client.post("/v1/images/generations", json=OPENAI, headers=headers)
        waits = asyncio.create_task(asking)
        all_jobs = await jobs(api, len(known) + 3)
        (made,) = [one for one in all_jobs if one.traceparent == caller(40)]
        await api.client.post(f"/api/v2/jobs/{made.id}/cancel")
        assert (await waits).headers["traceparent"].startswith(f"00-{40:032x}-")

        rq = Client(redis_port)
        await rq.run({**CARD, "traceparent": caller(50)})
        await rq.run({**CARD, "traceparent": "00-no-trace"})
        await until(lambda: "submit" in collector.of(f"{50:032x}"), what="RQ's job is told")
        assert [one.traceparent for one in await jobs(api, len(known) + 5)].count(caller(50)) == 1


@pytest.mark.parametrize("on", [True, False])
async def test_webhooks_hand_the_trace_on(
    redis_port: int, folder: Path, monkeypatch: pytest.MonkeyPatch, *, on: bool
) -> None:
    async with receiver() as shop:
        body = {"workflow": picture(1), "webhook_url": f"{shop.url}/x"}
        headers = {"traceparent": caller(1)}
        if not on:
            async with running(redis_port, folder, webhook_allow="127.0.0.1") as api:
                await api.add_node()
                made = await api.client.post("/api/v2/jobs", json=body, headers=headers)
                assert "traceparent" not in made.headers
                await api.client.post(f"/api/v2/jobs/{made.json()['id']}/cancel")
                await until(lambda: shop.taken, what="it is told")
            assert shop.taken[0].headers["traceparent"] == caller(1), "as the caller has sent it"
            return
        async with traced(redis_port, folder, monkeypatch) as (api, collector):
            shop.answer = lambda _: 500 if len(shop.received) == 1 else 204
            made = await api.client.post("/api/v2/jobs", json=body, headers=headers)
            await api.client.post(f"/api/v2/jobs/{made.json()['id']}/cancel")
            await until(lambda: shop.taken, what="it is told in the end")
            await until(
                lambda: (
                    {"job"} <= collector.of(f"{1:032x}").keys()
                    and len(collector.of(f"{1:032x}").get("webhook", ())) == 2
                ),
                what="the tries are told",
            )
            found = collector.of(f"{1:032x}")
            first, second = found["webhook"]
            assert (first.failed, second.failed) == (True, False)
            assert first.facts["http.response.status_code"] == 500 and second.facts["fleet.attempt"] == 2
            sent = [one.headers["traceparent"].split("-")[2] for one in shop.received]
            assert sent == [first.span_id, second.span_id]
            (whole,) = found["job"]
            assert whole.facts["fleet.status"] == "canceled" and first.parent_id == whole.span_id
