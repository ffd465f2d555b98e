"""JSON as nodes write it, which is not always valid."""

import json
import math
import re
from typing import Any

import orjson

_LONE = (
    r"\\u(?:[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u)[dD][c-fC-F])"
)
HALF_BYTES = re.compile(_LONE.encode())
"""A lone surrogate: half a character without its other half."""
_HALF = re.compile(_LONE)
_RAW_HALF = re.compile("[\ud800-\udfff]")
_EXACT_DIGITS = 18
"""Integers with this many digits fit into 64 bits, signed or not."""
_MOST_DIGITS = 400
"""An integer with more digits is too large for a float."""


def decode(text: bytes | bytearray | str) -> Any:
    """Return the value; None if it is not JSON. ``orjson`` can write every returned value.

    Nodes send NaN and infinities, integers of any size, and lone surrogates (``"\\udcff"``) from file names
    and cut texts. Only the slower reader accepts them. An integer of more than 64 bits becomes a float, and a
    lone surrogate a question mark: they could not be written as JSON again.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return decode_slowly(text)


def decode_slowly(text: bytes | bytearray | str) -> Any:
    """Do the same without trying ``orjson`` first. It takes several times the memory."""
    try:
        if not isinstance(text, str):
            text = text.decode("utf-8-sig", "replace")
        value = json.loads(text, parse_int=_whole, parse_float=_real)
        if not _HALF.search(text) and (text.isascii() or not _RAW_HALF.search(text)):
            return value
        whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        return json.loads(whole)
    except (ValueError, RecursionError):
        return None


def _whole(digits: str) -> int | float:
    if len(digits) <= _EXACT_DIGITS:
        return int(digits)
    if len(digits) <= _EXACT_DIGITS + 3 and -(2**63) <= (number := int(digits)) < 2**64:
        return number
    return _real(digits)


def _real(digits: str) -> float:
    if len(digits) > _MOST_DIGITS and digits.lstrip("-").isdecimal():
        return -math.inf if digits.startswith("-") else math.inf
    return float(digits)
