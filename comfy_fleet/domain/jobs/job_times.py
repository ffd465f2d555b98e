"""The times that a client sets for its job, as they are sent: spans in seconds, and one moment."""

import math
import re
from datetime import datetime

from comfy_fleet.domain.errors import BadInput

LONGEST_S = 30 * 86400.0
"""Most seconds of a span, and most from now to a moment."""
LEAST_TIMEOUT_S = 1.0
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EXAMPLE = "2030-05-17T18:30:00Z"
_BEYOND = 10**18
"""Further away than any moment that is taken."""


def span_s(field: str, value: object) -> float:
    """Return a span in seconds.

    Args:
        field: ``ttl_s``, ``deadline_s`` or ``timeout_s``; the last is at least 1.
        value: A JSON value.

    Raises:
        BadInput: It is no number, or out of its limits.
    """
    least = LEAST_TIMEOUT_S if field == "timeout_s" else 0.0
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if number > 0 and least <= number <= LONGEST_S:
        return float(number)
    words = f"at least {least:g}" if least else "more than 0"
    raise BadInput(
        f"{field} must be a number of seconds, {words} and at most 30 days", details={"field": field}
    )


def moment(value: object) -> float:
    """Return the moment of ``finish_by`` in Unix seconds.

    Args:
        value: A time as RFC 3339 writes it, with its offset, or a number of Unix seconds.

    Raises:
        BadInput: It is neither.
    """
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper()).timestamp()
        except (ValueError, OverflowError):
            pass  # there is no such day, hour or offset
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        return float(max(-_BEYOND, min(_BEYOND, value)))
    raise BadInput(
        f"finish_by must be a time with its offset, such as {_EXAMPLE}, or Unix seconds",
        details={"field": "finish_by"},
    )


def check_ahead(at: float, *, now: float) -> None:
    """Refuse a moment that is past, or too far ahead; both in Unix seconds.

    Raises:
        BadInput: It is.
    """
    if now < at <= now + LONGEST_S:
        return
    if at <= now:
        why = f"is past{_by(now - at)}: leave it out, or name a time to come"
    else:
        why = "is more than 30 days ahead: leave it out, or name an earlier time"
        if abs(at / 1000 - now) <= LONGEST_S:
            why += "; Unix seconds are meant, not milliseconds"
    raise BadInput(f"finish_by {why}", details={"field": "finish_by"})


def _by(seconds: float) -> str:
    """Return by how much it is past, if that may help: a clock or an offset may be wrong."""
    if seconds > 2 * 86400:
        return ""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f", by {seconds / unit:.0f} {name}"
    return f", by {seconds:.0f} s"
