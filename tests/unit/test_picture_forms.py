"""Pictures in another form: what ComfyUI makes of them, and files that are made to do harm."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import ExifTags, Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo

from comfy_fleet.services.picture_forms import NoSuchForm, PictureForm, formed, masked

MOST = 1_000_000


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    picture = Image.open(BytesIO(data))
    picture.load()
    return picture


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"", *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


RGBA = Image.new("RGBA", (7, 5), (10, 200, 30, 40))
PREVIEW = PictureForm(preview="webp")


@pytest.mark.parametrize(
    ("query", "form"),
    [
        ({}, None),
        ({"channel": "rgba"}, None),
        ({"channel": "b"}, None),
        ({"channel": ""}, None),
        ({"channel": "rgb"}, PictureForm(channel="rgb")),
        ({"channel": "a"}, PictureForm(channel="a")),
        ({"preview": ""}, PREVIEW),
        ({"preview": "webp"}, PREVIEW),
        ({"preview": "webp;75"}, PictureForm(preview="webp", quality=75)),
        ({"preview": "jpeg;75"}, PictureForm(preview="jpeg", quality=75)),
        ({"preview": "jpeg"}, PictureForm(preview="jpeg")),
        ({"preview": "bmp;3"}, PictureForm(preview="webp", quality=3)),
        ({"preview": "42"}, PictureForm(preview="webp", quality=42)),
        ({"preview": "jpeg;a"}, PictureForm(preview="jpeg")),
        ({"preview": "jpeg;²"}, PictureForm(preview="jpeg")),
        ({"preview": "jpeg;" + "9" * 5000}, PictureForm(preview="jpeg", quality=100)),
        ({"preview": "jpeg;0"}, PictureForm(preview="jpeg", quality=0)),
        ({"preview": "jpeg", "channel": "a"}, PREVIEW),
        ({"preview": "jpeg", "channel": "rgba"}, PREVIEW),
        ({"preview": "jpeg", "channel": "rgb"}, PictureForm(preview="jpeg", channel="rgb")),
    ],
)
def test_a_query_is_read_as_comfyui_reads_it(query: dict[str, str], form: PictureForm | None) -> None:
    assert PictureForm.read(query) == form


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_a_preview_is_the_whole_picture(kind: str) -> None:
    form = PictureForm(preview=kind)
    assert form.content_type == f"image/{kind}"
    shown = opened(formed(saved(RGBA), form, most_pixels=MOST))
    assert (shown.format, shown.size) == (kind.upper(), (7, 5))
    assert shown.mode == ("RGBA" if kind == "webp" else "RGB")
    opaque = formed(saved(RGBA), PictureForm(preview=kind, channel="rgb"), most_pixels=MOST)
    assert opened(opaque).mode == "RGB"


def test_channels_are_comfyuis() -> None:
    colors = opened(formed(saved(RGBA), PictureForm(channel="rgb"), most_pixels=MOST))
    assert (colors.format, colors.mode, colors.getpixel((0, 0))) == ("PNG", "RGB", (10, 200, 30))
    alpha = opened(formed(saved(RGBA), PictureForm(channel="a"), most_pixels=MOST))
    assert (alpha.format, alpha.mode, alpha.getpixel((0, 0))) == ("PNG", "RGBA", (0, 0, 0, 40))
    opaque = opened(formed(saved(RGBA.convert("RGB")), PictureForm(channel="a"), most_pixels=MOST))
    assert opaque.getpixel((6, 4)) == (0, 0, 0, 255)


def _cmyk() -> bytes:
    return saved(Image.new("CMYK", (7, 5), (0, 255, 255, 0)), "JPEG")


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.new("RGB", (7, 5), "red"), "JPEG", exif=exif)


def _moving(kind: str) -> bytes:
    frames = [Image.new("RGB", (7, 5), color) for color in ("red", "green", "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def _palette() -> bytes:
    picture = Image.new("P", (7, 5))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    return saved(picture, transparency=bytes([10, 255]))


@pytest.mark.parametrize("form", [PREVIEW, PictureForm(preview="jpeg"), PictureForm(channel="rgb")])
@pytest.mark.parametrize(
    "made",
    [_cmyk, _turned, lambda: _moving("WEBP"), lambda: _moving("GIF"), _palette, lambda: saved(RGBA, "TIFF")],
)
def test_unusual_pictures_are_converted(made: Callable[[], bytes], form: PictureForm) -> None:
    shown = opened(formed(made(), form, most_pixels=MOST))
    assert shown.size == (7, 5), "as it is stored: ComfyUI turns nothing"
    assert len(list(ImageSequence.Iterator(shown))) == 1


def test_sixteen_bits_are_refused_where_the_library_has_no_way() -> None:
    data = saved(Image.new("I;16", (7, 5), 40_000))
    assert opened(formed(data, PictureForm(channel="a"), most_pixels=MOST)).size == (7, 5)
    assert opened(formed(data, PREVIEW, most_pixels=MOST)).size == (7, 5)


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "a page": b"<html><script>alert(1)</script>",
    "an svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a program for printers": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n(x) print\n",
    "a size of billions": png(65535, 65535),
    "no size": png(0, 5),
    "a size beyond all": png(2**31 - 1, 2**31 - 1),
    "a small bomb": png(1001, 1000, b"\0" * 4005 * 1000),
    "a size without pixels": png(7, 5),
    "a huge photograph": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\1\x22\0\2\x11\1\3\x11\1\xff\xd9",
    "an inflated text": png(7, 5, b"\0" * 145, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 50_000_000))),
    "a huge gif": b"GIF89a\xff\xff\xff\xff\x80\0\0"
    + b"\0" * 6
    + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;",
    "a huge webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff" + b"\0" * 8,
    "a huge tiff": b"II*\0\x08\0\0\0\x02\0"
    b"\0\1\4\0\1\0\0\0\xff\xff\xff\x7f\1\1\4\0\1\0\0\0\xff\xff\xff\x7f\0\0\0\0",
}
NOISE = Image.effect_noise((90, 90), 90).convert("RGB")
CUT = {"a picture": saved(NOISE)[:2000], "a photograph": saved(NOISE, "JPEG")[:800]}


@pytest.mark.parametrize("form", [PREVIEW, PictureForm(channel="rgb"), PictureForm(channel="a")])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(kind: str, form: PictureForm) -> None:
    with pytest.raises(NoSuchForm):
        formed(HOSTILE[kind], form, most_pixels=MOST)


@pytest.mark.parametrize("kind", CUT)
def test_cut_files_are_refused_where_their_pixels_are_needed(kind: str) -> None:
    for form in (PREVIEW, PictureForm(preview="jpeg"), PictureForm(channel="rgb")):
        with pytest.raises(NoSuchForm):
            formed(CUT[kind], form, most_pixels=MOST)


def test_the_refusal_of_what_is_no_picture_says_what_is_one() -> None:
    with pytest.raises(NoSuchForm, match=r"none of PNG, JPEG"):
        formed(HOSTILE["a page"], PREVIEW, most_pixels=MOST)


def test_the_refusal_of_a_large_picture_names_the_limit() -> None:
    with pytest.raises(NoSuchForm, match=r"more than 1000000 pixels.*FLEET_MAX_PICTURE_PIXELS"):
        formed(HOSTILE["a size of billions"], PREVIEW, most_pixels=MOST)


# -- masks -----------------------------------------------------------------------------------------------


def test_a_mask_gives_its_transparency_and_nothing_else() -> None:
    texts = PngInfo()
    texts.add_text("prompt", '{"1": {}}')
    texts.add_itxt("workflow", "é", "en", "x")
    original = saved(Image.new("RGB", (7, 5), (1, 2, 3)), pnginfo=texts)
    joined = opened(masked(original, saved(RGBA), "s/m.png", most_pixels=MOST))
    assert (joined.format, joined.mode, joined.getpixel((3, 3))) == ("PNG", "RGBA", (1, 2, 3, 40))
    assert getattr(joined, "text", None) == {"prompt": '{"1": {}}', "workflow": "é"}
    assert opened(masked(original, saved(RGBA), "m.WEBP", most_pixels=MOST)).format == "WEBP"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_fits_the_picture_as_people_see_it(orientation: int) -> None:
    """A telephone saves a picture as its sensor lies; programs in which masks are drawn show it upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lying = Image.new("RGB", (8, 4))
    lying.putpixel((0, 0), (255, 255, 255))
    original = saved(lying, exif=exif)
    upright = ImageOps.exif_transpose(opened(original))
    size = (4, 8) if orientation > 4 else (8, 4)
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.putpixel((1, 2), (0, 0, 0, 0))
    joined = opened(masked(original, saved(mask), "m.png", most_pixels=MOST))
    assert joined.size == size and joined.getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert joined.convert("RGB").tobytes() == upright.tobytes()
    assert joined.getchannel("A").tobytes() == mask.getchannel("A").tobytes()
    if orientation > 4:
        with pytest.raises(NoSuchForm, match="has 8x8 pixels, the original 4x8, as its Exif orient"):
            masked(original, saved(mask.resize((8, 8))), "m.png", most_pixels=MOST)
        as_comfyui = opened(masked(original, saved(mask.resize((8, 4))), "m.png", most_pixels=MOST))
        assert as_comfyui.convert("RGB").tobytes() == opened(original).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("original", "mask", "name", "why"),
    [
        (saved(RGBA), saved(Image.new("RGBA", (5, 7))), "m.png", "the mask has 5x7 pixels, the original 7x5"),
        (saved(RGBA), saved(RGBA), "m.jpg", "must end in .png or .webp"),
        (saved(RGBA), saved(RGBA), "m", "must end in .png or .webp"),
        (b"", saved(RGBA), "m.png", "can't be read"),
        (saved(RGBA), b"", "m.png", "can't be read"),
        (HOSTILE["a small bomb"], saved(RGBA), "m.png", "more than 1000000 pixels"),
        (saved(RGBA), HOSTILE["a small bomb"], "m.png", "more than 1000000 pixels"),
        (HOSTILE["an inflated text"], saved(RGBA), "m.png", "can't be read"),
    ],
)
def test_masks_that_fit_nothing_are_refused(original: bytes, mask: bytes, name: str, why: str) -> None:
    with pytest.raises(NoSuchForm, match=why):
        masked(original, mask, name, most_pixels=MOST)
