"""What a job's memory on the card depends on: its largest model, and the pixels that it computes at once."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from comfy_fleet.domain.graphs.pixels import MOST_PIXELS
from comfy_fleet.domain.jobs.model_files import LONGEST_NAME, MOST_BYTES


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Jobs of one family are compared with each other by their pixels.

    Attributes:
        family: The largest model file, as ``FOLDER/NAME``.
        model_bytes: Its size; 0: unknown.
        pixels: Width times height times pictures or frames of the largest latent that it samples; 0: the
            graph does not tell.
    """

    family: str
    model_bytes: int = 0
    pixels: float = 0.0

    def dump(self) -> str:
        """Return it as a job's record has it."""
        return json.dumps([self.family, self.model_bytes, self.pixels])


def workload_of(files: Iterable[tuple[str, int]], pixels: float) -> Workload | None:
    """Return a job's workload; None if it loads no model.

    Args:
        files: Its model files and their bytes, cleaned by
            :func:`comfy_fleet.domain.jobs.model_files.usable_files`.
        pixels: What its graph says; 0: nothing.
    """
    family, size = max(files, key=lambda file: (file[1], file[0]), default=("", 0))
    return Workload(family=family, model_bytes=size, pixels=pixels) if family else None


def load_workload(data: bytes) -> Workload | None:
    """Read :meth:`Workload.dump` back; None for anything else: an estimate must not cost the job."""
    try:
        family, size, pixels = json.loads(data)
    except (ValueError, TypeError):
        return None
    sound = (
        isinstance(family, str)
        and 0 < len(family) <= LONGEST_NAME
        and type(size) is int
        and 0 <= size <= MOST_BYTES
        and type(pixels) in (int, float)
        and 0 <= pixels <= MOST_PIXELS
        and math.isfinite(pixels)
    )
    return Workload(family=family, model_bytes=size, pixels=float(pixels)) if sound else None
