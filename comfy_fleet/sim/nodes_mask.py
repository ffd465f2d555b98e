"""Node classes that work on masks and transparency, with Pillow; white is 1.0."""

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from comfy_fleet.sim.nodes_image import crop
from comfy_fleet.sim.values import Pictures

CHANNELS = {"red": 0, "green": 1, "blue": 2, "alpha": 3}


def solid_mask(value: float, width: int, height: int) -> tuple[Pictures]:
    """Make a mask of one value."""
    return ((Image.new("L", (width, height), round(value * 255)),),)


def invert_mask(mask: Pictures) -> tuple[Pictures]:
    """Turn a mask round."""
    return (tuple(ImageOps.invert(part) for part in mask),)


def mask_to_image(mask: Pictures) -> tuple[Pictures]:
    """Show a mask in grey."""
    return (tuple(part.convert("RGB") for part in mask),)


def image_to_mask(image: Pictures, channel: str) -> tuple[Pictures]:
    """Take one channel."""
    return (tuple(picture.convert("RGBA").getchannel(CHANNELS[channel]) for picture in image),)


def join_alpha(image: Pictures, alpha: Pictures) -> tuple[Pictures]:
    """Make the masked part transparent."""
    joined = []
    for index, picture in enumerate(image):
        clear = picture.convert("RGBA")
        part = alpha[min(index, len(alpha) - 1)].resize(picture.size)
        clear.putalpha(ImageOps.invert(part))
        joined.append(clear)
    return (tuple(joined),)


def split_alpha(image: Pictures) -> tuple[Pictures, Pictures]:
    """Separate colours and transparency."""
    masks = tuple(ImageOps.invert(picture.convert("RGBA").getchannel(3)) for picture in image)
    return tuple(picture.convert("RGB") for picture in image), masks


def threshold(mask: Pictures, value: float) -> tuple[Pictures]:
    """Make a mask black and white."""
    return (tuple(part.point(lambda level: 255 if level > value * 255 else 0) for part in mask),)


def grow(mask: Pictures, expand: int, tapered_corners: bool) -> tuple[Pictures]:
    """Make the white part larger, or smaller with a negative number."""
    kind = ImageFilter.MaxFilter if expand > 0 else ImageFilter.MinFilter
    return (tuple(part.filter(kind(2 * abs(expand) + 1)) if expand else part for part in mask),)


def crop_mask(mask: Pictures, x: int, y: int, width: int, height: int) -> tuple[Pictures]:
    """Cut a part out."""
    return crop(mask, width, height, x, y)


def feather(mask: Pictures, left: int, top: int, right: int, bottom: int) -> tuple[Pictures]:
    """Fade a mask out towards its edges."""
    width, height = mask[0].size
    fade = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(fade)
    for place in range(max(left, top, right, bottom), 0, -1):  # the outermost line is drawn last
        for wide, line in (
            (left, (place - 1, 0, place - 1, height)),
            (right, (width - place, 0, width - place, height)),
            (top, (0, place - 1, width, place - 1)),
            (bottom, (0, height - place, width, height - place)),
        ):
            if place <= wide:
                draw.line(line, fill=round(255 * place / wide))
    return (tuple(ImageChops.multiply(part, fade.resize(part.size)) for part in mask),)


#: Class -> what it does; called with the inputs by name, returns the outputs.
MASKS: Mapping[str, Callable[..., tuple[Any, ...]]] = {
    "SolidMask": solid_mask,
    "InvertMask": invert_mask,
    "MaskToImage": mask_to_image,
    "ImageToMask": image_to_mask,
    "JoinImageWithAlpha": join_alpha,
    "SplitImageWithAlpha": split_alpha,
    "ThresholdMask": threshold,
    "GrowMask": grow,
    "CropMask": crop_mask,
    "FeatherMask": feather,
}
