"""How large the nodes' model files are, and in which folder a graph's files lie.

What nodes say may be wrong or missing. The size of a file that most of the nodes asked agree on counts, and
of two that equally many tell, the larger one: an assumed byte too much only costs a better place.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from comfy_fleet.domain.graphs.inputs import alike, looks_like_file
from comfy_fleet.domain.graphs.named_models import NamedModel
from comfy_fleet.domain.jobs.model_files import LONGEST_NAME, MOST_BYTES
from comfy_fleet.domain.nodes.eligibility import GIB, model_folder
from comfy_fleet.domain.nodes.model_lists import FORMER_NAMES, MAX_FOLDERS

MOST_FILES = 50_000
"""Files whose sizes are remembered."""
UNKNOWN_MODEL, UNKNOWN_PART = 2 * GIB, GIB // 5
"""What a file takes of which no size is known: a model that computes, and what goes with one."""

NOTHING_CHANGED: Mapping[str, float] = MappingProxyType({})
Folders = Mapping[str, Mapping[str, int]]
"""Bytes of files by folder and name, with ``/`` between the parts of a name."""

_LAST = 1e11  # a time that no file has
_LARGE = frozenset({"checkpoints", "diffusion_models", "diffusers", "unet_gguf"})
_OTHER = "models"
"""Stands for a folder that nothing tells."""
_TOLD_BY = tuple(
    (re.compile(words), folder)
    for words, folder in (
        ("lora|lycoris", "loras"),
        ("control_?net|t2i_?adapter", "controlnet"),
        ("clip_?vision", "clip_vision"),
        ("ip_?adapter", "ipadapter"),
        ("style_?model", "style_models"),
        ("upscale", "upscale_models"),
        ("vae", "vae"),
        ("ckpt|checkpoint", "checkpoints"),
        ("clip|text_?enc|t5", "text_encoders"),
        ("unet|diffusion|transformer", "diffusion_models"),
    )
)


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What is known of model files in all of a fleet.

    Attributes:
        folders: Bytes by folder and file.
        changed: When a file ``FOLDER/NAME`` was changed last on any node, in Unix seconds.
    """

    folders: Folders = field(default_factory=dict)
    changed: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _places(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for folder in sorted(self.folders, key=lambda one: (len(self.folders[one]), one)):
            for name in self.folders[folder]:
                found.setdefault(name, []).append(folder)
        return {name: tuple(folders) for name, folders in found.items()}

    def __len__(self) -> int:
        return sum(map(len, self.folders.values()))

    def lists(self, name: str) -> bool:
        """Return whether some node has a file of this name, with or without its folder before it."""
        return name in self._places or self._split(name) is not None

    def file(self, named: NamedModel) -> tuple[str, int | None]:
        """Return a file as ``FOLDER/NAME``, and its bytes; None if they are not known."""
        told = told_folder(named.class_type, named.input)
        folders = self._places.get(named.name)
        if folders is None:
            if (split := self._split(named.name)) is not None:
                folder, name = split
                return f"{folder}/{name}", self.folders[folder][name]
            return f"{told or _OTHER}/{named.name}", None
        folder = told if told in folders else folders[0]
        if len(folders) > 1 and told not in folders:
            folder = next((one for one in folders if self._offered(one, named.choices)), folder)
        return f"{folder}/{named.name}", self.folders[folder][named.name]

    def of(self, named: Iterable[NamedModel]) -> tuple[tuple[str, int], ...]:
        """Return files as ``FOLDER/NAME`` with their bytes, guessed if no node tells them; each once."""
        found: dict[str, int] = {}
        for one in named:
            place, size = self.file(one)
            found[place] = assumed(place) if size is None else size
        return tuple(sorted(found.items()))

    def with_news(self, news: Folders, changed: Mapping[str, float] = NOTHING_CHANGED) -> "ModelSizes":
        """Return this with what nodes say now; what only others have said is kept while there is room.

        Each node has its own times, and not all are asked each time: of a file, the newest one counts.
        """
        room = MOST_FILES
        made: dict[str, dict[str, int]] = {}
        for folders in (news, self.folders):
            for folder, files in folders.items():
                known = made.setdefault(folder, {})
                for name, size in files.items():
                    if room > 0 and name not in known:
                        known[name] = size
                        room -= 1
        newest = {
            place: max(changed.get(place, 0.0), self.changed.get(place, 0.0))
            for folder, files in made.items()
            for name in files
            if (place := f"{folder}/{name}") in changed or place in self.changed
        }
        return ModelSizes(folders={folder: files for folder, files in made.items() if files}, changed=newest)

    def _split(self, name: str) -> tuple[str, str] | None:
        folder, slash, rest = name.partition("/")
        folder = FORMER_NAMES.get(folder, folder)
        return (folder, rest) if slash and rest in self.folders.get(folder, ()) else None

    def _offered(self, folder: str, choices: Sequence[Any]) -> bool:
        """Return whether an input's choices can all be files of a folder."""
        files = [alike(one) for one in choices if looks_like_file(one)]
        return bool(files) and all(one in self.folders[folder] for one in files)


def assumed(place: str) -> int:
    """Return how many bytes a file ``FOLDER/NAME`` of unknown size is taken to have."""
    return UNKNOWN_MODEL if place.partition("/")[0] in _LARGE else UNKNOWN_PART


def told_sizes(answer: object) -> dict[str, int]:
    """Return a node's answer to ``/experiment/models/FOLDER`` as bytes by name; what makes no sense is left
    out.

    A file that a node has in two places counts as the first, which ComfyUI loads.
    """
    found: dict[str, int] = {}
    for entry in answer if isinstance(answer, list) else ():
        if len(found) >= MOST_FILES:
            break
        if not isinstance(entry, Mapping):
            continue
        name, size = entry.get("name"), entry.get("size")
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            continue
        if isinstance(size, int) and not isinstance(size, bool):
            found.setdefault(alike(name), min(max(0, size), MOST_BYTES))
    return found


def told_changes(answer: object) -> dict[str, float]:
    """Return from the same answer when files were changed, in Unix seconds by name; as for sizes."""
    found: dict[str, float] = {}
    for entry in answer if isinstance(answer, list) else ():
        if len(found) >= MOST_FILES:
            break
        if not isinstance(entry, Mapping):
            continue
        name, at = entry.get("name"), entry.get("modified")
        if isinstance(name, str) and isinstance(at, int | float) and 0 < at < _LAST:
            found.setdefault(alike(name), float(at))
    return found


def agreed(answers: Iterable[Folders]) -> dict[str, dict[str, int]]:
    """Return what several nodes say, put together; see the module."""
    votes: dict[tuple[str, str], dict[int, int]] = {}
    for folders in answers:
        for folder, files in list(folders.items())[:MAX_FOLDERS]:
            for name, size in files.items():
                if (folder, name) in votes or len(votes) < MOST_FILES:
                    told = votes.setdefault((folder, name), {})
                    told[size] = told.get(size, 0) + 1
    made: dict[str, dict[str, int]] = {}
    for (folder, name), told in votes.items():
        made.setdefault(folder, {})[name] = max(told, key=lambda size: (told[size], size))
    return made


def told_folder(class_type: str, name: str) -> str:
    """Return the folder below ``models`` that an input of a class tells; empty if nothing does."""
    if folder := model_folder(class_type, name):
        return folder
    for text in (name.lower(), class_type.lower()):
        for words, folder in _TOLD_BY:
            if words.search(text):
                return folder
    return ""
