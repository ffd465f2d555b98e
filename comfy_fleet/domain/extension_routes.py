"""Prefixes of extensions' own routes that an operator opens: which paths they are."""

import re
from collections.abc import Sequence

from comfy_fleet.domain.errors import BadInput

MOST_PREFIXES = 32
_PREFIX = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]{0,63}){1,6}")
_API = "/api"


def parse_prefixes(text: str) -> tuple[str, ...]:
    """Return the prefixes in a comma-separated list, each once and without ``/api`` in front.

    Raises:
        BadInput: One is no path of plain segments, or there are more than :data:`MOST_PREFIXES`.
    """
    found: dict[str, None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        prefix = part.rstrip("/").removeprefix(_API)
        if not _PREFIX.fullmatch(prefix):
            raise BadInput(
                f"{part[:80]!r} is not the beginning of a path: write /NAME or /NAME/NAME, of letters, "
                "digits, `_`, `.`, `~` and `-`"
            )
        found[prefix] = None
    if len(found) > MOST_PREFIXES:
        raise BadInput(f"{len(found)} prefixes are too many: at most {MOST_PREFIXES}")
    return tuple(found)


def opened_by(prefixes: Sequence[str], path: str) -> str | None:
    """Return the prefix that opens a path, with or without ``/api`` in front; None if it is closed."""
    bare = path.removeprefix(_API) if path.startswith(f"{_API}/") else path
    return next((one for one in prefixes if bare == one or bare.startswith(f"{one}/")), None)
