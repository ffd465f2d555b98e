"""The node classes that a simulated node has, and its ``/object_info``.

``catalogue-VERSION.json`` holds the facts of a ComfyUI's core classes (inputs, types, limits, outputs),
without its texts. Three kinds of strings are placeholders for what differs by node: ``$models:FOLDER`` for
the files of a model folder, ``$files:KIND`` for uploaded files and ``$list:NAME`` for a shared list.
``SimSaveFiles`` and ``SimWork`` exist on simulated nodes only. ``DualCLIPLoader`` of 0.3.64 also offers
``newbie``, which later servers have.

Inputs that depend on what is given (*dynamic* ones) are flat in a graph, with dots: ``"resize_type": "scale
width", "resize_type.width": 64`` for a choice with members of its own, ``"images.image0": [...]`` for a
group that grows.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from comfy_fleet.sim.options import Models
from comfy_fleet.sim.versions import Version

#: Classes whose file input is checked by looking for the file, not by the enumeration.
FILE_INPUTS = {
    "LoadImage": "image",
    "LoadImageMask": "image",
    "LoadImageOutput": "image",
    "LoadLatent": "latent",
    "Load3DAdvanced": "model_file",
}
#: Inputs that take any value, although there is an enumeration.
UNCHECKED = frozenset({("CustomCombo", "choice")})
CHOICE = "COMFY_DYNAMICCOMBO_V3"
GROUP = "COMFY_AUTOGROW_V3"
#: By name: type (a list for an enumeration), options and whether it is required.
Inputs = Mapping[str, tuple[Any, dict[str, Any], bool]]
#: Classes that do their work in a coroutine: ComfyUI starts those before other ready nodes.
COROUTINES = frozenset({"TestSleep", "TestAsyncError"})
#: Classes that are never answered from the cache.
ALWAYS_RUN = frozenset({"SaveImageWebsocket"})


@dataclass(frozen=True)
class NodeClass:
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

    @property
    def intermediate(self) -> bool:
        """Whether it shows something although it is not an output node."""
        return bool(self.raw.get("has_intermediate_output")) and not self.output_node

    @cached_property
    def inputs(self) -> Inputs:
        """Its inputs, dynamic ones as a whole."""
        return _inputs(self.raw["input"])

    def inputs_for(self, given: Mapping[str, Any]) -> Inputs:
        """Return its inputs in a graph, with the inputs that dynamic ones have for these values."""
        if not self._dynamic:
            return self.inputs
        return dict(_flat(self.inputs, given))

    @cached_property
    def _dynamic(self) -> bool:
        return any(kind in (CHOICE, GROUP) for kind, _, _ in self.inputs.values())

    @cached_property
    def wants_id(self) -> bool:
        """Whether the node's id takes part in its cache key, as for every class that asks for it."""
        hidden = self.raw["input"].get("hidden", {}).values()
        return "UNIQUE_ID" in hidden or ["UNIQUE_ID"] in hidden


class Catalogue:
    """A node's classes.

    Args:
        version: Which ComfyUI has them.
        models: The node's model files.
        files: Lists the uploaded files of a kind, see :meth:`Files.list_uploaded`.
        extra: An ``/object_info`` answer with further classes; built-in ones keep their facts.

    Attributes:
        version: As given.
        models: As given; replaced when models are installed.
        replacements: Successors of removed classes, in the form of ``/node_replacements``.
    """

    def __init__(
        self,
        version: Version,
        models: Models,
        files: Callable[[str], list[str]],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        content = _content(version.name)
        self.version = version
        self.replacements: Mapping[str, Any] = content["replacements"]
        self._lists: dict[str, list[str]] = content["lists"]
        self.models = models
        self._files = files
        self._classes: dict[str, Any] = {
            name: _full(name, facts) for name, facts in content["classes"].items()
        }
        for name, facts in (extra or {}).items():
            self._classes.setdefault(name, facts)
        self._resolved: dict[str, NodeClass] = {}

    def find(self, name: str) -> NodeClass | None:
        """Return the class, None when this node has none of this name."""
        found = self._resolved.get(name)
        if found is None and name in self._classes:
            found = NodeClass(name, self._fill(self._classes[name], listing=False))
            if isinstance(self.models, dict):  # else they come and go
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
            return sorted(self.models.get(which, {}))
        if kind == "$files":
            # Checking a graph looks for the single file instead: listing a folder costs more.
            return self._files(which) if listing else []
        return value


@cache
def _content(version: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name(f"catalogue-{version}.json").read_text())
    return content


def _full(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Complete an entry with facts that follow from the rest."""
    order = {category: list(inputs) for category, inputs in facts["input"].items()}
    return {**facts, "input_order": order, "name": name, "description": ""}


def _inputs(raw: Mapping[str, Any]) -> Inputs:
    found: dict[str, tuple[Any, dict[str, Any], bool]] = {}
    for category in ("required", "optional"):
        for name, spec in raw.get(category, {}).items():
            found[name] = (spec[0], spec[1] if len(spec) > 1 else {}, category == "required")
    return found


def _flat(
    inputs: Inputs, given: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[Any, dict[str, Any], bool]]]:
    for short, (kind, options, required) in inputs.items():
        name = prefix + short
        if kind == GROUP:
            template = options["template"]
            members = template.get("names") or [f"{template['prefix']}{i}" for i in range(template["max"])]
            ((wanted, settings, _),) = _inputs(template["input"]).values()
            for index, member in enumerate(members):
                needed = required and index < template["min"]
                if needed or f"{name}.{member}" in given:
                    yield f"{name}.{member}", (wanted, settings, needed)
        elif kind == CHOICE:
            chosen = next((option for option in options["options"] if option["key"] == given.get(name)), None)
            if chosen is not None:  # with any other value there is no such input; that is no error yet
                yield name, (kind, options, required)
                yield from _flat(_inputs(chosen["inputs"]), given, f"{name}.")
        else:
            yield name, (kind, options, required)
