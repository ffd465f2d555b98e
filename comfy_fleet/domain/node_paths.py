"""Paths that may be passed on to a node: whole and plain, and nothing that could mean another path there."""

import re

MOST_CHARS = 2000
_SEGMENT = r"(?:[A-Za-z0-9._~:@!$&()*+,;='-]|%[0-9A-Fa-f]{2})+"
_PATH = re.compile(rf"(?:/{_SEGMENT})+/?")
_ESCAPES = re.compile(r"%(?:2e|2f|5c|00)|/\.{1,2}(?:/|$)", re.IGNORECASE)


def plain(path: str) -> bool:
    """Return whether a path, as it stands in a request, is safe to pass on.

    The edge and the broker have the same rules. They are checked here, too, because the API's own port takes
    any path.
    """
    return len(path) <= MOST_CHARS and _PATH.fullmatch(path) is not None and not _ESCAPES.search(path)
