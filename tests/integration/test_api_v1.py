"""REST: stored workflows, generate, replay, nodes, readiness, and what every surface shares."""

import asyncio
import functools
import math
import re
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from blake3 import blake3
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.dispatchers import LivingDispatcher
from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.domain.jobs.job import JobError, JobStatus
from comfy_fleet.domain.nodes.node import Reading
from comfy_fleet.domain.schedule.waiting_job import BATCH
from comfy_fleet.services import node_life
from comfy_fleet.settings import packaged
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, running, upload
from tests.stream_server import StreamServer


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        await started.add_node(info=False)
        yield started


async def test_workflows_tell_their_parameters(api: Api) -> None:
    listed = (await api.client.get("/api/v1/workflows")).json()["workflows"]
    assert "image_card" in [w["name"] for w in listed]
    shown = (await api.client.get("/api/v1/workflows/image_card")).json()
    assert shown["parameters"]["properties"]["prompt"]["type"] == "string"
    assert shown["parameters"]["required"] == ["prompt"]
    assert set(shown["requires"]) == {
        *("comfyui", "models", "vram_gb", "pool", "prefer_pool", "spill_to", "zone", "labels", "note")
    }
    for name in ("nope", "..", "%2e%2e%2fetc", "a b"):
        assert (await api.client.get(f"/api/v1/workflows/{name}")).status_code == 404


@pytest.mark.parametrize("name", ["z.image", "1", "a-b_c.d", "a" * 63])
async def test_every_name_that_a_folder_may_have_can_be_used(
    redis_port: int, redis: Redis, tmp_path: Path, name: str
) -> None:
    shutil.copytree(packaged("workflows") / "image_card", tmp_path / "workflows" / name)
    async with running(redis_port, tmp_path / "data", workflows=tmp_path / "workflows") as api:
        await api.add_node(info=False)
        assert [one["name"] for one in (await api.client.get("/api/v1/workflows")).json()["workflows"]] == [
            name
        ]
        assert (await api.client.get(f"/api/v1/workflows/{name}")).json()["name"] == name
        made = await api.client.post(f"/api/v1/workflows/{name}/jobs", json={"params": {"prompt": "x"}})
        assert made.status_code == 201, made.text


async def test_the_root_says_what_this_is_and_everything_else_where_to_go(api: Api) -> None:
    page = await api.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for link in re.findall(r'href="([^"]+)"', page.text):
        found = await api.client.get(f"/{link}", follow_redirects=True)
        assert found.status_code in (200, 503), link
    assert (await api.client.head("/")).status_code == 200
    assert code(await api.client.post("/")) == (405, "method_not_allowed")
    for path in ("/api/internal/logs", "/manager/reboot", "/api/v1", "/no/such/thing"):
        for method in ("GET", "POST"):
            answer = await api.client.request(method, path)
            assert code(answer) == (404, "not_found")
            assert "comfy_fleet" in answer.json()["error"]["message"]
            assert answer.json()["error"]["details"]["docs"] == "/api/v1/openapi.json"
    ours = await api.client.get("/api/v1/no-such-thing")
    assert (
        ours.json()["error"]["message"]
        == "there is nothing at /api/v1/no-such-thing; see /api/v1/openapi.json"
    )


async def test_a_workflow_whose_files_are_broken_says_why_wherever_it_is_named(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "workflows" / "card"
    folder.mkdir(parents=True)
    (folder / "workflow.json").write_text("{ half a fi")
    async with running(redis_port, tmp_path / "data", workflows=tmp_path / "workflows") as api:
        await api.add_node(info=False)
        listed = (await api.client.get("/api/v1/workflows")).json()
        assert listed["workflows"] == []
        assert "card/workflow.json is not JSON" in listed["broken"]["card"]
        answers = [
            await api.client.get("/api/v1/workflows/card"),
            await api.client.post("/api/v1/workflows/card/jobs", json={}),
            await api.client.post("/api/v1/generate", json={"prompt": "x", "workflow": "card"}),
        ]
        for answer in answers:
            assert code(answer) == (409, "workflow_broken")
            assert "card/workflow.json is not JSON" in answer.json()["error"]["message"]


async def test_a_stored_workflow_becomes_a_job(api: Api) -> None:
    answer = await api.client.post(
        "/api/v1/workflows/image_card/jobs",
        json={"params": {"prompt": "a fox", "seed": -1}, "priority": 3, "metadata": {"client": "acme"}},
    )
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert (job["workflow"], job["status"], job["priority"]) == ("image_card", "queued", 3)
    assert job["params"]["prompt"] == "a fox"
    assert job["params"]["seed"] >= 0  # drawn, and told
    assert job["metadata"] == {"client": "acme"}
    assert job["workflow_version"].startswith("sha256:")
    assert (await api.client.get(f"/api/v2/jobs/{job['id']}")).json()["status"] == "queued"  # the same job
    assert (await api.client.get("/api/v1/jobs?workflow=image_card")).json()["jobs"][0]["id"] == job["id"]
    assert (await api.client.get("/api/v1/jobs?workflow=other")).json()["jobs"] == []
    graph = (await api.client.get(f"/api/v1/jobs/{job['id']}/workflow")).json()["workflow"]
    assert any("a fox" in str(node["inputs"]) for node in graph.values())
    claim = await api.claim(job["id"])
    await api.output(claim, b"x")
    outputs = (await api.client.get(f"/api/v1/jobs/{job['id']}/outputs")).json()
    assert outputs["status"] == "running"
    assert len(outputs["outputs"]) == 1
    canceled = (await api.client.post(f"/api/v1/jobs/{job['id']}/cancel")).json()
    assert canceled["status"] == "canceling"


@pytest.mark.parametrize(
    ("params", "parameter"),
    [({}, "prompt"), ({"prompt": "x", "width": 1}, "width"), ({"prompt": "x", "style": "nope"}, "style"),
     ({"prompt": "x", "nope": 1}, "nope")],
)  # fmt: skip
async def test_wrong_parameters_are_named(api: Api, params: dict[str, Any], parameter: str) -> None:
    answer = await api.client.post("/api/v1/workflows/image_card/jobs", json={"params": params})
    assert code(answer) == (422, "invalid_parameter")
    assert answer.json()["error"]["details"]["parameter"] == parameter


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"null", (400, "invalid_request")),
        (b"[]", (400, "invalid_request")),
        (b"{", (400, "invalid_request")),
        (b'{"params": NaN}', (400, "invalid_request")),
        (b'{"params": []}', (422, "invalid_request")),
        (b'{"prams": {}}', (422, "invalid_request")),
        (b'{"priority": "1"}', (422, "invalid_request")),
        (b'{"priority": true}', (422, "invalid_request")),
    ],
)
async def test_bad_bodies_get_the_envelope(api: Api, body: bytes, expected: tuple[int, str]) -> None:
    answer = await api.client.post("/api/v1/workflows/image_card/jobs", content=body)
    assert code(answer) == expected


async def test_a_field_that_is_none_says_which_there_are(api: Api) -> None:
    answer = await api.client.post("/api/v1/workflows/image_card/jobs", json={"prompt": "x"})
    assert code(answer) == (422, "invalid_request")
    told = answer.json()["error"]["message"]
    assert told.startswith("prompt: there is no such field; a parameter of the workflow goes into `params`")
    assert "priority" in told


async def test_an_abbreviated_id_is_completed(api: Api) -> None:
    jobs = [
        (await api.client.post("/api/v1/generate", json={"prompt": "x"})).json()["task_id"] for _ in range(3)
    ]
    for job in jobs:
        found = (await api.client.get("/api/v1/job-ids", params={"prefix": job[:13]})).json()["ids"]
        assert found == [job]
    assert (await api.client.get("/api/v1/job-ids", params={"prefix": "00000000-0"})).json()["ids"] == []
    for prefix in ("", "*", "A", "x" * 40):
        answer = await api.client.get("/api/v1/job-ids", params={"prefix": prefix})
        assert code(answer) == (422, "invalid_request")


async def test_image_parameters_are_checked(api: Api) -> None:
    async def edit(image: str) -> Any:
        body = {"params": {"image": image, "prompt": "a portrait"}}
        return await api.client.post("/api/v1/workflows/qwen_image_edit_face/jobs", json=body)

    assert code(await edit("no-such.png")) == (422, "missing_asset")
    assert code(await edit("00000000-0000-0000-0000-000000000000")) == (422, "missing_asset")
    text = (await upload(api, b"x", name="t.txt", content_type="text/plain")).json()
    assert code(await edit(text["id"])) == (422, "invalid_parameter")
    image = (await upload(api, b"x", name="face.png")).json()
    for name in (image["id"], "face.png"):
        answer = await edit(name)
        assert answer.status_code == 201, answer.text
        record = await api.stores.jobs.get(answer.json()["id"])
        assert record is not None
        assert set(record.uploads.values()) == {image["id"]}


async def test_generate_status_and_result(api: Api) -> None:
    answer = await api.client.post(
        "/api/v1/generate", json={"prompt": "a fox", "size": "256x128", "style": "silk"}
    )
    assert answer.status_code == 202, answer.text
    task = answer.json()
    assert set(task) == {"task_id", "status", "estimated_wait_time_sec", "status_url"}
    assert task["estimated_wait_time_sec"] is None  # nothing was measured yet
    record = await api.stores.jobs.get(task["task_id"])
    assert record is not None
    assert (record.params["width"], record.params["height"], record.params["style"]) == (256, 128, "silk")

    status = (await api.client.get(task["status_url"])).json()
    assert (status["status"], status["queue_position"], status["image_url"], status["images"]) == (
        "queued", 1, None, [])  # fmt: skip
    claim = await api.claim(task["task_id"])
    await api.output(claim, b"picture")
    await api.finish(claim, seconds=4.0)
    result = (await api.client.get("/api/v1/result", params={"task_id": task["task_id"]})).json()
    assert (result["status"], result["error"], len(result["images"])) == ("success", None, 1)
    assert result["job_status"] == "succeeded"
    assert (await api.client.get(result["image_url"])).content == b"picture"

    await api.learned("image_card", 4.0)
    again = (await api.client.post("/api/v1/generate", json={"prompt": "b"})).json()
    assert again["estimated_wait_time_sec"] == 4
    more = (await api.client.post("/api/v1/generate", json={"prompt": "c"})).json()
    assert more["estimated_wait_time_sec"] == 8


async def test_waiting_times_are_whole_seconds(api: Api) -> None:
    first = (await api.client.post("/api/v1/generate", json={"prompt": "a"})).json()["task_id"]
    await api.finish(await api.claim(first))
    await api.learned("image_card", 1.011)
    second = (await api.client.post("/api/v1/generate", json={"prompt": "b"})).json()
    run = (
        await api.client.post("/api/v1/workflows/image_card/jobs", json={"params": {"prompt": "c"}})
    ).json()
    await api.claim(second["task_id"])
    for answer in (
        second,
        run,
        (await api.client.get(f"/api/v1/status/{second['task_id']}")).json(),
        (await api.client.get(f"/api/v1/jobs/{run['id']}")).json(),
    ):
        told = answer["estimated_wait_time_sec"]
        assert isinstance(told, int) and told >= 1
    assert (await api.client.get(f"/api/v1/jobs/{first}")).json()["estimated_wait_time_sec"] == 0


async def test_a_full_queue_tells_when_it_has_room(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, queue_depth=1) as api:
        await api.add_node("g1")
        await api.add_node("g2")
        job = await api.submit(GRAPH)
        await api.finish(await api.claim(job["id"]))
        await api.learned("graph", 50.0)
        await api.submit(GRAPH)
        for path, body in (
            ("/api/v2/jobs", {"workflow": GRAPH}),
            ("/api/v1/generate", {"prompt": "x"}),
            ("/api/v1/workflows/image_card/jobs", {"params": {"prompt": "x"}}),
        ):
            answer = await api.client.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
            assert answer.headers["retry-after"] == "25", "one place in 25 s: two nodes, 50 s a job"


async def test_generate_tells_why_a_job_failed(api: Api) -> None:
    task = (await api.client.post("/api/v1/generate", json={"prompt": "x"})).json()
    claim = await api.claim(task["task_id"])
    await api.stores.runs.left(claim, [])
    error = JobError(code="out_of_memory", message="no memory left", traceback="secret paths")
    await api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=None)
    for path, status in (("/api/v1/result", "failed"), ("/api/status", "done")):
        result = (await api.client.get(path, params={"task_id": task["task_id"]})).json()
        assert (result["status"], result["job_status"], result["image_url"]) == (status, "failed", None)
        assert result["error"] == {"code": "out_of_memory", "message": "no memory left"}


async def test_every_route_tells_a_task_s_status_in_its_own_words(api: Api) -> None:
    first = (await api.client.post("/api/submit", json={"prompt": "a fox"})).json()
    assert first["status"] == "submitted"
    assert first["status_url"].endswith(f"/api/status/{first['task_id']}")
    task = first["task_id"]

    async def told() -> list[str]:
        answers = [
            await api.client.get(path)
            for path in (
                f"/api/v1/result?task_id={task}",
                f"/api/v1/status/{task}",
                f"/api/status?task_id={task}",
                f"/api/status/{task}",
                f"/api/v1/jobs/{task}",
            )
        ]
        return [answer.json()["status"] for answer in answers]

    assert await told() == ["queued", "queued", "pending", "pending", "queued"]
    claim = await api.claim(task)
    assert await told() == ["processing", "processing", "pending", "pending", "running"]
    await api.output(claim, b"picture")
    await api.finish(claim)
    assert await told() == ["success", "completed", "done", "done", "succeeded"]


async def test_a_repeated_submit_gets_the_same_answer(api: Api, redis: Redis) -> None:
    key = {"Idempotency-Key": "k1"}
    first = await api.client.post("/api/submit", json={"prompt": "x"}, headers=key)
    await api.finish(await api.claim(first.json()["task_id"]))
    for name in await redis.keys("fleet:replay:*"):
        await redis.delete(name)
    again = await api.client.post("/api/submit", json={"prompt": "x"}, headers=key)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert (again.json()["task_id"], again.json()["status"]) == (first.json()["task_id"], "submitted")


async def test_a_style_of_another_workflow_says_which_one_has_it(api: Api) -> None:
    style = {"prompt": "x", "style": "kids_cartoon"}
    for more in ({}, {"workflow": "image_card"}, {"workflow": "z_image_turbo"}, {"width": -1}):
        answer = await api.client.post("/api/v1/generate", json={**style, **more})
        assert code(answer) == (422, "invalid_parameter")
        error = answer.json()["error"]
        assert error["details"]["workflows"] == ["qwen_image_kids_animal"]
        assert error["details"]["field"] == "style"
        assert 'send "workflow": "qwen_image_kids_animal"' in error["message"]
        assert ("FLEET_GENERATE_WORKFLOW" in error["message"]) == ("workflow" not in more)
    for nowhere in ({"style": "no-such-style"}, {"style": "silk", "width": -1}):
        error = (await api.client.post("/api/v1/generate", json={"prompt": "x", **nowhere})).json()["error"]
        assert "workflows" not in error["details"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, "invalid_request")),
        ({"prompt": ""}, (400, "invalid_request")),
        ({"prompt": " \n"}, (400, "invalid_request")),
        ({"prompt": 5}, (422, "invalid_request")),
        ({"prompt": "x", "size": "big"}, (422, "invalid_parameter")),
        ({"prompt": "x", "size": "1x1"}, (422, "invalid_parameter")),
        ({"prompt": "x", "size": "64x64", "width": 65}, (422, "invalid_parameter")),
        ({"prompt": "x", "seed": 2**64}, (422, "invalid_parameter")),
        ({"prompt": "x", "seed": 1.5}, (422, "invalid_parameter")),
        ({"prompt": "x", "seed": True}, (422, "invalid_request")),
        ({"prompt": "x", "workflow": "nope"}, (404, "not_found")),
        ({"prompt": "x", "colour": "red"}, (422, "invalid_parameter")),
    ],
)
async def test_bad_prompts(api: Api, body: dict[str, Any], expected: tuple[int, str]) -> None:
    assert code(await api.client.post("/api/v1/generate", json=body)) == expected
    assert (await api.client.get("/api/v1/result")).status_code == 422


async def test_replay(api: Api, redis: Redis, redis_port: int, tmp_path: Path) -> None:
    body = {"prompt": "a fox"}
    key = {"Idempotency-Key": "k1"}
    first = await api.client.post("/api/v1/generate", json=body, headers=key)
    assert "idempotency-replayed" not in first.headers
    claim = await api.claim(first.json()["task_id"])
    await api.finish(claim)
    again = await api.client.post("/api/v1/generate", json=body, headers=key)
    assert (again.status_code, again.content) == (202, first.content)  # the same answer, whatever came since
    assert again.headers["idempotency-replayed"] == "true"
    (kept,) = await redis.keys("fleet:replay:*")
    assert 86_000 < await redis.ttl(kept) <= 86_400  # a day
    other = await api.client.post("/api/v1/generate", json={"prompt": "b"}, headers=key)
    assert code(other) == (422, "idempotency_key_reuse")
    async with running(redis_port, tmp_path) as restarted:
        again = await restarted.client.post("/api/v1/generate", json=body, headers=key)
        assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")


async def test_a_lost_answer_is_made_again_from_the_job(api: Api, redis: Redis) -> None:
    key = {"Idempotency-Key": "k1"}
    first = await api.client.post("/api/v1/generate", json={"prompt": "x"}, headers=key)
    for name in await redis.keys("fleet:replay:*"):  # the process died between the job and the answer
        await redis.delete(name)
    again = await api.client.post("/api/v1/generate", json={"prompt": "x"}, headers=key)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert again.json()["task_id"] == first.json()["task_id"]
    assert await api.stores.jobs.depth() == 1


async def test_concurrent_requests_with_one_key_make_one_job(api: Api) -> None:
    key = {"Idempotency-Key": "k1"}

    async def send() -> Any:
        return await api.client.post("/api/v1/generate", json={"prompt": "x"}, headers=key)

    answers = await asyncio.gather(*(send() for _ in range(10)))
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["task_id"] for a in answers}) == 1
    assert await api.stores.jobs.depth() == 1


async def test_a_key_whose_request_was_broken_off_can_be_used_at_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the API dies in the middle of a submit, before the job or after it."""
    path, body = "/api/v1/workflows/image_card/jobs", {"params": {"prompt": "x"}}
    write = api.deps.jobs.submit

    async def dies(*args: Any, after: bool = False, **more: Any) -> Any:
        if after:
            await write(*args, **more)
        raise SystemError("as if the process had ended")

    for after in (False, True):
        key = {"Idempotency-Key": f"broken off {after}"}
        with monkeypatch.context() as patched:
            patched.setattr(api.deps.jobs, "submit", functools.partial(dies, after=after))
            patched.setattr(api.deps.replays, "end", dies)
            assert (await api.client.post(path, json=body, headers=key)).status_code == 500
        again = await api.client.post(path, json=body, headers=key)
        assert again.status_code == 201
        assert again.headers.get("idempotency-replayed") == ("true" if after else None)
    assert await api.stores.jobs.depth() == 2


async def test_refusals_release_the_key(api: Api) -> None:
    key = {"Idempotency-Key": "k1"}
    assert (await api.client.post("/api/v1/generate", json={"prompt": ""}, headers=key)).status_code == 400
    bad = await api.client.post("/api/v1/generate", json={"prompt": "x", "size": "1x1"}, headers=key)
    assert bad.status_code == 422
    assert (await api.client.post("/api/v1/generate", json={"prompt": "x"}, headers=key)).status_code == 202


async def test_without_nodes_there_is_a_503(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        answer = await api.client.post("/api/v1/generate", json={"prompt": "x"})
        assert code(answer) == (503, "no_nodes")
        assert int(answer.headers["retry-after"]) >= 1


async def test_nodes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_life, "RELEASE_S", 0.5)  # no dispatcher is there that would give the job back
    body = {"name": "g2", "url": "http://10.0.0.2:8188", "weight": 50, "labels": {"gpu": "L40S"}, "zone": "a"}
    added = await api.client.post("/api/v1/nodes", json=body)
    assert added.status_code == 201
    assert added.json() | body == added.json()
    assert code(await api.client.post("/api/v1/nodes", json=body)) == (409, "conflict")

    listed = await api.client.get("/api/v1/nodes")
    assert [n["name"] for n in listed.json()["nodes"]] == ["g1", "g2"]
    same = await api.client.get("/api/v1/nodes", headers={"If-None-Match": listed.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")

    drained = (await api.client.post("/api/v1/nodes/g2/drain", json={"reason": "new fans"})).json()
    assert (drained["cordoned"], drained["cordon_reason"]) == (True, "new fans")
    again = await api.client.post("/api/v1/nodes/g2/drain")  # without a reason: the first one stays
    assert (again.status_code, again.json()["cordon_reason"]) == (200, "new fans")
    changed = await api.client.get("/api/v1/nodes", headers={"If-None-Match": listed.headers["etag"]})
    assert changed.status_code == 200
    assert (await api.client.post("/api/v1/nodes/g2/resume")).json()["cordoned"] is False
    assert (await api.client.get("/api/v1/nodes/g2")).json()["labels"] == {"gpu": "L40S"}

    task = (await api.client.post("/api/v1/generate", json={"prompt": "x"})).json()
    await api.claim(task["task_id"], node="g1")
    assert code(await api.client.delete("/api/v1/nodes/g1")) == (409, "conflict")
    assert (await api.client.delete("/api/v1/nodes/g1?force=true")).status_code == 204
    assert (await api.client.delete("/api/v1/nodes/g2")).status_code == 204
    for path in ("g1", "g2/drain", "g2/resume", "G%20x"):
        method = "POST" if "/" in path else "GET"
        assert (await api.client.request(method, f"/api/v1/nodes/{path}")).status_code == 404


@pytest.mark.parametrize(
    "more",
    [{"url": "https://10.0.0.2:8188"}, {"url": "http://u:%zz@h:1"}, {"url": "http://h:1/x?y"}, {"url": "https://h/x#y"},
     {"url": "file:///etc"},
     {"name": "A b"}, {"weight": 0}, {"weight": 257}, {"agent": "h"}, {"agent": "h:1\nserver x"},
     {"pool": "a\nb"}, {"cordoned": True}],
)  # fmt: skip
async def test_bad_nodes_are_refused(api: Api, more: dict[str, Any]) -> None:
    body = {"name": "g2", "url": "http://10.0.0.2:8188", **more}
    answer = await api.client.post("/api/v1/nodes", json=body)
    assert answer.status_code in (400, 422)
    assert code(answer)[1] == "invalid_request"
    assert [n.name for n in await api.stores.nodes.nodes()] == ["g1"]


async def test_a_node_may_be_named_for_the_editor(api: Api) -> None:
    for number, editor in enumerate((True, False, None)):
        body = {"name": f"e{number}", "url": f"http://10.0.1.{number}:8188", "editor": editor}
        answer = await api.client.post("/api/v1/nodes", json=body)
        assert (answer.status_code, answer.json()["editor"]) == (201, editor)
        assert (await api.client.get(f"/api/v1/nodes/e{number}")).json()["editor"] is editor


async def test_simulated_nodes_are_named_as_such(api: Api) -> None:
    await api.add_node("s1", info=False, simulated=True)
    job = (await api.client.post("/api/v1/generate", json={"prompt": "x"})).json()["task_id"]
    claim = await api.claim(job, node="s1")
    async with asyncio.timeout(60):
        while not (await api.client.get(f"/api/v2/jobs/{job}")).json()["simulated"]:
            await asyncio.sleep(0.01)
    await api.finish(claim)
    assert (await api.client.get(f"/api/v1/status/{job}")).json()["simulated"] is True
    assert (await api.client.get("/api/v1/jobs")).json()["jobs"][0]["simulated"] is True


async def test_a_node_that_calls_itself_simulated_is_named_as_such(api: Api) -> None:
    inventory = parse({}, version="sim-0.33.0")
    await api.stores.inventories.save("g1", inventory, Reading(comfyui="sim-0.33.0", read_at=1.0))
    assert (await api.client.get("/api/v1/nodes/g1")).json()["simulated"] is True


async def test_ready_says_what_is_missing(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    async with (
        StreamServer(hang_up) as listener,
        running(redis_port, tmp_path, broker_host="127.0.0.1", lease_port=listener.port) as api,
    ):
        for path in ("/health", "/api/v1/health", "/api/v2/health"):
            alive = await api.client.get(path)
            assert (alive.status_code, alive.json()["status"]) == (200, "healthy")
        for host, name in (("fleet.example:9000", "fleet.example"), ("[::1]:9000", "[::1]")):
            told = (await api.client.get("/api/v1/health", headers={"Host": host})).json()
            assert (told["url"], told["console_url"]) == (f"http://{name}:8188", f"http://{name}:8189")
        odd = (await api.client.get("/api/v1/health", headers={"Host": "a b"})).json()
        assert (odd["status"], odd["url"], odd["console_url"]) == ("healthy", None, None)

        async def missing() -> list[str]:
            answer = await api.client.get("/api/v1/ready")
            assert answer.status_code == (503 if answer.json()["reasons"] else 200)
            return [reason["part"] for reason in answer.json()["reasons"]]

        assert await missing() == ["nodes", "dispatcher"]
        await api.add_node(up=False)
        assert "g1 is new" in (await api.client.get("/api/v1/ready")).text
        await api.stores.nodes.report("g1", verdict="up", why="")

        await LivingDispatcher(api.stores.redis, "d1").beat()
        assert await missing() == []
        await api.stores.nodes.cordon("g1", reason="fans")
        assert await missing() == ["nodes"]
        await listener.stop()
        assert await missing() == ["nodes", "broker"]


async def test_metrics(api: Api) -> None:
    await api.client.post("/api/v1/generate", json={"prompt": "x"})
    text = (await api.client.get("/metrics")).text
    assert 'fleet_http_requests_total{handler="generate",status="202"} 1.0' in text
    assert "fleet_queue_depth" not in text, "the fleet's, not a process's"
    text = (await api.client.get("/metrics/fleet")).text
    assert 'fleet_queue_depth{pool="default"} 1\n' in text
    assert 'fleet_nodes{pool="default",state="up"} 1\n' in text


async def test_queue_and_check(api: Api) -> None:
    assert (await api.client.get("/api/v1/queue")).json() == {"queued": 0}
    found = (await api.client.get("/api/v1/workflows/image_card/check")).json()["nodes"][0]
    assert (found["node"], found["ok"], found["problems"][0]["kind"]) == ("g1", False, "unreachable")


async def test_events_work_here_too(api: Api) -> None:
    task = (await api.client.post("/api/v1/generate", json={"prompt": "x"})).json()["task_id"]
    await api.client.post(f"/api/v1/jobs/{task}/cancel")
    answer = await api.client.get(f"/api/v1/jobs/{task}/events")
    assert answer.text == 'event: status\ndata: {"status":"canceled","queue_position":null}\n\n'
    await api.client.get(f"/api/v2/jobs/{task}/events")
    text = (await api.client.get("/metrics")).text
    for surface in ("stream", "job_events"):  # counted, but not how long they were: that says nothing
        assert f'fleet_http_requests_total{{handler="{surface}",status="200"}} 1.0' in text
        assert f'fleet_http_request_seconds_count{{handler="{surface}"}}' not in text


async def test_every_face_says_where_a_job_may_run(api: Api) -> None:
    here = {"pool": "default", "spill_to": ["other"], "labels": {"gpu": "none"}}
    graph = {"workflow": GRAPH}
    for url, body in (
        ("/api/v1/generate", {"prompt": "x"}),
        ("/api/v1/workflows/image_card/jobs", {"params": {"prompt": "x"}}),
        ("/api/v2/jobs", graph),
    ):
        told = await api.client.post(url, json={**body, **here})
        assert told.status_code == 422, told.text
        assert "has no label gpu=none" in told.json()["error"]["message"]
        for wrong, field in (
            ({"pool": "default", "prefer_pool": "default"}, "pool"),
            ({"spill_to": ["default"]}, "spill_to"),
            ({"pool": ""}, "pool"),
            ({"pool": "default", "spill_to": ["A B"]}, "spill_to"),
            ({"labels": ["gpu"]}, "labels"),
            ({"zone": 7}, "zone"),
        ):
            refused = await api.client.post(url, json={**body, **wrong})
            assert code(refused) == (422, "invalid_request"), (url, wrong, refused.text)
            assert refused.json()["error"]["details"]["field"] == field
        taken = await api.client.post(url, json={**body, "pool": "default"})
        assert taken.status_code in (201, 202), taken.text


OPTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"priority": 1_000_001}, "priority", "invalid_request"),
    ({"priority": 1.0}, "priority", "invalid_request"),
    ({"priority": True}, "priority", "invalid_request"),
    ({"deadline_s": 0}, "deadline_s", "invalid_request"),
    ({"deadline_s": "5"}, "deadline_s", "invalid_request"),
    ({"deadline_s": 31 * 86400}, "deadline_s", "invalid_request"),
    ({"ttl_s": -1}, "ttl_s", "invalid_request"),
    ({"ttl_s": False}, "ttl_s", "invalid_request"),
    ({"ttl_s": 1e30}, "ttl_s", "invalid_request"),
    ({"ttl_s": 10**30}, "ttl_s", "invalid_request"),
    ({"ttl_s": [5]}, "ttl_s", "invalid_request"),
    ({"ttl_s": 60, "deadline_s": 61}, "ttl_s", "invalid_request"),
    ({"timeout_s": 0.5}, "timeout_s", "invalid_request"),
    ({"timeout_s": "60"}, "timeout_s", "invalid_request"),
    ({"timeout_s": True}, "timeout_s", "invalid_request"),
    ({"timeout_s": 10**30}, "timeout_s", "invalid_request"),
    ({"timeout_s": {}}, "timeout_s", "invalid_request"),
    ({"finish_by": "tomorrow"}, "finish_by", "invalid_request"),
    ({"finish_by": "2099-01-01T00:00:00"}, "finish_by", "invalid_request"),
    ({"finish_by": "2099-01-01T00:00:00Z"}, "finish_by", "invalid_request"),
    ({"finish_by": "2020-01-01T00:00:00Z"}, "finish_by", "invalid_request"),
    ({"finish_by": True}, "finish_by", "invalid_request"),
    ({"finish_by": 0}, "finish_by", "invalid_request"),
    ({"finish_by": -1e300}, "finish_by", "invalid_request"),
    ({"finish_by": 10**30}, "finish_by", "invalid_request"),
    ({"finish_by": []}, "finish_by", "invalid_request"),
    ({"tier": "editor"}, "tier", "invalid_request"),
    ({"tier": 2}, "tier", "invalid_request"),
    ({"tier": []}, "tier", "invalid_request"),
    ({"metadata": {"a": 1}}, "metadata", "metadata_invalid"),
    ({"metadata": {"a b": "c"}}, "metadata", "metadata_invalid"),
    ({"metadata": ["a"]}, "metadata", "metadata_invalid"),
    ({"metadata": "x" * 1025}, "metadata", "metadata_invalid"),
    ({"pool": 5}, "pool", "invalid_request"),
    ({"zone": "z" * 65}, "zone", "invalid_request"),
]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/api/v1/generate", {"prompt": "x"}),
        ("/api/submit", {"prompt": "x"}),
        ("/api/v1/workflows/image_card/jobs", {"params": {"prompt": "x"}}),
        ("/api/v2/jobs", {"workflow": GRAPH}),
    ],
)
async def test_every_face_takes_the_same_options(api: Api, url: str, body: dict[str, Any]) -> None:
    wanted = {"priority": 7, "metadata": {"order": "4711"}, "deadline_s": 3600, "pool": "default"}
    made = await api.client.post(url, json={**body, **wanted})
    assert made.status_code in (201, 202), made.text
    job = await api.stores.jobs.get(made.json().get("task_id") or made.json()["id"])
    assert job is not None
    assert (job.priority, job.metadata) == (7, {"order": "4711"})
    assert job.deadline_at is not None
    assert 3590 < job.deadline_at - job.created_at < 3610
    at = math.ceil(job.created_at) + 7200
    shown = datetime.fromtimestamp(at, UTC).isoformat()
    for by in (at, float(at), shown, shown.replace("+00:00", "z")):
        times = {"ttl_s": 3600, "deadline_s": 3600.0, "timeout_s": 90, "finish_by": by, "tier": "batch"}
        made = await api.client.post(url, json={**body, **times})
        assert made.status_code in (201, 202), (by, made.text)
        job = await api.stores.jobs.get(made.json().get("task_id") or made.json()["id"])
        assert job is not None
        assert (job.finish_by, job.timeout_s, job.tier) == (at, 90.0, BATCH)
        assert job.deadline_at == pytest.approx(job.created_at + 3600)
        told = (await api.client.get(f"/api/v2/jobs/{job.id}")).json()
        assert (told["finish_by"], told["timeout_s"], told["tier"]) == (
            *(shown.replace("+00:00", ".000Z"), 90.0, "batch"),
        )
        assert told["start_by"] > told["created_at"]
    later = ("ttl_s", "timeout_s", "finish_by", "tier")
    nothing = dict.fromkeys([*wanted, *later, "prefer_pool"])
    answer = await api.client.post(url, json={**body, **nothing})
    assert answer.status_code in (201, 202), answer.text
    for option, field, wrong in OPTIONS:
        refused = await api.client.post(url, json={**body, **option})
        assert code(refused) == (422, wrong), (option, refused.text)
        assert refused.json()["error"]["details"]["field"] == field
        assert refused.json()["error"]["message"].startswith(field)


async def test_a_key_of_an_earlier_version_still_fits_its_request(api: Api) -> None:
    # What version 0.1 made of {"prompt": "x"}: it knew no times here.
    known = ("prompt", "size", "style", "negative_prompt", "seed", "workflow", "priority", "metadata")
    content = {**dict.fromkeys(known), "prompt": "x", "pool": None, "prefer_pool": None}
    content |= {"spill_to": [], "zone": "", "labels": {}}
    text = b"/api/v1/generate\0" + orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    answer = (blake3(text).hexdigest(), b'{"task_id": "earlier"}')
    await api.deps.replays.end("v1:local", "k0", answer=answer)
    again = await api.client.post("/api/v1/generate", json={"prompt": "x"}, headers={"Idempotency-Key": "k0"})
    assert (again.status_code, again.text) == (202, '{"task_id": "earlier"}')
    path = "/api/v1/workflows/image_card/jobs"
    named = ("priority", "metadata", "deadline_s", "pool", "prefer_pool")
    content = {**dict.fromkeys(named), "spill_to": [], "zone": "", "labels": {}, "params": {"prompt": "x"}}
    text = path.encode() + b"\0" + orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    answer = (blake3(text).hexdigest(), b'{"id": "earlier"}')
    await api.deps.replays.end("v1:local", "k1", answer=answer)
    body = {"params": {"prompt": "x"}}
    again = await api.client.post(path, json=body, headers={"Idempotency-Key": "k1"})
    assert (again.status_code, again.text) == (201, '{"id": "earlier"}')


async def test_readiness_tells_nobody_s_business(api: Api) -> None:
    for state in await api.stores.nodes.states():
        await api.stores.nodes.report(state.node.name, verdict="drain", why="train.py 4242 holds 9 GiB")
    told = (await api.client.get("/api/v1/ready")).text
    assert "is drained" in told and "train.py" not in told
