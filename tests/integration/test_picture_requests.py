"""Outputs in another format or size, by the query or by ``Accept``."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfy_fleet.services import output_forms
from tests.factories import GRAPH
from tests.fleet import until
from tests.integration.api_kit import Api, code, running, upload

KEY = "ada-key-ada-key-ada"


@pytest.fixture
async def api(redis_port: int, redis: object, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    keys.write_text(f"ada {KEY}\nbob bob-key-bob-key-bob\n")
    keys.chmod(0o600)
    async with running(redis_port, tmp_path / "data", keys_file=keys, max_picture_pixels=20_000) as started:
        await started.add_node()
        started.client.headers["Authorization"] = f"Bearer {KEY}"
        yield started


def png(width: int = 100, height: int = 50) -> bytes:
    info = PngInfo()
    info.add_text("prompt", '{"1": "secret words"}')
    buffer = BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def picture(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    found = Image.open(BytesIO(answer.content))
    found.load()
    assert answer.headers["content-type"] == f"image/{(found.format or '').lower()}"
    return found


async def url_of(api: Api, data: bytes | None = None, **more: Any) -> str:
    return str((await upload(api, png() if data is None else data, **more)).json()["url"])


async def test_a_picture_comes_as_it_is_asked_for(api: Api) -> None:
    url = await url_of(api, name="fox/red fox.png")
    for kind in ("webp", "jpeg", "png"):
        answer = await api.client.get(url, params={"format": kind, "width": 40})
        assert (picture(answer).format, picture(answer).size) == (kind.upper(), (40, 20))
        assert answer.headers["content-disposition"] == f"inline; filename*=UTF-8''red%20fox.{kind}"
        assert answer.headers["vary"] == "Accept, Save-Data"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"secret words" not in answer.content
    whole = await api.client.get(url)
    assert (await api.client.get(url, params={"metadata": "keep"})).content == whole.content
    stripped = await api.client.get(url, params={"metadata": "strip"})
    assert (picture(stripped).format, picture(stripped).size) == ("PNG", (100, 50))
    assert b"secret words" in whole.content and b"secret words" not in stripped.content
    assert picture(stripped).tobytes() == picture(whole).tobytes()
    kept = await api.client.get(url, params={"width": 40, "metadata": "keep"})
    assert picture(kept).info["prompt"] == '{"1": "secret words"}'
    as_webp = await api.client.get(url, params={"metadata": "keep"}, headers={"Accept": "image/webp"})
    assert picture(as_webp).format == "WEBP" and b"secret words" in as_webp.content
    sizes = [
        len((await api.client.get(url, params={"format": "webp", "quality": q})).content) for q in (10, 95)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"Accept": "*/*"}, "PNG"),
        ({"Accept": "image/webp"}, "WEBP"),
        ({"Accept": "image/webp,*/*;q=0.8"}, "WEBP"),
        ({"Accept": "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"}, "PNG"),  # Chrome
        ({"Accept": "image/webp;q=0.5,image/jpeg"}, "JPEG"),
        ({"Accept": "application/json"}, "PNG"),
        ({"Accept": "image/avif"}, "PNG"),
        ({"Accept": "image/webp,image/*,*/*;q=0.8", "Save-Data": "on"}, "WEBP"),
        ({"Save-Data": "on"}, "PNG"),
    ],
)
async def test_accept_may_choose_another_format(api: Api, headers: dict[str, str], kind: str) -> None:
    answer = await api.client.get(await url_of(api), headers=headers)
    assert picture(answer).format == kind
    assert answer.headers["vary"] == "Accept, Save-Data"


async def test_each_form_has_its_tag_and_its_ranges(api: Api) -> None:
    url = await url_of(api)
    asked: dict[str, Any] = {"format": "webp", "width": 40}
    answer = await api.client.get(url, params=asked)
    tags = {answer.headers["etag"], (await api.client.get(url)).headers["etag"]}
    tags.add((await api.client.get(url, params={**asked, "quality": 3})).headers["etag"])
    assert len(tags) == 3
    same = await api.client.get(url, params=asked, headers={"If-None-Match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    part = await api.client.get(url, params=asked, headers={"Range": "bytes=4-9"})
    assert (part.status_code, part.content) == (206, answer.content[4:10])
    assert part.headers["content-range"] == f"bytes 4-9/{len(answer.content)}"
    other = {"Range": "bytes=4-9", "If-Range": '"other"'}
    assert (await api.client.get(url, params=asked, headers=other)).content == answer.content
    beyond = await api.client.get(url, params=asked, headers={"Range": "bytes=9999999-"})
    assert code(beyond) == (416, "range_not_satisfiable")
    head = await api.client.head(url, params=asked)
    assert head.headers["content-length"] == str(len(answer.content)) and not head.content


async def test_what_can_not_be_had_is_told(api: Api) -> None:
    url = await url_of(api)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"format": "avif"}, "format"),
        ({"format": "webp", "quality": 0}, "quality"),
        ({"format": "webp", "quality": 101}, "quality"),
        ({"quality": 5}, "quality"),  # a PNG's
        ({"width": 0}, "width"),
        ({"width": 99_999}, "width"),
        ({"width": "wide"}, "width"),
        ({"metadata": "some"}, "metadata"),
    ]
    for query, field in wrong:
        answer = await api.client.get(url, params=query)
        assert code(answer) == (422, "invalid_request"), query
        assert answer.json()["error"]["details"]["field"] == field
    text = await url_of(api, b"a text", name="a.txt", content_type="text/plain")
    broken = await url_of(api, b"\x89PNG no picture", name="b.png")
    large = await url_of(api, png(200, 101), name="c.png")
    for other in (text, broken, large):
        answer = await api.client.get(other, params={"format": "webp"})
        assert code(answer) == (422, "not_convertible")
        assert "without format" in answer.json()["error"]["message"]
        assert (await api.client.get(other, headers={"Accept": "image/webp"})).status_code == 200
    assert "FLEET_MAX_PICTURE_PIXELS" in (await api.client.get(large, params={"width": 9})).text


async def test_what_was_made_is_made_once_also_for_a_page_without_a_key(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = output_forms.rendered

    def counted(*args: Any, **more: Any) -> bytes:
        calls.append(args)
        return real(*args, **more)

    monkeypatch.setattr(output_forms, "rendered", counted)
    job = await api.submit(GRAPH)
    claim = await api.claim(job["id"])
    await api.output(claim, png())
    await api.finish(claim)
    seen = (await api.client.get(f"/api/v2/jobs/{job['id']}", params={"signed": 60})).json()
    url = seen["outputs"][0]["url"]
    first = await api.client.get(f"/api/v2/assets/{seen['outputs'][0]['id']}/content?format=webp&width=40")
    async with httpx.AsyncClient(headers={"Sec-Fetch-Site": "cross-site"}, timeout=20) as page:
        answers = await asyncio.gather(*(page.get(f"{url}&format=webp&width=40") for _ in range(5)))
        assert {one.content for one in answers} == {first.content}
        assert answers[0].headers["access-control-allow-origin"] == "*"
        assert int(answers[0].headers["cache-control"].partition("max-age=")[2]) <= 60
        assert code(await page.get(f"{url[:-1]}&format=webp")) == (403, "signature_invalid")
    assert len(calls) == 1
    bob = {"Authorization": "Bearer bob-key-bob-key-bob"}
    other = await api.client.get(url.partition("?")[0], params={"format": "webp", "width": 40}, headers=bob)
    assert code(other) == (404, "not_found")  # what is kept is given to nobody else


async def slowly(url: str, headers: dict[str, str], kept: contextlib.ExitStack) -> bytes:
    """Ask, and take nothing but the answer's head; the connection stays open."""
    line = kept.enter_context(socket.socket())
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.setblocking(False)
    asked = httpx.URL(url)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(line, (asked.host, asked.port))
    lines = [f"GET {asked.raw_path.decode()} HTTP/1.1", f"Host: {asked.netloc.decode()}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    await loop.sock_sendall(line, "\r\n".join([*lines, "", ""]).encode())
    return await loop.sock_recv(line, 15)


async def test_who_takes_large_pictures_slowly_holds_a_share_of_the_memory_and_no_more(
    redis_port: int, redis: object, tmp_path: Path
) -> None:
    most = 2_000_000
    large = png(1500, 1250)  # five megabytes: more than a system takes from a process for a slow line
    async with running(redis_port, tmp_path / "data", max_picture_pixels=most) as api:
        await api.add_node()
        job = await api.submit(GRAPH)
        claim = await api.claim(job["id"])
        await api.output(claim, large)
        await api.finish(claim)
        seen = (await api.client.get(f"/api/v2/jobs/{job['id']}", params={"signed": 600})).json()
        own = f"{api.url}/api/v2/assets/{seen['outputs'][0]['id']}/content?metadata=strip"
        signed = f"{seen['outputs'][0]['url']}&metadata=strip"
        files = {"image": ("fox.png", large, "image/png")}
        assert (await api.client.post("/upload/image", files=files)).is_success
        view = f"{api.url}/view?filename=fox.png&type=input&channel=rgb"
        with contextlib.ExitStack() as kept:
            assert await slowly(own, {}, kept) == b"HTTP/1.1 200 OK"
            busy = await api.client.get(own)
            assert code(busy) == (503, "busy") and busy.headers["retry-after"] == "2"
            assert (await api.client.get(view)).status_code == 503
            assert (await api.client.get(f"{own}&width=20")).status_code == 200  # small ones count nowhere
            assert (await api.client.get(own.partition("?")[0])).status_code == 200  # nor does the file
            assert await slowly(signed, {}, kept) == b"HTTP/1.1 200 OK"
            assert (await api.client.get(signed)).status_code == 503

        async def free() -> bool:
            return (await api.client.get(own)).status_code == 200

        await until(free, what="what was held is free again", timeout_s=45)
        assert (await api.client.get(signed, headers={"Range": "bytes=5-9"})).status_code == 206
        assert (await api.client.get(view)).status_code == 200
