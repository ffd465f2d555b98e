"""What nodes say about their model files, put together: folders, files, and where a file is.

Functions take pairs of a node and its answer, in the order in which they count, the newest ComfyUI's first.
Parts that make no sense are left out, and answers that are alike come out as they are. Where a node's files
lie on its machine is never told.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

from comfy_fleet.domain.graphs.inputs import alike

MAX_FOLDERS = 1000
MAX_FILES = 100_000
"""Most folders, and most files in one of them, that are listed."""
MAX_NAME = 1000
"""Longest name, in characters."""
MAX_PLACES = 3
"""Most nodes that are remembered for a file."""

CODE_FOLDERS = frozenset({"custom_nodes"})
"""Folders of programs: ComfyUI names them among those of models, and the fleet shows nothing of what is in
them."""
UNLISTED = frozenset({"configs", "custom_nodes"})
"""Folders that ``/experiment/models`` leaves out, as ComfyUI's does."""
FORMER_NAMES: Mapping[str, str] = {"unet": "diffusion_models", "clip": "text_encoders"}
"""Names under which ComfyUI still finds files of a folder."""

Answers: TypeAlias = Iterable[tuple[str, Any]]

_NUMBERS = ("modified", "created", "size")


@dataclass(frozen=True, kw_only=True)
class ModelPlace:
    """A model file on a node.

    Attributes:
        name: As the node spells it.
        path_index: Which of the folder's places on the node holds it.
    """

    node: str
    name: str
    path_index: int


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a folder.

    Attributes:
        listed: The first node's entry of each file.
        places: Some of the nodes that have a file, the first one first, by its name with ``/``.
        stems: Files by their names without extension: a preview has another one.
    """

    listed: list[dict[str, Any]]
    places: dict[str, list[ModelPlace]]
    stems: dict[str, str]


def folders(answers: Answers) -> list[str]:
    """Return the folders, each once."""
    return list(dict.fromkeys(name for _, answer in answers for name in _names(answer)))[:MAX_FOLDERS]


def files(answers: Answers) -> list[str]:
    """Return the files' names: as the nodes list them if all list the same, else sorted, as ComfyUI sorts."""
    first: list[str] | None = None
    same = True
    found: dict[str, str] = {}
    for _, answer in answers:
        names = _names(answer)
        first = names if first is None else first
        same = same and names == first
        for name in names:
            found.setdefault(alike(name), name)
    return (first or []) if same else sorted(found.values())[:MAX_FILES]


def folder_infos(answers: Answers) -> list[dict[str, Any]]:
    """Return the answer to ``/experiment/models``."""
    found: dict[str, dict[str, Any]] = {}
    for _, answer in answers:
        for entry in answer if isinstance(answer, list) else ():
            name = entry.get("name") if isinstance(entry, Mapping) else None
            if not _is_name(name) or name in UNLISTED or (name not in found and len(found) >= MAX_FOLDERS):
                continue
            places = entry.get("folders")
            count = min(len(places), MAX_FOLDERS) if isinstance(places, list) else 0
            info = found.setdefault(name, {"name": name, "folders": []})
            if count > len(info["folders"]):
                info["folders"] = [f"models/{name}", *(f"models/{name} ({n + 1})" for n in range(1, count))]
            extensions = entry.get("extensions")
            if isinstance(extensions, list):
                known = {*info.get("extensions", ()), *(one for one in extensions if isinstance(one, str))}
                info["extensions"] = sorted(known)[:MAX_FOLDERS]
    return list(found.values())


def file_infos(answers: Answers) -> ModelFiles:
    """Return the answer to ``/experiment/models/FOLDER``, and where the files are."""
    found = ModelFiles(listed=[], places={}, stems={})
    for node, answer in answers:
        for entry in answer if isinstance(answer, list) else ():
            if not isinstance(entry, Mapping) or not _is_name(name := entry.get("name")):
                continue
            key = alike(name)
            known = found.places.get(key)
            if known is None:
                if len(found.places) >= MAX_FILES:
                    continue
                known = found.places[key] = []
                found.stems.setdefault(without_extension(key), key)
            index = entry.get("pathIndex")
            index = index if isinstance(index, int) and 0 <= index < MAX_FOLDERS else 0
            if not known or known[0].node == node:  # one node may have it in two places
                numbers = {what: entry[what] for what in _NUMBERS if _is_number(entry.get(what))}
                found.listed.append({"name": name, "pathIndex": index, **numbers})
            if len(known) < MAX_PLACES:
                known.append(ModelPlace(node=node, name=name, path_index=index))
    return found


def without_extension(name: str) -> str:
    """Return a file's path without the extension."""
    folder, slash, last = name.rpartition("/")
    stem, dot, _ = last.rpartition(".")
    return f"{folder}{slash}{stem}" if dot and stem else name


def leaves(path: str) -> bool:
    """Return whether a path from a client is anything but one below a folder."""
    parts = alike(path).split("/")
    return not path or ":" in parts[0] or any(part in ("", ".", "..") for part in parts) or "\0" in path


def replacements(answers: Answers) -> dict[str, list[Any]]:
    """Return the answer to ``/node_replacements``; what several nodes replace, the first of them decides."""
    found: dict[str, list[Any]] = {}
    for _, answer in answers:
        for name, entries in answer.items() if isinstance(answer, Mapping) else ():
            if _is_name(name) and isinstance(entries, list) and len(found) < MAX_FILES:
                found.setdefault(name, entries)
    return found


def _names(answer: Any) -> list[str]:
    return [name for name in answer if _is_name(name)][:MAX_FILES] if isinstance(answer, list) else []


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
