"""The files of a stored workflow in a folder, and its manifest as TOML (1.0).

The standard library only reads TOML.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

GRAPH_FILE = "workflow.json"
"""The graph in API format."""
MANIFEST_FILE = "workflow.toml"
EDITOR_FILE = "editor.json"
"""The same graph in the editor's own format, if it is at hand."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as the text of ``workflow.toml``; read again, it is equal.

    What is None is left out: TOML has no word for it.
    """
    return "\n".join(_table((), manifest)).strip() + "\n" if manifest else ""


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table's lines: its values first, then the tables in it."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    values = {key: value for key, value in table.items() if key not in inner and value is not None}
    if path and (values or not inner or len(path) == 2):
        yield ""
        yield f"[{'.'.join(map(_key, path))}]"
    for key, value in values.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        # Deeper than the parameters, a table on one line is easier to read.
        if len(path) < 2:
            yield from _table((*path, key), value)
        else:
            yield f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case str():
            return _text(value)
        case Mapping():
            pairs = [f"{_key(key)} = {_value(one)}" for key, one in value.items() if one is not None]
            return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
        case list() | tuple():
            return f"[{', '.join(_value(one) for one in value if one is not None)}]"
    raise TypeError(f"{type(value).__name__} has no form in TOML")


def _text(text: str) -> str:
    """Return a basic string; JSON's escapes are TOML's, except for DEL, which must be escaped, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
