"""The name of a fleet in a Redis that several fleets share."""

import re

from comfy_fleet.domain.errors import BadInput

DEFAULT_NAMESPACE = "fleet"
_FORM = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TAKEN = {
    "rq": "all of RQ's own keys begin so",
    "default": "RQ's own workers take what lies in a queue of that name",
}


def check_namespace(value: str) -> str:
    """Return a namespace that is safe in keys, scripts and HAProxy's configuration.

    Raises:
        BadInput: It is not safe, or is another program's.
    """
    if not _FORM.fullmatch(value):
        raise BadInput(
            f"namespace {value[:80]!r} must be 1 to 32 of a-z 0-9 _ - and start with a letter",
            details={"field": "namespace", "value": value[:80]},
        )
    if why := _TAKEN.get(value):
        raise BadInput(
            f"namespace {value!r} can't be used, {why}: choose another",
            details={"field": "namespace", "value": value},
        )
    return value
