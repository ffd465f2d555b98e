"""Requests at ``/v1`` that are refused, repeated, hostile, or sent by programs other than OpenAI's client."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
from redis.asyncio import Redis

from tests.fleet import until
from tests.integration.openai_kit import BOB, FOX, OPS, Pictured, holed, opened, pictured, png

SENT = Path(__file__).parents[1] / "data" / "openai_clients"
GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture
async def at(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Pictured]:
    async with pictured(redis_port, tmp_path, max_streams=2) as started:
        yield started


def error(answer: httpx.Response) -> dict[str, Any]:
    """Check the form of an error, and return it."""
    assert set(answer.json()) == {"error"}
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["message"] and found["type"]
    return found


# -- what is refused ---------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "prompt", "must not be empty"),
    ({"prompt": 3}, "prompt", "string"),
    ({"prompt": "x" * 2001}, "prompt", "at most 2000"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 11}, "n", "less than or equal to 10"),
    ({"n": 2.5}, "n", ""),
    ({"model": "fixed", "n": 2}, "n", "has no seed"),
    ({"model": "silent"}, "model", "takes no prompt"),
    ({"size": "large"}, "size", "must look like 1024x1024"),
    ({"size": "4096x512"}, "size", "takes a width from 64 to 2048, and a height from 64 to 2048"),
    ({"size": "512x512", "width": 64}, "size", "contradicts width 64"),
    ({"model": "fixed", "size": "512x512"}, "size", "a size of its own"),
    ({"quality": "hd"}, "quality", "send auto or standard"),
    ({"style": "baroque"}, "style", "must be one of mosaic, clouds, silk, stripes"),
    ({"model": "fixed", "style": "mosaic"}, "style", "send vivid or natural"),
    ({"background": "transparent"}, "background", "send auto"),
    ({"moderation": "none"}, "moderation", ""),
    ({"output_format": "gif"}, "output_format", "'webp'"),
    ({"output_compression": 40}, "output_compression", "jpeg or webp"),
    ({"output_format": "jpeg", "output_compression": 101}, "output_compression", ""),
    ({"response_format": "hex"}, "response_format", ""),
    ({"partial_images": 2}, "partial_images", "needs stream"),
    ({"stream": True, "partial_images": 4}, "partial_images", ""),
    ({"stream": True, "response_format": "url"}, "response_format", "b64_json only"),
    ({"seed": "five"}, "seed", ""),
    ({"seed": 1.5}, "seed", "whole number"),
    ({"n": 2, "seed": 2**70}, "seed", ""),
    ({"complexity": "high"}, "complexity", "it takes prompt, style"),
    ({"color": "pink"}, "color", "must be one of blue"),
    ({"priority": "high"}, "priority", "whole number"),
    ({"metadata": 3}, "metadata", "object of strings"),
    ({"output": {"store": "nowhere"}}, "output", "no store"),
    ({"output": {"bucket": "b"}}, "output", "no such field"),
]


@pytest.mark.parametrize("more", [{}, {"stream": True}], ids=["plain", "stream"])
async def test_a_field_that_the_workflow_cannot_take_is_refused_with_what_it_takes(
    at: Pictured, more: dict[str, Any]
) -> None:
    for fields, param, words in REFUSED:
        if fields.get("partial_images") == 2 and more:
            continue
        answer = await at.api.client.post(GENERATE, json={**FOX, **more, **fields})
        assert answer.status_code == 400, (fields, answer.text)
        found = error(answer)
        assert (found["param"], found["type"]) == (param, "invalid_request_error"), (fields, found)
        assert words in found["message"], (fields, found)
    for path in ("/v1/images/variations", "/v1/files", "/v1/"):
        answer = await at.api.client.post(path, json={})
        assert (answer.status_code, error(answer)["code"]) == (404, "not_found")
    assert await at.jobs(0) == []
    assert not at.api.deps.waits and not at.api.deps.streams


async def test_the_model_is_the_default_workflow_if_none_is_named(at: Pictured) -> None:
    client = await at.client()
    waiting = asyncio.create_task(client.images.generate(prompt="a fox"))
    [job_id] = await at.jobs(1)
    assert (await at.api.client.get(f"/api/v1/jobs/{job_id}")).json()["workflow"] == "image_card"
    await at.run(job_id)
    await waiting


async def test_each_error_is_the_clients_own_exception(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with pictured(redis_port, tmp_path, max_wait_s=1, max_waits=1, queue_depth=1) as at:
        client, wrong = await at.client(), await at.client("wrong-key-000000")
        kinds: list[tuple[Any, type[openai.APIStatusError], str | None, str | None]] = [
            (wrong.images.generate(**FOX), openai.AuthenticationError, "invalid_api_key", None),
            (wrong.models.list(), openai.AuthenticationError, "invalid_api_key", None),
            (client.images.generate(**FOX, n=99), openai.BadRequestError, "invalid_request", "n"),
            (
                client.images.generate(model="none", prompt="a fox"),
                openai.NotFoundError,
                "model_not_found",
                "model",
            ),
            (client.images.edit(image=png(), **FOX), openai.BadRequestError, "invalid_request", "image"),
            (client.models.delete("image_card"), openai.APIStatusError, "method_not_allowed", None),
            (client.chat.completions.create(model="a", messages=[]), openai.NotFoundError, "not_found", None),
        ]
        for asked, kind, code, param in kinds:
            with pytest.raises(kind) as caught:
                await asked
            assert (caught.value.code, caught.value.param) == (code, param), caught.value
            assert caught.value.type == "invalid_request_error"
        with pytest.raises(openai.InternalServerError, match="not finished after 1 s") as late:
            await client.images.generate(**FOX)
        [job_id] = await at.jobs(1)
        assert f"{at.api.url}/api/v2/jobs/{job_id}" in late.value.message
        assert (late.value.status_code, late.value.code) == (504, "timeout")
        assert late.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.RateLimitError) as full:
            await client.images.generate(**FOX)
        assert (full.value.code, full.value.type) == ("queue_full", "rate_limit_error")
        assert int(full.value.response.headers["retry-after"]) >= 1
        at.api.deps.waits["somebody"] = 1
        with pytest.raises(openai.RateLimitError) as waits:
            await client.images.generate(**FOX)
        assert waits.value.code == "too_many_waits"
        with pytest.raises(openai.RateLimitError) as streams:
            await client.images.generate(**FOX, stream=True)
        assert streams.value.code == "too_many_waits"
        del at.api.deps.waits["somebody"]


async def test_several_pictures_wait_for_room_in_the_queue(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with pictured(redis_port, tmp_path, queue_depth=1) as at:
        client = await at.client()
        first = asyncio.create_task(client.images.generate(**FOX))
        ids = await at.jobs(1)
        with pytest.raises(openai.InternalServerError) as late:
            await client.images.generate(**FOX, n=2, extra_query={"wait": 1})
        found = re.search(r"/api/v1/batches/[0-9a-f-]{36}", late.value.message)
        assert found is not None and (await at.api.client.get(found[0])).json()["total"] == 2
        more = asyncio.create_task(client.images.generate(**FOX, n=2))
        await at.waits(2)
        for number in range(5):
            await at.run((await at.jobs(number + 1))[number])
        await first
        made = await more
        assert made.data is not None and len(made.data) == 2 and len(ids) == 1


async def test_where_nobody_may_wait_only_streams_are_served(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with pictured(redis_port, tmp_path, max_wait_s=0) as at:
        client = await at.client(max_retries=2)
        with pytest.raises(openai.InternalServerError, match="send stream true") as caught:
            await client.images.generate(**FOX)
        assert (caught.value.status_code, caught.value.code) == (503, "no_waiting")
        stream = await client.images.generate(**FOX, stream=True)
        await at.run((await at.jobs(1))[0])
        assert [one.type async for one in stream] == ["image_generation.completed"]


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("node_execution_error", openai.BadRequestError, 400),
        ("out_of_memory", openai.BadRequestError, 400),
        ("run_timeout", openai.InternalServerError, 504),
        ("node_lost", openai.InternalServerError, 502),
    ],
)
async def test_a_job_that_fails_is_an_exception_and_not_made_again(
    at: Pictured, code: str, kind: type[openai.APIStatusError], status: int
) -> None:
    client = await at.client(max_retries=2)
    waiting = asyncio.create_task(client.images.generate(**FOX))
    await at.fail((await at.jobs(1))[0], code)
    with pytest.raises(kind, match="it broke") as caught:
        await waiting
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert len(await at.jobs(1)) == 1


async def test_a_job_that_ends_without_pictures_is_told(at: Pictured) -> None:
    client = await at.client()
    waiting = asyncio.create_task(client.images.generate(**FOX))
    [job_id] = await at.jobs(1)
    await at.api.client.post(f"/api/v1/jobs/{job_id}/cancel")
    with pytest.raises(openai.ConflictError, match="canceled"):
        await waiting
    waiting = asyncio.create_task(client.images.generate(model="words", prompt="a fox"))
    claim = await at.api.claim((await at.jobs(2))[-1])
    await at.api.finish(claim)
    with pytest.raises(openai.BadRequestError, match="no picture"):
        await waiting


async def test_the_store_away_is_told_and_nothing_is_sent_twice(at: Pictured, redis: Redis) -> None:
    client = await at.client(max_retries=2)
    asked = 0

    async def down(*_: object, **__: object) -> Any:
        nonlocal asked
        asked += 1
        from comfy_fleet.domain.errors import StoreDown

        raise StoreDown("away")

    at.api.deps.jobs.submit = down  # type: ignore[method-assign]
    with pytest.raises(openai.InternalServerError) as caught:
        await client.images.generate(**FOX)
    assert (caught.value.status_code, caught.value.code, asked) == (503, "store_unavailable", 1)


# -- the same again ----------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
async def test_the_same_request_with_its_key_waits_for_the_same_jobs(at: Pictured, n: int) -> None:
    client = await at.client(default_headers={"Idempotency-Key": "order-1"})
    both = [asyncio.create_task(client.images.generate(**FOX, n=n)) for _ in range(2)]
    await at.waits(2)
    ids = await at.jobs(n)
    for job_id in ids:
        await at.run(job_id, png((len(job_id), ids.index(job_id), 9)))
    first, second = await asyncio.gather(*both)
    third = await client.images.generate(**FOX, n=n)
    assert first.data == second.data == third.data and first.data is not None and len(first.data) == n
    assert len(await at.jobs(n)) == n
    for other in (FOX | {"prompt": "a hen"}, FOX | {"n": 2}):
        with pytest.raises(openai.BadRequestError, match="Idempotency-Key") as caught:
            await client.images.generate(**other)
        assert caught.value.code == "idempotency_key_reuse"
    bobs = await at.client(BOB, default_headers={"Idempotency-Key": "order-1"}, timeout=60)
    waiting = asyncio.create_task(bobs.images.generate(**FOX))
    await at.waits(1)
    waiting.cancel()


async def test_an_edit_with_another_picture_is_another_request(at: Pictured) -> None:
    client = await at.client(default_headers={"Idempotency-Key": "order-2"})
    asked: dict[str, Any] = {"model": "redraw", "prompt": "a hat"}
    waiting = asyncio.create_task(client.images.edit(**asked, image=png()))
    [job_id] = await at.jobs(1)
    await at.run(job_id)
    first = await waiting
    assert (await client.images.edit(**asked, image=png())).data == first.data
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        await client.images.edit(**asked, image=png("blue"))
    assert len(await at.jobs(1)) == 1


async def test_limits_count_every_picture_before_any_is_queued(at: Pictured) -> None:
    ops = {"X-API-Key": OPS}
    assert (await at.api.client.post("/api/v1/users", json={"name": "eve"}, headers=ops)).is_success
    made = await at.api.client.post(
        "/api/v1/keys", json={"user": "eve", "limits": {"queued": "2"}}, headers=ops
    )
    assert made.is_success, made.text
    eve = await at.client(made.json()["key"])
    with pytest.raises(openai.RateLimitError) as caught:
        await eve.images.generate(**FOX, n=3)
    assert caught.value.code == "limit_reached"
    listed = await at.api.client.get("/api/v1/jobs", headers={"X-API-Key": made.json()["key"]})
    assert listed.json()["jobs"] == []


# -- forms -------------------------------------------------------------------


def part(name: str, data: bytes, filename: str | None = None, kind: str = "") -> bytes:
    """Return a part of a form."""
    head = f'Content-Disposition: form-data; name="{name}"'
    head += f'; filename="{filename}"' if filename is not None else ""
    head += f"\r\nContent-Type: {kind}" if kind else ""
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"


FIELDS = part("model", b"redraw") + part("prompt", b"a hat")
PICTURE = part("image", png(), "a.png", "image/png")
SMALL = png((0, 0, 0, 0), (4, 4), "RGBA")
HOSTILE: dict[str, tuple[bytes, str | None]] = {
    "no picture": (FIELDS, "image"),
    "an empty one": (FIELDS + part("image", b"", "a.png"), "image"),
    "two where one is taken": (FIELDS + 2 * PICTURE, "image"),
    "seventeen": (FIELDS + 17 * PICTURE, "image"),
    "two masks": (FIELDS + PICTURE + 2 * part("mask", holed(), "m.png"), "mask"),
    "a mask without holes": (FIELDS + PICTURE + part("mask", png(), "m.png"), "mask"),
    "a mask that is none": (FIELDS + PICTURE + part("mask", b"GIF89a" + bytes(99), "m.png"), "mask"),
    "a mask of another size": (FIELDS + PICTURE + part("mask", SMALL, "m.png"), "mask"),
    "no picture at all": (FIELDS + part("image", b"<html>", "a.html", "image/png"), "image"),
    "a field twice": (FIELDS + part("prompt", b"more") + PICTURE, "prompt"),
    "no UTF-8": (part("prompt", b"\xff\xfe") + PICTURE, "prompt"),
    "a field as a text and in parts": (
        FIELDS + PICTURE + part("metadata", b"x") + part("metadata[a]", b"b"),
        "metadata",
    ),
    "a field that is too long": (part("prompt", b"x" * 70_000) + PICTURE, "prompt"),
    "a picture in another field": (FIELDS + part("photo", png() + bytes(80_000), "a.png"), "image"),
    "an unknown field": (FIELDS + PICTURE + part("colour", b"red"), "colour"),
    "many fields": (FIELDS + b"".join(part(f"f{n}", b"1") for n in range(99)) + PICTURE, None),
    "a number that is none": (FIELDS + PICTURE + part("n", b"many"), "n"),
    "cut": (FIELDS + PICTURE[:-9], None),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_forms_are_refused_and_leave_nothing(at: Pictured, what: str) -> None:
    body, param = HOSTILE[what]
    end = b"" if body.endswith(PICTURE[:-9]) else b"--b--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await at.api.client.post(EDIT, content=body + end, headers=kind)
    assert answer.status_code == 400, answer.text
    assert error(answer)["param"] == param
    assert await at.jobs(0) == []
    assert not at.api.deps.waits
    held = await at.api.client.get("/internal/files/input")
    assert held.json() == []


async def test_names_of_pictures_lead_nowhere(at: Pictured) -> None:
    for number, name in enumerate(("../../../etc/x.png", "..", "a\\b.png", "", "\u202e.png", "x" * 4000), 1):
        body = FIELDS + part("image", png((number, 0, 0)), name, "image/png") + b"--b--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        waiting = asyncio.create_task(at.api.client.post(EDIT, content=body, headers=kind))
        job_id = (await at.jobs(number))[-1]
        asset = (await at.api.client.get(f"/api/v2/assets/{(await at.params(job_id))['image']}")).json()
        assert "/" not in asset["file_path"] and "\\" not in asset["file_path"]
        assert 1 <= len(asset["file_path"]) <= 200 and asset["file_path"] not in (".", "..")
        await at.run(job_id)
        assert (await waiting).status_code == 200


async def test_a_form_must_be_one(at: Pictured) -> None:
    for kind, body in (("application/json", b"{}"), ("multipart/form-data", b"--b"), ("text/plain", b"x")):
        answer = await at.api.client.post(EDIT, content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400 and "multipart/form-data" in error(answer)["message"]


async def test_somebody_elses_jobs_and_keys_give_nothing(at: Pictured) -> None:
    answer = await at.api.client.post(GENERATE, json=FOX, headers={"Origin": "https://evil.test"})
    assert answer.status_code == 403 and error(answer)["code"] == "forbidden"
    client = await at.client()
    waiting = asyncio.create_task(client.images.generate(**FOX, response_format="url"))
    [job_id] = await at.jobs(1)
    await at.run(job_id)
    made = await waiting
    assert made.data is not None and made.data[0].url is not None
    url = made.data[0].url
    for changed in (re.sub("signature=.", "signature=0", url), re.sub(r"expires=\d", "expires=9", url)):
        async with httpx.AsyncClient() as anybody:
            assert (await anybody.get(changed)).status_code == 403


# -- other programs ----------------------------------------------------------


async def sent(at: Pictured, name: str, **changes: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send what a program sends, byte for byte but for the host's port; return status, headers and body."""
    url = httpx.URL(at.api.url)
    raw = (SENT / f"{name}.http").read_bytes()
    raw = re.sub(rb"(?i)(host: 127.0.0.1:)\d+", rb"\g<1>%d" % (url.port or 80), raw, count=1)
    for before, after in changes.items():
        assert len(before) == len(after) and before.encode() in raw
        raw = raw.replace(before.encode(), after)
    reader, writer = await asyncio.open_connection("127.0.0.1", url.port)
    try:
        writer.write(raw)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        headers = {
            name.lower(): value.strip()
            for line in head.decode("latin-1").splitlines()[1:]
            for name, mark, value in [line.partition(":")]
            if mark
        }
        return status, headers, await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("name", "workflow"),
    [
        ("open_webui_generate", "image_card"),
        ("open_webui_edit", "redraw"),
        ("librechat_generate", "gpt-image-1"),
        ("librechat_edit", "redraw"),
    ],
)
async def test_programs_that_read_bytes(at: Pictured, name: str, workflow: str) -> None:
    waiting = asyncio.create_task(sent(at, name))
    [job_id] = await at.jobs(1)
    job = (await at.api.client.get(f"/api/v1/jobs/{job_id}")).json()
    assert job["workflow"] == workflow
    assert job["params"]["prompt"] in ("a red fox in the snow", "a hat")
    if name.endswith("edit"):
        picture = await at.api.client.get(f"/api/v2/assets/{job['params']['image']}/content")
        assert opened(picture.content).size == (4, 2)
    await at.run(job_id)
    status, _, body = await waiting
    [picture] = orjson.loads(body)["data"]
    assert status == 200 and base64.b64decode(picture["b64_json"]) == png()
    assert not picture.get("url")  # Open WebUI would fetch it, and refuses addresses of its own network


async def test_librechats_tool_for_dall_e_3_fetches_the_url_without_a_key(at: Pictured) -> None:
    waiting = asyncio.create_task(sent(at, "librechat_dalle3"))
    [job_id] = await at.jobs(1)
    shown = await at.params(job_id)
    assert (shown["width"], shown["height"]) == (1024, 1024)
    await at.run(job_id)
    status, _, body = await waiting
    assert status == 200
    async with httpx.AsyncClient() as anybody:
        got = await anybody.get(orjson.loads(body)["data"][0]["url"])
    assert (got.content, got.headers["content-type"]) == (png(), "image/png")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("open_webui_generate", {"512x512": b"9x99999"}, "takes a width from 64 to 2048"),
        ("open_webui_generate", {"image_card": b"dall-e-2.0"}, "models are the stored workflows, dall-e-3"),
        ("librechat_dalle3", {"dall-e-3": b"dall-e-2"}, "models are the stored workflows, dall-e-3"),
        ("librechat_generate", {'"quality":"auto"': b'"quality":"high"'}, "send auto or standard"),
    ],
)
async def test_what_a_person_sees_there_if_it_cannot_be(
    at: Pictured, name: str, change: dict[str, bytes], words: str
) -> None:
    status, _, body = await sent(at, name, **change)
    assert status in (400, 404)
    assert words in orjson.loads(body)["error"]["message"]
    await until(lambda: not at.api.deps.waits, what="nobody waits")
    assert await at.jobs(0) == []
