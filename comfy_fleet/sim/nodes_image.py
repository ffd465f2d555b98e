"""Node classes that work on pixels: these do the real thing, with Pillow."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, ImageChops, ImageFilter, ImageOps, ImageSequence

from comfy_fleet.sim.values import Pictures

METHODS = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "bislerp": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
BLENDS: Mapping[str, Callable[[Image.Image, Image.Image], Image.Image]] = {
    "normal": lambda _, second: second,
    "multiply": ImageChops.multiply,
    "screen": ImageChops.screen,
    "overlay": ImageChops.overlay,
    "soft_light": ImageChops.soft_light,
    "difference": ImageChops.difference,
}


def empty(width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[Pictures]:
    """Make pictures of one colour."""
    rgb = (color >> 16 & 255, color >> 8 & 255, color & 255)
    return ((Image.new("RGB", (width, height), rgb),) * batch_size,)


def invert(image: Pictures) -> tuple[Pictures]:
    """Turn every channel round."""
    return (tuple(ImageOps.invert(picture.convert("RGB")) for picture in image),)


def resize(picture: Image.Image, width: int, height: int, method: str, crop: str = "disabled") -> Image.Image:
    """Scale one picture, cutting its middle out first when the proportions shall be kept."""
    if crop == "center":
        return ImageOps.fit(picture, (width, height), METHODS[method])
    return picture.resize((width, height), METHODS[method])


def scale(image: Pictures, upscale_method: str, width: int, height: int, crop: str) -> tuple[Pictures]:
    """Scale to a size; a 0 follows from the other side."""
    old_width, old_height = image[0].size
    if width == 0 and height == 0:
        return (image,)
    width = width or max(1, round(old_width * height / old_height))
    height = height or max(1, round(old_height * width / old_width))
    return (tuple(resize(picture, width, height, upscale_method, crop) for picture in image),)


def scale_by(image: Pictures, upscale_method: str, scale_by: float) -> tuple[Pictures]:
    """Scale by a factor."""
    size = [max(1, round(side * scale_by)) for side in image[0].size]
    return (tuple(resize(picture, size[0], size[1], upscale_method) for picture in image),)


def scale_to_pixels(image: Pictures, upscale_method: str, megapixels: float, **_: Any) -> tuple[Pictures]:
    """Scale to a number of pixels, one megapixel being 1024 x 1024."""
    width, height = image[0].size
    return scale_by(image, upscale_method, math.sqrt(megapixels * 1024 * 1024 / (width * height)))


def scale_to_longest(image: Pictures, upscale_method: str, largest_size: int) -> tuple[Pictures]:
    """Scale until the longer side has a length."""
    return scale_by(image, upscale_method, largest_size / max(image[0].size))


def kontext_scale(image: Pictures) -> tuple[Pictures]:
    """Scale to about one megapixel with sides that are multiples of 16."""
    width, height = image[0].size
    factor = math.sqrt(1024 * 1024 / (width * height))
    size = [max(16, round(side * factor / 16) * 16) for side in (width, height)]
    return (tuple(resize(picture, size[0], size[1], "lanczos", "center") for picture in image),)


def resize_by_choice(input: Pictures, resize_type: Mapping[str, Any], scale_method: str) -> tuple[Pictures]:  # noqa: A002 - ComfyUI's name
    """Scale in one of the ways of ``ResizeImageMaskNode``, whose members come with it."""
    how, (width, height) = resize_type, input[0].size
    kind = how["resize_type"]
    if kind == "scale by multiplier":
        return scale_by(input, scale_method, how["multiplier"])
    if kind == "scale total pixels":
        return scale_to_pixels(input, scale_method, how["megapixels"])
    if kind == "scale longer dimension":
        return scale_to_longest(input, scale_method, how["longer_size"])
    if kind == "scale shorter dimension":
        return scale_by(input, scale_method, how["shorter_size"] / min(width, height))
    if kind == "match size":
        width, height = how["match"][0].size
    elif kind == "scale to multiple":
        width, height = (max(1, side // how["multiple"]) * how["multiple"] for side in (width, height))
    else:  # both dimensions, or one of them: the other follows
        width, height = how.get("width", 0), how.get("height", 0)
    crop = how.get("crop", "center" if kind == "scale to multiple" else "disabled")
    return scale(input, scale_method, width, height, crop)


def batch_all(images: Mapping[str, Pictures]) -> tuple[Pictures]:
    """Put any number of batches together, all at the first's size."""
    joined, *others = images.values()
    for other in others:
        (joined,) = batch(joined, other)
    return (joined,)


def batch(image1: Pictures, image2: Pictures) -> tuple[Pictures]:
    """Put two batches together, the second at the first's size."""
    width, height = image1[0].size
    return (image1 + tuple(resize(picture, width, height, "bilinear", "center") for picture in image2),)


def from_batch(image: Pictures, batch_index: int, length: int) -> tuple[Pictures]:
    """Take a part of a batch."""
    first = min(len(image) - 1, batch_index)
    return (image[first : first + length],)


def repeat(image: Pictures, amount: int) -> tuple[Pictures]:
    """Repeat a batch."""
    return (image * amount,)


def blend(image1: Pictures, image2: Pictures, blend_factor: float, blend_mode: str) -> tuple[Pictures]:
    """Mix two batches.

    Raises:
        ValueError: The mode does not exist: the server does not check it earlier.
    """
    mode = BLENDS.get(blend_mode)
    if mode is None:
        raise ValueError(f"Unsupported blend mode: {blend_mode}")
    mixed = []
    for index, first in enumerate(image1):
        second = resize(image2[min(index, len(image2) - 1)], *first.size, "bicubic").convert(first.mode)
        mixed.append(Image.blend(first, mode(first, second), blend_factor))
    return (tuple(mixed),)


def blur(image: Pictures, blur_radius: int, sigma: float) -> tuple[Pictures]:
    """Blur."""
    radius = min(float(blur_radius), sigma)
    return (tuple(picture.filter(ImageFilter.GaussianBlur(radius)) for picture in image),)


def sharpen(image: Pictures, sharpen_radius: int, sigma: float, alpha: float) -> tuple[Pictures]:
    """Sharpen."""
    mask = ImageFilter.UnsharpMask(min(float(sharpen_radius), sigma), int(alpha * 100), 0)
    return (tuple(picture.filter(mask) for picture in image),)


def quantize(image: Pictures, colors: int, dither: str) -> tuple[Pictures]:
    """Use few colours."""
    how = Image.Dither.NONE if dither == "none" else Image.Dither.FLOYDSTEINBERG
    few = []
    for picture in image:
        palette = picture.convert("RGB").quantize(colors)
        few.append(picture.convert("RGB").quantize(palette=palette, dither=how).convert("RGB"))
    return (tuple(few),)


def crop(image: Pictures, width: int, height: int, x: int, y: int) -> tuple[Pictures]:
    """Cut a part out; a place outside moves to the edge."""
    x, y = min(x, image[0].width - 1), min(y, image[0].height - 1)
    right, bottom = min(x + width, image[0].width), min(y + height, image[0].height)
    return (tuple(picture.crop((x, y, right, bottom)) for picture in image),)


def flip(image: Pictures, flip_method: str) -> tuple[Pictures]:
    """Mirror."""
    mirror = ImageOps.flip if flip_method.startswith("x") else ImageOps.mirror
    return (tuple(mirror(picture) for picture in image),)


def rotate(image: Pictures, rotation: str) -> tuple[Pictures]:
    """Turn clockwise by ``90 degrees`` and so on."""
    degrees = int(rotation.split(maxsplit=1)[0]) if rotation[0].isdigit() else 0
    return (tuple(picture.rotate(-degrees, expand=True) for picture in image),)


def pad(
    image: Pictures, left: int, top: int, right: int, bottom: int, feathering: int
) -> tuple[Pictures, Pictures]:
    """Add a grey border and a mask of it."""
    width, height = image[0].size
    size = (width + left + right, height + top + bottom)
    padded = []
    for picture in image:
        wide = Image.new("RGB", size, (128, 128, 128))
        wide.paste(picture, (left, top))
        padded.append(wide)
    mask = Image.new("L", size, 255)
    mask.paste(0, (left, top, left + width, top + height))
    return tuple(padded), (mask.filter(ImageFilter.GaussianBlur(feathering / 4)) if feathering else mask,)


def composite(
    destination: Pictures, source: Pictures, x: int, y: int, resize_source: bool, mask: Pictures | None = None
) -> tuple[Pictures]:
    """Lay one picture over another, through a mask if there is one."""
    done = []
    for index, below in enumerate(destination):
        above = source[min(index, len(source) - 1)]
        if resize_source:
            above = resize(above, *below.size, "bilinear")
        picture = below.copy()
        through = mask[min(index, len(mask) - 1)].resize(above.size) if mask else None
        picture.paste(above, (x, y), through)
        done.append(picture)
    return (tuple(done),)


def size(image: Pictures) -> tuple[int, int, int]:
    """Return width, height and the number of pictures."""
    return image[0].width, image[0].height, len(image)


def add_noise(image: Pictures, seed: int, strength: float) -> tuple[Pictures]:
    """Lay coloured noise over pictures; the same seed gives the same noise."""
    noisy = []
    for index, picture in enumerate(image):
        values = random.Random(f"{seed} {index}").randbytes(picture.width * picture.height * 3)
        noise = Image.frombytes("RGB", picture.size, values)
        noisy.append(Image.blend(picture.convert("RGB"), noise, strength))
    return (tuple(noisy),)


def stitch(
    image1: Pictures,
    direction: str,
    match_image_size: bool,
    spacing_width: int,
    spacing_color: str,
    image2: Pictures | None = None,
) -> tuple[Pictures]:
    """Put the second picture beside the first."""
    if image2 is None:
        return (image1,)
    sideways = direction in ("left", "right")
    done = []
    for index, first in enumerate(image1):
        second = image2[min(index, len(image2) - 1)].convert(first.mode)
        if match_image_size:
            factor = first.height / second.height if sideways else first.width / second.width
            second = resize(
                second, max(1, round(second.width * factor)), max(1, round(second.height * factor)), "lanczos"
            )
        pair = (first, second) if direction in ("right", "down") else (second, first)
        if sideways:
            wide = pair[0].width + spacing_width
            size = (wide + pair[1].width, max(first.height, second.height))
            place = (wide, 0)
        else:
            high = pair[0].height + spacing_width
            size = (max(first.width, second.width), high + pair[1].height)
            place = (0, high)
        joined = Image.new(first.mode, size, spacing_color)
        joined.paste(pair[0], (0, 0))
        joined.paste(pair[1], place)
        done.append(joined)
    return (tuple(done),)


def resize_and_pad(
    image: Pictures, target_width: int, target_height: int, padding_color: str, interpolation: str
) -> tuple[Pictures]:
    """Scale into a size without changing the proportions, and fill the rest."""
    size, method = (target_width, target_height), METHODS[interpolation]
    return (tuple(ImageOps.pad(picture, size, method, padding_color) for picture in image),)


def load(data: Image.Image) -> tuple[Pictures, Pictures]:
    """Read all frames of a file, and where they are transparent."""
    pictures: list[Image.Image] = []
    masks: list[Image.Image] = []
    for frame in ImageSequence.Iterator(data):
        upright = ImageOps.exif_transpose(frame)
        picture = upright.convert("RGB")
        if pictures and picture.size != pictures[0].size:
            continue
        pictures.append(picture)
        clear = "A" in upright.getbands() or "transparency" in upright.info
        alpha = (
            ImageOps.invert(upright.convert("RGBA").getchannel(3)) if clear else Image.new("L", (64, 64), 0)
        )
        masks.append(alpha)
    return tuple(pictures), tuple(masks)


#: Class -> what it does; called with the inputs by name, returns the outputs.
PIXELS: Mapping[str, Callable[..., tuple[Any, ...]]] = {
    "EmptyImage": empty,
    "ImageInvert": invert,
    "ImageScale": scale,
    "ImageScaleBy": scale_by,
    "ImageScaleToTotalPixels": scale_to_pixels,
    "ImageScaleToMaxDimension": scale_to_longest,
    "FluxKontextImageScale": kontext_scale,
    "ImageBatch": batch,
    "BatchImagesNode": batch_all,
    "ResizeImageMaskNode": resize_by_choice,
    "ImageFromBatch": from_batch,
    "RepeatImageBatch": repeat,
    "ImageBlend": blend,
    "ImageBlur": blur,
    "ImageSharpen": sharpen,
    "ImageQuantize": quantize,
    "ImageCrop": crop,
    "ImageFlip": flip,
    "ImageRotate": rotate,
    "ImagePadForOutpaint": pad,
    "ImageCompositeMasked": composite,
    "ImageAddNoise": add_noise,
    "ImageStitch": stitch,
    "ResizeAndPadImage": resize_and_pad,
    "GetImageSize": size,
}
