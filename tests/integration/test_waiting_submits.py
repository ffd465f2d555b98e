"""Submits that are answered once the job has ended: ``Prefer: wait``, ``?wait=``."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from PIL import Image
from redis.asyncio import Redis

from benchmarks.relay import Relay
from comfy_fleet.domain.errors import Busy
from comfy_fleet.domain.jobs.job import JobError, JobStatus, OutputKind
from comfy_fleet.services.picture_work import HeldPicture
from tests.factories import GRAPH, picture
from tests.fakes.nodes import FakeNodeRegistry
from tests.fleet import until
from tests.integration import haproxy_kit
from tests.integration.api_kit import Api, code, running

V2 = "/api/v2/jobs"
CARD = "/api/v1/workflows/image_card/jobs"
PARAMS: dict[str, Any] = {"params": {"prompt": "a fox"}}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, max_streams=3, max_waits=4) as started:
        await started.add_node(info=False)
        yield started


async def _jobs(api: Api, number: int = 1) -> list[str]:
    """Return the ids of the caller's jobs once there are so many, the newest first."""

    found: list[str] = []

    async def made() -> bool:
        found[:] = [one["id"] for one in (await api.client.get("/api/v1/jobs")).json()["jobs"]]
        return len(found) >= number

    await until(made, what="the jobs are there")
    return found


async def _waits(api: Api, number: int) -> None:
    async def waiting() -> bool:
        return api.deps.waits.total() == number

    await until(waiting, what=f"{number} submits wait")


async def _run(api: Api, job_id: str, status: JobStatus = JobStatus.SUCCEEDED) -> None:
    claim = await api.claim(job_id)
    if status is JobStatus.SUCCEEDED:
        await api.output(claim, b"picture")
    await api.finish(claim, status)


def _submit(api: Api, path: str = V2, body: Any = None, **more: Any) -> "asyncio.Task[httpx.Response]":
    content = body if body is not None else {"workflow": GRAPH}
    return asyncio.create_task(api.client.post(path, json=content, **more))


@pytest.mark.parametrize(
    ("path", "body", "usual", "get"),
    [
        (V2, {"workflow": GRAPH}, 201, "/api/v2/jobs/{id}"),
        (CARD, PARAMS, 201, "/api/v1/jobs/{id}"),
        ("/api/v1/generate", {"prompt": "a fox"}, 202, "/api/v1/status/{id}"),
        ("/api/submit", {"prompt": "a fox"}, 202, "/api/status/{id}"),
    ],
)
async def test_a_submit_that_waits_answers_what_a_get_would(
    api: Api, path: str, body: Any, usual: int, get: str
) -> None:
    assert (await api.client.post(path, json=body)).status_code == usual
    [first] = await _jobs(api)
    await _run(api, first)
    for wants in ({"headers": {"Prefer": "foo=1;x, respond-async, WAIT = 30"}}, {"params": {"wait": 30}}):
        asked: dict[str, Any] = wants
        waiting = _submit(api, path, body, **{**asked, "headers": {**asked.get("headers", {}), **NEW}})
        await _waits(api, 1)
        job_id = (await _jobs(api, 2))[0]
        await _run(api, job_id)
        answer = await waiting
        assert answer.status_code == 200, answer.text
        assert answer.json() == (await api.client.get(get.format(id=job_id))).json()
        assert answer.headers["location"] == f"{api.url}/api/v2/jobs/{job_id}"
        assert answer.headers["x-fleet-job"] == job_id
        applied = answer.headers.get("preference-applied")
        assert applied == ("wait=30" if "headers" in asked else None)
    assert not api.deps.waits


NEW = {"Cache-Control": "no-cache"}


async def test_a_retry_waits_and_a_job_that_has_failed_is_a_finished_one(api: Api) -> None:
    made = await api.submit(GRAPH)
    await _run(api, made["id"], JobStatus.FAILED)
    waiting = _submit(api, f"/api/v1/jobs/{made['id']}/retry?wait=30", {})
    await _waits(api, 1)
    job_id = (await _jobs(api, 2))[0]
    claim = await api.claim(job_id)
    await api.stores.runs.left(claim, [])
    error = JobError(code="node_lost", message="gone")
    await api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=1)
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"]["code"] == "node_lost"


@pytest.mark.parametrize("path", [V2, CARD, "/api/v1/generate"])
async def test_when_the_time_is_over_the_answer_is_the_usual_one(api: Api, path: str) -> None:
    body = {"workflow": GRAPH} if path == V2 else PARAMS if path == CARD else {"prompt": "a fox"}
    answer = await api.client.post(path, json=body, headers={"Prefer": "respond-async, wait=1"})
    assert answer.status_code == (202 if path.endswith("generate") else 201)
    assert answer.json()["status"] == "queued"
    assert answer.headers["preference-applied"] == "wait=1, respond-async"
    assert answer.headers["x-fleet-job"] == (await _jobs(api))[0]


async def test_a_time_that_is_none_is_told_and_nothing_is_submitted(api: Api) -> None:
    for value in ("soon", "-1", "1.5", "", '"x"', "9" * 12):
        answer = await api.client.post(V2, json={"workflow": GRAPH}, headers={"Prefer": f"wait={value}"})
        assert code(answer) == (400, "invalid_request"), value
        assert answer.json()["error"]["details"] == {"field": "Prefer"}
    for value in ("soon", "-1", "1.5", "", "9" * 12):
        answer = await api.client.post(V2, json={"workflow": GRAPH}, params={"wait": value})
        assert code(answer) == (422, "invalid_request"), value
        assert answer.json()["error"]["details"]["field"] == "wait"
    answer = await api.client.post(f"{V2}?cancel_on_disconnect=true", json={"workflow": GRAPH})
    assert code(answer) == (400, "invalid_request")
    assert answer.json()["error"]["details"] == {"field": "cancel_on_disconnect"}
    assert (await api.client.get("/api/v1/jobs")).json()["jobs"] == []


async def test_no_wait_is_longer_than_the_operator_allows(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, max_wait_s=1) as api:
        await api.add_node(info=False)
        answer = await api.client.post(V2, json={"workflow": GRAPH}, headers={"Prefer": "wait=600"})
        assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=1")


async def test_beyond_the_limits_of_a_caller_and_of_all_an_answer_comes_at_once(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada ada-key-ada-key-ada\nbob bob-key-bob-key-bob\n")
    keys.chmod(0o600)
    async with running(redis_port, tmp_path / "data", keys_file=keys, max_streams=3, max_waits=4) as api:
        await api.add_node(info=False)
        ada, bob = ({"X-API-Key": f"{name}-key-{name}-key-{name}"} for name in ("ada", "bob"))
        api.client.headers.update(ada)
        waiting = [_submit(api, params={"wait": 60}, body={"workflow": picture(n)}) for n in range(3)]
        await _waits(api, 3)
        more = await api.client.post(V2, json={"workflow": picture(4)}, headers={"Prefer": "wait=60"})
        assert more.status_code == 201 and "preference-applied" not in more.headers
        others = [
            _submit(api, params={"wait": 60}, body={"workflow": picture(5)}, headers=bob),
        ]
        await _waits(api, 4)
        more = await api.client.post(V2, json={"workflow": picture(6)}, params={"wait": 60}, headers=bob)
        assert more.status_code == 201
        assert (await api.client.get(more.headers["location"], headers=bob)).json()["status"] == "queued"
        async with api.client.stream("GET", f"{more.headers['location']}/events", headers=bob) as stream:
            assert stream.status_code == 200  # streams are counted by themselves
        for job in [*await _jobs(api, 4), *[(await bobs(api, bob))[-1]]]:
            await api.client.post(f"/api/v1/jobs/{job}/cancel", headers=bob)
            await api.client.post(f"/api/v1/jobs/{job}/cancel")
        ends = await asyncio.gather(*waiting, *others)
        assert {(one.status_code, one.json()["status"]) for one in ends} == {(200, "canceled")}


async def bobs(api: Api, bob: dict[str, str]) -> list[str]:
    found = (await api.client.get("/api/v1/jobs", headers=bob)).json()["jobs"]
    return [one["id"] for one in found]


async def test_the_same_key_again_waits_for_the_same_job(api: Api) -> None:
    headers = {"Idempotency-Key": "order-1", "Prefer": "wait=30"}
    waiting = _submit(api, CARD, PARAMS, headers=headers)
    await _waits(api, 1)
    again = _submit(api, CARD, PARAMS, headers=headers)
    await _waits(api, 2)
    [job_id] = await _jobs(api)
    await _run(api, job_id)
    first, second = await asyncio.gather(waiting, again)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert (first.json()["id"], first.json()["status"]) == (job_id, "succeeded")
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    third = await api.client.post(CARD, json=PARAMS, headers=headers)
    assert (third.status_code, third.json()) == (200, first.json())
    plain = await api.client.post(CARD, json=PARAMS, headers={"Idempotency-Key": "order-1"})
    assert (plain.status_code, plain.json()["status"]) == (201, "queued")  # as it was answered first
    assert len(await _jobs(api)) == 1


def _png(color: str = "red") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 20), color).save(buffer, "PNG")
    return buffer.getvalue()


async def _made(api: Api, number: int, *outputs: tuple[bytes, dict[str, Any]]) -> str:
    """Let the newest of so many jobs succeed with these outputs."""
    job_id = (await _jobs(api, number))[0]
    claim = await api.claim(job_id)
    for data, more in outputs:
        await api.output(claim, data, **more)
    await api.finish(claim)
    return job_id


async def test_with_accept_the_first_picture_is_the_answer(api: Api) -> None:
    shown: dict[str, Any] = {"temporary": True, "name": "shown.png", "node": "5"}
    for number, (path, body, accept, query, kind, size) in enumerate(
        (
            (V2, {"workflow": picture(1)}, "image/*", "", "PNG", (40, 20)),
            (V2, {"workflow": picture(2)}, "image/png;q=0.5, image/webp, */*;q=0.1", "", "WEBP", (40, 20)),
            (CARD, PARAMS, "image/*;q=0.8, application/json;q=0.5", "&width=10", "PNG", (10, 5)),
            ("/api/v1/generate", {"prompt": "a fox"}, "*/*", "&format=jpeg", "JPEG", (40, 20)),
        ),
        1,
    ):
        headers = {"Accept": accept, "Prefer": "wait=30", "Cache-Control": "no-cache"}
        waiting = _submit(api, f"{path}?x=1{query}", body, headers=headers)
        await _waits(api, 1)
        data = _png()
        job_id = await _made(api, number, (_png("blue"), shown), (b"text", TEXT), (data, {}))
        answer = await waiting
        assert answer.status_code == 200, answer.text
        found = Image.open(BytesIO(answer.content))
        assert (found.format, found.size) == (kind, size)
        assert found.convert("RGB").getpixel((5, 2))[0] > 200  # type: ignore[index]  # RGB: not the blue one
        assert (answer.content == data) == (kind == "PNG" and not query)
        assert answer.headers["content-type"] == f"image/{kind.lower()}"
        assert answer.headers["location"] == f"{api.url}/api/v2/jobs/{job_id}"
        assert answer.headers["x-fleet-job"] == job_id
        assert answer.headers["preference-applied"] == "wait=30"
        outputs = (await api.client.get(answer.headers["location"])).json()["outputs"]
        asset = answer.headers["x-fleet-asset"]
        assert [one["name"] for one in outputs if one["id"] == asset] == ["out_00001_.png"]
        whole = await api.client.get(answer.headers["content-location"])
        assert whole.content == data


TEXT: dict[str, Any] = {"node": "6", "content_type": "text/plain", "name": "a.txt", "kind": OutputKind.TEXT}


async def test_json_is_the_answer_where_it_is_as_welcome(api: Api) -> None:
    as_welcome = "application/json, image/webp"
    accepted = ("*/*", "application/json", "image/png;q=0.2, application/json", as_welcome)
    for number, accept in enumerate(accepted, 1):
        waiting = _submit(
            api, params={"wait": 30}, body={"workflow": picture(number)}, headers={"Accept": accept}
        )
        await _waits(api, 1)
        await _made(api, number, (_png(), {}))
        assert (await waiting).json()["status"] == "succeeded"


async def test_why_there_is_no_picture_is_told(api: Api) -> None:
    wants: dict[str, Any] = {"params": {"wait": 30}, "headers": {"Accept": "image/*"}}
    waiting = _submit(api, body={"workflow": picture(1)}, **wants)
    await _waits(api, 1)
    job_id = await _made(api, 1, (b"text", TEXT))
    answer = await waiting
    assert code(answer) == (406, "no_picture")
    details = {"job_id": job_id, "status": "succeeded", "content_types": ["text/plain"]}
    assert answer.json()["error"]["details"] == details
    assert answer.headers["x-fleet-job"] == job_id
    for number, (word, status) in enumerate(
        (("node_execution_error", 422), ("run_timeout", 504), ("node_lost", 502)), 2
    ):
        waiting = _submit(api, body={"workflow": picture(number)}, **wants)
        await _waits(api, 1)
        claim = await api.claim((await _jobs(api, number))[0])
        await api.stores.runs.left(claim, [])
        error = JobError(code=word, message="it broke", node_id="3", class_type="KSampler")
        await api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=1)
        answer = await waiting
        assert code(answer) == (status, word)
        assert answer.json()["error"]["details"]["node_id"] == "3"
    waiting = _submit(api, body={"workflow": picture(9)}, **wants)
    await _waits(api, 1)
    await api.client.post(f"/api/v1/jobs/{(await _jobs(api, 5))[0]}/cancel")
    assert code(await waiting) == (409, "canceled")
    broken = _submit(api, body={"workflow": picture(10)}, **wants | {"headers": {"Accept": "image/webp"}})
    await _waits(api, 1)
    await _made(api, 6, (b"no picture", {}))
    assert (await broken).content == b"no picture"  # the file as it is
    over = await api.client.post(
        V2, json={"workflow": picture(11)}, params={"wait": 1}, headers=wants["headers"]
    )
    assert (over.status_code, over.json()["status"]) == (201, "queued")
    wrong = await api.client.post(V2, json={"workflow": picture(12)}, params={"wait": 1, "format": "gif"})
    assert code(wrong) == (422, "invalid_request")


async def test_who_waits_for_a_picture_that_no_place_is_free_for_is_told_where_it_is(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: object, **__: object) -> HeldPicture:
        raise Busy("many wait", retry_after_s=7)

    monkeypatch.setattr(api.deps.pictures, "rendered", busy)
    wants: dict[str, Any] = {"params": {"wait": 30, "format": "webp"}}
    waiting = _submit(api, **wants)
    await _waits(api, 1)
    job_id = await _made(api, 1, (_png(), {}))
    answer = await waiting
    assert code(answer) == (503, "busy") and answer.headers["retry-after"] == "7"
    assert "the job has succeeded" in answer.json()["error"]["message"]
    assert answer.headers["x-fleet-job"] == job_id
    whole = await api.client.get(answer.headers["content-location"])
    assert whole.content == _png()


async def _hang_up(waiting: Awaitable[httpx.Response]) -> None:
    assert isinstance(waiting, asyncio.Task)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


async def test_who_hangs_up_cancels_only_if_it_said_so(api: Api) -> None:
    for cancels, status in ((False, "queued"), (True, "canceled")):
        asked: dict[str, Any] = {"wait": 60}
        asked |= {"cancel_on_disconnect": "true"} if cancels else {}
        waiting = _submit(api, params=asked, body={"workflow": picture(int(cancels))})
        await _waits(api, 1)
        job_id = (await _jobs(api, 1 + cancels))[0]
        await _hang_up(waiting)
        await _waits(api, 0)
        assert (await api.client.get(f"{V2}/{job_id}")).json()["status"] == status


async def test_of_jobs_that_share_a_run_only_ones_own_is_canceled(api: Api) -> None:
    body = {"params": {"prompt": "a fox", "seed": 5}}
    staying = _submit(api, CARD, body, params={"wait": 60})
    await _waits(api, 1)
    [leader] = await _jobs(api)
    leaving = _submit(api, CARD, body, params={"wait": 60, "cancel_on_disconnect": "true"})
    await _waits(api, 2)
    follower = (await _jobs(api, 2))[0]
    await _hang_up(leaving)
    await _waits(api, 1)
    assert (await api.client.get(f"{V2}/{follower}")).json()["status"] == "canceled"
    await _run(api, leader)
    assert (await staying).json()["status"] == "succeeded"


async def test_an_api_that_stops_answers_and_cancels_nothing(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api:
        await api.add_node(info=False)
        waiting = _submit(api, params={"wait": 60, "cancel_on_disconnect": "true"})
        await _waits(api, 1)
        api.server.should_exit = True
        answer = await waiting
        assert (answer.status_code, answer.json()["status"]) == (201, "queued")
        job = await api.stores.jobs.get(answer.json()["id"])
        assert job is not None and job.status is JobStatus.QUEUED


async def test_a_key_that_is_revoked_ends_the_wait(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada ada-key-ada-key-ada\nroot root-key-root-key-root operator\n")
    keys.chmod(0o600)
    async with running(redis_port, tmp_path / "data", keys_file=keys) as api:
        await api.add_node(info=False)
        root = {"X-API-Key": "root-key-root-key-root"}
        assert (await api.client.post("/api/v1/users", json={"name": "eve"}, headers=root)).is_success
        made = await api.client.post("/api/v1/keys", json={"user": "eve"}, headers=root)
        key = made.json()
        waiting = _submit(api, params={"wait": 60}, headers={"X-API-Key": key["key"]})
        await _waits(api, 1)
        assert (await api.client.delete(f"/api/v1/keys/{key['id']}", headers=root)).is_success
        answer = await waiting
        assert (answer.status_code, answer.json()["status"]) == (201, "queued")


async def test_an_outage_of_redis_is_outlived(
    redis_port: int, redis: Redis, tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.job_queries._LOOK_AGAIN_S", 0.5)
    there = ("127.0.0.1", redis_port)
    async with Relay(there).running() as line, running(line.port, tmp_path / "other") as cut:
        cut.client.timeout = httpx.Timeout(60)
        for wait, back in ((2, False), (60, True)):
            waiting = _submit(cut, params={"wait": wait}, body={"workflow": picture(wait)})
            await _waits(cut, 1)
            job_id = (await _jobs(api, 1 + back))[0]
            line.lead_to(None)
            if back:
                await _run(api, job_id)
                line.lead_to(there)
            answer = await waiting
            assert answer.json()["id"] == job_id
            found = (answer.status_code, answer.json()["status"])
            assert found == ((200, "succeeded") if back else (201, "queued"))
            line.lead_to(there)
            await api.client.post(f"/api/v1/jobs/{job_id}/cancel")


@contextlib.asynccontextmanager
async def _edge(api: Api, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A real edge in front of an API."""
    port = httpx.URL(api.url).port
    settings = haproxy_kit.make_settings(folder, api_port=port, max_requests=1)
    async with (
        haproxy_kit.running(folder, FakeNodeRegistry([]), settings=settings),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", timeout=60) as client,
    ):
        yield client


async def test_through_the_edge_who_hangs_up_is_noticed_and_nobody_waits_for_those_that_wait(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    async with running(redis_port, tmp_path / "data", max_requests=1) as api, _edge(api, folder) as edge:
        await api.add_node(info=False)
        for number, (cancels, status) in enumerate(4 * [(False, "queued"), (True, "canceled")]):
            asked: dict[str, Any] = {"wait": 60}
            asked |= {"cancel_on_disconnect": "true"} if cancels else {}
            body = {"workflow": picture(number)}
            waiting = asyncio.create_task(edge.post(V2, json=body, params=asked))
            await _waits(api, 1)
            job_id = (await _jobs(api, 1 + number))[0]
            await _hang_up(waiting)
            await _waits(api, 0)
            assert (await edge.get(f"{V2}/{job_id}")).json()["status"] == status
        # More than the edge lets through to the API at once, of other requests.
        many = []
        for n in range(12):  # one by one: a busy API refuses some of twelve at once
            body, prefer = {"workflow": picture(10 + n)}, {"Prefer": "wait=60"}
            many.append(asyncio.create_task(edge.post(V2, json=body, headers=prefer)))
            await _waits(api, n + 1)
        began = time.monotonic()
        listed = (await edge.get("/api/v1/jobs?status=queued")).json()["jobs"]
        assert time.monotonic() - began < 30  # not the minute that they wait
        for job in listed:
            assert (await edge.post(f"/api/v1/jobs/{job['id']}/cancel")).is_success
        ends = await asyncio.gather(*many)
        assert {(one.status_code, orjson.loads(one.content)["status"]) for one in ends} == {(200, "canceled")}
