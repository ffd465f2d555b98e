"""OpenAI's own client, unmodified, at ``/v1``: pictures, models, streams, and an exception for each error."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import ImagesResponse
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import OutputKind, Progress
from tests.fakes.nodes import FakeNodeRegistry
from tests.fleet import until
from tests.integration import haproxy_kit
from tests.integration.openai_kit import ANN, FOX, OPS, Pictured, holed, noise, opened, pictured, png
from tests.integration.store_kit import served_bucket


@pytest.fixture
async def at(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Pictured]:
    async with pictured(redis_port, tmp_path) as started:
        yield started


def of(answer: ImagesResponse) -> list[bytes]:
    """Return the pictures of an answer."""
    assert answer.data is not None
    return [base64.b64decode(one.b64_json or "") for one in answer.data]


# -- pictures ----------------------------------------------------------------


async def test_a_picture_as_bytes(at: Pictured) -> None:
    client = await at.client()
    more: dict[str, Any] = {"user": "u-1", "quality": "auto", "style": "vivid", "background": "auto"}
    asked = client.images.with_raw_response.generate(
        **FOX, **more, size="512x256", extra_body={"color": "red", "seed": 7, "metadata": {"order": "1"}}
    )
    waiting = asyncio.ensure_future(asked)
    [job_id] = await at.jobs(1)
    shown = await at.params(job_id)
    assert (shown["width"], shown["height"], shown["color"], shown["seed"]) == (512, 256, "red", 7)
    assert shown["style"] == "mosaic"  # "vivid" is what clients say when nobody has chosen
    await at.run(job_id, png(size=(512, 256)))
    raw = await waiting
    made = raw.parse()
    assert of(made) == [png(size=(512, 256))]
    assert (made.output_format, made.size) == ("png", "512x256")
    assert raw.headers["x-fleet-job"] == job_id
    assert int(raw.headers["content-length"]) == len(raw.content)
    job = (await at.api.client.get(f"/api/v1/jobs/{job_id}")).json()
    assert (job["user"], job["metadata"]) == ("ann", {"order": "1"})
    assert not at.api.deps.waits


async def test_large_pictures_arrive_whole(at: Pictured) -> None:
    client = await at.client()
    for number, size in enumerate((0, 1, 2, 3_000_001), 1):
        data = png() + bytes(size)
        waiting = asyncio.create_task(client.images.generate(**FOX))
        await at.run((await at.jobs(number))[-1], data)
        assert of(await waiting) == [data]


async def test_a_url_needs_no_key_and_converts(at: Pictured) -> None:
    client = await at.client()
    formats: list[tuple[dict[str, Any], str]] = [
        ({}, "PNG"),
        ({"output_format": "png"}, "PNG"),
        ({"output_format": "webp"}, "WEBP"),
        ({"output_format": "jpeg", "output_compression": 40}, "JPEG"),
    ]
    for number, (more, kind) in enumerate(formats, 1):
        waiting = asyncio.create_task(client.images.generate(**FOX, **more, response_format="url"))
        await at.run((await at.jobs(number))[-1])
        made = await waiting
        assert made.data is not None and made.data[0].b64_json is None and made.data[0].url is not None
        async with httpx.AsyncClient() as anybody:
            got = await anybody.get(made.data[0].url)
            assert got.status_code == 200 and opened(got.content).format == kind
            assert (await anybody.get(made.data[0].url.partition("?")[0])).status_code == 401


async def test_other_formats_as_bytes(at: Pictured) -> None:
    client = await at.client()
    sizes = {}
    for number, (kind, compression) in enumerate(
        (("webp", None), ("jpeg", 5), ("jpeg", 100), ("png", 100)), 1
    ):
        more = {} if compression is None else {"output_compression": compression}
        asked: dict[str, Any] = {**FOX, **more, "output_format": kind}
        waiting = asyncio.create_task(client.images.generate(**asked))
        await at.run((await at.jobs(number))[-1], noise())
        made = await waiting
        [data] = of(made)
        assert (opened(data).format, made.output_format) == (kind.upper(), kind)
        sizes[kind, compression] = len(data)
    assert sizes["jpeg", 5] < sizes["jpeg", 100] / 2


async def test_who_asks_for_nothing_gets_what_their_clients_read(at: Pictured) -> None:
    client = await at.client()
    for number, (model, by_url) in enumerate(
        (("image_card", False), ("gpt-image-1", False), ("dall-e-3", True)), 1
    ):
        waiting = asyncio.create_task(client.images.generate(model=model, prompt="a fox"))
        await at.run((await at.jobs(number))[-1])
        made = await waiting
        assert made.data is not None
        assert (made.data[0].url is not None, made.data[0].b64_json is not None) == (by_url, not by_url)


async def test_several_pictures_have_seeds_of_their_own_and_come_in_order(at: Pictured) -> None:
    client = await at.client()
    for name in ("g2", "g3"):
        await at.api.add_node(name)
    for first, (extra, seeds) in enumerate(
        (({}, None), ({"seed": 41}, [41, 42, 43]), ({"seed": 2**64 - 2}, [2**64 - 2, 2**64 - 1, 0]))
    ):
        waiting = asyncio.create_task(client.images.generate(**FOX, n=3, extra_body=extra))
        ids = (await at.jobs(3 * first + 3))[-3:]
        by_seed = {(await at.params(one))["seed"]: one for one in ids}
        assert len(by_seed) == 3
        if seeds is not None:
            assert set(by_seed) == set(seeds)
        low = min(by_seed) if seeds is None else seeds[0]
        order = [by_seed[(low + number) % 2**64] for number in range(3)]
        colors = ("red", "green", "blue")
        claims = {one: await at.api.claim(one, f"g{number}") for number, one in enumerate(ids, 1)}
        for job_id, color in reversed([*zip(order, colors, strict=True)]):
            await at.end(claims[job_id], png(color))
        assert of(await waiting) == [png(color) for color in colors]
    batches = (await at.api.client.get("/api/v1/batches")).json()["batches"]
    assert [one["total"] for one in batches] == [3, 3, 3]


async def test_all_pictures_of_a_job_are_in_the_answer_but_previews(at: Pictured) -> None:
    client = await at.client()
    waiting = asyncio.create_task(client.images.generate(**FOX))
    [job_id] = await at.jobs(1)
    claim = await at.api.claim(job_id)
    await at.api.output(claim, png("blue"), name="shown.png", node="3", temporary=True)
    await at.api.output(
        claim, b"text", name="a.txt", node="4", content_type="text/plain", kind=OutputKind.TEXT
    )
    for number, color in enumerate(("red", "green"), 5):
        await at.api.output(claim, png(color), name=f"{number}.png", node=str(number))
    await at.api.finish(claim)
    assert of(await waiting) == [png("red"), png("green")]


async def test_the_sync_client(at: Pictured) -> None:
    with OpenAI(base_url=f"{at.api.url}/v1", api_key=ANN, max_retries=0) as client:
        asked: Callable[..., ImagesResponse] = client.images.generate
        waiting = asyncio.create_task(asyncio.to_thread(asked, **FOX))
        await at.run((await at.jobs(1))[0])
        assert of(await waiting) == [png()]
        assert (await asyncio.to_thread(client.models.retrieve, "image_card")).id == "image_card"


# -- edits -------------------------------------------------------------------


async def test_pictures_go_to_the_workflows_parameters(at: Pictured) -> None:
    client = await at.client()
    mask = ("mask.png", png((0, 0, 0, 0), mode="RGBA"), "image/png")
    waiting = asyncio.create_task(
        client.images.edit(
            model="redraw_mask",
            prompt="a hat",
            image=[("../../a.png", png("red"), "image/png"), ("b.png", png("blue"), "image/png")],
            mask=mask,
            extra_body={"priority": 3, "metadata": {"a": "b"}},
        )
    )
    [job_id] = await at.jobs(1)
    shown = await at.params(job_id)
    got = {}
    for name in ("image", "second", "mask"):
        found = await at.api.client.get(f"/api/v2/assets/{shown[name]}")
        assert "/" not in found.json()["file_path"]
        got[name] = (await at.api.client.get(f"/api/v2/assets/{shown[name]}/content")).content
    assert got == {"image": png("red"), "second": png("blue"), "mask": mask[1]}
    job = (await at.api.client.get(f"/api/v1/jobs/{job_id}")).json()
    assert (job["priority"], job["metadata"]) == (3, {"a": "b"})
    await at.run(job_id)
    assert of(await waiting) == [png()]


async def test_a_mask_becomes_the_pictures_transparency_where_that_is_read(at: Pictured) -> None:
    client = await at.client()
    waiting = asyncio.create_task(
        client.images.edit(
            model="redraw", prompt="a hat", image=png("red"), mask=holed(), extra_body={"seed": 9}
        )
    )
    [job_id] = await at.jobs(1)
    shown = await at.params(job_id)
    assert shown["seed"] == 9
    joined = opened((await at.api.client.get(f"/api/v2/assets/{shown['image']}/content")).content)
    assert joined.getpixel((5, 5)) == (255, 0, 0, 0) and joined.getpixel((30, 5)) == (255, 0, 0, 255)
    await at.run(job_id)
    await waiting


# -- models ------------------------------------------------------------------


async def test_models_are_the_stored_workflows_that_make_pictures(at: Pictured) -> None:
    client = await at.client()
    found = [one async for one in client.models.list()]
    assert [one.id for one in found] == sorted(
        ["dall-e-3", "fixed", "gpt-image-1", "image_card", "redraw", "redraw_mask", "silent"]
    )
    assert {(one.object, one.owned_by) for one in found} == {("model", "comfy_fleet")}
    shown = await at.api.client.get("/api/v1/workflows/image_card")
    version = shown.json()["version"].removeprefix("sha256:")[:12]
    for name in ("image_card", f"image_card@{version}", "image_card@production"):
        assert (await client.models.retrieve(name)).id == name
    for name in ("words2", "image_card@0123456789", "Image Card"):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve(name)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_a_user_sees_only_the_models_that_they_may_run(at: Pictured) -> None:
    ops = {"X-API-Key": OPS}
    made = await at.api.client.post("/api/v1/users", json={"name": "eve"}, headers=ops)
    assert made.is_success, made.text
    key = await at.api.client.post(
        "/api/v1/keys", json={"user": "eve", "limits": {"workflows": "image_card"}}, headers=ops
    )
    assert key.is_success, key.text
    eve = await at.client(key.json()["key"])
    assert [one.id async for one in eve.models.list()] == ["image_card"]
    for asked in (eve.models.retrieve("fixed"), eve.images.generate(model="fixed", prompt="a fox")):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await asked
        assert "image_card" in caught.value.message


# -- streams -----------------------------------------------------------------


async def test_a_stream_shows_previews_and_ends_with_the_picture(at: Pictured) -> None:
    client = await at.client()
    stream = await client.images.generate(
        **FOX, stream=True, partial_images=2, size="512x512", output_format="webp"
    )
    [job_id] = await at.jobs(1)
    claim = await at.api.claim(job_id)
    events: list[Any] = []

    async def listen() -> None:
        events.extend([one async for one in stream])

    listening = asyncio.create_task(listen())
    preview = {"node_id": "4", "content_type": "image/jpeg", "data_base64": base64.b64encode(b"pre").decode()}
    for value in (0.1, 0.2, 0.9, 0.95):
        await at.api.stores.runs.progress(claim, Progress(value=value, nodes_done=1, nodes_total=9))
        await at.api.stores.runs.preview(claim, preview)
        await asyncio.sleep(0.6)  # previews are thinned out to two a second
    await at.end(claim)
    await listening
    assert [one.type for one in events] == [
        *("image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"),
    ]
    assert [one.partial_image_index for one in events[:2]] == [0, 1]
    assert base64.b64decode(events[0].b64_json) == b"pre" and events[0].output_format == "jpeg"
    last = events[-1]
    assert opened(base64.b64decode(last.b64_json)).format == "WEBP"
    assert (last.output_format, last.size, last.usage.total_tokens) == ("webp", "512x512", 0)
    await until(lambda: not at.api.deps.streams, what="the stream is closed")


async def test_a_stream_of_edits_tells_why_it_ends(at: Pictured) -> None:
    client = await at.client()
    stream = await client.images.edit(model="redraw", prompt="a hat", image=png(), n=2, stream=True)
    ids = await at.jobs(2)
    await at.run(ids[0])
    events: list[Any] = []

    async def listen() -> None:
        events.extend([one async for one in stream])

    listening = asyncio.create_task(listen())
    await at.fail(ids[1], "out_of_memory")
    with pytest.raises(openai.APIError, match="it broke") as caught:
        await listening
    assert (caught.value.code, caught.value.type) == ("out_of_memory", "invalid_request_error")
    assert {one.type for one in events} <= {"image_edit.completed"}


async def test_a_stream_of_several_has_all_of_them_whole(at: Pictured) -> None:
    client = await at.client()
    stream = await client.images.generate(**FOX, n=3, stream=True)
    data = [png(color) + bytes(900_000) for color in ("red", "green", "blue")]
    for job_id, one in zip(await at.jobs(3), data, strict=True):
        await at.run(job_id, one)
    events: list[Any] = [one async for one in stream]
    assert sorted(base64.b64decode(one.b64_json) for one in events) == sorted(data)


@pytest.mark.parametrize(("cancels", "status"), [(False, "queued"), (True, "canceled")])
@pytest.mark.parametrize("streams", [False, True])
async def test_who_hangs_up_cancels_only_if_it_said_so(
    at: Pictured, cancels: bool, status: str, streams: bool
) -> None:
    client = await at.client()
    query = {"cancel_on_disconnect": True} if cancels else {}
    if streams:
        stream = await client.images.generate(**FOX, n=2, stream=True, extra_query=query)
        ids = await at.jobs(2)
        await stream.close()
        await until(lambda: not at.api.deps.streams, what="the stream is closed")
    else:
        waiting = asyncio.create_task(client.images.generate(**FOX, n=2, extra_query=query))
        await at.waits(1)
        ids = await at.jobs(2)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await at.waits(0)
    for job_id in ids:
        assert (await at.api.client.get(f"/api/v1/jobs/{job_id}")).json()["status"] == status


# -- through the edge --------------------------------------------------------


async def test_through_the_edge_requests_that_wait_keep_no_place_of_others(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    async with pictured(redis_port, tmp_path, max_requests=1) as at:
        settings = haproxy_kit.make_settings(folder, api_port=httpx.URL(at.api.url).port, max_requests=1)
        async with haproxy_kit.running(folder, FakeNodeRegistry([]), settings=settings):
            client = await at.client(url=f"http://127.0.0.1:{settings.port}")
            many = [
                *(
                    asyncio.create_task(client.images.generate(**FOX, response_format="url"))
                    for _ in range(6)
                ),
                *(
                    asyncio.create_task(client.images.edit(model="redraw", prompt="a hat", image=png()))
                    for _ in range(6)
                ),
            ]
            await at.waits(12)
            assert "image_card" in [one.id async for one in client.models.list()]
            assert (await client.models.retrieve("image_card@production")).id == "image_card@production"
            for job_id in await at.jobs(12):
                await at.run(job_id)
            for answer in await asyncio.gather(*many):
                assert answer.data is not None and len(answer.data) == 1
                if (url := answer.data[0].url) is not None:
                    assert url.startswith(f"http://127.0.0.1:{settings.port}/")
                    async with httpx.AsyncClient() as anybody:
                        assert (await anybody.get(url)).content == png()
            stream = await client.images.generate(**FOX, stream=True)
            await at.run((await at.jobs(13))[-1])
            assert [one.type async for one in stream] == ["image_generation.completed"]
            raw = await client.models.with_raw_response.list()
            assert raw.headers["x-request-id"]
            with pytest.raises(openai.NotFoundError) as none:
                await client.chat.completions.create(model="a", messages=[])
            assert (none.value.code, none.value.type) == ("not_found", "invalid_request_error")


async def test_pictures_go_to_a_store_under_the_names_that_are_asked_for(at: Pictured) -> None:
    ann = await at.client()
    with served_bucket() as bucket:
        headers = {"Authorization": f"Bearer {OPS}"}
        added = await at.api.client.post("/api/v1/stores", json=bucket.record(), headers=headers)
        assert added.status_code == 201, added.text

        async def there(name: str) -> None:
            await until(lambda: f"pictures/{name}" in bucket.names(), what="the store has it", timeout_s=60)

        output = {"store": "shop", "key": "{metadata.sku}.webp", "quality": 60}
        more = {"output": output, "metadata": {"sku": "A-1"}}
        asking = asyncio.create_task(ann.images.generate(**FOX, extra_body=more))
        (job,) = await at.jobs(1)
        await at.run(job)
        assert (await asking).data
        await there("A-1.webp")
        more = {"output": output, "metadata": {"sku": "A-2"}}
        editing = asyncio.create_task(
            ann.images.edit(model="redraw", prompt="a fox", image=png("red"), extra_body=more)
        )
        await at.run((await at.jobs(2))[1])
        assert (await editing).data
        await there("A-2.webp")
