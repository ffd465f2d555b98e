"""A picture as a web page wants it: another format, smaller, with or without what ComfyUI wrote into it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from comfy_fleet.services.picture_forms import NoSuchForm, opened, refusing, saved

KINDS = ("webp", "jpeg", "png")
"""Formats that can be asked for."""
QUALITY = 85
MOST_FRAMES = 600
_PROFILED = ("RGB", "RGBA", "L", "LA", "P", "PA", "I;16")
"""Modes whose color profile fits what becomes of them."""
_MOVING = ("GIF", "WEBP", "PNG", "AVIF")
_MOST_EXIF = 65_000  # a JPEG has no room for more
_MODEL, _MAKE = 0x0110, 0x010F  # where ComfyUI writes the prompt, and from where on down all else
_ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class OutputForm:
    """What is asked for.

    Attributes:
        kind: One of :data:`KINDS`.
        quality: 1 to 100; without meaning for PNG.
        width: Most pixels of a row; None: as many as there are. No picture is made larger.
        keeps: Whether the graph and other texts in the file are kept.
    """

    kind: str
    quality: int = QUALITY
    width: int | None = None
    keeps: bool = False

    @property
    def content_type(self) -> str:
        """The type of what :func:`rendered` returns."""
        return f"image/{self.kind}"

    @property
    def tag(self) -> str:
        """Distinguishes this form from others of the same file."""
        quality = "" if self.kind == "png" else str(self.quality)
        return f"{self.kind}{quality}w{self.width or 0}{'k' if self.keeps else 's'}"


def rendered(data: bytes, form: OutputForm, *, most_pixels: int) -> bytes:
    """Return a picture in a form.

    It stands as its Exif orientation says. What is transparent is white in a JPEG. An animation goes on as
    WebP; other formats have its first picture. 16 bits of gray become 8, but in a PNG of the same size.

    Args:
        data: The file.
        form: The form.
        most_pixels: Most pixels of the picture, and of all pictures of an animation together.

    Raises:
        NoSuchForm: It is no picture, a broken one, or beyond a limit.
    """
    with refusing(), opened(data, most_pixels) as picture:
        if form.kind == "webp" and picture.format in _MOVING and getattr(picture, "is_animated", False):
            return _moving(picture, form, most_pixels)
        picture.load()
        texts, exif = _written_in(picture) if form.keeps else ({}, None)
        icc = picture.info.get("icc_profile") if picture.mode in _PROFILED else None
        shown = _fitted(ImageOps.exif_transpose(picture), form)
        stays = ("transparency", "comment") if form.keeps else ("transparency",)
        # What is left here is saved, too, whatever the options say.
        shown.info = {name: shown.info[name] for name in stays if name in shown.info}
        options: dict[str, Any] = {"icc_profile": icc} if icc else {}
        if form.kind != "png":
            options["quality"] = form.quality
        if form.keeps:
            options |= _details(texts, exif, form)
        return saved(shown, form.kind, **options)


def _moving(picture: Image.Image, form: OutputForm, most_pixels: int) -> bytes:
    shown: list[Image.Image] = []
    durations: list[int] = []
    texts, exif = _written_in(picture) if form.keeps else ({}, None)
    loop = picture.info.get("loop", 0)
    left = most_pixels
    while True:
        try:
            picture.seek(len(shown))
        except EOFError:
            break
        left -= picture.width * picture.height  # a GIF may grow from one to the next
        if left < 0 or len(shown) == MOST_FRAMES:
            raise NoSuchForm(
                f"the animation is too large: of its pictures of {picture.width}x{picture.height} pixels, "
                f"{len(shown)} are within the limits, {MOST_FRAMES} pictures and {most_pixels} pixels "
                "together (FLEET_MAX_PICTURE_PIXELS): ask for the file itself, or for its first picture with "
                "format=jpeg"
            )
        shown.append(_resized(picture.convert("RGBA"), form.width))
        durations.append(int(picture.info.get("duration", 100)))  # of a WebP, known once it is decoded
    options = _details(texts, exif, form) if form.keeps else {}
    first, *others = shown
    return saved(
        first,
        "webp",
        save_all=True,
        append_images=others,
        duration=durations,
        loop=loop,
        quality=form.quality,
        **options,
    )


def _fitted(picture: Image.Image, form: OutputForm) -> Image.Image:
    if form.kind == "png" and form.width is None and picture.mode in ("1", "I;16", "P", "L", "LA"):
        return picture
    shown = _resized(_eight_bits(picture), form.width)
    if form.kind != "jpeg" or shown.mode in ("RGB", "L"):
        return shown
    below = Image.new("RGBA", shown.size, "white")
    return Image.alpha_composite(below, shown).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return a picture in one of the modes L, RGB and RGBA."""
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.mode in ("L", "RGB", "RGBA") and "transparency" not in picture.info:
        return picture
    if picture.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode in ("1", "F") else "RGB")


def _resized(picture: Image.Image, width: int | None) -> Image.Image:
    if width is None or width >= picture.width:
        return picture
    height = max(1, round(picture.height * width / picture.width))
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _written_in(picture: Image.Image) -> tuple[dict[str, str], Image.Exif]:
    """Return the texts of a picture by name, from wherever ComfyUI writes them, and its other Exif."""
    exif = picture.getexif()
    texts = {name: str(text) for name, text in getattr(picture, "text", {}).items()}
    for tag in list(exif):
        value = exif[tag]
        name, colon, text = value.partition(":") if isinstance(value, str) else ("", "", "")
        if colon and name.isidentifier() and text.startswith("{"):
            texts.setdefault(name, text.rstrip("\0"))
            del exif[tag]
    return texts, exif


def _details(texts: Mapping[str, str], exif: Image.Exif | None, form: OutputForm) -> dict[str, Any]:
    """Return the options by which a picture is saved with texts, as ComfyUI writes them."""
    exif = exif if exif is not None else Image.Exif()
    exif.pop(_ORIENTATION, None)  # it has been heeded
    if form.kind == "png":
        info = PngInfo()
        for name, text in texts.items():
            info.add_itxt(name, text) if not text.isascii() else info.add_text(name, text)
        return {"pnginfo": info, **({"exif": exif} if len(exif) else {})}
    others = _MAKE
    for name, text in texts.items():
        if not text.startswith("{"):
            continue
        told = text if text.isascii() else json.dumps(json.loads(text))
        if name == "prompt":
            exif[_MODEL] = f"{name}:{told}"
        else:
            exif[others] = f"{name}:{told}"
            others -= 1
    written = exif.tobytes() if len(exif) else b""
    if form.kind == "jpeg" and len(written) > _MOST_EXIF:
        raise NoSuchForm(
            f"what is written in the file, {len(written)} bytes, does not fit into a JPEG: ask for "
            "format=webp, or for metadata=strip"
        )
    return {"exif": written} if written else {}
