"""What the nodes of a graph returned for the user interface, in ComfyUI's form.

:mod:`comfy_fleet.domain.jobs.outputs` finds files and texts in it. The rest (which pictures are animated,
histograms, keys of node packs' own) is for ComfyUI's clients, which get it back unchanged. A file is named in
it as on its node; the output that has its bytes has the same node, key and place among the key's
:func:`~comfy_fleet.domain.jobs.outputs.leaves_of`.
"""

import json
from collections.abc import Collection
from typing import Any

MAX_UI_BYTES = 256 * 1024
"""Most bytes per run, as JSON. ComfyUI's own nodes return some hundred bytes for each output."""
_NODE_BYTES = 64
_DEEPEST = 64

_ENCODER = json.JSONEncoder(separators=(",", ":"))


class RawUi:
    """Collects it for one run, up to :data:`MAX_UI_BYTES`; a node whose part would not fit is left out."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._room = MAX_UI_BYTES

    def take(self, node_id: str, ui: object) -> None:
        """Take what a node returned, replacing its earlier value; anything but an object is ignored."""
        if (before := self._texts.pop(node_id, None)) is not None:
            self._room += _NODE_BYTES + len(before)
        if not isinstance(ui, dict) or not ui or not _fits(ui, self._room - len(node_id)):
            return
        text = f"{_ENCODER.encode(node_id)}:{_ENCODER.encode(ui)}"
        if (cost := _NODE_BYTES + len(text)) <= self._room:
            self._room -= cost
            self._texts[node_id] = text

    @property
    def nodes(self) -> Collection[str]:
        """The nodes of the graph whose part was kept."""
        return self._texts.keys()

    def dump(self) -> str:
        """Return a JSON object of it by node id, in order of arrival; empty if there is nothing."""
        return f"{{{','.join(self._texts.values())}}}" if self._texts else ""


def _fits(value: object, room: int) -> bool:
    """Return whether a JSON value is certainly small and flat enough to be written, without writing it."""
    stack: list[tuple[Any, int]] = [(value, 0)]
    while stack:
        one, depth = stack.pop()
        room -= len(one) if isinstance(one, str | list | dict) else 1
        if room < 0 or depth > _DEEPEST:
            return False
        if isinstance(one, dict):
            room -= sum(map(len, one))
            stack.extend((inner, depth + 1) for inner in one.values())
        elif isinstance(one, list):
            stack.extend((inner, depth + 1) for inner in one)
    return True
