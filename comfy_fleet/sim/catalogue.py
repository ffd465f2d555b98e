"""The node classes that a simulated node has, and its ``/object_info``.

``catalogue.json`` holds the facts of ComfyUI 0.3.64's core classes (inputs, types, limits, outputs),
without its texts. Three kinds of strings stand for what differs by node: ``$models:FOLDER`` for the
files of a model folder, ``$files:KIND`` for uploaded files and ``$list:NAME`` for a shared list.
``SimSaveFiles`` and ``SimWork`` exist on simulated nodes only. ``DualCLIPLoader`` also offers
``newbie``, which later servers have.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from comfy_fleet.sim.options import Models

#: Classes whose file input is checked by looking for the file, not in the enumeration.
FILE_INPUTS = {"LoadImage": "image", "LoadImageMask": "image", "LoadLatent": "latent"}
#: Classes that do their work in a coroutine: ComfyUI starts those before other ready nodes.
COROUTINES = frozenset({"TestSleep", "TestAsyncError"})
#: Classes that are never answered from the cache.
ALWAYS_RUN = frozenset({"SaveImageWebsocket"})
#: Every model folder of ComfyUI 0.3.64, in the order of its ``/models``.
FOLDERS = [
    "checkpoints",
    "configs",
    "loras",
    "vae",
    "text_encoders",
    "diffusion_models",
    "clip_vision",
    "style_models",
    "embeddings",
    "diffusers",
    "vae_approx",
    "controlnet",
    "gligen",
    "upscale_models",
    "custom_nodes",
    "hypernetworks",
    "photomaker",
    "classifiers",
    "model_patches",
    "audio_encoders",
]


@dataclass(frozen=True)
class ClassInfo:
    """One node class with this node's enumerations filled in.

    Attributes:
        name: The class, as graphs name it.
        raw: Its entry of ``/object_info``.
    """

    name: str
    raw: Mapping[str, Any]

    @property
    def output_node(self) -> bool:
        """Whether a graph may end in it."""
        return bool(self.raw["output_node"])

    @property
    def outputs(self) -> list[str]:
        """Types of its outputs."""
        return list(self.raw["output"])

    @cached_property
    def inputs(self) -> dict[str, tuple[Any, dict[str, Any], bool]]:
        """By name: type (a list for an enumeration), options and whether it is required."""
        found: dict[str, tuple[Any, dict[str, Any], bool]] = {}
        for category in ("required", "optional"):
            for name, spec in self.raw["input"].get(category, {}).items():
                found[name] = (spec[0], spec[1] if len(spec) > 1 else {}, category == "required")
        return found

    @cached_property
    def wants_id(self) -> bool:
        """Whether the node's id takes part in its cache key, as for every class that asks for it."""
        return "UNIQUE_ID" in self.raw["input"].get("hidden", {}).values()


class Catalogue:
    """A node's classes.

    Args:
        models: The node's model files.
        files: Lists the uploaded files of a kind, see :meth:`Files.list_uploaded`.
        extra: An ``/object_info`` answer with further classes; built-in ones keep their facts.
    """

    def __init__(
        self,
        models: Models,
        files: Callable[[str], list[str]],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        content = json.loads(Path(__file__).with_name("catalogue.json").read_text())
        self._lists: dict[str, list[str]] = content["lists"]
        self._models = models
        self._files = files
        self._classes: dict[str, Any] = {
            name: _full(name, facts) for name, facts in content["classes"].items()
        }
        for name, facts in (extra or {}).items():
            self._classes.setdefault(name, facts)
        self._resolved: dict[str, ClassInfo] = {}

    def find(self, name: str) -> ClassInfo | None:
        """Return the class, None when this node has none of this name."""
        found = self._resolved.get(name)
        if found is None and name in self._classes:
            found = ClassInfo(name, self._fill(self._classes[name], listing=False))
            self._resolved[name] = found
        return found

    def object_info(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Return ``/object_info``: of all classes, or of those with these names that exist."""
        chosen = self._classes if names is None else [name for name in names if name in self._classes]
        return {name: self._fill(self._classes[name], listing=True) for name in chosen}

    def _fill(self, value: Any, *, listing: bool) -> Any:
        if isinstance(value, dict):
            return {key: self._fill(item, listing=listing) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill(item, listing=listing) for item in value]
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        kind, _, which = value.partition(":")
        if kind == "$list":
            return list(self._lists[which])
        if kind == "$models":
            return sorted(self._models.get(which, {}))
        if kind == "$files":
            # A check of a graph looks for the one file instead: listing a folder costs more.
            return self._files(which) if listing else []
        return value


def _full(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Complete an entry with what follows from the rest, in ComfyUI's order of keys."""
    outputs = facts["output"]
    entry = {
        "input": facts["input"],
        "input_order": {category: list(inputs) for category, inputs in facts["input"].items()},
        "output": outputs,
        "output_is_list": facts.get("output_is_list", [False] * len(outputs)),
        "output_name": facts.get("output_name", outputs),
        "name": name,
        "display_name": facts["display_name"],
        "description": "",
        "python_module": facts["python_module"],
        "category": facts["category"],
        "output_node": facts["output_node"],
    }
    if "tooltips" in facts:
        entry["output_tooltips"] = [""] * facts["tooltips"]
    for flag in ("deprecated", "experimental", "api_node"):
        if flag in facts:
            entry[flag] = facts[flag]
    return entry
