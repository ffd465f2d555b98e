"""URLs that need no key: what they let anybody read, from anywhere, and what they do not."""

import logging
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from redis.asyncio.client import Pipeline

from comfy_fleet.domain.jobs.job import JobStatus, OutputKind
from tests.factories import GRAPH, picture
from tests.fleet import until
from tests.integration.api_kit import Api, code, running

KEY = "ada-key-ada-key-ada"
PAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Origin": "https://shop.test"}


@pytest.fixture
async def api(redis_port: int, redis: object, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    keys.write_text(f"ada {KEY}\nbob bob-key-bob-key-bob\nops ops-key-ops-key-ops operator\n")
    keys.chmod(0o600)
    async with running(redis_port, tmp_path / "data", keys_file=keys) as started:
        await started.add_node()
        started.client.headers["Authorization"] = f"Bearer {KEY}"
        yield started


@pytest.fixture
async def page(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """A browser on a page of a shop's, without a key."""
    async with httpx.AsyncClient(base_url=api.url, headers=PAGE, timeout=20) as client:
        yield client


async def done(api: Api, color: int = 1) -> str:
    job = await api.submit(picture(color))
    run = await api.claim(job["id"])
    await api.output(run, b"picture %d" % color)
    await api.finish(run)
    return str(job["id"])


async def signed(api: Api, job_id: str, seconds: int = 60, surface: str = "v2") -> dict[str, Any]:
    answer = await api.client.get(f"/api/{surface}/jobs/{job_id}", params={"signed": seconds})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("surface", ["v1", "v2"])
async def test_a_page_shows_an_output_without_a_key(api: Api, page: httpx.AsyncClient, surface: str) -> None:
    job = await signed(api, await done(api), surface=surface)
    answer = await page.get(job["outputs"][0]["url"])
    assert (answer.status_code, answer.content) == (200, b"picture 1")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["referrer-policy"] == "no-referrer"
    kept, most = answer.headers["cache-control"].split(", max-age=")
    assert kept == "private" and 0 < int(most) <= 60
    assert (await page.head(job["outputs"][0]["url"])).status_code == 200
    part = await page.get(job["outputs"][0]["url"], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"pict")


async def test_a_page_follows_a_job_without_a_key(api: Api, page: httpx.AsyncClient) -> None:
    made = await api.submit(GRAPH)
    job = await signed(api, made["id"])
    run = await api.claim(made["id"])
    seen = ""
    async with page.stream("GET", job["urls"]["events"]) as stream:
        assert stream.status_code == 200
        assert stream.headers["access-control-allow-origin"] == "*"
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: status"
        await api.output(run, b"picture")
        await api.finish(run)
        async for line in lines:
            seen += line + "\n"
    assert '"status":"succeeded"' in seen
    url = seen.partition('"url":"')[2].partition('"')[0]
    assert (await page.get(url)).content == b"picture"  # what it names can be read as well


async def test_a_stream_ends_when_its_url_does(api: Api, page: httpx.AsyncClient) -> None:
    made = await api.submit(GRAPH)
    url = (await signed(api, made["id"], 2))["urls"]["events"]
    async with page.stream("GET", url) as stream:
        lines = [line async for line in stream.aiter_lines()]
    assert stream.status_code == 403 or ": this URL has expired" in lines  # it may take long to get here

    async def expired() -> bool:
        return (await page.head(url)).status_code == 403

    await until(expired, what="the URL holds no more")
    assert code(await page.get(url)) == (403, "signature_expired")


async def test_a_signature_is_of_one_thing_and_one_time(api: Api, page: httpx.AsyncClient) -> None:
    first, second = [await signed(api, await done(api, color)) for color in (1, 2)]
    one, other = (urlsplit(job["outputs"][0]["url"]) for job in (first, second))
    events = urlsplit(first["urls"]["events"])
    for path, query in (
        (other.path, one.query),
        (events.path, one.query),
        (one.path, events.query),
        (one.path, one.query.replace("expires=", "expires=9")),
        (one.path, one.query[:-1]),
        (one.path, one.query.partition("&")[2]),
        (one.path, "signature="),
    ):
        answer = await page.get(f"{path}?{query}")
        assert code(answer) == (403, "signature_invalid"), (path, query)
        assert "signed=SECONDS" in answer.json()["error"]["message"]
    assert code(await api.client.get(f"{one.path}?signature=x")) == (403, "signature_invalid")


async def test_nothing_but_reading_these_is_allowed(api: Api, page: httpx.AsyncClient) -> None:
    job = await signed(api, await done(api))
    output, events = urlsplit(job["outputs"][0]["url"]), urlsplit(job["urls"]["events"])
    for url in (output, events):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = await page.request(method, f"{url.path}?{url.query}")
            assert answer.status_code in (401, 403, 405), (method, answer.status_code)
    asset = output.path.removesuffix("/content")
    for path in (asset, f"/api/v2/jobs/{job['id']}", f"/api/v1/jobs/{job['id']}/outputs", "/api/v2/jobs"):
        same_site = await page.get(f"{path}?{output.query}", headers={"Sec-Fetch-Site": "none"})
        assert code(same_site) == (401, "unauthorized")
    assert "signature" not in job["urls"]["cancel"] and "signature" not in job["urls"]["self"]
    plain = (await api.client.get(f"/api/v2/jobs/{job['id']}")).json()
    assert "signature" not in str(plain)


async def test_it_ends_with_the_job(api: Api, page: httpx.AsyncClient) -> None:
    job = await signed(api, await done(api))
    assert (await api.client.delete(f"/api/v1/jobs/{job['id']}")).status_code == 204
    for url in (job["outputs"][0]["url"], job["urls"]["events"]):
        assert code(await page.get(url)) == (404, "not_found")


async def test_only_the_owner_gets_one(api: Api) -> None:
    job_id = await done(api)
    headers = {"Authorization": "Bearer bob-key-bob-key-bob"}
    answer = await api.client.get(f"/api/v2/jobs/{job_id}?signed=60", headers=headers)
    assert code(answer) == (404, "not_found")


async def test_a_list_has_thumbnails_where_they_are_asked_for(
    api: Api, page: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await api.submit(picture(7))
    run = await api.claim(job["id"])
    drawn = BytesIO()
    Image.new("RGB", (600, 300), "red").save(drawn, "PNG")
    for n in range(12):  # "12" is before "2"
        await api.output(run, drawn.getvalue() + b"%d" % n, node=str(n), name=f"{n}.png")
    await api.output(run, b"ID3", node="0a", name="a.mp3", content_type="audio/mpeg", kind=OutputKind.AUDIO)
    await api.finish(run)
    other = await done(api, 9)
    bare = await api.submit(picture(8))

    async def listed(surface: str = "v1", **query: object) -> dict[str, Any]:
        answer = await api.client.get(f"/api/{surface}/jobs", params=cast("dict[str, str]", query))
        assert answer.status_code == 200, answer.text
        return {one["id"]: one["outputs"] for one in answer.json()["jobs"]}

    assert await listed() == {job["id"]: [], bare["id"]: [], other: []}
    whole = (await api.client.get(f"/api/v1/jobs/{job['id']}")).json()["outputs"]
    for surface in ("v1", "v2"):
        found = await listed(surface, outputs=3)
        assert found[job["id"]] == whole[:3] and len(found[other]) == 1 and found[bare["id"]] == []
    assert [one["thumbnail_url"] is None for one in whole[:3]] == [False, True, False]
    assert len((await listed(outputs=8, limit=3))[job["id"]]) == 8

    found = await listed(outputs=1, signed=60)
    url = found[job["id"]][0]["thumbnail_url"]
    answer = await page.get(url)
    assert (answer.status_code, Image.open(BytesIO(answer.content)).size) == (200, (256, 128))
    assert (await page.get(url.replace("signature=", "signature=0"))).status_code == 403

    for query in ("outputs=9", "outputs=-1", "outputs=x", "outputs="):
        refused = await api.client.get(f"/api/v1/jobs?{query}")
        assert code(refused) == (400, "invalid_request") and "outputs" in refused.text
    assert code(await api.client.get("/api/v1/jobs?signed=0")) == (422, "invalid_request")

    ops = {"Authorization": "Bearer ops-key-ops-key-ops"}
    shown = await api.client.get("/api/v1/jobs?all=true&outputs=1", headers=ops)
    assert len(shown.json()["jobs"]) == 3
    refused = await api.client.get("/api/v1/jobs?all=true&outputs=1&signed=60", headers=ops)
    assert code(refused) == (403, "forbidden")

    trips = 0
    execute = Pipeline.execute

    async def counted(self: Any, *args: Any, **more: Any) -> Any:
        nonlocal trips
        trips += 1
        return await execute(self, *args, **more)

    monkeypatch.setattr(Pipeline, "execute", counted)
    await listed(limit=3)
    without, trips = trips, 0
    await listed(limit=3, outputs=8)
    assert trips == without + 2
    # One output that can't be read hides no other job's.
    await cast(Any, api.stores.redis).hset(f"fleet:job:{other}:outputs", "0", "{")
    assert len((await listed(outputs=8))[job["id"]]) == 8


@pytest.mark.parametrize("seconds", ["0", "-1", "604801", "x", "1.5", ""])
async def test_times_that_are_none_are_refused(api: Api, seconds: str) -> None:
    job_id = await done(api)
    answer = await api.client.get(f"/api/v2/jobs/{job_id}?signed={seconds}")
    assert code(answer) == (422, "invalid_request")
    assert answer.json()["error"]["details"]["field"] == "signed"


async def test_the_owners_own_streams_are_not_taken(api: Api, page: httpx.AsyncClient) -> None:
    made = await api.submit(GRAPH)
    url = (await signed(api, made["id"]))["urls"]["events"]
    async with page.stream("GET", url) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        assert api.deps.streams == {"ada, signed": 1}
        await api.client.post(f"/api/v2/jobs/{made['id']}/cancel")
        async for _ in lines:
            pass
    await until(lambda: not api.deps.streams, what="it counts no longer")


async def test_no_log_has_a_signature(
    api: Api, page: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for logger in ("httpx", "httpcore", "uvicorn.access"):  # as `fleet` sets them
        logging.getLogger(logger).setLevel(logging.WARNING)
    job = await signed(api, await done(api))
    url = job["outputs"][0]["url"]
    await page.get(url)
    await page.get(url[:-1])

    async def breaks(_: str) -> None:
        raise RuntimeError("what it asks is away")

    api.deps.assets.get = breaks  # type: ignore[method-assign,assignment]
    assert (await page.get(url)).status_code == 500
    told = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "request failed" in told
    assert url.partition("signature=")[2] not in told


async def test_a_webhooks_data_can_be_shown_on_a_page(api: Api, page: httpx.AsyncClient) -> None:
    from comfy_fleet.ports.webhooks import WebhookMessage

    job_id = await done(api)
    message = WebhookMessage(
        id="m", owner="ada", type="job.succeeded", at=0.0, url="http://shop.test/", job=job_id, base=api.url
    )
    told: Any = await api.deps.job_views.told(message)
    assert told["status"] == JobStatus.SUCCEEDED
    assert (await page.get(told["outputs"][0]["url"])).content == b"picture 1"
