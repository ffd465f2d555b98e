"""Every button of RQ's dashboard, unmodified."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import rq_dashboard
from flask import Flask
from redis.asyncio import Redis
from rq.serializers import JSONSerializer
from rq_dashboard import web

from comfy_fleet.domain.jobs.job import JobError, JobStatus
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.integration.rq_kit import CARD, Client, ends, fleet_job, started, status_of

BUTTONS = {
    "/job/<job_id>/delete",
    "/job/<job_id>/requeue",
    "/requeue/<queue_name>",
    "/queue/<queue_name>/<registry_name>/empty",
    "/queue/<queue_name>/compact",
}
REGISTRIES = ("queued", "failed", "deferred", "started", "finished", "canceled", "scheduled")
BROKEN = JobError(code="node_execution_error", message="no such sampler")


class Dashboard:
    """Presses buttons."""

    def __init__(self, port: int) -> None:
        app = Flask(__name__)
        app.config["RQ_DASHBOARD_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        app.register_blueprint(rq_dashboard.blueprint)
        web.config.serializer = JSONSerializer
        web.setup_rq_connection(app)
        self.buttons = {str(rule) for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ())}
        self._client = app.test_client()

    async def press(self, path: str) -> None:
        answer = await asyncio.to_thread(self._client.post, path)
        assert answer.status_code == 200, (path, answer.text)

    async def look(self, path: str) -> Any:
        answer = await asyncio.to_thread(self._client.get, path)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as made:
        for node in ("g1", "g2", "g3"):
            await made.add_node(node)
        yield made


async def own_job(api: Api) -> str:
    answer = await api.client.post("/api/v1/workflows/image_card/jobs", json={"params": CARD["params"]})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_no_button_changes_a_job_of_the_apis_and_rqs_follow(api: Api, redis_port: int) -> None:
    board, client = Dashboard(redis_port), Client(redis_port)
    assert board.buttons == BUTTONS
    own_running = await own_job(api)
    own_claim = await api.claim(own_running, "g1")
    own_failed = await own_job(api)
    await api.stores.runs.finish(
        await api.claim(own_failed, "g3"), JobStatus.FAILED, error=BROKEN, duration_s=None
    )
    at_work, bad, done = await client.run(), await client.run(), await client.run()
    claim = await started(api, client, at_work.id, "g2")
    wrong = await started(api, client, bad.id, "g3")
    await api.stores.runs.finish(wrong, JobStatus.FAILED, error=BROKEN, duration_s=None)
    await client.becomes(bad.id, "failed")
    await api.finish(await started(api, client, done.id, "g3"))
    await client.becomes(done.id, "finished")
    own_waiting, waiting = await own_job(api), await client.run()
    waits = await fleet_job(api, waiting.id)
    await api.stores.runs.tend()
    seen = (await board.look("/0/data/queues.json"))["queues"]
    assert {queue["name"]: queue["count"] for queue in seen} == {"fleet": 1, "fleet.jobs": 2}
    assert (await board.look(f"/0/data/job/{done.id}.json"))["status"] == "finished"

    for queue in ("fleet", "fleet.jobs"):
        await board.press(f"/queue/{queue}/compact")
    await board.press(f"/job/{bad.id}/requeue")
    again = await fleet_job(api, bad.id)
    assert again != wrong.job.id
    await board.press(f"/job/{waiting.id}/delete")
    await ends(api, waits, JobStatus.CANCELED)
    await board.press("/queue/fleet/queued/empty")
    await ends(api, again, JobStatus.CANCELED)
    await board.press(f"/job/{own_failed}/requeue")
    await board.press(f"/job/{own_waiting}/delete")
    await board.press(f"/job/{own_running}/delete")
    await board.press("/queue/fleet/started/empty")
    await ends(api, claim.job.id, JobStatus.CANCELING)
    for queue in ("fleet", "fleet.jobs"):
        await board.press(f"/requeue/{queue}")
        for registry in REGISTRIES:
            await board.press(f"/queue/{queue}/{registry}/empty")
    await api.finish(claim)
    redis: Any = api.stores.redis

    async def forgotten() -> bool:
        return not await redis.exists("fleet:inbox:live", "fleet:inbox:taken", "rq:queue:fleet")

    await until(forgotten, what="nothing is left of RQ's jobs", timeout_s=45)
    await api.stores.runs.tend()
    assert await status_of(api, own_running) is JobStatus.RUNNING
    assert await status_of(api, own_waiting) is JobStatus.QUEUED
    assert await status_of(api, own_failed) is JobStatus.FAILED
    await api.finish(own_claim)
    await api.finish(await api.claim(own_waiting, "g2"))
    assert await status_of(api, own_running) is await status_of(api, own_waiting) is JobStatus.SUCCEEDED
