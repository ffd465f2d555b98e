"""JSON as nodes write it."""

import json
from typing import Any

import orjson


def decode(text: bytes | str) -> Any:
    """Return the value; None if it is no JSON.

    Nodes let NaN through, and halves of characters (``"\\udcff"``) from file names and cut texts. Only the
    slower reader takes them. A question mark is left of the halves: nobody could write them again.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        whole = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
        return json.loads(whole)
    except (ValueError, RecursionError):
        return None
