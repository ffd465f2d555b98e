"""The times that people give ``fleet submit``: ``--ttl``, ``--run-timeout`` and ``--finish-by``."""

import re
from datetime import datetime, time, timedelta

from comfy_fleet.cli.exits import Exit, Fail

_CLOCK = re.compile(r"(\d{1,2}):(\d\d)", re.ASCII)
_LOCAL = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?", re.ASCII)
_WITH_OFFSET = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)", re.ASCII)


def seconds(option: str, field: str, value: float | None) -> float | None:
    """Return a span as the API takes it.

    Args:
        option: What it is called on the command line.
        field: What it is called in a request.
        value: As typed.

    Raises:
        Fail: It is out of its limits.
    """
    from comfy_fleet.domain.errors import BadInput
    from comfy_fleet.domain.jobs.job_times import span_s

    try:
        return None if value is None else span_s(field, value)
    except BadInput as error:
        raise Fail(error.message.replace(field, option, 1), code=Exit.USAGE) from None


def moment(text: str, now: datetime) -> str:
    """Return a moment as RFC 3339 writes it.

    Args:
        text: ``18:30`` (the next one), ``2030-05-17 18:30``, or RFC 3339; without an offset it is local time.
        now: The present, with the local offset.

    Raises:
        Fail: It is none of these.
    """
    try:
        if found := _CLOCK.fullmatch(text):
            clock = datetime.combine(now.date(), time(int(found[1]), int(found[2])))
            today = clock.astimezone()
            return (today if today > now else (clock + timedelta(days=1)).astimezone()).isoformat()
        if _LOCAL.fullmatch(text):
            return datetime.fromisoformat(text).astimezone().isoformat()
        if _WITH_OFFSET.fullmatch(text):
            return datetime.fromisoformat(text).isoformat()
    except (ValueError, OverflowError):
        pass  # there is no such day or hour
    raise Fail(
        f"--finish-by {text!r} is no time",
        hint="write 18:30, '2030-05-17 18:30', or 2030-05-17T18:30:00+02:00",
        code=Exit.USAGE,
    )
