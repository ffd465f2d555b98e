"""Inputs that jobs name by URL or carry as data URIs, through the API, on real Redis and simulated nodes."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_fleet.adapters.redis.fetches import RedisFetches
from comfy_fleet.adapters.telemetry import Observers
from comfy_fleet.domain.jobs.input_fetch import MAX_URLS
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.services.input_fetcher import EACH
from tests.fleet import fleet_of, until
from tests.integration.api_kit import code, upload
from tests.integration.serve_kit import served
from tests.integration.sharing_kit import Sharing, sharing
from tests.integration.test_limits import ANN, bearer, limited
from tests.web_site import Site, page, site

MANIFEST = """
[parameters.picture]
type = "image"
target = { title = "Picture", input = "image" }
"""
PICTURE: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "Picture"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "out"}},
}


def png(color: int = 7, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (color, 2, 3)).save(file, "PNG")
    return file.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def graph(*images: str) -> dict[str, Any]:
    """Return a graph that loads and saves pictures."""
    found: dict[str, Any] = {}
    for number, image in enumerate(images):
        found[f"{2 * number}"] = {"class_type": "LoadImage", "inputs": {"image": image}}
        found[f"{2 * number + 1}"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [f"{2 * number}", 0], "filename_prefix": "out"},
        }
    return found


@pytest.fixture
async def web() -> AsyncIterator[Site]:
    async with site() as made:
        yield made


@pytest.fixture
async def world(redis_port: int, redis: Any, tmp_path: Path) -> AsyncIterator[Sharing]:
    options = {"fetch_allow": "127.0.0.1", "fetch_bytes": 100_000}
    async with sharing(redis_port, tmp_path, "g1", manifest=MANIFEST, graph=PICTURE, api=options) as made:
        yield made


async def send(world: Sharing, *images: str, **more: Any) -> dict[str, Any]:
    return await world.api.submit(graph(*images), **more)


async def pixel(world: Sharing, job: dict[str, Any]) -> tuple[int, ...]:
    """Return the first pixel of the job's picture, which the node made of its input."""
    (content,) = await world.content(job)
    found = Image.open(io.BytesIO(content)).convert("RGB").getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


async def keys(world: Sharing, pattern: str) -> list[bytes]:
    client: Any = world.fleet.stores.redis
    return [key async for key in client.scan_iter(match=pattern)]


class Gate:
    """A page that answers when it is let go."""

    def __init__(self, body: bytes) -> None:
        self.open = asyncio.Event()
        self._answer = page(body)

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        await self.open.wait()
        await self._answer(writer)


async def test_a_job_waits_for_its_url_and_then_gets_a_node(world: Sharing, web: Site) -> None:
    gate = web.pages["/a.png?token=s"] = Gate(png())
    job = await send(world, web.url("/a.png?token=s"))
    await until(lambda: web.asked("/a.png?token=s"), what="it is fetched")
    shown = await world.job(job)
    assert (shown["status"], shown["queue_position"]) == ("queued", None)
    assert shown["waiting_for"] == f"its input {web.url('/a.png?…')} is being fetched"
    listed = (await world.client.get("/api/v1/jobs?status=queued")).json()["jobs"]
    assert [one["id"] for one in listed] == [job["id"]]
    assert world.runs == 0
    gate.open.set()
    done = await world.done(job)
    assert await pixel(world, done) == (7, 2, 3)
    assert await keys(world, "fleet:fetch:*") == []
    assert await keys(world, "fleet:fetching") == []
    again = (await world.client.post(f"/api/v1/jobs/{job['id']}/retry", json={})).json()
    assert (await world.done(again))["status"] == "succeeded"
    assert web.asked("/a.png?token=s") == 1, "the file is an asset of the owner's"


async def test_parameters_of_stored_workflows(world: Sharing, web: Site) -> None:
    web.pages["/a.png"] = page(png(9), head="Content-Type: text/html\r\n")
    one = await world.done(await world.submit(params={"picture": web.url("/a.png")}))
    assert await pixel(world, one) == (9, 2, 3), "what the server says of its type does not count"
    assert one["params"]["picture"] == web.url("/a.png")
    two = await world.done(await world.submit(params={"picture": uri(png(11), "text/html")}))
    assert await pixel(world, two) == (11, 2, 3)
    asset = (await world.client.get(f"/api/v2/assets/{two['params']['picture']}")).json()
    assert asset["content_type"] == "image/png"


async def test_data_uris_in_a_graph_become_assets_once(world: Sharing) -> None:
    one = await world.done(await send(world, uri(png(5))))
    assert await pixel(world, one) == (5, 2, 3)
    two = await world.done(await send(world, uri(png(5))))
    records = [await world.fleet.stores.jobs.get(job["id"]) for job in (one, two)]
    assert len({tuple(record.uploads.values()) for record in records if record}) == 1
    assert records[0] is not None
    stored = await world.fleet.stores.jobs.graph(records[0])
    assert b"base64" not in stored
    assert b"data/" in stored


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("data:image/png,abc", "not in base64"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:;;;;;;;;", "no data URI"),
        ("data:image/png;base64," + "A" * 140_000, "larger than 100000 bytes"),
    ],
)
async def test_a_broken_data_uri_is_refused(world: Sharing, value: str, why: str) -> None:
    answer = await world.client.post("/api/v2/jobs", json={"workflow": graph(value)})
    assert code(answer)[0] == 422
    assert why in answer.json()["error"]["message"]
    answer = await world.client.post("/api/v1/workflows/noise/jobs", json={"params": {"picture": value}})
    assert code(answer)[0] == 422
    assert why in answer.json()["error"]["message"]
    assert answer.json()["error"]["details"]["field"] == "params.picture"


async def test_a_data_uri_of_another_type_is_refused_in_a_graph(world: Sharing) -> None:
    for content, kind in (
        (b"<html>no picture", "text/html"),
        (b"%PDF-1.4", "application/pdf"),
        (b"?", "text/plain"),
    ):
        answer = await world.client.post("/api/v2/jobs", json={"workflow": graph(uri(content))})
        assert code(answer) == (422, "invalid_workflow")
        assert f"image takes image/*, and this is {kind}" in answer.json()["error"]["message"]
    assert await keys(world, "fleet:asset:names:*") == []


async def test_a_data_uri_of_another_type_and_one_in_a_bad_request_store_nothing(world: Sharing) -> None:
    for params in ({"picture": uri(b"%PDF-1.4")}, {"picture": uri(png()), "no_such": 1}):
        answer = await world.client.post("/api/v1/workflows/noise/jobs", json={"params": params})
        if "no_such" in params:
            assert code(answer) == (422, "invalid_parameter")
    assert await keys(world, "fleet:asset:names:*") == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://a:b@shop.test/x.png", "user or password"),
        ("http://10.0.0.1/x.png", "not public"),
        ("http://[::ffff:10.0.0.1]/x.png", "not public"),
        ("https://127.1/x.png", "four decimal"),
        ("http://shop.test/\\x.png", "backslash"),
        (" http://shop.test/x.png", "blanks"),
        ("http:/shop.test/x.png", "host"),
        ("https:shop.test/x.png", "host"),
    ],
)
async def test_urls_that_are_never_fetched_are_refused_at_once(world: Sharing, url: str, why: str) -> None:
    for answer in (
        await world.client.post("/api/v2/jobs", json={"workflow": graph(url)}),
        await world.client.post("/api/v1/workflows/noise/jobs", json={"params": {"picture": url}}),
    ):
        assert code(answer) == (422, "url_refused")
        assert why in answer.json()["error"]["message"]
    many = [f"http://shop.test/{number}" for number in range(MAX_URLS + 1)]
    answer = await world.client.post("/api/v2/jobs", json={"workflow": graph(*many)})
    assert code(answer)[0] == 422


async def test_an_operator_may_fetch_nothing(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with sharing(redis_port, tmp_path, "g1", api={"fetch": False}) as made:
        answer = await made.client.post("/api/v2/jobs", json={"workflow": graph("https://shop.test/x.png")})
        assert code(answer) == (422, "url_refused")
        assert "FLEET_FETCH" in answer.json()["error"]["message"]
        job = await made.done(await made.api.submit(graph(uri(png()))))
        assert job["status"] == "succeeded"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (page(status="404 Not Found"), "answered 404"),
        (page(b""), "is empty"),
        (page(b"<!DOCTYPE html><p>Please sign in"), "text/html"),
        (page(b"\x00\x01\x02\x03" * 100), "application/octet-stream"),
        (page(png(), head="Content-Encoding: gzip\r\n"), "Content-Encoding"),
        (page(bytes(100_001)), "more than 100000 bytes"),
        (page(b"", status="302 Found", head="Location: http://10.0.0.1/\r\n"), "not public"),
    ],
)
async def test_a_file_that_can_not_be_had_fails_its_job(
    world: Sharing, web: Site, answer: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.input_fetcher.RETRY_S", ())
    web.pages["/a.png"] = answer
    job = await world.done(await send(world, web.url("/a.png")), JobStatus.FAILED)
    error = job["error"]
    assert error["code"] == "input_not_fetched"
    assert error["message"].startswith("node 0, image: ")
    assert why in error["message"]
    assert (error["node_id"], job["attempts"], job["attempt"]) == ("0", [], 0)
    assert error["details"]["url"].startswith("http://")
    assert world.runs == 0
    assert await keys(world, "fleet:fetch:*") == await keys(world, "fleet:fetching") == []


async def test_a_server_that_stumbles_is_asked_again(
    world: Sharing, web: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.input_fetcher.RETRY_S", (0.1, 0.1))
    answers = [page(status="503 Busy"), page(status="503 Busy"), page(png())]

    async def stumble(writer: asyncio.StreamWriter) -> None:
        await answers.pop(0)(writer)

    web.pages["/a.png"] = stumble
    job = await world.done(await send(world, web.url("/a.png")))
    assert (job["status"], web.asked("/a.png")) == ("succeeded", 3)
    count = partial(world.api.deps.registry.get_sample_value, "fleet_input_fetches_total")
    assert [count({"outcome": outcome}) for outcome in ("again", "stored", "failed")] == [2, 1, None]


async def test_a_header_that_is_no_text_and_a_fault_of_our_own_keep_no_job_waiting(
    world: Sharing, web: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.input_fetcher.RETRY_S", (0.1,))
    web.pages["/a.png"] = page(png(), head="ETag: \udcff\r\nLast-Modified: \udce4\r\n")
    assert await pixel(world, await world.done(await send(world, web.url("/a.png")))) == (7, 2, 3)

    def broken(*_: object) -> str:
        raise TypeError("a bug")

    monkeypatch.setattr("comfy_fleet.services.input_fetcher.content_type_of_bytes", broken)
    web.pages["/b.png"] = page(png())
    job = await world.done(await send(world, web.url("/b.png")), JobStatus.FAILED)
    assert "see the fleet's log" in job["error"]["message"]
    assert web.asked("/b.png") == 2


async def test_many_jobs_with_one_url_fetch_it_once(world: Sharing, web: Site) -> None:
    gate = web.pages["/a.png"] = Gate(png())
    jobs = [await send(world, web.url("/a.png"), metadata={"n": str(n)}) for n in range(60)]
    gate.open.set()
    for job in jobs:
        await world.done(job)
    assert web.asked("/a.png") == 1
    client: Any = world.fleet.stores.redis
    for key in await keys(world, "fleet:fetched:*:fresh"):
        await client.delete(key)
    etag = page(png(), head='ETag: "1"\r\n')
    web.pages["/a.png"] = etag
    await world.done(await send(world, web.url("/a.png")))
    for key in await keys(world, "fleet:fetched:*:fresh"):
        await client.delete(key)
    web.pages["/a.png"] = page(b"", status="304 Not Modified")
    job = await world.done(await send(world, web.url("/a.png")))
    assert 'If-None-Match: "1"' in web.heads[-1]
    assert await pixel(world, job) == (7, 2, 3)


async def test_a_job_with_several_files_waits_for_all(world: Sharing, web: Site) -> None:
    web.pages["/a.png"] = page(png(1))
    gate = web.pages["/b.png"] = Gate(png(2))
    own = await upload(world.api, png(3), name="own.png")
    assert own.status_code == 201
    job = await send(world, web.url("/a.png"), web.url("/b.png"), web.url("/a.png"), "own.png")
    await until(lambda: web.asked("/a.png") and web.asked("/b.png"), what="both are fetched")

    async def waits() -> bool:
        shown = await world.job(job)
        return bool(shown["waiting_for"] == f"its input {web.url('/b.png')} is being fetched")

    await until(waits, what="it waits for the second")
    gate.open.set()
    done = await world.done(job)
    found = {Image.open(io.BytesIO(one)).convert("RGB").getpixel((0, 0)) for one in await world.content(done)}
    assert found == {(1, 2, 3), (2, 2, 3), (3, 2, 3)}


async def test_cancel_and_deadline_end_a_job_that_waits_for_its_file(world: Sharing, web: Site) -> None:
    gate = web.pages["/a.png"] = Gate(png())
    canceled = await send(world, web.url("/a.png"))
    late = await world.client.post("/api/v2/jobs", json={"workflow": graph(web.url("/a.png")), "ttl_s": 1})
    stays = await send(world, web.url("/a.png"))
    answer = await world.client.post(f"/api/v2/jobs/{canceled['id']}/cancel")
    assert answer.json()["status"] == "canceled"
    assert (await world.done(late.json(), JobStatus.EXPIRED))["attempts"] == []
    gate.open.set()
    await world.done(stays)
    assert (await world.job(canceled))["status"] == "canceled"
    assert world.runs == 1
    assert await keys(world, "fleet:fetching") == []


async def test_a_dead_process_loses_nothing(world: Sharing, web: Site) -> None:
    """Another process had begun, and is gone: its time runs out, and the API's own fetcher takes the URL."""
    gate = web.pages["/slow.png"] = Gate(png())
    for number in range(EACH):
        web.pages[f"/slow.png?{number}"] = gate
    busy = [await send(world, web.url(f"/slow.png?{n}")) for n in range(EACH)]
    await until(lambda: len(web.heads) == EACH, what="all its owner's places are taken")
    web.pages["/a.png"] = page(png(4))
    job = await send(world, web.url("/a.png"))
    dead = RedisFetches(
        world.fleet.stores.redis,
        new_token=lambda: "dead",
        telemetry=Observers(),
        lease_s=1,
    )
    taken = await dead.take(each=100)
    assert taken is not None
    assert taken.url == web.url("/a.png")
    gate.open.set()
    assert await pixel(world, await world.done(job)) == (4, 2, 3)
    for one in busy:
        await world.fleet.ended(one["id"])
    assert not await dead.beat(taken)
    await dead.again(taken, in_s=0, counts=True)
    assert await keys(world, "fleet:fetch:*") == []


async def test_one_owner_can_not_keep_others_waiting(redis: Any, world: Sharing) -> None:
    """Owners take turns, and each has some places only."""
    fetches = RedisFetches(world.fleet.stores.redis, new_token=lambda: "t", telemetry=Observers())
    client: Any = world.fleet.stores.redis
    at = await world.fleet.stores.clock()
    for owner, count in (("eve", 30), ("ada", 2)):
        for number in range(count):
            fetch = f"{owner}{number}"
            await client.hset(f"fleet:fetch:{fetch}", mapping={"owner": owner, "url": f"http://x/{fetch}"})
            await client.sadd(f"fleet:fetch:{fetch}:jobs", fetch)
            await client.hset(
                f"fleet:job:{fetch}", mapping={"status": "queued", "fetches": f'{{"{fetch}": {{}}}}'}
            )
            await client.zadd(f"fleet:fetch:due:{owner}", {fetch: at})
        await client.zadd("fleet:fetch:owners", {owner: at})
    taken = [await fetches.take(each=EACH) for _ in range(EACH + 3)]
    assert [one and one.owner for one in taken] == ["ada", "eve", "ada", "eve", "eve", "eve", None]


async def test_files_by_url_and_data_uris_count_as_stored(
    redis_port: int, redis: Any, tmp_path: Path, web: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.input_fetcher.RETRY_S", ())
    options = {"fetch_allow": "127.0.0.1"}
    async with limited(redis_port, tmp_path, "submit: stored=100", **options) as api:
        body = {"workflow": graph(uri(png(1, size=200)))}
        refused = await api.client.post("/api/v2/jobs", json=body, headers=bearer(ANN))
        assert code(refused) == (507, "storage_limit")
        web.pages["/a.png"] = page(png(1, size=200))
        body = {"workflow": graph(web.url("/a.png"))}
        job = (await api.client.post("/api/v2/jobs", json=body, headers=bearer(ANN))).json()

        async def failed() -> bool:
            record = await api.stores.jobs.get(job["id"])
            return record is not None and record.status is JobStatus.FAILED

        await until(failed, what="its file is too much")
        shown = (await api.client.get(f"/api/v2/jobs/{job['id']}", headers=bearer(ANN))).json()
        assert shown["error"]["code"] == "storage_limit"


async def test_kill_9_while_a_file_is_fetched(redis_port: int, redis: Any, tmp_path: Path, web: Site) -> None:
    """Another process of the fleet fetches it again, and the job runs."""
    gate = web.pages["/a.png"] = Gate(png(6))
    options = {"fetch_allow": "127.0.0.1"}
    async with (
        fleet_of(redis_port, "g1", dispatch=False) as fleet,
        served(fleet, tmp_path, "s1", **options) as first,
    ):
        answer = await first.http.post("/api/v2/jobs", json={"workflow": graph(web.url("/a.png"))})
        assert answer.status_code == 201, answer.text
        await until(lambda: web.asked("/a.png"), what="it is fetched")
        first.process.kill()
        first.process.wait()
        async with served(fleet, tmp_path, "s2", **options) as second:
            gate.open.set()

            async def done() -> bool:
                return await second.status(answer.json()["id"]) == "succeeded"

            await until(done, what="the job has run", timeout_s=60)
            job = (await second.http.get(f"/api/v2/jobs/{answer.json()['id']}")).json()
            assert (job["attempt"], len(job["outputs"])) == (0, 1)
        assert web.asked("/a.png") == 2
