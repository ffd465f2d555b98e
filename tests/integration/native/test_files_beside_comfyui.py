"""The same requests for files to a real ComfyUI and to the fleet: statuses, headers and bytes are equal."""

import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from redis.asyncio import Redis

from tests.comfyui_server import ANSWER_S, ComfyServer
from tests.integration.api_kit import Api, running

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(180)]

READ = ("content-type", "content-disposition", "content-range", "content-length", "accept-ranges")
"""Headers that clients read."""


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Files of one test lie in a folder of their own: the server is shared."""
    return str(request.node.name.translate({ord(c): "_" for c in "[]-/"}))


class Both:
    """Sends each request to both."""

    def __init__(self, api: Api, server: ComfyServer) -> None:
        self._fleet = api.client
        self._bare = httpx.AsyncClient(base_url=server.url, timeout=ANSWER_S)

    async def close(self) -> None:
        await self._bare.aclose()

    async def ask(
        self, method: str, path: str, *, alike: bool = True, **more: Any
    ) -> tuple[httpx.Response, httpx.Response]:
        """Return the fleet's and ComfyUI's answers: statuses are equal, and headers unless not ``alike``."""
        ours, theirs = [await client.request(method, path, **more) for client in (self._fleet, self._bare)]
        # What ComfyUI meets with an exception is refused.
        expected = 400 if theirs.status_code == 500 else theirs.status_code
        assert ours.status_code == expected, (path, more, ours.headers)
        if alike and theirs.status_code in (200, 206):
            shown = {name: theirs.headers[name] for name in READ if name in theirs.headers}
            assert {name: ours.headers.get(name) for name in shown} == shown, (path, more)
        return ours, theirs

    async def same(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Return an answer that both give, with equal bytes."""
        ours, theirs = await self.ask(method, path, **more)
        if theirs.status_code != 500:
            assert ours.content == theirs.content, (path, more)
        return ours

    async def upload(
        self, data: bytes, name: str, path: str = "/upload/image", **fields: str
    ) -> dict[str, Any]:
        ours, theirs = await self.ask("POST", path, alike=False, data=fields, files={"image": (name, data)})
        if theirs.status_code != 200:
            assert ours.content == b""
            return {}
        assert ours.json() == theirs.json()
        found: dict[str, Any] = ours.json()
        return found


@pytest.fixture
async def both(api: Api, comfyui_server: ComfyServer) -> AsyncIterator[Both]:
    made = Both(api, comfyui_server)
    yield made
    await made.close()


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    noise = Image.effect_noise((40, 30), 60)
    color = Image.merge("RGB", (noise, noise.rotate(180), noise))
    texts = PngInfo()
    texts.add_text("prompt", "{}")
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [color, color.rotate(90), color.rotate(180)]
    palette = color.quantize(16)
    return {
        "rgba.png": saved(Image.merge("RGBA", (*color.split(), noise)), pnginfo=texts),
        "rgb.png": saved(color, pnginfo=texts),
        "gray.png": saved(noise),
        "palette.png": saved(palette, transparency=3),
        "cmyk.jpg": saved(color.convert("CMYK"), "JPEG"),
        "turned.jpg": saved(color, "JPEG", exif=turned),
        "moving.webp": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "moving.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "a.bmp": saved(color, "BMP"),
        "a.tiff": saved(color, "TIFF"),
    }


FORMS: tuple[dict[str, str], ...] = (
    {},
    {"preview": "webp;90"},
    {"preview": "webp"},
    {"preview": "jpeg;50"},
    {"preview": "jpeg"},
    {"preview": "png"},
    {"preview": "70"},
    {"preview": "webp;50", "channel": "rgb"},
    {"preview": "jpeg;50", "channel": "a"},
    {"channel": "rgb"},
    {"channel": "a"},
    {"channel": "rgba"},
    {"channel": "other"},
    {"rand": "0.5", "app": "x"},
)


async def test_pictures_are_shown_alike(both: Both, prefix: str) -> None:
    for name, data in pictures().items():
        await both.upload(data, name, subfolder=prefix)
        for form in FORMS:
            for route in ("/view", "/api/view"):
                query = {"filename": name, "subfolder": prefix, "type": "input", **form}
                await both.same("GET", route, params=query)


async def test_files_are_shown_alike(both: Both, prefix: str) -> None:
    for name in (
        "a.txt",
        "a.mp4",
        "a.flac",
        "a.json",
        "noext",
        "a.unknown",
        "a b é 猫.png",
        "a.zip",
        "a.pdf",
    ):
        await both.upload(name.encode(), name, subfolder=prefix)
        place = {"filename": name, "subfolder": prefix, "type": "input"}
        await both.same("GET", "/view", params=place)
        await both.ask("HEAD", "/view", params=place)
        for wanted in ("bytes=0-2", "bytes=2-", "bytes=-3", "bytes=900-"):
            await both.same("GET", "/view", params=place, headers={"Range": wanted})


async def test_what_a_browser_may_run_is_a_download(
    both: Both, prefix: str, comfyui_server: ComfyServer
) -> None:
    async with httpx.AsyncClient(base_url=comfyui_server.url, timeout=ANSWER_S) as client:
        version = (await client.get("/system_stats")).json()["system"]["comfyui_version"]
    for name in ("a.html", "a.js", "a.css", "a.svg", "a.xml"):
        await both.upload(b"<x/>", name, subfolder=prefix)
        for headers in ({}, {"Sec-Fetch-Dest": "image"}, {"Sec-Fetch-Dest": "document"}):
            place = {"filename": name, "subfolder": prefix, "type": "input"}
            # Earlier versions show some of them.
            alike = not version.startswith("0.3.")
            ours, theirs = await both.ask("GET", "/view", params=place, headers=headers, alike=alike)
            assert ours.content == theirs.content


@pytest.mark.parametrize("kind", ["input", "output", "temp"])
async def test_names_are_counted_alike(both: Both, prefix: str, kind: str) -> None:
    for name in ("a.png", "a.tar.gz", "noext", ".hidden", "é (1).png"):
        for data, more in (
            (b"1", {}), (b"2", {}), (b"1", {}), (b"3", {"overwrite": "false"}), (b"2", {}),
            (b"4", {"overwrite": "true"}), (b"5", {"overwrite": "1"}), (b"1", {}), (b"6", {}),
        ):  # fmt: skip
            made = await both.upload(data, name, subfolder=prefix, type=kind, **more)
            place = {"filename": made["name"], "subfolder": made["subfolder"], "type": made["type"]}
            assert (await both.same("GET", "/view", params=place)).content == data


async def test_names_inside_folders_are_taken_alike(both: Both, prefix: str) -> None:
    await both.upload(b"x", "a.png", subfolder=f"{prefix}/s")
    for name, subfolder in (
        ("s/a.png", prefix),
        ("b.png", f"{prefix}/s/"),
        ("c.png", f"{prefix}//s"),
        ("d.png", f"{prefix}/x/../s"),
        ("../s/e.png", f"{prefix}/s"),
    ):
        await both.upload(b"y", name, subfolder=subfolder)
    for name in ("a.png", "a (1).png", "b.png", "c.png", "d.png", "e.png"):
        await both.same(
            "GET", "/view", params={"filename": name, "subfolder": f"{prefix}/s", "type": "input"}
        )


async def test_refusals_are_alike(both: Both, prefix: str) -> None:
    await both.upload(b"x", "a.png", subfolder=prefix)
    here = {"subfolder": prefix, "type": "input"}
    for query in (
        {},
        {"filename": ""},
        {"filename": " [input]"},
        {"filename": "[input]"},
        {"filename": "/etc/passwd"},
        {"filename": "../a.png", **here},
        {"filename": "a..png", **here},
        {"filename": "a.png", "type": "models"},
        {"filename": "a.png", "type": ""},
        {"filename": "a.png", "type": "input", "subfolder": ".."},
        {"filename": "a.png", "type": "input", "subfolder": "/etc"},
        {"filename": "a.png", "type": "input", "subfolder": f"{prefix}/../../x"},
        {"filename": "none.png", **here},
        {"filename": "x/a.png", **here},
        {"filename": "a.png [output]", "subfolder": prefix},
        {"filename": "a.png [input]", "subfolder": prefix},
        {"filename": "a.png_[input]", "subfolder": prefix},
        {"filename": "a.png", "subfolder": prefix},
        {"filename": "blake3:" + "0" * 64},
        {"filename": "a.png\0", **here},
    ):
        await both.same("GET", "/view", params=query)
    for name, fields in (
        ("/etc/x.png", {}),
        ("../x.png", {}),
        ("../../x.png", {"subfolder": prefix}),
        ("x.png", {"subfolder": ".."}),
        ("x.png", {"subfolder": "/etc"}),
        ("x.png", {"subfolder": f"{prefix}/../.."}),
    ):
        assert await both.upload(b"x", name, **fields) == {}
    await both.same("POST", "/upload/image", data={"type": "input"})
    await both.same("POST", "/upload/image", data={"type": "input"}, files={"other": ("x", b"x")})
    ours, theirs = await both.ask("GET", "/internal/files/models")
    assert ours.json() == theirs.json()


# As they stand in the address: what is encoded twice is a name with a percent sign.
NAMES = (
    *("%2e%2e%2fa.bin", "..%2fa.bin", "%252e%252e%252fa.bin", "..%5ca.bin", "%5c..%5ca.bin", "x%2F..a"),
    *("%2Fetc%2Fpasswd", "%252Fetc%252Fpasswd", "C%3A%5Cx", "~%2Fa.bin", "file:///etc/passwd"),
    *("a.bin%00", "a.bin%00.png", "%00", "a%0d%0aX:y", "%ff%fe", "%20", "%F0%9F%98%80"),
    *("./a.bin", ".", "%2E", "a.bin/", "a.bin%2F.", "a.bin%20%5Binput%5D", "a.bin::$DATA", "nul"),
    *("a" * 300, "x/" * 3000, "blake3:"),
)
SUBFOLDERS = (
    *("..", "%2e%2e", "../..", "%2Fetc", "%252e%252e", "..%5c", "%00", "~", "x" * 3000),
    *("P/..", "P/../P", "./P", "P%00", "P/.", "P//", "P/../.."),
)
TYPES = ("", "Input", "INPUT", "input%00", "input/", "../input", "models", "user", "output%20")
CHANGED = (
    *("preview", "preview=", "preview=webp;0", "preview=webp;-1", "preview=WEBP;90", "preview=webp;90;5"),
    *("channel", "channel=", "channel=A", "channel=RGB", "preview=jpeg;90&channel=rgba"),
    *("preview=jpeg&channel=rgb",),
)


async def test_odd_addresses_are_answered_alike(both: Both, prefix: str) -> None:
    await both.upload(b"0123456789", "a.bin", subfolder=prefix)
    await both.upload(pictures()["rgba.png"], "p.png", subfolder=prefix)
    for name in NAMES:
        await both.same("GET", f"/view?filename={name}&type=input&subfolder={prefix}")
    for subfolder in SUBFOLDERS:
        await both.same("GET", f"/view?filename=a.bin&type=input&subfolder={subfolder.replace('P', prefix)}")
    for kind in TYPES:
        await both.same("GET", f"/view?filename=a.bin&type={kind}&subfolder={prefix}")
    for form in CHANGED:
        picture = f"/view?filename=p.png&type=input&subfolder={prefix}&{form}"
        for method in ("GET", "HEAD"):
            await both.same(method, picture)
    here = f"/view?filename=a.bin&type=input&subfolder={prefix}"
    for more in ({"If-Match": '"x"'}, {"If-Match": "*"}, {"If-None-Match": '"x"'}, {"If-None-Match": "*"}):
        for method in ("GET", "HEAD"):
            await both.same(method, here, headers=more)


async def test_masks_are_joined_alike(both: Both, prefix: str) -> None:
    made = pictures()
    mask = saved(Image.merge("RGBA", [Image.effect_noise((40, 30), 60)] * 4))
    for name, data in made.items():
        await both.upload(data, name, subfolder=prefix)
        ref = {"filename": name, "subfolder": prefix, "type": "input"}
        target = f"mask-{name}.png"
        for fields in ({}, {"overwrite": "true"}):
            answer = await both.upload(
                mask, target, "/upload/mask", original_ref=json.dumps(ref), subfolder=prefix, **fields
            )
            assert answer == {"name": target, "subfolder": prefix, "type": "input"}
            place = {"filename": target, "subfolder": prefix, "type": "input"}
            await both.same("GET", "/view", params=place)
            if not fields:
                break


async def test_lists_are_alike(both: Both, prefix: str, comfyui_server: ComfyServer) -> None:
    for name in ("b.png", "a.png", ".hidden.png"):
        await both.upload(name.encode(), f"{name[:-4]}-{prefix}.png")
        await both.upload(name.encode(), name, subfolder=prefix)
    ours, theirs = await both.ask("GET", "/internal/files/input", alike=False)
    # Earlier versions leave the note out, and list hidden files.
    listed = {str(name).removesuffix(" [input]") for name in theirs.json() if prefix in name}
    assert {name.removesuffix(" [input]") for name in ours.json()} == {n for n in listed if n[0] != "."}
