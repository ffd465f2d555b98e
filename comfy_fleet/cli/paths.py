"""Paths in the API of what a user names."""

import re

from comfy_fleet.cli.exits import Exit, Fail

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,200}")  # of anything: the API's own rules are stricter


def path_of(kind: str, name: str, rest: str = "", *, face: str = "v1") -> str:
    """Return the path of a job, node, pool or workflow, such as ``/api/v1/jobs/ID/cancel``.

    Args:
        kind: ``job``, ``node``, ``pool`` or ``workflow``.
        name: Its id or name, as somebody typed it.
        rest: What follows, such as ``/cancel``.
        face: ``v1`` or ``v2``.

    Raises:
        Fail: There can't be such a name, and in a path it may mean another one.
    """
    if not _NAME.fullmatch(name):
        raise Fail(f"no {kind} {name[:80]!r}", code=Exit.NOT_FOUND)
    return f"/api/{face}/{kind}s/{name}{rest}"
