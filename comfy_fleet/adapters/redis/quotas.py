"""What scripts say about limits, as errors."""

from collections.abc import Sequence

from comfy_fleet.domain.errors import FleetError, LimitReached, StoredTooMuch


def limit_error(answer: Sequence[bytes | str]) -> FleetError:
    """Return the error for what ``over_quota`` in ``quotas.lua`` answers, without its first word."""
    name, scope, most, used, window, wait_s = (
        part.decode() if isinstance(part, bytes) else part for part in answer
    )
    if name == "stored":
        return StoredTooMuch(
            f"the {scope}'s limit 'stored' is {round(float(most))} bytes, and {round(float(used))} are kept: "
            "delete assets, or jobs with their files",
            details={"limit": name, "scope": scope, "most": round(float(most)), "used": round(float(used))},
        )
    return LimitReached(
        name,
        scope,
        most=round(float(most)),
        used=round(float(used)),
        per=window,
        wait_s=float(wait_s) if wait_s else None,
    )
