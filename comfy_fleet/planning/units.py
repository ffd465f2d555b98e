"""Sizes, rates and durations as people write them: ``24GiB``, ``2GiB/s``, ``1.5h``."""

import math
import re

from comfy_fleet.domain.errors import BadInput

_SIZES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)")
MOST_BYTES = 2**60
LEAST_BYTES = 2**20
"""Of files, memory and rates; less is a unit that was forgotten."""
MOST_SECONDS = 1e10
"""Three hundred years: room for Unix seconds."""


def size(text: str, field: str) -> int:
    """Return bytes: none, or a mebibyte and more.

    Args:
        text: Such as ``24GiB``, ``500MB`` or plain bytes.
        field: Where it stands, for the error.

    Raises:
        BadInput: It is no size, too large a one, or one whose unit was forgotten.
    """
    value = _scaled(text, _SIZES)
    if value is None or value > MOST_BYTES:
        raise wrong(field, text, "a size such as 24GiB or 500MB")
    if 0 < value < LEAST_BYTES:
        raise wrong(field, text, "0 or a size of at least 1MiB, such as 24GiB or 500MB")
    return round(value)


def size_range(text: str, field: str) -> tuple[int, int]:
    """Return least and largest bytes, from ``6GiB-20GiB``, ``6-20GiB`` or one size for both.

    Raises:
        BadInput: One is no size, or the larger one stands first.
    """
    first, dash, last = (part.strip() for part in text.partition("-"))
    if dash and (known := _NUMBER.fullmatch(first)) and not known[2] and (other := _NUMBER.fullmatch(last)):
        first += other[2]  # the unit stands once, for both
    least = size(first, field)
    most = size(last, field) if dash else least
    if least > most:
        raise wrong(field, text, "a range with the least size first, such as 6GiB-20GiB")
    return least, most


def rate(text: str, field: str) -> float:
    """Return bytes a second, from such as ``2GiB/s``.

    Raises:
        BadInput: It is no rate of at least a mebibyte a second.
    """
    value = _scaled(text.removesuffix("/s"), _SIZES)
    if not value or not LEAST_BYTES <= value <= MOST_BYTES:
        raise wrong(field, text, "a rate of at least 1MiB/s, such as 2GiB/s")
    return value


def seconds(text: str, field: str) -> float:
    """Return seconds, from such as ``90``, ``300ms``, ``10m`` or ``1.5h``.

    Raises:
        BadInput: It is no duration.
    """
    value = _scaled(text, _SECONDS)
    if value is None or value > MOST_SECONDS:
        raise wrong(field, text, "a duration such as 90s, 10m or 1.5h")
    return value


def number(text: str, field: str, *, least: float = 0.0, most: float = math.inf) -> float:
    """Return a number within limits.

    Raises:
        BadInput: It is none, or out of its limits.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or value == math.inf:
        limit = f"from {least:g}" + ("" if most == math.inf else f" to {most:g}")
        raise wrong(field, text, f"a number {limit}")
    return value


def wrong(field: str, text: object, wanted: str) -> BadInput:
    """Return the error for a value that is not what it should be."""
    shown = repr(text)
    return BadInput(
        f"{field}: {shown if len(shown) <= 80 else shown[:79] + '…'} is not {wanted}",
        details={"field": field},
    )


def _scaled(text: str, units: dict[str, int] | dict[str, float]) -> float | None:
    found = _NUMBER.fullmatch(text.strip())
    if found is None or (unit := units.get(found[2].lower())) is None:
        return None
    return float(found[1]) * unit
