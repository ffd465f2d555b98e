"""Pictures on request: formats, sizes, what is written in them, and files that are made to do harm."""

import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngInfo

from comfy_fleet.adapters.blobs.made_pictures import KEPT_S, MadePicturesFolder
from comfy_fleet.api.accepts import Accepts
from comfy_fleet.services import output_forms
from comfy_fleet.services.output_forms import KINDS, OutputForm, rendered
from comfy_fleet.services.picture_forms import NoSuchForm
from tests.unit.test_picture_forms import MOST, opened, png, saved

GRAPH = json.dumps({"1": {"class_type": "EmptyImage", "inputs": {"text": "fuchs"}}})
WORKFLOW = '{"nodes": [], "title": "grün"}'


def made(data: bytes, kind: str = "webp", most_pixels: int = MOST, **more: Any) -> Image.Image:
    return opened(rendered(data, OutputForm(kind=kind, **more), most_pixels=most_pixels))


def written() -> bytes:
    info = PngInfo()
    info.add_text("prompt", GRAPH)
    info.add_itxt("workflow", WORKFLOW)
    info.add_text("note", "mine")
    return saved(Image.new("RGB", (20, 10), "red"), pnginfo=info)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_becomes_every_other(source: str, kind: str) -> None:
    picture = made(saved(Image.new("RGB", (40, 20), "red"), source), kind, width=10)
    assert (picture.format, picture.size) == (kind.upper(), (10, 5))
    red, green, blue = picture.convert("RGB").getpixel((5, 2))  # type: ignore[misc]  # a tuple for RGB
    assert red > 240 and green < 15 and blue < 15


def test_nothing_is_enlarged_and_a_side_has_one_pixel_at_least() -> None:
    assert made(saved(Image.new("RGB", (4, 2))), width=100).size == (4, 2)
    assert made(saved(Image.new("RGB", (1000, 2))), width=10).size == (10, 1)


def test_a_lower_quality_takes_fewer_bytes() -> None:
    noise = saved(Image.effect_noise((200, 200), 90))
    low, high = (
        len(rendered(noise, OutputForm(kind=kind, quality=quality), most_pixels=MOST))
        for kind, quality in (("webp", 20), ("webp", 95))
    )
    assert low < high / 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_becomes_every_format(mode: str, kind: str) -> None:
    picture = Image.new(mode, (6, 4))
    source = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
    assert made(saved(picture, source), kind, width=3).size == (3, 2)
    assert made(saved(picture, source), kind).size == (6, 4)


def test_what_is_transparent_is_white_in_a_jpeg_and_transparent_elsewhere() -> None:
    for source in (
        Image.new("RGBA", (8, 8), (255, 0, 0, 0)),
        Image.new("LA", (8, 8), (0, 0)),
    ):
        assert min(made(saved(source), "jpeg").convert("RGB").tobytes()) > 250
        assert made(saved(source), "webp").getpixel((4, 4))[3] == 0  # type: ignore[index]  # RGBA
    palette = Image.new("P", (8, 8), 0)
    assert made(saved(palette, transparency=0), "png", width=4).getpixel((1, 1))[3] == 0  # type: ignore[index]


def test_sixteen_bits_of_gray_keep_their_brightness() -> None:
    gray = Image.new("I;16", (8, 8), 128 * 256)
    for kind in KINDS:
        value = made(saved(gray), kind, width=4).convert("L").tobytes()[5]
        assert abs(value - 128) <= 2, kind
    assert made(saved(gray), "png").mode.startswith("I")  # as it was


def test_a_picture_stands_as_its_exif_says() -> None:
    picture = Image.new("RGB", (20, 10), "red")
    picture.paste("blue", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for keeps in (False, True):
        upright = made(saved(picture, "JPEG", exif=exif), "png", keeps=keeps)
        assert upright.size == (10, 20)
        assert upright.convert("RGB").getpixel((5, 2))[2] > 200  # type: ignore[index]  # RGB
        assert 0x0112 not in upright.getexif()


def test_an_animation_goes_on_as_webp_and_stands_still_elsewhere() -> None:
    frames = [Image.new("RGB", (16, 8), color) for color in ("red", "lime", "blue")]
    for source in ("GIF", "WEBP", "PNG"):
        moving = saved(frames[0], source, save_all=True, append_images=frames[1:], duration=[50, 70, 90])
        webp = made(moving, width=8)
        assert (webp.n_frames, webp.size) == (3, (8, 4)), source  # type: ignore[attr-defined]
        webp.seek(1)
        webp.load()
        assert webp.info["duration"] == 70
        assert webp.convert("RGB").getpixel((4, 2))[1] > 200  # type: ignore[index]  # RGB
        for kind in ("jpeg", "png"):
            still = made(moving, kind)
            assert getattr(still, "n_frames", 1) == 1
            assert still.convert("RGB").getpixel((4, 2))[0] > 200  # type: ignore[index]  # RGB


def test_animations_beyond_a_limit_are_told_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (16, 8), (n, 0, 0)) for n in range(10)]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(NoSuchForm, match=r"of 16x8 pixels, 9 are within .* first picture with format=jpeg"):
        made(moving, most_pixels=9 * 16 * 8)
    assert made(moving, "jpeg", most_pixels=9 * 16 * 8).size == (16, 8)
    monkeypatch.setattr(output_forms, "MOST_FRAMES", 9)
    with pytest.raises(NoSuchForm, match="limits, 9 pictures"):
        made(moving)


def gif(*frames: tuple[int, int, int]) -> bytes:
    """A GIF of one pixel with frames of any width and height, and what becomes of each afterwards."""
    parts = [b"GIF89a", struct.pack("<HHBBB", 1, 1, 0x80, 0, 0), bytes(3), b"\xff\0\0"]
    for width, height, disposal in frames:
        parts.append(struct.pack("<BBBBHBB", 0x21, 0xF9, 4, disposal << 2, 0, 0, 0))
        parts.append(struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0")
    return b"".join((*parts, b";"))


@pytest.mark.parametrize(
    "frames",
    [
        [(50_000, 50_000, 2)],  # the library clears what it covers, before anything is decoded
        [(1, 1, 0), (50_000, 50_000, 0)],
        [(1, 1, 0), (50_000, 50_000, 2)],
    ],
)
def test_a_gif_that_is_larger_than_its_head_says_takes_no_memory(frames: list[tuple[int, int, int]]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 1024 * 1024, limits[1]))
    try:
        with pytest.raises(NoSuchForm, match="FLEET_MAX_PICTURE_PIXELS"):
            made(gif(*frames))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_an_animation_is_counted_as_it_grows() -> None:
    with pytest.raises(NoSuchForm, match="of 100x1 pixels, 1 are within"):
        made(gif((1, 1, 0), (100, 1, 0)), most_pixels=100)
    assert made(gif(*99 * [(1, 1, 0)]), most_pixels=100).size == (1, 1)
    with pytest.raises(NoSuchForm, match="100 are within"):
        made(gif(*101 * [(1, 1, 0)]), most_pixels=100)


def test_frames_beyond_the_limit_are_not_even_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seeks = []
    real = GifImageFile._seek  # noqa: SLF001 - what the library does for each is what it costs

    def counted(picture: GifImageFile, frame: int, update_image: bool = True) -> None:
        seeks.append(frame)
        real(picture, frame, update_image)

    monkeypatch.setattr(GifImageFile, "_seek", counted)
    with pytest.raises(NoSuchForm, match=f" {output_forms.MOST_FRAMES} are within"):
        made(gif(*5000 * [(1, 1, 0)]))
    assert len(seeks) < output_forms.MOST_FRAMES + 10


def test_comments_are_stripped_and_kept_as_other_texts() -> None:
    picture = Image.new("RGB", (8, 8), "red")
    info = PngInfo()
    info.add_text("comment", "made by ada")
    for source in (
        saved(picture, "JPEG", comment=b"made by ada"),
        saved(picture.convert("P"), "GIF", comment=b"made by ada"),
        saved(picture, pnginfo=info),
    ):
        for kind in KINDS:
            data = rendered(source, OutputForm(kind=kind), most_pixels=MOST)
            assert b"made by ada" in source and b"made by ada" not in data
        kept = rendered(source, OutputForm(kind="jpeg", keeps=True), most_pixels=MOST)
        assert b"made by ada" in kept


def test_a_color_profile_stays_only_with_the_colors_that_it_is_for() -> None:
    for mode in ("RGB", "CMYK"):
        source = saved(Image.new(mode, (8, 8)), "JPEG", icc_profile=b"profile of " + mode.encode())
        for kind in KINDS:
            assert ("icc_profile" in made(source, kind).info) == (mode == "RGB")


def test_what_is_written_in_a_picture_is_kept_only_if_that_is_asked_for() -> None:
    source = written()
    kept = made(source, "png", keeps=True, width=10)
    assert kept.text == {"prompt": GRAPH, "workflow": WORKFLOW, "note": "mine"}  # type: ignore[attr-defined]
    assert made(source, "png").text == {}  # type: ignore[attr-defined]
    for kind in ("webp", "jpeg"):
        stripped = rendered(source, OutputForm(kind=kind), most_pixels=MOST)
        assert b"EmptyImage" not in stripped and not len(opened(stripped).getexif())
        again = rendered(source, OutputForm(kind=kind, keeps=True), most_pixels=MOST)
        exif = opened(again).getexif()  # where ComfyUI's editor looks for it
        assert exif[0x0110] == f"prompt:{GRAPH}"
        name, _, text = exif[0x010F].partition(":")
        assert (name, json.loads(text)) == ("workflow", json.loads(WORKFLOW))
        back = made(again, "png", keeps=True).text  # type: ignore[attr-defined]
        assert json.loads(back["workflow"]) == json.loads(WORKFLOW) and back["prompt"] == GRAPH


def test_a_jpeg_has_no_room_for_a_large_graph() -> None:
    info = PngInfo()
    info.add_text("prompt", json.dumps({"1": "x" * 70_000}))
    source = saved(Image.new("RGB", (4, 4)), pnginfo=info)
    with pytest.raises(NoSuchForm, match="does not fit into a JPEG: ask for format=webp"):
        made(source, "jpeg", keeps=True)
    assert made(source, "webp", keeps=True).getexif()[0x0110].startswith("prompt:")
    assert made(source, "jpeg").size == (4, 4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        b"%PDF-1.7",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        png(60_000, 60_000),
        png(4, 4),
        saved(Image.effect_noise((64, 64), 90))[:1200],
        b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\0\0\0;",
    ],
)
def test_what_is_none_or_far_larger_than_it_seems_is_refused(data: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(NoSuchForm):
            made(data, kind)


def test_tags_are_names_of_files_and_tell_forms_apart() -> None:
    forms = [
        OutputForm(kind=kind, quality=quality, width=width, keeps=keeps)
        for kind in ("webp", "jpeg")
        for quality in (1, 100)
        for width in (None, 1, 11)
        for keeps in (False, True)
    ]
    tags = {form.tag for form in forms}
    assert len(tags) == len(forms) and all(tag.isalnum() for tag in tags)


@pytest.mark.parametrize(
    ("header", "weights"),
    [
        ("", (1, 1, 1)),
        ("*/*", (1, 1, 1)),
        ("image/webp, */*;q=0.8", (1, 0.8, 0.8)),
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", (1, 1, 0.8)),
        ("image/*;q=0.5, image/png;q=0", (0.5, 0, 0)),
        ("IMAGE/WEBP ; Q=0.3", (0.3, 0, 0)),
        ("text/html", (0, 0, 0)),
        ("image/webp;q=2, ;;, image/png;level=1;q=1.000", (0, 1, 0)),
    ],
)
def test_what_is_accepted(header: str, weights: tuple[float, float, float]) -> None:
    accepts = Accepts.read([header])
    kinds = ("image/webp", "image/png", "application/json")
    assert tuple(accepts.weight(kind) for kind in kinds) == weights


async def test_what_was_made_is_kept_within_bounds_of_bytes_and_time(tmp_path: Path) -> None:
    now = [1_000_000.0]
    most = 10 * 4096
    kept = MadePicturesFolder(tmp_path / "made", most_bytes=most, clock=lambda: now[0])
    for number in range(30):
        now[0] += 1
        data = bytes(100 if number % 2 else 4096)  # on a disk, they take as much
        await kept.put(f"a-{number}", data)
        assert await kept.get("a-0") == bytes(4096)  # it is used, so it stays
    assert len(list((tmp_path / "made").iterdir())) <= 11
    assert await kept.get("a-1") is None and await kept.get("a-29") == bytes(100)
    assert (await kept.size("a-29"), await kept.size("a-1")) == (100, None)
    await kept.put("large", bytes(most // 4 + 1))
    assert await kept.get("large") is None
    now[0] += KEPT_S + 1
    assert await kept.get("a-0") is None
    again = MadePicturesFolder(tmp_path / "made", most_bytes=most, clock=lambda: now[0])
    await again.put("b", b"new")
    assert [one.name for one in (tmp_path / "made").iterdir()] == ["b"]


async def test_no_bytes_means_none_are_kept(tmp_path: Path) -> None:
    kept = MadePicturesFolder(tmp_path / "made", most_bytes=0)
    await kept.put("a", b"x")
    assert await kept.get("a") is None and not (tmp_path / "made").exists()
