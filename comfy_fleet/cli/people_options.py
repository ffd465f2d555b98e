"""Values of the options of ``fleet tenant``, ``fleet user`` and ``fleet key``."""

import math
import re

from comfy_fleet.cli.exits import Exit, Fail

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def limits_in(given: list[str] | None) -> dict[str, str]:
    """Return limits from ``NAME=VALUE``; the fleet checks them.

    Raises:
        Fail: One is no such pair.
    """
    found: dict[str, str] = {}
    for part in given or []:
        name, equals, value = part.partition("=")
        if not equals:
            raise Fail(f"--limit {part!r} must be NAME=VALUE, such as queued=50", code=Exit.USAGE)
        found[name] = value
    return found


def seconds(option: str, text: str) -> float:
    """Return a time such as ``90s``, ``12h`` or ``30d`` in seconds.

    Raises:
        Fail: It is none.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhdw]?)", text)
    if match is None:
        raise Fail(f"{option} {text!r} must be a time such as 90s, 15m, 12h, 30d or 4w", code=Exit.USAGE)
    return float(match[1]) * _UNITS[match[2] or "s"]


def retention_in(text: str) -> float:
    """Return a tenant's retention in seconds: 0, as the fleet's setting says, for an empty text alone.

    Raises:
        Fail: It is no time, or none at all, which could be meant as "keep nothing".
    """
    found = seconds("--retention", text) if text else 0.0
    if text and not found:
        raise Fail(
            f"--retention {text!r} must be more than 0: ended jobs stay for a while",
            hint="a short time such as 60s; '' for as long as the fleet's setting says",
            code=Exit.USAGE,
        )
    return found


def share_in(share: float) -> float:
    """Return a share that can be sent. Raises Fail if it is no finite number."""
    if not math.isfinite(share):
        raise Fail(f"--share {share} must be a number such as 1, 0.5 or 3", code=Exit.USAGE)
    return share
