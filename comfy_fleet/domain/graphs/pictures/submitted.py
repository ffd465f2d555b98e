"""The graph as its client submitted it, for texts in which it stands as a run has posted it."""

import json
import re
from functools import cached_property
from typing import Any

from comfy_fleet.domain.graphs.file_access import STAGING
from comfy_fleet.domain.graphs.graph import BUST_INPUT

_POSTED = re.compile(rf"{BUST_INPUT}|{STAGING}[/\\]+[0-9a-f]{{8}}-[0-9a-f-]{{27}}[/\\]", re.IGNORECASE)
_GROWTH, _SPARE = 16, 1024 * 1024
"""How much longer than a graph a text with its posted form may be; parsing takes many times its length."""
_PREFIX = re.compile(r"\s*prompt:", re.IGNORECASE)


class SubmittedGraph:
    """Puts a graph back where its posted form stands.

    A posted graph has the shape of one and names the folder of a run, or has our own input. Others stay: a
    node may pass on the metadata of a picture that its client has uploaded.

    Args:
        raw: The graph as submitted, JSON in UTF-8.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def put_back(self, text: str, *, compact: bool = False) -> str | None:
        """Return a text with the submitted graph in it, in ASCII; None if it holds no posted graph.

        Args:
            text: JSON of a graph, perhaps behind ``prompt:``, or of an object with a graph at ``prompt``.
            compact: Leave out the blanks that ComfyUI writes.
        """
        if len(text) > _SPARE + _GROWTH * len(self._raw) or not _POSTED.search(text):
            return None
        prefix = match[0] if (match := _PREFIX.match(text)) else ""
        value = _json(text[len(prefix) :])
        if _is_graph(value):
            return prefix + (_written(self._graph, compact=True) if compact else self._text)
        if prefix or not isinstance(value, dict):
            return None
        inner = value.get("prompt")
        if _is_graph(inner):
            return _written({**value, "prompt": self._graph}, compact=compact)
        if isinstance(inner, str) and _POSTED.search(inner) and _is_graph(_json(inner)):
            return _written({**value, "prompt": _written(self._graph, compact=compact)}, compact=compact)
        return None

    @cached_property
    def _graph(self) -> Any:
        return json.loads(self._raw)

    @cached_property
    def _text(self) -> str:
        return _written(self._graph, compact=False)


def _written(value: Any, *, compact: bool) -> str:
    return json.dumps(value, separators=(",", ":") if compact else None)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_graph(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
            for node in value.values()
        )
    )
