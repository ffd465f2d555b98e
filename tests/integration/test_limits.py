"""Limits on a real API and Redis: every face obeys them, and nobody gets past them by asking at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, running, upload
from tests.integration.test_publishing import graph, ui
from tests.key_files import write_keys

pytestmark = pytest.mark.usefixtures("redis")  # begins with an empty database

OPS, ANN, ART = "ops-key-0123456789", "ann-key-0123456789", "art-key-0123456789"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def limited(redis_port: int, folder: Path, limits: str = "", **settings: Any) -> AsyncIterator[Api]:
    file = write_keys(folder / "keys", f"ops {OPS} operator\nann {ANN}\nart {ART} artist\n")
    async with running(redis_port, folder / "data", keys_file=file, limits=limits, **settings) as api:
        await api.add_node()
        yield api


async def key_with(
    api: Api, user: str, *, tenant: str = "default", role: str = "submit", **limits: str
) -> str:
    head = bearer(OPS)
    await api.client.post("/api/v1/users", json={"name": user, "tenant": tenant}, headers=head)
    body = {"user": user, "roles": [role], "limits": limits}
    made = await api.client.post("/api/v1/keys", json=body, headers=head)
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


async def test_jobs_beyond_the_bound_of_running_ones_wait(redis_port: int, tmp_path: Path) -> None:
    async with limited(redis_port, tmp_path, "submit: running=2") as api:
        refused = await api.client.post(
            "/api/v1/keys", json={"user": "x", "limits": {"running": "0"}}, headers=bearer(OPS)
        )
        assert refused.status_code == 400 and "below 1" in refused.text
        key = await key_with(api, "bob", running="1")
        jobs = [(await v2(api, key)).json()["id"] for _ in range(2)]
        run = await api.claim(jobs[0])
        shown = await api.client.get(f"/api/v1/jobs/{jobs[1]}", headers=bearer(key))
        assert shown.json()["waiting_for"] == "you may have 1 running at once: one of them has to end"
        await api.stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
        assert (await api.claim(jobs[1])).job.id == jobs[1]


Submit = Callable[[Api, str], Awaitable[httpx.Response]]


async def v2(api: Api, key: str) -> httpx.Response:
    return await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer(key))


async def native(api: Api, key: str) -> httpx.Response:
    return await api.client.post("/prompt", json={"prompt": GRAPH}, headers=bearer(key))


async def native_api(api: Api, key: str) -> httpx.Response:
    body = {
        "prompt": GRAPH,
        "client_id": "editor",
        "extra_data": {"extra_pnginfo": {"workflow": {"id": "w"}}},
    }
    return await api.client.post("/api/prompt", json=body, headers=bearer(key))


async def workflow(api: Api, key: str) -> httpx.Response:
    body = {"params": {"prompt": "x"}}
    return await api.client.post("/api/v1/workflows/image_card/jobs", json=body, headers=bearer(key))


async def generate(api: Api, key: str) -> httpx.Response:
    return await api.client.post("/api/v1/generate", json={"prompt": "x"}, headers=bearer(key))


async def short(api: Api, key: str) -> httpx.Response:
    return await api.client.post("/api/submit", json={"prompt": "x"}, headers=bearer(key))


async def batch(api: Api, key: str) -> httpx.Response:
    body = {"items": [{"params": {"prompt": "x"}}]}
    return await api.client.post("/api/v1/workflows/image_card/batches", json=body, headers=bearer(key))


async def graph_batch(api: Api, key: str) -> httpx.Response:
    return await api.client.post(
        "/api/v2/batches", json={"items": [{"workflow": GRAPH}]}, headers=bearer(key)
    )


FACES = (v2, native, native_api, workflow, generate, short, batch, graph_batch)
ACCEPTED = (200, 201, 202)


@pytest.mark.parametrize("face", FACES)
async def test_every_face_obeys_a_window_of_submits(
    redis_port: int, redis: Redis, tmp_path: Path, face: Submit
) -> None:
    async with limited(redis_port, tmp_path, "submit: submits=2/1h,100/1d") as api:
        for _ in range(2):
            assert (await face(api, ANN)).status_code in ACCEPTED
        refused = await face(api, ANN)
        assert refused.status_code == 429, refused.text
        assert 3500 < int(refused.headers["Retry-After"]) <= 3600
        assert "submits" in refused.text and "is 2/3600s, and 2 are used" in refused.text
        for other in FACES:  # one limit for all ways in
            assert (await other(api, ANN)).status_code == 429
        assert (await face(api, ART)).status_code in ACCEPTED


async def test_a_drafts_test_run_counts_as_a_submit(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with limited(redis_port, tmp_path) as api:
        head = bearer(await key_with(api, "eve", role="artist", submits="2/1h"))
        draft = {"name": "Mine", "graph": graph(), "ui": ui()}
        made = await api.client.post("/api/v1/drafts", json=draft, headers=head)
        assert made.status_code == 201, made.text
        path = "/api/v1/workflows/mine/check"
        for _ in range(4):
            answer = await api.client.post(path, json={"again": True}, headers=head)
            assert answer.status_code == 200, answer.text
        assert len((await api.client.get("/api/v1/jobs", headers=head)).json()["jobs"]) == 2
        no_graphs = bearer(await key_with(api, "eve", role="artist", raw_graphs="no"))
        refused = await api.client.post(path, json={"again": True}, headers=no_graphs)
        assert "raw_graphs" in refused.text
        assert len((await api.client.get("/api/v1/jobs", headers=head)).json()["jobs"]) == 2


async def test_a_retry_counts_as_a_submit(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with limited(redis_port, tmp_path, "submit: submits=1/1h") as api:
        job = (await v2(api, ANN)).json()["id"]
        again = await api.client.post(f"/api/v1/jobs/{job}/retry", headers=bearer(ANN))
        assert code(again) == (429, "limit_reached")


@pytest.mark.parametrize(
    ("limit", "name"), [("queued=5", "queued"), ("submits=5/1h", "submits"), ("live=5", "live")]
)
async def test_many_at_once_get_no_more_than_the_limit(
    redis_port: int, redis: Redis, tmp_path: Path, limit: str, name: str
) -> None:
    async with limited(redis_port, tmp_path, f"submit: {limit}") as api:
        answers = await asyncio.gather(*(FACES[n % 4](api, ANN) for n in range(40)))
        assert sum(one.status_code in ACCEPTED for one in answers) == 5
        refused = [one for one in answers if one.status_code not in ACCEPTED]
        assert {one.status_code for one in refused} == {429}
        details = (await v2(api, ANN)).json()["error"]["details"]
        assert details["limit"] == name and details["scope"] == "user"
        assert (details["most"], details["used"]) == (5, 5)
        assert await api.stores.jobs.depth() == 5


async def test_a_job_that_starts_makes_room_among_those_that_wait(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with limited(redis_port, tmp_path, "submit: queued=1 live=2") as api:
        first = (await v2(api, ANN)).json()["id"]
        waits = await v2(api, ANN)
        assert code(waits) == (429, "limit_reached") and int(waits.headers["Retry-After"]) >= 1
        claim = await api.claim(first)
        assert (await v2(api, ANN)).status_code == 201
        assert (await v2(api, ANN)).json()["error"]["details"]["limit"] == "queued"
        await api.finish(claim, JobStatus.FAILED)


async def test_a_refused_submit_leaves_nothing_and_a_replay_is_none(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with limited(redis_port, tmp_path, "submit: submits=1/1h") as api:
        head = {**bearer(ANN), "Idempotency-Key": "k"}
        body = {"params": {"prompt": "x"}}
        path = "/api/v1/workflows/image_card/jobs"
        made = await api.client.post(path, json=body, headers=head)
        again = await api.client.post(path, json=body, headers=head)
        assert made.status_code == again.status_code == 201 and made.json()["id"] == again.json()["id"]
        other = {**bearer(ANN), "Idempotency-Key": "k2"}
        assert (await api.client.post(path, json=body, headers=other)).status_code == 429
        listed = (await api.client.get("/api/v1/jobs", headers=bearer(ANN))).json()["jobs"]
        assert len(listed) == 1


async def test_a_keys_limits_count_beside_its_users_and_a_tenants_for_all_of_its_users(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with limited(redis_port, tmp_path, "submit: submits=3/1h") as api:
        tenant = {"name": "studio", "limits": {"queued": "3"}}
        assert (await api.client.post("/api/v1/tenants", json=tenant, headers=bearer(OPS))).status_code == 201
        narrow = await key_with(api, "ada", tenant="studio", submits="1/1h")
        wide = await key_with(api, "ada", tenant="studio")
        eve = await key_with(api, "eve", tenant="studio")
        assert (await v2(api, narrow)).status_code == 201
        assert (await v2(api, narrow)).json()["error"]["details"]["scope"] == "key"
        assert (await v2(api, wide)).status_code == 201
        assert (await native(api, eve)).status_code == 200
        refused = (await v2(api, eve)).json()["error"]["details"]
        assert (refused["scope"], refused["limit"], refused["used"]) == ("tenant", "queued", 3)
        assert (await v2(api, ANN)).status_code == 201
        change = {"limits": {"queued": "4"}}
        await api.client.patch("/api/v1/tenants/studio", json=change, headers=bearer(OPS))
        assert (await v2(api, eve)).status_code == 201
        wrong = await api.client.patch(
            "/api/v1/tenants/studio", json={"limits": {"x": "4"}}, headers=bearer(OPS)
        )
        assert code(wrong) == (400, "invalid_request")


async def test_a_key_may_be_for_some_workflows_alone(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with limited(redis_port, tmp_path) as api:
        shop = await key_with(api, "shop", workflows="image_card")
        none = await key_with(api, "none", raw_graphs="no", workflows="other")
        for face in FACES:
            allowed = face in (workflow, generate, short, batch)
            answer = await face(api, shop)
            assert (answer.status_code in ACCEPTED) == allowed, (face, answer.text)
            if not allowed:
                assert answer.status_code == 403 and "image_card" in answer.text
            assert (await face(api, none)).status_code == 403
        draft = await api.client.post(
            "/api/v1/workflows/image_card@draft/jobs", json={"params": {}}, headers=bearer(shop)
        )
        assert code(draft) == (403, "not_allowed")


async def test_priority_and_body_are_bounded_by_key(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with limited(redis_port, tmp_path) as api:
        key = await key_with(api, "ada", priority="-5", body="20k")
        made = await v2(api, key)
        assert made.json()["priority"] == -5
        body = {"workflow": GRAPH, "priority": 0}
        refused = await api.client.post("/api/v2/jobs", json=body, headers=bearer(key))
        assert code(refused) == (403, "forbidden")
        job = (await native(api, key)).json()["prompt_id"]
        shown = await api.client.get(f"/api/v1/jobs/{job}", headers=bearer(key))
        assert shown.json()["priority"] == -5
        large = {"workflow": GRAPH, "metadata": {"a": "x" * 30_000}}
        assert code(await api.client.post("/api/v2/jobs", json=large, headers=bearer(key)))[0] == 413

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b" " * 1000

        unannounced = await api.client.post("/api/v2/jobs", content=parts(), headers=bearer(key))
        assert unannounced.status_code == 413 and "'body'" in unannounced.text


async def test_stored_bytes_are_counted_and_deleting_makes_room(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with limited(redis_port, tmp_path, "submit: stored=1000") as api:
        api.client.headers.update(bearer(ANN))
        first = await upload(api, b"a" * 600)
        assert first.status_code == 201
        again = await upload(api, b"b" * 600, "b.png")
        assert again.status_code == 507 and again.json()["error"]["details"] == {
            "limit": "stored", "scope": "user", "most": 1000, "used": 600,
        }  # fmt: skip
        files = {"image": ("c.png", b"c" * 600, "image/png")}
        assert (await api.client.post("/upload/image", files=files)).status_code == 507
        # An output is never refused; what is made afterwards is.
        job = (await v2(api, ANN)).json()["id"]
        claim = await api.claim(job)
        await api.output(claim, b"d" * 600)
        await api.finish(claim)
        for face in FACES:
            assert (await face(api, ANN)).status_code == 507
        assert (await api.client.delete(f"/api/v2/assets/{first.json()['id']}")).status_code == 204
        assert (await v2(api, ANN)).status_code == 201
        assert (await api.client.delete(f"/api/v1/jobs/{job}", headers=bearer(ANN))).status_code == 204
        await api.assets.forget_job(job)  # a dispatcher's part
        empty = await upload(api, b"", "e.png")
        assert (await api.client.delete(f"/api/v2/assets/{empty.json()['id']}")).status_code == 204
        client: Any = redis
        assert await client.hgetall("fleet:stored:bytes") == {}


async def test_requests_of_all_kinds_have_a_bound_of_their_own(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with limited(redis_port, tmp_path, "submit: requests=20/1h") as api:
        statuses = [
            (await api.client.get("/api/v1/jobs", headers=bearer(ANN))).status_code for _ in range(25)
        ]
        assert statuses == [200] * 20 + [429] * 5
        refused = await api.client.get("/queue", headers=bearer(ANN))
        assert refused.status_code == 429 and "requests" in refused.text and refused.headers["Retry-After"]
        assert (await api.client.get("/api/v1/jobs", headers=bearer(ART))).status_code == 200
