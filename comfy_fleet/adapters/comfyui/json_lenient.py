"""JSON as nodes write it."""

import json
import math
import re
from typing import Any

import orjson

_LONE = (
    r"\\u(?:[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u)[dD][c-fC-F])"
)
HALF_BYTES = re.compile(_LONE.encode())
"""Half a character, without its other half beside it."""
_HALF = re.compile(_LONE)
_RAW_HALF = re.compile("[\ud800-\udfff]")
_EXACT_DIGITS = 18
"""So many digits fit into 64 bits, with or without a sign."""
_MOST_DIGITS = 400
"""A longer number is beyond every float."""


def decode(text: bytes | bytearray | str) -> Any:
    """Return the value; None if it is no JSON. ``orjson`` can write whatever comes back.

    Nodes let NaN and infinities through, integers of any size, and halves of characters (``"\\udcff"``) from
    file names and cut texts. Only the slower reader takes them. An integer that 64 bits don't hold becomes a
    float, and half a character a question mark: nobody could write them again.
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
