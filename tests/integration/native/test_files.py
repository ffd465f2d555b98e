"""ComfyUI's interface: /view, uploads and lists of files, on a real Redis and a real folder."""

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from blake3 import blake3
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from redis.asyncio import Redis

from comfy_fleet.api.auth import LOCAL
from comfy_fleet.api.native.files import own_inputs
from comfy_fleet.services import picture_forms, picture_work
from comfy_fleet.services.picture_forms import PictureForm
from comfy_fleet.services.picture_work import AT_ONCE_EACH, LINE_EACH
from tests.integration.api_kit import Api, running
from tests.integration.api_kit import upload as v2_upload
from tests.key_files import write_keys

ANN, BOB = "ann-key-0123456789-0123456789", "bob-key-0123456789-0123456789"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, max_picture_pixels=100_000) as started:
        yield started


def picture(color: object = (10, 200, 30, 40), size: tuple[int, int] = (7, 5), kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    mode = "RGBA" if isinstance(color, tuple) and len(color) == 4 else "RGB"
    Image.new(mode, size, color).save(buffer, kind)  # type: ignore[arg-type]
    return buffer.getvalue()


def blobs(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and "blobs" in path.parts]


async def send(
    api: Api, data: bytes, name: str = "a.png", path: str = "/upload/image", **fields: str
) -> httpx.Response:
    return await api.client.post(path, data=fields, files={"image": (name, data, "image/png")})


async def sent(api: Api, data: bytes, name: str = "a.png", **fields: str) -> dict[str, Any]:
    answer = await send(api, data, name, **fields)
    assert answer.status_code == 200, answer.headers
    body: dict[str, Any] = answer.json()
    return body


async def view(api: Api, **query: str) -> httpx.Response:
    return await api.client.get("/view", params=query)


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_an_upload_is_seen_under_its_name(api: Api, prefix: str) -> None:
    data = picture()
    answer = await send(api, data, path=f"{prefix}/upload/image", subfolder="s/t")
    assert answer.json() == {"name": "a.png", "subfolder": "s/t", "type": "input"}
    seen = await api.client.get(
        f"{prefix}/view", params={"filename": "a.png", "subfolder": "s/t", "type": "input", "rand": "0.5"}
    )
    assert (seen.status_code, seen.content) == (200, data)
    assert seen.headers["content-type"] == "image/png"
    assert seen.headers["content-disposition"] == 'filename="a.png"'
    assert seen.headers["x-content-type-options"] == "nosniff"
    assert "no-cache" in seen.headers["cache-control"]
    head = await api.client.head(
        f"{prefix}/view", params={"filename": "s/t/a.png [input]", "subfolder": "s/t"}
    )
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(data))


async def test_ranges_and_tags_are_heeded(api: Api) -> None:
    data = picture()
    await sent(api, data)
    place = {"filename": "a.png", "type": "input"}
    part = await api.client.get("/view", params=place, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, data[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(data)}"
    far = await api.client.get("/view", params=place, headers={"Range": "bytes=999999-"})
    assert (far.status_code, far.content) == (416, b"")
    assert far.headers["content-range"] == f"bytes */{len(data)}"
    for more in ({}, {"preview": "webp"}):
        first = await view(api, **place, **more)
        again = await api.client.get(
            "/view", params={**place, **more}, headers={"If-None-Match": first.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/view", "/api/view"])
async def test_a_file_is_shown_only_if_it_is_what_is_asked_for(api: Api, path: str) -> None:
    await sent(api, b"0123456789", "a.bin")
    query = {"filename": "a.bin", "type": "input"}
    tag = (await api.client.get(path, params=query)).headers["etag"]
    for method in ("GET", "HEAD"):
        for asked, status in ((tag, 200), ("*", 200), (f'"x", {tag}', 200), ('"x"', 412), (f"W/{tag}", 412)):
            answer = await api.client.request(method, path, params=query, headers={"If-Match": asked})
            assert answer.status_code == status, (method, asked)
            assert answer.content == (b"0123456789" if (method, status) == ("GET", 200) else b"")
    both = {"If-None-Match": tag, "Range": "bytes=0-1"}
    assert (await api.client.get(path, params=query, headers=both)).status_code == 304


@pytest.mark.parametrize(
    ("wanted", "status", "data"),
    [
        ("bytes=0-0", 206, b"0"),
        ("bytes=9-100", 206, b"9"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-100", 206, b"0123456789"),
        ("bytes=10-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=99999999999999999999-", 416, b""),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("bytes=5-2", 200, b"0123456789"),
        ("bytes=", 200, b"0123456789"),
        ("items=0-1", 200, b"0123456789"),
    ],
)
async def test_a_range_that_can_not_be_read_gets_everything(
    api: Api, wanted: str, status: int, data: bytes
) -> None:
    await sent(api, b"0123456789", "a.bin")
    answer = await api.client.get(
        "/view", params={"filename": "a.bin", "type": "input"}, headers={"Range": wanted}
    )
    assert (answer.status_code, answer.content) == (status, data)
    if status == 416:
        assert answer.headers["content-range"] == "bytes */10"


async def test_other_bytes_get_a_number_and_overwriting_replaces(api: Api) -> None:
    made = [
        (await sent(api, data, "é x.tar.png", subfolder="s"))["name"] for data in (b"1", b"2", b"1", b"2")
    ]
    assert made == ["é x.tar.png", "é x.tar (1).png", "é x.tar.png", "é x.tar (1).png"]
    for word, name in (("true", "é x.tar.png"), ("1", "é x.tar.png"), ("True", "é x.tar (2).png")):
        body = await sent(api, word.encode(), "é x.tar.png", subfolder="s", overwrite=word)
        assert body == {"name": name, "subfolder": "s", "type": "input"}
        seen = await view(api, filename=name, subfolder="s", type="input")
        assert seen.content == word.encode()


async def test_names_in_other_alphabets_stand_in_the_header_as_comfyui_sends_them(api: Api) -> None:
    await sent(api, b"x", "猫.bin")
    async with api.client.stream("GET", "/view", params={"filename": "猫.bin", "type": "input"}) as seen:
        raw = dict(seen.headers.raw)[b"content-disposition"]
    assert raw.decode() == 'filename="猫.bin"'


async def test_folders_are_apart(api: Api) -> None:
    for kind in ("input", "output", "temp"):
        assert (await sent(api, kind.encode(), type=kind, subfolder="s"))["type"] == kind
    for kind in ("input", "output", "temp"):
        assert (await view(api, filename="a.png", subfolder="s", type=kind)).content == kind.encode()
        assert (await view(api, filename=f"a.png [{kind}]", subfolder="s")).content == kind.encode()
    assert (await view(api, filename="a.png", subfolder="s")).content == b"output"
    assert (await view(api, filename="a.png [temp]", subfolder="s", type="input")).content == b"temp"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 404),
        ({"type": "input"}, 404),
        ({"filename": ""}, 400),
        ({"filename": " [input]"}, 400),
        ({"filename": "/etc/passwd"}, 400),
        ({"filename": "../a.png", "type": "input"}, 400),
        ({"filename": "a..png", "type": "input"}, 400),
        ({"filename": "a.png", "type": "models"}, 400),
        ({"filename": "a.png", "type": ""}, 400),
        ({"filename": "a.png", "type": "Input"}, 400),
        ({"filename": "a.png", "type": "input", "subfolder": ".."}, 403),
        ({"filename": "a.png", "type": "input", "subfolder": "/etc"}, 403),
        ({"filename": "a.png", "type": "input", "subfolder": "s/../../x"}, 403),
        ({"filename": "a.png", "type": "input", "subfolder": "none"}, 404),
        ({"filename": "a.png", "type": "input", "subfolder": "\0"}, 404),
        ({"filename": "a.png", "type": "output"}, 404),
        ({"filename": "sub/", "type": "input"}, 404),
        ({"filename": "a.png\0", "type": "input"}, 404),
        ({"filename": "a" * 5000, "type": "input"}, 404),
        ({"filename": "blake3:" + "0" * 64}, 404),
        ({"filename": "blake3:../x"}, 404),
        ({"filename": "a.png", "type": "input", "subfolder": "s/.."}, 200),
        ({"filename": "s/a.png", "type": "input"}, 200),
    ],
)
async def test_refusals_are_comfyuis(api: Api, query: dict[str, str], status: int) -> None:
    await sent(api, b"x")
    seen = await view(api, **query)
    assert seen.status_code == status
    if status != 200:
        assert seen.content == b""
        assert seen.headers["x-fleet-reason"]


async def test_the_first_of_two_values_counts(api: Api) -> None:
    await sent(api, b"x")
    seen = await api.client.get("/view?filename=a.png&filename=b.png&type=input&type=output")
    assert seen.content == b"x"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.html", None),
        ("x.htm", None),
        ("x.js", None),
        ("x.css", None),
        ("x.svg", "image/svg+xml"),
        ("x.xml", None),
    ],
)
async def test_nothing_that_a_browser_may_run_is_shown(api: Api, name: str, kind: str | None) -> None:
    await sent(api, b"<script>", name)
    for purpose in (None, "document", "image"):
        seen = await api.client.get(
            "/view",
            params={"filename": name, "type": "input"},
            headers={"Sec-Fetch-Dest": purpose} if purpose else {},
        )
        assert seen.headers["x-content-type-options"] == "nosniff"
        assert seen.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert seen.headers["vary"] == "Sec-Fetch-Dest"
        assert seen.headers["cache-control"] == "no-store"
        if kind and purpose == "image":
            assert seen.headers["content-type"] == kind
            assert seen.headers["content-disposition"] == f'filename="{name}"'
        else:
            assert seen.headers["content-type"] == "application/octet-stream"
            assert seen.headers["content-disposition"] == f'attachment; filename="{name}"'


async def test_a_name_breaks_no_header(api: Api) -> None:
    name = 'a"; filename=b.html; x="\\.png'
    body = b"".join(
        [
            b'--B\r\nContent-Disposition: form-data; name="image"; filename="a\\"; filename=b.html"\r\n\r\n',
            b"x\r\n--B--\r\n",
        ]
    )
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = await api.client.post("/upload/image", content=body, headers=kind)
    assert answer.status_code == 200, (answer.headers, name)
    shown = await view(api, filename=answer.json()["name"], type="input")
    assert shown.headers["content-disposition"] == r'attachment; filename="a\"; filename=b.html"'


async def test_pictures_are_shown_in_other_forms(api: Api) -> None:
    await sent(api, picture())
    forms = {
        ("webp;75", ""): ("image/webp", "RGBA"),
        ("jpeg", ""): ("image/jpeg", "RGB"),
        ("jpeg", "a"): ("image/webp", "RGBA"),
        (None, "rgb"): ("image/png", "RGB"),
        (None, "a"): ("image/png", "RGBA"),
        (None, "rgba"): ("image/png", "RGBA"),
    }
    for (preview, channel), (kind, mode) in forms.items():
        query = {"preview": preview} if preview else {}
        query |= {"channel": channel} if channel else {}
        seen = await view(api, filename="a.png", type="input", **query)
        assert seen.status_code == 200
        assert seen.headers["content-type"] == kind
        assert seen.headers["content-disposition"] == 'filename="a.png"'
        assert seen.headers["x-content-type-options"] == "nosniff"
        shown = Image.open(BytesIO(seen.content))
        assert (shown.mode, shown.size, f"image/{(shown.format or '').lower()}") == (mode, (7, 5), kind)


async def test_what_is_no_picture_or_too_large_is_shown_as_it_is(api: Api) -> None:
    large = picture((1, 2, 3), (400, 300))
    await sent(api, large, "large.png")
    await sent(api, b"no picture", "x.mp4")
    for name, data, kind in (("large.png", large, "image/png"), ("x.mp4", b"no picture", "video/mp4")):
        seen = await view(api, filename=name, type="input", preview="webp")
        assert (seen.status_code, seen.content, seen.headers["content-type"]) == (200, data, kind)
        refused = await view(api, filename=name, type="input", channel="a")
        assert (refused.status_code, refused.content) == (400, b"")
    assert (
        "FLEET_MAX_PICTURE_PIXELS"
        in (await view(api, filename="large.png", type="input", channel="rgb")).headers["x-fleet-reason"]
    )


async def test_many_previews_at_once_are_all_answered(api: Api) -> None:
    await sent(api, picture())
    seen = await asyncio.gather(
        *(view(api, filename="a.png", type="input", preview=f"webp;{q}") for q in range(40))
    )
    assert {one.status_code for one in seen} == {200}
    assert {one.headers["content-type"] for one in seen} == {"image/webp"}


async def test_bytes_are_seen_by_their_hash(api: Api) -> None:
    data = picture()
    await sent(api, data, subfolder="s")
    seen = await view(api, filename=f"blake3:{blake3(data).hexdigest()}")
    assert (seen.status_code, seen.content) == (200, data)
    assert seen.headers["content-disposition"] == 'filename="a.png"'
    shown = await view(api, filename=f"blake3:{blake3(data).hexdigest()}", preview="jpeg")
    assert shown.headers["content-type"] == "image/jpeg"


# -- what is refused on its way in -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "s/../../x.png", "..", ".", "x" * 300])
@pytest.mark.parametrize("path", ["/upload/image", "/upload/mask"])
async def test_names_that_leave_the_folder_are_refused(api: Api, name: str, path: str) -> None:
    await sent(api, picture())
    answer = await send(api, picture(), name, path, original_ref='{"filename": "a.png", "type": "input"}')
    assert (answer.status_code, answer.content) == (400, b"")
    assert answer.headers["x-fleet-reason"]


@pytest.mark.parametrize(
    "fields",
    [
        {"subfolder": ".."},
        {"subfolder": "/etc"},
        {"subfolder": "a/../.."},
        {"type": "models"},
        {"type": ""},
        {"subfolder": "a\x7fb"},
    ],
)
async def test_fields_that_leave_the_folder_are_refused(api: Api, fields: dict[str, str]) -> None:
    answer = await send(api, b"x", **fields)
    assert (answer.status_code, answer.content) == (400, b"")
    assert await own_inputs(api.deps, LOCAL) == []


async def test_what_is_no_upload_is_refused_and_leaves_no_bytes(api: Api, tmp_path: Path) -> None:
    for answer in (
        await api.client.post("/upload/image", json={"image": "x"}),
        await api.client.post("/upload/image", content=b"x"),
        await api.client.post("/upload/image", data={"image": "text"}, files={"other": ("x", b"x")}),
        await api.client.post("/upload/image", files={"image": ("", b"x")}),
        await api.client.post(
            "/upload/image",
            content=b'--B\r\nContent-Disposition: form-data; name="image"; filename="\x01"\r\n\r\nx\r\n--B--',
            headers={"Content-Type": "multipart/form-data; boundary=B"},
        ),
        await api.client.post(
            "/upload/image",
            content=b"--B\r\nbroken",
            headers={"Content-Type": "multipart/form-data; boundary=B"},
        ),
    ):
        assert (answer.status_code, answer.content) == (400, b""), answer.text
        assert answer.headers["x-fleet-reason"]
    assert blobs(tmp_path) == []


async def test_an_upload_beyond_the_limit_is_refused(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, max_body_bytes=10_000) as api:
        for path in ("/upload/image", "/upload/mask"):
            assert (await send(api, b"x" * 20_000, path=path)).status_code == 413


# -- masks -----------------------------------------------------------------------------------------------


async def test_a_mask_is_put_onto_the_callers_picture(api: Api) -> None:
    texts = PngInfo()
    texts.add_text("workflow", '{"nodes": []}')
    buffer = BytesIO()
    Image.new("RGB", (7, 5), (1, 2, 3)).save(buffer, "PNG", pnginfo=texts)
    await sent(api, buffer.getvalue(), type="output", subfolder="s")
    for ref in (
        {"filename": "a.png", "subfolder": "s"},
        {"filename": "a.png", "subfolder": "s", "type": "output"},
        {"filename": "s/a.png [output]", "type": "input"},
    ):
        answer = await send(
            api,
            picture(),
            "mask.png",
            "/upload/mask",
            original_ref=json.dumps(ref),
            subfolder="clipspace",
            overwrite="true",
        )
        assert answer.json() == {"name": "mask.png", "subfolder": "clipspace", "type": "input"}
        seen = await view(api, filename="mask.png", subfolder="clipspace", type="input")
        joined = Image.open(BytesIO(seen.content))
        assert (joined.mode, joined.getpixel((0, 0))) == ("RGBA", (1, 2, 3, 40))
        assert getattr(joined, "text", None) == {"workflow": '{"nodes": []}'}


@pytest.mark.parametrize(
    ("ref", "status"),
    [
        (None, 400),
        ("", 400),
        ("[]", 400),
        ("{", 400),
        ("{}", 400),
        ('{"filename": 5}', 400),
        ('{"filename": ""}', 400),
        ('{"filename": "../a.png"}', 400),
        ('{"filename": "a.png", "type": "models"}', 400),
        ('{"filename": "a.png", "type": []}', 400),
        ('{"filename": "a.png", "type": "input", "subfolder": ".."}', 403),
        ('{"filename": "none.png"}', 400),
        ('{"filename": "page.png", "type": "input"}', 400),
        ('{"filename": "other.png", "type": "input"}', 400),
    ],
)
async def test_a_mask_without_its_picture_is_refused(api: Api, ref: str | None, status: int) -> None:
    await sent(api, picture())
    await sent(api, b"<html>", "page.png")
    await sent(api, picture(size=(5, 7)), "other.png")
    before = await own_inputs(api.deps, LOCAL)
    fields = {} if ref is None else {"original_ref": ref}
    answer = await send(api, picture(), "mask.png", "/upload/mask", **fields)
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers["x-fleet-reason"]
    assert await own_inputs(api.deps, LOCAL) == before


# -- lists -----------------------------------------------------------------------------------------------


async def test_lists_show_names_of_the_folder_itself(api: Api) -> None:
    for name in ("b.png", ".hidden", "a.png"):
        await sent(api, name.encode(), name)
    await sent(api, b"x", "c.png", subfolder="s")
    await sent(api, b"x", "t.png", type="temp")
    await v2_upload(api, b"v2", "v2.png")
    got = await api.client.get("/internal/files/input")
    assert got.json() == ["v2.png [input]", "a.png [input]", "b.png [input]"]
    assert (await api.client.get("/internal/files/temp")).json() == ["t.png [temp]"]
    assert (await api.client.get("/internal/files/output")).json() == []
    wrong = await api.client.get("/internal/files/models")
    assert (wrong.status_code, wrong.json()) == (400, {"error": "Invalid directory type"})
    assert await own_inputs(api.deps, LOCAL) == [
        "v2.png", "s/c.png", "a.png", ".hidden", "b.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "/internal/logs",
        "/internal/logs/raw",
        "/internal/folder_paths",
        "/api/internal/files/input",
        "/api/internal/logs",
        "/internal/files/",
        "/internal/files/input/x",
    ],
)
async def test_what_is_about_the_machine_is_not_served(api: Api, path: str) -> None:
    assert (await api.client.get(path)).status_code == 404
    subscribed = await api.client.patch("/internal/logs/subscribe", json={"clientId": "x", "enabled": True})
    assert subscribed.status_code == 404


# -- two people ------------------------------------------------------------------------------------------


async def test_nobody_waits_for_anybody_elses_pictures(
    redis_port: int, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, f"ann {ANN}\nbob {BOB}\n")
    let_go = threading.Event()
    convert = picture_forms.formed

    def slow(data: bytes, form: PictureForm, *, most_pixels: int) -> bytes:
        if form.quality == 1:
            assert let_go.wait(20)
        return convert(data, form, most_pixels=most_pixels)

    monkeypatch.setattr(picture_forms, "formed", slow)
    monkeypatch.setattr(picture_work, "WAIT_S", 60.0)
    more = AT_ONCE_EACH + LINE_EACH
    async with running(redis_port, tmp_path, keys_file=keys, max_requests=4) as api:
        ann, bob = ({"Authorization": f"Bearer {key}"} for key in (ANN, BOB))
        form = {"image": ("a.png", picture(), "image/png")}
        for who in (ann, bob):
            assert (await api.client.post("/upload/image", files=form, headers=who)).status_code == 200
        query = {"filename": "a.png", "type": "input"}
        hers = [
            asyncio.create_task(
                api.client.get("/view", params={**query, "preview": f"webp;1;x{n};1"}, headers=ann)
            )
            for n in range(more + 5)
        ]
        try:
            for refused in [await one for one in itertools.islice(asyncio.as_completed(hers), 5)]:
                assert refused.status_code == 503
                assert refused.headers["Retry-After"] == "2"
                assert "48 of your pictures wait already" in refused.text
            for _ in range(3):
                seen = await api.client.get("/view", params={**query, "preview": "webp;90"}, headers=bob)
                assert seen.status_code == 200 and seen.headers["content-type"] == "image/webp"
            assert (await api.client.get("/prompt", headers=ann)).status_code == 200
            assert not let_go.is_set()
        finally:
            let_go.set()
        answers = [(await one).status_code for one in hers]
        assert answers.count(200) == more and answers.count(503) == 5


async def test_nobody_sees_or_replaces_anybody_elses_files(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, f"ann {ANN}\nbob {BOB}\n")
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        ann, bob = ({"Authorization": f"Bearer {key}"} for key in (ANN, BOB))
        form = {"image": ("a.png", picture(), "image/png")}
        for kind in ("input", "output", "temp"):
            for who in (ann, bob):
                made = await api.client.post("/upload/image", data={"type": kind}, files=form, headers=who)
                assert made.json()["name"] == "a.png"
        mine = {"image": ("mine.png", picture((1, 2, 3)), "image/png")}
        for kind in ("input", "output", "temp"):
            place = {"filename": "mine.png", "type": kind}
            await api.client.post("/upload/image", data={"type": kind}, files=mine, headers=ann)
            assert (await api.client.get("/view", params=place, headers=ann)).status_code == 200
            for more in ({}, {"preview": "webp"}, {"channel": "a"}):
                seen = await api.client.get("/view", params={**place, **more}, headers=bob)
                assert (seen.status_code, seen.content) == (404, b"")
            listed = await api.client.get(f"/internal/files/{kind}", headers=bob)
            assert listed.json() == [f"a.png [{kind}]"]
            masked = await api.client.post(
                "/upload/mask",
                data={"original_ref": json.dumps(place), "type": kind},
                files={"image": ("m.png", picture(), "image/png")},
                headers=bob,
            )
            assert masked.status_code == 400
        by_hash = {"filename": f"blake3:{blake3(mine['image'][1]).hexdigest()}"}
        assert (await api.client.get("/view", params=by_hash, headers=ann)).status_code == 200
        assert (await api.client.get("/view", params=by_hash, headers=bob)).status_code == 404
        assert (await api.client.get("/view", params=by_hash)).status_code == 401
