"""What flows along the links of a graph on a simulated node."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

#: A batch of RGB or RGBA pictures (``IMAGE``) or of grey ones where white is 1.0 (``MASK``).
Pictures = tuple[Image.Image, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model file, or the part of it that an output stands for.

    Attributes:
        file: Its name; what VRAM is accounted under.
        size: In bytes.
        patches: LoRAs and other changes, in words.
    """

    file: str
    size: int
    patches: tuple[str, ...] = ()

    def patched(self, patch: str) -> "Model":
        """Return it with one more change."""
        return replace(self, patches=(*self.patches, patch))


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """A text that a model understood, maybe with pictures."""

    text: str
    pictures: Pictures = ()


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Something between noise and a picture.

    Attributes:
        width: Of the picture that it decodes to, in pixels.
        height: The same.
        batch: How many.
        notes: What made it (prompt, seed, steps, model ...), shown in the picture.
        pictures: What it was encoded from.
    """

    width: int
    height: int
    batch: int = 1
    notes: dict[str, str] = field(default_factory=dict)
    pictures: Pictures = ()

    def megapixels(self, share: float) -> float:
        """Pixels of the whole batch, in millions, as the GPU's time goes.

        Args:
            share: What each picture but the first counts.
        """
        return self.width * self.height * (1 + (self.batch - 1) * share) / 1e6


@dataclass(frozen=True, kw_only=True)
class File3D:
    """A 3D model: its bytes and the suffix of its format (``.glb``)."""

    data: bytes
    suffix: str


@dataclass(frozen=True, kw_only=True)
class Guider:
    """What a custom sampler is guided by."""

    model: Model
    positive: Conditioning
    negative: Conditioning | None = None
    cfg: float = 1.0


def models_in(made: Iterable[tuple[Any, ...]]) -> set[str]:
    """Return the files of all models that outputs of nodes refer to."""
    found = set()
    for values in made:
        for value in values:
            model = value.model if isinstance(value, Guider) else value
            if isinstance(model, Model):
                found.add(model.file)
    return found
