"""Prefixes of extensions' own routes that an operator opens: which paths they are."""

import re
from collections.abc import Sequence

from comfy_fleet.domain.errors import BadInput

MOST_PREFIXES = 32
METHODS = ("GET", "POST", "PUT", "DELETE")
"""How open routes are called; HEAD goes as GET."""
_PREFIX = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]{0,63}){1,6}")
_API = "/api"
OWN = frozenset(
    {
        *("api", "assets", "console", "embeddings", "enter", "experiment", "extensions", "features", "free"),
        *("global_subgraphs", "health", "history", "i18n", "interrupt", "jobs", "k", "login", "logout"),
        *("metrics", "models", "node_replacements", "object_info", "openapi.json", "prompt", "publish"),
        *("queue", "settings", "status", "submit", "system_stats", "tags", "upload", "userdata", "users"),
        *("v1", "v2", "view", "view_metadata", "workflow_templates", "workflows", "ws"),
    }
)
"""How paths begin that the fleet answers itself: an extension below them would never be asked."""
EDITOR_FOLDERS = frozenset({"cursor", "docs", "fonts", "lib", "scripts", "templates"})
"""Folders of the editor's files, besides ``assets``."""
CLOSED = EDITOR_FOLDERS | frozenset(
    {"internal", "manager", "comfyui_manager", "customnode", "externalmodel", "snapshot", "component"}
)
"""How paths begin that tell of a machine or change it (ComfyUI's logs and folders, what managers install and
restart), and those of the editor's files, which have a way of their own."""


def parse_prefixes(text: str) -> tuple[str, ...]:
    """Return the prefixes in a comma-separated list, each once and without ``/api`` in front.

    Raises:
        BadInput: One is no path of plain segments, or can't be opened; or there are more than
            :data:`MOST_PREFIXES`.
    """
    found: dict[str, None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        prefix = part.rstrip("/").removeprefix(_API)
        if not _PREFIX.fullmatch(prefix):
            raise BadInput(
                f"{part[:80]!r} is not the beginning of a path: write /NAME or /NAME/NAME, of letters, "
                "digits, `_`, `.`, `~` and `-`"
            )
        if (first := prefix.split("/")[1].lower()) in OWN | CLOSED:
            why = "what is below it stays closed" if first in CLOSED else "the fleet answers there itself"
            raise BadInput(f"{part[:80]!r} can't be opened: {why}; name an extension's own prefix")
        found[prefix] = None
    if len(found) > MOST_PREFIXES:
        raise BadInput(f"{len(found)} prefixes are too many: at most {MOST_PREFIXES}")
    return tuple(found)


def opened_by(prefixes: Sequence[str], path: str) -> str | None:
    """Return the prefix that opens a path, with or without ``/api`` in front; None if it is closed."""
    bare = path.removeprefix(_API) if path.startswith(f"{_API}/") else path
    return next((one for one in prefixes if bare == one or bare.startswith(f"{one}/")), None)
