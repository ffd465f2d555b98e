"""What the OpenAPI documents say about submits that wait for their job's end."""

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobError, JobStatus, OutputKind
from tests.factories import GRAPH
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.integration.openapi_kit import V1, V2, Described, document


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        await started.add_node(info=False)
        yield started


async def test_answers_of_submits_that_wait_are_what_the_documents_say(api: Api) -> None:
    v1, v2 = Described(await document(api, V1)), Described(await document(api, V2))
    submits = [
        operation
        for spec in (v1, v2)
        for methods in spec.spec["paths"].values()
        for operation in methods.values()
        if "Prefer" in {one["name"] for one in operation.get("parameters", ())}
    ]
    assert {one["operationId"] for one in submits} >= {
        *("generate", "submit_task", "run_workflow", "run_image_card", "retry_job", "create_job")
    }
    for operation in submits:
        found = operation["responses"]
        assert found["200"]["content"].keys() == {
            *("application/json", "image/jpeg", "image/png", "image/webp")
        }
        assert {"404", "406", "409", "422", "502", "503", "504"} <= found.keys(), operation["operationId"]

    async def ended(path: str, body: Any, number: int, end: JobStatus | str, **outputs: Any) -> Any:
        """Submit, wait for the picture, let the job end, and hold the answer against the document."""
        headers = {"Accept": "image/*", "Prefer": "wait=60", "Cache-Control": "no-cache"}
        waiting = asyncio.create_task(api.client.post(path, json=body, headers=headers))
        jobs: list[str] = []

        async def there() -> bool:
            listed = (await api.client.get("/api/v1/jobs")).json()["jobs"]
            jobs[:] = [one["id"] for one in listed]
            return len(jobs) == number and api.deps.waits.total() == 1

        await until(there, what="it waits")
        if end is JobStatus.CANCELED:
            await api.client.post(f"/api/v1/jobs/{jobs[0]}/cancel")
        else:
            claim = await api.claim(jobs[0])
            if outputs:
                await api.output(claim, **outputs)
            if end is JobStatus.SUCCEEDED:
                await api.finish(claim)
            else:
                await api.stores.runs.left(claim, [])
                error = JobError(code=str(end), message="it broke")
                await api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=1)
        answer = await waiting
        spec = v2 if path.startswith("/api/v2") else v1
        described = spec.operation("POST", path)["responses"][str(answer.status_code)]
        kind = answer.headers["content-type"]
        assert kind in described["content"], (path, answer.text)
        for header in {"Location", "X-Fleet-Job", "Preference-Applied"} if answer.status_code == 200 else ():
            assert header in described["headers"] and header in answer.headers
        if kind == "application/json":
            spec.check("POST", path, answer)
        return answer

    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    png: dict[str, Any] = {"data": picture.getvalue()}
    text: dict[str, Any] = {"data": b"text", "content_type": "text/plain", "name": "a.txt"}
    text["kind"] = OutputKind.TEXT
    prompt = {"prompt": "a fox"}
    params = {"params": prompt}
    for number, (path, body, end, outputs, status) in enumerate(
        (
            ("/api/v1/generate", prompt, JobStatus.SUCCEEDED, png, 200),
            ("/api/submit", prompt, JobStatus.SUCCEEDED, text, 406),
            ("/api/v1/workflows/image_card/jobs", params, JobStatus.CANCELED, {}, 409),
            ("/api/v2/jobs", {"workflow": GRAPH}, "node_execution_error", {}, 422),
            ("/api/v1/generate", prompt, "node_lost", {}, 502),
            ("/api/submit", prompt, "moderation_unavailable", {}, 503),
            ("/api/v2/jobs", {"workflow": GRAPH}, "run_timeout", {}, 504),
        ),
        1,
    ):
        answer = await ended(path, body, number, end, **outputs)
        assert answer.status_code == status, answer.text
        if status == 200:
            headers = v1.operation("POST", path)["responses"]["200"]["headers"]
            assert headers.keys() == {
                *("Location", "X-Fleet-Job", "Preference-Applied", "Content-Location", "X-Fleet-Asset")
            }
            assert headers.keys() <= set(map(str.title, answer.headers))
    for spec, path, body in (
        (v1, "/api/v1/generate", prompt),
        (v1, "/api/v1/workflows/image_card/jobs", params),
        (v2, "/api/v2/jobs", {"workflow": GRAPH}),
    ):
        usual = await api.client.post(path, json=body, headers={"Prefer": "respond-async"})
        spec.check("POST", path, usual)
        for header in spec.operation("POST", path)["responses"][str(usual.status_code)]["headers"]:
            assert header in usual.headers, (path, header)
