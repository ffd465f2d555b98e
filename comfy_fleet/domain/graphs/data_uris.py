"""Files that a request carries itself, as ``data:image/png;base64,...``."""

import re
from base64 import b64decode

from comfy_fleet.domain.errors import BadInput

_HEAD = re.compile(
    r"data:(?:[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+)?(?:;[^;,]{1,80}){0,4}?(;base64)?,", re.IGNORECASE
)


def is_data_uri(text: str) -> bool:
    """Return whether a file's name in a graph or a parameter is a file itself."""
    return text[:5].lower() == "data:"


def decode(uri: str, *, most_bytes: int) -> bytes:
    """Return a data URI's bytes. What it says of their type is not looked at.

    Raises:
        BadInput: It is not in base64, or too large; the message ends a sentence about it.
    """
    head = _HEAD.match(uri)
    if head is None:
        raise BadInput("is no data URI: it must look like data:image/png;base64,...")
    if head[1] is None:
        raise BadInput("is a data URI that is not in base64: it must look like data:image/png;base64,...")
    text = uri[head.end() :]
    if len(text) // 4 * 3 > most_bytes + 2:
        raise BadInput(f"is larger than {most_bytes} bytes (FLEET_FETCH_BYTES): upload it as an asset")
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        raise BadInput("is not valid base64: it needs = at its end, and no blanks or line breaks") from None
    if not data:
        raise BadInput("is empty")
    if len(data) > most_bytes:
        raise BadInput(f"is larger than {most_bytes} bytes (FLEET_FETCH_BYTES): upload it as an asset")
    return data
