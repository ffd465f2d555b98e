"""Pictures in another form: what ``/view`` makes of them with ``preview`` and ``channel``, and masks.

The results are those of ComfyUI, which uses the same library. Its inputs are anything that users upload, so
only formats with decoders in the library itself are read, and only pictures of a limited size.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from comfy_fleet.domain.text import clip

# A head may say little, and a later part of the file much more: the library checks that as it reads on.
warnings.simplefilter("error", Image.DecompressionBombWarning)

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_DEFAULT_QUALITY = 90
_QUALITIES = (80, 60, 40, 20)  # of a thumbnail, until it is small enough
_TURNED = (5, 6, 7, 8)  # orientations in which rows are columns
_MASKED_FORMATS = {".png": "PNG", ".webp": "WEBP"}


class NoSuchForm(Exception):
    """The picture can't be had in this form; the text says why."""


@dataclass(frozen=True, kw_only=True)
class PictureForm:
    """What is asked for besides the file as it is.

    Attributes:
        preview: ``webp`` or ``jpeg``; empty if none is asked for.
        quality: Of a preview, 0 to 100.
        channel: ``rgb`` or ``a``; empty for all channels.
    """

    preview: str = ""
    quality: int = _DEFAULT_QUALITY
    channel: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> "PictureForm | None":
        """Read a query's ``preview`` (``webp;90``, ``jpeg``) and ``channel``; None asks for the file."""
        channel = query.get("channel", "")
        if "preview" in query:
            words = query["preview"].split(";")
            kind = "jpeg" if words[0] == "jpeg" and "a" not in channel else "webp"
            number = words[-1]
            quality = int(number[:9]) if number.isascii() and number.isdigit() else _DEFAULT_QUALITY
            return cls(preview=kind, quality=min(quality, 100), channel="rgb" if channel == "rgb" else "")
        return cls(channel=channel) if channel in ("rgb", "a") else None

    @property
    def content_type(self) -> str:
        """The type of what :func:`formed` returns."""
        return f"image/{self.preview or 'png'}"

    @property
    def tag(self) -> str:
        """Distinguishes this form from others of the same file."""
        return f"{self.preview}{self.quality}{self.channel}"


def formed(data: bytes, form: PictureForm, *, most_pixels: int) -> bytes:
    """Return a picture in another form.

    Raises:
        NoSuchForm: It is no picture, a broken one, or has more pixels than this.
    """
    with refusing(), opened(data, most_pixels) as picture:
        if form.preview:
            return _preview(picture, form)
        return _opaque(picture) if form.channel == "rgb" else _transparency(picture)


def masked(original: bytes, mask: bytes, name: str, *, most_pixels: int) -> bytes:
    """Return a picture with the transparency of another one, and with the texts of the first.

    Masks are drawn on what people see, so the picture is made upright as its Exif says. A mask that fits only
    the picture as it lies in the file is joined with that, as ComfyUI does.

    Args:
        original: The picture.
        mask: The other one.
        name: The result's file name, which decides its format.
        most_pixels: Most pixels of each.

    Raises:
        NoSuchForm: One of them is no picture, a broken one or too large, or they differ in size.
    """
    suffix = name[name.rfind(".") :].lower()
    if suffix not in _MASKED_FORMATS:
        raise NoSuchForm("the name of a picture with a mask must end in .png or .webp")
    with refusing(), opened(original, most_pixels) as lying, opened(mask, most_pixels) as above:
        turned = lying.getexif().get(ExifTags.Base.Orientation) in _TURNED
        width, height = lying.size[::-1] if turned else lying.size
        if above.size not in ((width, height), lying.size):
            also = ", as its Exif orientation says" if turned else ""
            raise NoSuchForm(
                f"the mask has {above.width}x{above.height} pixels, the original {width}x{height}{also}"
            )
        below = ImageOps.exif_transpose(lying) if above.size == (width, height) else lying
        texts = PngInfo()
        for key, value in getattr(lying, "text", {}).items():
            texts.add_text(key, value)
        joined = below.convert("RGBA")
        joined.putalpha(above.convert("RGBA").getchannel("A"))
        return saved(joined, _MASKED_FORMATS[suffix], compress_level=4, pnginfo=texts)


def thumbnail(data: bytes, *, side: int, most_bytes: int, most_pixels: int) -> bytes:
    """Return a small WebP of a picture, of an animation's first frame.

    Args:
        data: The picture.
        side: Most pixels of its longer side.
        most_bytes: Most bytes of the result.
        most_pixels: Most pixels of the picture.

    Raises:
        NoSuchForm: It is no picture, a broken one, or has more pixels than this.
    """
    with refusing(), opened(data, most_pixels) as picture:
        shown = picture.convert("RGBA") if picture.mode in ("P", "LA", "PA") else picture
        small = shown if shown.mode in ("RGB", "RGBA") else shown.convert("RGB")
        small.thumbnail((side, side))
        for quality in _QUALITIES:
            made = saved(small, "webp", quality=quality)
            if len(made) <= most_bytes:
                return made
        raise NoSuchForm(f"the picture takes more than {most_bytes} bytes")


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what decoders raise, which is nearly anything, into a refusal."""
    try:
        yield
    except NoSuchForm:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = Image.MAX_IMAGE_PIXELS
        raise NoSuchForm(
            f"the picture has more than {most} pixels: no larger one is converted (FLEET_MAX_PICTURE_PIXELS)"
        ) from None
    except UnidentifiedImageError:
        raise NoSuchForm(
            f"the file can't be read as a picture: it is none of {', '.join(_FORMATS)}"
        ) from None
    except Exception as error:
        words = clip(str(error) or type(error).__name__, 200)
        raise NoSuchForm(f"the file can't be read as a picture: {words}") from error


def opened(data: bytes, most_pixels: int) -> Image.Image:
    """Return a picture, of which only the head was read.

    Whatever else is read of it is bounded, too; within :func:`refusing`, that is a NoSuchForm. The library
    has one limit for the process, as the operator has: it is not told of another one.
    """
    Image.MAX_IMAGE_PIXELS = most_pixels
    return Image.open(BytesIO(data), formats=_FORMATS)


def _preview(picture: Image.Image, form: PictureForm) -> bytes:
    shown = _as_rgb(picture) if form.preview == "jpeg" or form.channel == "rgb" else picture
    return saved(shown, form.preview, quality=form.quality)


def _opaque(picture: Image.Image) -> bytes:
    if picture.mode == "RGBA":
        return saved(Image.merge("RGB", picture.split()[:3]), "PNG")
    return saved(_as_rgb(picture), "PNG")


def _transparency(picture: Image.Image) -> bytes:
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else Image.new("L", picture.size, 255)
    shown = Image.new("RGBA", picture.size)
    shown.putalpha(alpha)
    return saved(shown, "PNG")


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        picture = picture.convert("RGBA")  # the same colors, without a warning
    return picture.convert("RGB")


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as a file of a format."""
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
