"""REST: jobs that are removed, submitted again, and kept beyond their retention."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.schedule.waiting_job import BATCH
from tests.factories import GRAPH, picture, sampled
from tests.integration.api_kit import Api, code, running, upload
from tests.integration.redis_kit import past_retention
from tests.key_files import write_keys
from tests.older_version import older

YEAR_S = 365 * 86400
PARTNER = {"extra_pnginfo": {"workflow": {"id": "w", "nodes": []}}, "api_key_comfy_org": "hidden"}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, max_kept_jobs=2) as started:
        await started.add_node(info=False)
        yield started


async def done(api: Api, graph: object = GRAPH, **more: Any) -> str:
    """Make a job with an output that its node has saved."""
    job_id = str((await api.submit(graph, **more))["id"])
    claim = await api.claim(job_id)
    await api.output(claim, uuid4().bytes, saved=True)
    await api.finish(claim)
    return job_id


async def record(api: Api, job_id: str) -> Job:
    found = await api.stores.jobs.get(job_id)
    assert found is not None
    return found


async def clean_up(api: Api) -> list[str]:
    """Forget jobs as dispatchers do, and return them."""
    forgotten = list(await api.stores.runs.forgettable(100))
    for job_id in forgotten:
        assert await api.assets.forget_job(job_id)
        await api.stores.runs.forget(job_id)
    return forgotten


async def ids(api: Api, path: str, **query: Any) -> list[str]:
    answer = (await api.client.get(path, params=query)).json()
    return list(answer) if path == "/history" else [job["id"] for job in answer["jobs"]]


async def keys(api: Api, part: str) -> list[str]:
    redis: Any = api.stores.redis
    return [key.decode() async for key in redis.scan_iter(match=f"*{part}*")]


# -- rm ---------------------------------------------------------------------


async def test_a_removed_job_is_gone_for_every_list_and_question(api: Api) -> None:
    job_id, other = await done(api), await done(api, picture(1))
    output = (await api.client.get(f"/api/v1/jobs/{job_id}")).json()["outputs"][0]
    assert (await api.client.get(output["url"])).status_code == 200
    answer = await api.client.delete(f"/api/v1/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("/api/v1/jobs/{}", "/api/v2/jobs/{}", "/api/v1/jobs/{}/outputs", "/api/v1/jobs/{}/events"):
        assert code(await api.client.get(path.format(job_id))) == (404, "not_found")
    for path in ("/api/v1/jobs", "/api/v2/jobs", "/api/jobs", "/history"):
        assert await ids(api, path) == [other], path
    assert (await api.client.get(f"/history/{job_id}")).json() == {}
    assert (await api.client.get("/api/v1/job-ids", params={"prefix": job_id[:8]})).json() == {"ids": []}
    assert (await api.client.get(output["url"])).status_code == 404
    assert code(await api.client.delete(f"/api/v1/jobs/{job_id}")) == (404, "not_found")
    assert await clean_up(api) == [job_id]
    assert await keys(api, job_id) == []


async def test_a_job_that_is_not_over_is_removed_only_with_its_cancellation(api: Api) -> None:
    waiting, runs = [str((await api.submit(picture(n)))["id"]) for n in (1, 2)]
    for job_id in (waiting, runs):
        refused = await api.client.delete(f"/api/v1/jobs/{job_id}")
        assert code(refused) == (409, "job_live")
        assert "cancel it first" in refused.json()["error"]["message"]
    assert (await api.client.delete(f"/api/v1/jobs/{waiting}?cancel=true")).status_code == 204
    claim = await api.claim(runs)
    assert (await api.client.delete(f"/api/v1/jobs/{runs}?cancel=true")).status_code == 204
    assert await ids(api, "/api/v1/jobs") == await ids(api, "/api/jobs") == []
    assert await clean_up(api) == [waiting]
    await api.output(claim, b"made meanwhile", saved=True)
    await api.finish(claim, JobStatus.CANCELED)
    assert await ids(api, "/api/jobs") == await ids(api, "/history") == []
    assert await clean_up(api) == [runs]
    assert await keys(api, runs) == []


async def test_nobody_removes_keeps_or_repeats_somebody_elses_job(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    write_keys((keys_file := tmp_path / "keys"), "ann ann-key-0123456789\nbob bob-key-0123456789\n")
    async with running(redis_port, tmp_path / "data", keys_file=keys_file) as api:
        await api.add_node(info=False)
        api.client.headers["Authorization"] = "Bearer ann-key-0123456789"
        job_id = await done(api)
        bob = {"Authorization": "Bearer bob-key-0123456789"}
        for method, path in (("DELETE", ""), ("POST", "/retry"), ("PUT", "/keep"), ("DELETE", "/keep")):
            answer = await api.client.request(method, f"/api/v1/jobs/{job_id}{path}", headers=bob)
            assert code(answer) == (404, "not_found")
        assert (await record(api, job_id)).kept is False
        assert (await api.client.delete(f"/api/v1/jobs/{job_id}")).status_code == 204


async def test_a_script_in_the_editors_origin_removes_nothing(api: Api) -> None:
    job_id, editor = await done(api), {"X-Fleet-Origin": "editor"}
    for path in ("", "?cancel=true"):
        answer = await api.client.delete(f"/api/v1/jobs/{job_id}{path}", headers=editor)
        assert code(answer) == (403, "console_only")
    assert (await api.client.put(f"/api/v1/jobs/{job_id}/keep", headers=editor)).status_code == 200
    assert (await api.client.post(f"/api/v1/jobs/{job_id}/retry", headers=editor)).status_code == 201
    assert (await api.client.get(f"/api/v1/jobs/{job_id}")).status_code == 200


# -- keep -------------------------------------------------------------------


async def test_a_kept_job_stays_with_its_files_and_the_uploads_that_it_uses(api: Api) -> None:
    face = (await upload(api, b"face", name="face.png", expires_in="60")).json()
    graph = picture(3)
    graph["3"] = {"class_type": "LoadImage", "inputs": {"image": {"__type": "core/ASSET", "info": face}}}
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "t"}}
    job_id = await done(api, graph)
    before = await record(api, job_id)
    kept = (await api.client.put(f"/api/v1/jobs/{job_id}/keep")).json()
    assert kept["kept"] is True
    now = await record(api, job_id)
    assert now.kept
    assert now.expires_at - before.expires_at > 50 * YEAR_S
    redis: Any = api.stores.redis
    assert await redis.zscore("fleet:expiring", job_id) == pytest.approx(now.expires_at)
    assert await redis.zscore("fleet:asset:expiry", face["id"]) > before.expires_at + 50 * YEAR_S
    output = (await api.client.get(f"/api/v1/jobs/{job_id}")).json()["outputs"][0]
    made = await api.assets.get(output["id"])
    assert made is not None
    assert made.expires_at == pytest.approx(now.expires_at)
    assert (await api.client.put(f"/api/v1/jobs/{job_id}/keep")).status_code == 200  # a second time
    assert await ids(api, "/api/v1/jobs", kept="true") == [job_id]

    let = (await api.client.delete(f"/api/v1/jobs/{job_id}/keep")).json()
    assert let["kept"] is False
    after = await record(api, job_id)
    assert before.expires_at <= after.expires_at < before.expires_at + 600  # its retention began anew
    assert await redis.zscore("fleet:expiring", job_id) == pytest.approx(after.expires_at)
    asset = await api.assets.get(face["id"])
    assert asset is not None
    assert asset.expires_at == pytest.approx(after.expires_at)
    assert await keys(api, ":kept") == []
    assert await ids(api, "/api/v1/jobs", kept="true") == []


async def test_an_upload_stays_as_long_as_one_kept_job_uses_it(api: Api) -> None:
    face = (await upload(api, b"face", name="face.png", expires_in="60")).json()
    made = []
    for color in (1, 2):
        graph = picture(color)
        graph["3"] = {"class_type": "LoadImage", "inputs": {"image": {"__type": "core/ASSET", "info": face}}}
        graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "t"}}
        made.append(await done(api, graph))
        assert (await api.client.put(f"/api/v1/jobs/{made[-1]}/keep")).status_code == 200
    far = (await record(api, made[1])).expires_at
    await api.client.delete(f"/api/v1/jobs/{made[0]}/keep")
    asset = await api.assets.get(face["id"])
    assert asset is not None
    assert asset.expires_at is not None
    assert asset.expires_at > far - 60
    # Not even an operator's hand moves what another job's retention would take along.
    assert (await api.client.delete(f"/api/v1/jobs/{made[1]}")).status_code == 204
    asset = await api.assets.get(face["id"])
    assert asset is not None
    assert asset.expires_at is not None
    assert asset.expires_at < far - 50 * YEAR_S


async def test_an_output_that_a_kept_job_uses_outlives_the_job_that_made_it(api: Api) -> None:
    first = await done(api)
    output = (await api.client.get(f"/api/v1/jobs/{first}")).json()["outputs"][0]
    graph = picture(7)
    reference = {"__type": "core/ASSET", "info": {"id": output["id"]}}
    graph["3"] = {"class_type": "LoadImage", "inputs": {"image": reference}}
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "t"}}
    second = await done(api, graph)
    await api.client.put(f"/api/v1/jobs/{second}/keep")
    await past_retention(api.stores, first)
    assert not await api.assets.forget_job(first)
    assert (await api.client.get(output["url"])).status_code == 200
    await api.client.delete(f"/api/v1/jobs/{second}/keep")
    assert await api.assets.forget_job(first)


async def test_only_so_many_jobs_may_be_kept(api: Api) -> None:
    made = [await done(api, picture(n)) for n in range(3)]
    answers = [await api.client.put(f"/api/v1/jobs/{job_id}/keep") for job_id in made]
    assert [answer.status_code for answer in answers] == [200, 200, 409]
    assert "the limit is 2" in answers[2].json()["error"]["message"]
    await api.client.delete(f"/api/v1/jobs/{made[0]}")  # a job that is removed counts no longer
    assert (await api.client.put(f"/api/v1/jobs/{made[2]}/keep")).status_code == 200


async def test_a_job_whose_retention_is_over_is_not_kept_in_part(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, retention_s=0.001) as api:
        await api.add_node(info=False)
        job_id = await done(api)
        answer = await api.client.put(f"/api/v1/jobs/{job_id}/keep")
        assert code(answer) == (404, "not_found")
        assert await clean_up(api) == [job_id]


async def test_a_kept_job_stays_whatever_a_dispatcher_saw_before(api: Api) -> None:
    """What was listed by its time and kept before anything was done about it loses nothing."""
    job_id = await done(api)
    output = (await api.client.get(f"/api/v1/jobs/{job_id}")).json()["outputs"][0]
    assert (await api.client.put(f"/api/v1/jobs/{job_id}/keep")).status_code == 200
    assert not await api.assets.forget_job(job_id)
    await api.stores.runs.postpone(job_id, seconds=-60)
    assert await clean_up(api) == []
    await api.stores.runs.forget(job_id)
    assert (await record(api, job_id)).kept
    assert (await api.client.get(output["url"])).status_code == 200
    # A version that does not look again has given it another time.
    redis: Any = api.stores.redis
    await redis.zadd("fleet:expiring", {job_id: 0})
    assert await clean_up(api) == []
    assert await redis.zscore("fleet:expiring", job_id) > time.time() + 50 * YEAR_S
    await api.client.delete(f"/api/v1/jobs/{job_id}")
    assert await clean_up(api) == [job_id]


async def test_a_job_that_a_dispatcher_is_forgetting_is_not_kept(api: Api) -> None:
    job_id = await done(api)
    await past_retention(api.stores, job_id)
    redis: Any = api.stores.redis
    await redis.zadd("fleet:expiring", {job_id: time.time() + YEAR_S})  # as if time had gone back
    assert code(await api.client.put(f"/api/v1/jobs/{job_id}/keep")) == (404, "not_found")
    await api.stores.runs.postpone(job_id, seconds=-60)
    assert await clean_up(api) == [job_id]


async def test_a_version_that_knows_of_no_kept_jobs_leaves_them_alone(api: Api) -> None:
    old = older(api.stores)
    job_id = str((await api.submit(GRAPH))["id"])
    assert (await api.client.put(f"/api/v1/jobs/{job_id}/keep")).status_code == 200
    claim = await api.claim(job_id)
    await old.runs.left(claim, [])
    assert await old.runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=1) == "succeeded"
    seen = await record(api, job_id)
    assert seen.kept
    assert seen.completed_at is not None
    assert seen.expires_at - seen.completed_at > 50 * YEAR_S
    assert await old.runs.forgettable(10) == []


# -- retry ------------------------------------------------------------------


async def again(api: Api, job_id: str, **body: Any) -> httpx.Response:
    return await api.client.post(f"/api/v1/jobs/{job_id}/retry", json=body)


async def graph_of(api: Api, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await api.client.get(f"/api/v1/jobs/{job_id}/workflow")).json()["workflow"]
    return found


async def test_a_retry_is_a_new_job_with_the_same_content(api: Api) -> None:
    by = time.time() + 600
    options = {"metadata": {"order": "1"}, "priority": 7, "ttl_s": 60.0, "timeout_s": 30, "finish_by": by}
    options |= {"tier": "batch"}
    job_id = await done(api, sampled(seed=5), **options)
    answer = await api.client.post(f"/api/v1/jobs/{job_id}/retry")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["id"] != job_id
    assert made["retry_of"] == job_id
    assert (made["status"], made["metadata"], made["priority"]) == ("queued", {"order": "1"}, 7)
    assert await graph_of(api, made["id"]) == await graph_of(api, job_id)
    new = await record(api, made["id"])
    assert new.deadline_at is not None
    assert new.deadline_at - new.created_at == pytest.approx(60, abs=1)
    assert (new.timeout_s, new.tier) == (30.0, BATCH)
    assert new.finish_by is not None
    assert new.finish_by - new.created_at == pytest.approx(600, abs=1)
    assert new.finish_by > by  # as long after its own submit


async def test_a_retry_by_somebody_who_may_not_go_first_goes_as_early_as_they_may(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    write_keys((keys_file := tmp_path / "keys"), "ann ann-key-0123456789 admin\n")
    async with running(redis_port, tmp_path / "data", keys_file=keys_file, max_priority=5) as api:
        await api.add_node(info=False)
        api.client.headers["Authorization"] = "Bearer ann-key-0123456789"
        job_id = await done(api, priority=9)
        assert (await again(api, job_id)).json()["priority"] == 9
        del api.client.headers["Authorization"]  # in the path, a key makes nobody an operator there
        path = f"/k/ann-key-0123456789/api/v1/jobs/{job_id}/retry"
        made = await api.client.post(path, headers={"X-Fleet-Origin": "editor"})
        assert (made.status_code, made.json()["priority"]) == (201, 5)


async def test_new_seeds_are_drawn_where_there_are_seeds(api: Api) -> None:
    without = await done(api, picture(1))
    graph = sampled(seed=5)
    graph["7"] = {**graph["4"], "inputs": {**graph["4"]["inputs"], "seed": 5, "cfg": 5}}
    shown = {"id": "w", "nodes": [{"id": 4, "widgets_values": [5, "randomize", 5, "euler"]}, {"id": 2}]}
    extra = {"extra_pnginfo": {"workflow": shown}}
    job_id = await done(api, graph, extra_data=extra)
    made = (await again(api, job_id, new_seed=True)).json()
    new = await graph_of(api, made["id"])
    seed = new["4"]["inputs"].pop("seed")
    assert seed != 5
    assert new["7"]["inputs"].pop("seed") == seed  # equal seeds stay equal
    assert new["7"]["inputs"]["cfg"] == 5
    redis: Any = api.stores.redis
    assert await redis.hget(f"fleet:job:{made['id']}", "has_extra") == b"1"
    job = await record(api, made["id"])
    content = (await api.stores.prompts.contents([job], 0))[0].extra_data
    assert content["extra_pnginfo"]["workflow"]["nodes"][0]["widgets_values"] == [
        *(seed, "randomize", 5, "euler")
    ]
    refused = await again(api, without, new_seed=True)
    assert code(refused) == (400, "no_seed")
    assert "no seed" in refused.json()["error"]["message"]


async def test_a_stored_workflows_job_is_repeated_with_its_parameters(api: Api) -> None:
    body = {"params": {"prompt": "a fox", "seed": 11}}
    first = (await api.client.post("/api/v1/workflows/image_card/jobs", json=body)).json()
    same = (await again(api, first["id"])).json()
    assert same["params"] == first["params"]
    assert (same["workflow"], same["workflow_version"]) == ("image_card", first["workflow_version"])
    assert await graph_of(api, same["id"]) == await graph_of(api, first["id"])
    other = (await again(api, first["id"], new_seed=True)).json()
    assert other["params"]["seed"] != 11
    assert {**other["params"], "seed": 11} == first["params"]


async def test_a_stored_workflow_that_has_changed_since_is_repeated_as_it_was(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "workflows" / "card"
    folder.mkdir(parents=True)
    graph = sampled(seed=3)
    graph["3"]["_meta"] = {"title": "$prompt"}
    graph["4"]["_meta"] = {"title": "$seed"}
    (folder / "workflow.json").write_bytes(orjson.dumps(graph))
    (folder / "workflow.toml").write_text("silence_s = 90\n")
    async with running(redis_port, tmp_path / "data", workflows=tmp_path / "workflows") as api:
        await api.add_node(info=False)
        body = {"params": {"prompt": "a fox", "seed": 11}}
        first = (await api.client.post("/api/v1/workflows/card/jobs", json=body)).json()
        graph["5"]["_meta"] = {"title": "changed"}
        (folder / "workflow.json").write_bytes(orjson.dumps(graph))
        same = (await again(api, first["id"])).json()
        assert (same["workflow"], same["workflow_version"]) == ("card", first["workflow_version"])
        assert same["params"] == first["params"]
        for job in (first, same):  # its limit for a run without progress, too
            assert (await record(api, job["id"])).silence_s == 90.0
        other = (await again(api, first["id"], new_seed=True)).json()
        assert other["params"]["seed"] != 11
        assert (await graph_of(api, other["id"]))["4"]["inputs"]["seed"] == other["params"]["seed"]
        assert other["workflow_version"] == first["workflow_version"]


async def test_a_retry_uses_the_files_of_the_first_job(api: Api) -> None:
    await api.add_node("g2")  # its classes say which inputs name files
    first_face = (await upload(api, b"one", name="face.png")).json()
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "face.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
    }
    job_id = await done(api, graph)
    await upload(api, b"two", name="face.png")
    made = (await again(api, job_id)).json()
    assert (await record(api, made["id"])).uploads == {"1/image": first_face["id"]}


async def test_keys_that_were_erased_are_asked_for_again(api: Api) -> None:
    job_id = await done(api, extra_data=PARTNER)
    refused = await again(api, job_id)
    assert code(refused) == (409, "secrets_gone")
    for extra in ({}, {"api_key_comfy_org": "another"}):
        answer = await again(api, job_id, extra_data=extra)
        assert answer.status_code == 201, answer.text


async def test_a_retry_runs_where_the_first_could(api: Api) -> None:
    node = Node(name="z", url="http://127.0.0.1:9900", zone="a", labels={"gpu": "h100"}, pool="big")
    await api.stores.nodes.add(node)
    await api.stores.nodes.report("z", verdict="up", why="")
    wanted: tuple[dict[str, Any], ...] = (
        {"pool": "big", "spill_to": ["default"], "zone": "a", "labels": {"gpu": "h100"}},
        {"prefer_pool": "big"},
        {},
    )
    for where in wanted:
        body = {"params": {"prompt": "x"}, **where}
        first = (await api.client.post("/api/v1/workflows/image_card/jobs", json=body)).json()
        made = (await again(api, first["id"])).json()
        assert (await record(api, made["id"])).placement == (await record(api, first["id"])).placement


async def test_the_same_idempotency_key_makes_one_job(api: Api) -> None:
    job_id = await done(api)
    made = [
        await api.client.post(f"/api/v1/jobs/{job_id}/retry", headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert made[1].headers["Idempotency-Replayed"] == "true"


# -- ls ---------------------------------------------------------------------


async def test_a_list_tells_prompts_and_places(api: Api) -> None:
    texts = ("a red fox", "", "x " * 500)
    made: list[str] = []
    for text in texts:
        graph = sampled(seed=len(made))
        graph["3"]["inputs"]["text"] = text
        made.append(str((await api.submit(graph))["id"]))
    listed = {job["id"]: job for job in (await api.client.get("/api/v1/jobs")).json()["jobs"]}
    assert [listed[job_id]["queue_position"] for job_id in made] == [1, 2, 3]
    assert [listed[job_id]["excerpt"] for job_id in made][:2] == ["a red fox", ""]
    assert len(listed[made[2]]["excerpt"]) == 120
    await api.claim(made[0])
    listed = {job["id"]: job for job in (await api.client.get("/api/v1/jobs")).json()["jobs"]}
    assert [listed[job_id]["queue_position"] for job_id in made] == [None, 1, 2]
    body = {"params": {"prompt": "two\n\tlines"}}
    await api.client.post("/api/v1/workflows/image_card/jobs", json=body)
    assert (await api.client.get("/api/v1/jobs")).json()["jobs"][0]["excerpt"] == "two lines"
    assert code(await api.client.get("/api/v1/jobs?kept=1")) == (400, "invalid_request")
