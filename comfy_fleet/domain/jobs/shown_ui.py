"""What nodes returned for the user interface, with the names that a job's owner knows.

:mod:`comfy_fleet.domain.jobs.raw_ui` keeps it with the names on the node, which have the job's and the run's
id in them and may be those of other jobs' files on other nodes. ComfyUI's clients get it with the names under
which they can ask for the files.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from comfy_fleet.domain.graphs.file_access import STAGING
from comfy_fleet.domain.jobs.job import Output
from comfy_fleet.domain.jobs.media import MODELS, extension_of
from comfy_fleet.domain.jobs.output_names import SavedFile, place_of
from comfy_fleet.domain.jobs.outputs import leaves_of, short_key

_DEEPEST = 64
"""What is nested deeper is left out; ComfyUI's own nodes return three levels."""
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_RUN_FOLDER = re.compile(rf"{STAGING}(?:[/\\]+{_UUID}){{1,2}}(?:[/\\]+|(?![0-9A-Za-z_-]))")
_GONE: Any = object()


def shown_ui(ui: Mapping[str, Any], outputs: Iterable[Output]) -> dict[str, Any]:
    """Return it with each committed file under its owner's name.

    A file without a committed output, such as a preview that was lost, is left out. Nowhere is the name of a
    run's folder left.

    Args:
        ui: By node id: a job's (:meth:`comfy_fleet.ports.jobs.JobStore.ui`), or that of one ``executed``.
        outputs: What the job has committed so far.
    """
    places = {(output.node_id, output.key, output.index): output for output in outputs}
    return {
        node_id: _Shown(short_key(node_id), places).node(one)
        for node_id, one in ui.items()
        if isinstance(one, Mapping)
    }


def without_run_folders(value: Any, depth: int = 0) -> Any:
    """Return a JSON value without the names of runs' folders."""
    if isinstance(value, str):
        return _text(value)
    if depth > _DEEPEST:
        return None
    if isinstance(value, Mapping):
        return {_text(str(key)): without_run_folders(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_run_folders(one, depth + 1) for one in value]
    return value


def whole_ui(ui: Mapping[str, Any], outputs: Iterable[Output]) -> dict[str, Any]:
    """Return the same of all nodes of a job that is over, with the files of nodes that are missing in it.

    A node is missing if it has returned more than a record keeps.
    """
    outputs = tuple(outputs)
    shown = shown_ui(ui, outputs)
    for output in outputs:
        if output.saved and output.node_id not in ui:
            place = place_of(output)
            file = {"filename": place.filename, "subfolder": place.subfolder, "type": place.type}
            shown.setdefault(output.node_id, {}).setdefault(output.key, []).append(file)
    return shown


class _Shown:
    """What one node returned; counts the values of each key as :func:`leaves_of` does."""

    def __init__(self, node_id: str, places: Mapping[tuple[str, str, int], Output]) -> None:
        self._node_id = node_id
        self._places = places
        self._key = ""
        self._next = 0

    def node(self, ui: Mapping[str, Any]) -> dict[str, Any]:
        made = {}
        for key, value in ui.items():
            self._key, self._next = short_key(str(key)), 0
            if not isinstance(value, list | tuple):
                shown = self._leaf(value)
            elif len(value) > 1 and all(isinstance(one, str) and len(one) == 1 for one in value):
                shown = list(self._leaf("".join(value)))  # ComfyUI has split a text into characters
            else:
                shown = self._list(value, 1)
            if shown is not _GONE:
                made[_text(str(key))] = shown
        return made

    def _list(self, values: list[Any] | tuple[Any, ...], depth: int) -> Any:
        if depth > _DEEPEST:
            self._next += len(leaves_of(values))
            return _GONE
        made = []
        for value in values:
            shown = self._list(value, depth + 1) if isinstance(value, list | tuple) else self._leaf(value)
            if shown is not _GONE:
                made.append(shown)
        return made

    def _leaf(self, leaf: Any) -> Any:
        output = self._places.get((self._node_id, self._key, self._next))
        self._next += 1
        if isinstance(leaf, Mapping) and isinstance(leaf.get("filename"), str) and leaf["filename"]:
            return _GONE if output is None else _file(leaf, place_of(output))
        if isinstance(leaf, str) and extension_of(leaf) in MODELS and self._key != "text":
            if output is not None and (output.saved or extension_of(output.name) in MODELS):
                place = place_of(output)
                return "/".join(part for part in (place.subfolder, place.filename) if part)
            # A path that its user gave to a viewer stays. That of a file which was not kept leads nowhere,
            # but what follows must not take its place.
            return leaf if _RUN_FOLDER.search(leaf) is None else ""
        return without_run_folders(leaf)


def _file(leaf: Mapping[str, Any], place: SavedFile) -> dict[str, Any]:
    """Return ``{filename, subfolder, type}`` with the owner's name, also where it is repeated in a path."""
    before = _stem(re.split(r"[/\\]", leaf["filename"])[-1])
    repeated, after = re.compile(rf"(?<![^/\\]){re.escape(before)}(?=[._-]|$)"), _stem(place.filename)
    made = {
        key: repeated.sub(lambda _: after, value) if isinstance(value, str) else value
        for key, value in without_run_folders(leaf).items()
    }
    return {**made, "filename": place.filename, "subfolder": place.subfolder, "type": place.type}


def _stem(filename: str) -> str:
    return filename.rpartition(".")[0] or filename


def _text(text: str) -> str:
    return _RUN_FOLDER.sub("", text) if STAGING in text else text
