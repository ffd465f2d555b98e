"""The ``traceparent`` of a request, by W3C Trace Context (https://www.w3.org/TR/trace-context/)."""

import re
from collections.abc import Sequence

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_MOST = 512  # longest header that is read; a later version's may be longer than ours


def read_traceparent(headers: Sequence[str]) -> str | None:
    """Return a request's trace in the form of version 00; None if it is missing or malformed.

    Of a later version only the parts of version 00 are read, and of its flags only ``sampled``.

    Args:
        headers: The values of all ``traceparent`` headers; more than one counts as none.
    """
    if len(headers) != 1 or len(headers[0]) > _MOST:
        return None
    found = _TRACEPARENT.fullmatch(headers[0].strip(" \t"))
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    if version == "ff" or not trace.strip("0") or not parent.strip("0"):
        return None
    if version == "00":
        return None if more else found[0]
    return f"00-{trace}-{parent}-{int(flags, 16) & 1:02x}"
