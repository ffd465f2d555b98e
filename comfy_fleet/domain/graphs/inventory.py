"""What a node can run: its classes, their inputs and its files, as ``/object_info`` lists them.

Facts (ComfyUI 0.3.64 and 0.33): what a link brings into an enumeration is not checked; only nodes that an
output node reads are validated, but every node's class must exist; inputs that a class does not declare are
ignored. A class may check inputs itself: ComfyUI then ignores their lists and limits, and ``/object_info``
does not show it (see :data:`OWN_CHECKS`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from sys import getsizeof
from types import MappingProxyType
from typing import Any

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs import file_access
from comfy_fleet.domain.graphs import inputs as declared
from comfy_fleet.domain.graphs.file_access import Use, Uses
from comfy_fleet.domain.graphs.graph import Graph, upstream
from comfy_fleet.domain.graphs.inputs import Inputs, InputSpec, alike, looks_like_file
from comfy_fleet.domain.graphs.object_info import ObjectInfo

OWN_CHECKS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "CustomCombo": frozenset({"choice", "index"}),
        "FluxProUltraImageNode": frozenset({"aspect_ratio"}),
        "Load3D": frozenset({"model_file", "image", "width", "height"}),
        "Load3DAdvanced": frozenset({"model_file", "viewport_state", "width", "height"}),
        "LoadAudio": frozenset({"audio"}),
        "LoadImage": frozenset({"image"}),
        "LoadImageMask": frozenset({"image"}),
        "LoadImageOutput": frozenset({"image"}),
        "LoadLatent": frozenset({"latent"}),
        "LoadVideo": frozenset({"file"}),
        "ModelAttentionBackend": frozenset({"attention"}),
        "SelectCLIPDevice": frozenset({"device"}),
        "SelectModelDevice": frozenset({"device"}),
        "SelectVAEDevice": frozenset({"device"}),
        "WebcamCapture": frozenset({"image"}),
    }
)
"""Inputs that classes of ComfyUI 0.3.64 and 0.33 check themselves (``VALIDATE_INPUTS``), by class. It can't
be known for classes of node packs."""


@dataclass(frozen=True, kw_only=True)
class ClassInfo(Inputs):
    """One node class, with the inputs that it declares.

    Attributes:
        outputs: The types of its outputs.
        output_node: Whether it runs even if no other node reads it.
        pack: Whether it comes from a node pack, and so may check inputs itself.
        api_node: Whether it calls a paid service on the internet.
        files: What its inputs name, see :func:`comfy_fleet.domain.graphs.file_access.uses`.
        keeps_graph: It may write the graph into files under names of its own.
        shows_files: It reports files even when it is not an output node, and even from the cache.
        replaced_by: The class that the node runs in its place; empty if the node has the class itself.
        checks: Inputs that the replacing class checks itself.
    """

    name: str
    outputs: tuple[str, ...] = ()
    output_node: bool = False
    pack: bool = False
    api_node: bool = False
    files: Uses = field(default_factory=dict)
    keeps_graph: bool = False
    shows_files: bool = False
    replaced_by: str = ""
    checks: frozenset[str] = frozenset()

    def may_take(self, name: str, spec: InputSpec, value: object) -> bool:
        """Return whether the class may take a value of this input that its list or its limits exclude.

        A model file that is not on the node counts as missing, unless the class is known to accept other
        values.
        """
        if name in self.checks or name in OWN_CHECKS.get(self.name, ()):
            return True
        return (self.pack or spec.fillable) and not looks_like_file(value)


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The classes of one node (or of several that are alike).

    Attributes:
        classes: By name.
        version: ComfyUI's version from ``/system_stats``; empty if it was not asked.
        object_info: The answer that they were read from; None if it is not available, or too large to keep.
    """

    classes: Mapping[str, ClassInfo]
    version: str = ""
    object_info: ObjectInfo | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class GraphRequirements:
    """What a graph needs, whatever the node.

    Attributes:
        classes: Node classes.
        files: Model files as (class, input, file), with ``/`` as separator.
    """

    classes: frozenset[str]
    files: frozenset[tuple[str, str, str]]


class TooManyClasses(ValueError):
    """An inventory would take more memory than is allowed."""


class Reader:
    """Takes the classes of ``GET /object_info`` one by one. What can't be read accepts anything; it is never
    refused.

    Args:
        most_bytes: About how much memory the inventory may take; None: any amount.
    """

    def __init__(self, *, most_bytes: int | None = None) -> None:
        self._most = most_bytes
        self._classes: dict[str, ClassInfo] = {}
        self._lists: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._held = 0

    def add(self, name: str, body: object) -> ClassInfo | None:
        """Take one class; return it, or None if it is not a class.

        Raises:
            TooManyClasses: Together they take more memory than is allowed.
        """
        if not isinstance(body, Mapping):
            return None
        self._classes[name] = info = _read_class(name, body, self._shared)
        self._count(info)
        return info

    def inventory(self, replacements: object = None, version: str = "") -> Inventory:
        """Return the inventory; for the arguments see :func:`parse`. Raises TooManyClasses."""
        replaced = _replaced(replacements, self._classes)
        for info in replaced.values():
            self._count(info)
        return Inventory(classes={**replaced, **self._classes}, version=version)

    def _count(self, info: ClassInfo) -> None:
        names = (info.name, *info.outputs, *info.files)
        self._held += _CLASS_BYTES + declared.held(info) + 2 * sum(map(getsizeof, names))
        if self._most is not None and self._held > self._most:
            mib = self._most / 2**20
            raise TooManyClasses(f"its {len(self._classes)} classes take more than {mib:g} MiB to hold")

    def _shared(self, options: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return an equal list that exists already: the names of all models appear in many classes."""
        if all(type(option) is str for option in options):  # True equals 1
            if (found := self._lists.get(options)) is not None:
                return found
            self._lists[options] = options
        self._held += sum(map(_size, options)) + getsizeof(options)
        return options


def parse(object_info: object, *, replacements: object = None, version: str = "") -> Inventory:
    """Read the whole body of ``GET /object_info``.

    Args:
        object_info: The body.
        replacements: The body of ``GET /node_replacements``: classes that the node itself replaces count as
            classes that it has.
        version: ComfyUI's version.

    Raises:
        ConfigError: It is no object of classes at all.
    """
    if not isinstance(object_info, Mapping):
        raise ConfigError("/object_info did not answer with an object; is this URL a ComfyUI?")
    reader = Reader()
    for name, body in object_info.items():
        reader.add(name, body)
    return reader.inventory(replacements, version)


def spelled(graph: Graph, inventory: Inventory) -> Graph:
    """Return a graph that names everything as a node with this inventory does.

    Nodes on Windows and on Linux list the same file with different slashes, and accept only their own
    spelling.
    """
    result: Graph = {}
    for node_id, node in graph.items():
        info = inventory.classes.get(node["class_type"])
        if info is not None:
            laid_out = info.laid_out(node["inputs"])
            inputs = {
                name: value if (spec := laid_out.input(name)) is None else declared.spelled(value, spec)
                for name, value in node["inputs"].items()
            }
            result[node_id] = {**node, "inputs": inputs}
        else:
            result[node_id] = node
    return result


def requirements(graph: Graph, inventory: Inventory) -> GraphRequirements:
    """Return what the graph needs of a node.

    Args:
        graph: A checked graph.
        inventory: That of any node that has the classes; it says which inputs name model files.
    """
    visited = reached(graph, inventory)
    files = set()
    for node_id, node in graph.items():
        info = inventory.classes.get(node["class_type"])
        if info is None or node_id not in visited:
            continue
        laid_out = info.laid_out(node["inputs"])
        for name, value in node["inputs"].items():
            spec = laid_out.input(name)
            if spec and spec.options is not None and not spec.upload and looks_like_file(value):
                files.add((info.name, name, alike(value)))
    return GraphRequirements(
        classes=frozenset(node["class_type"] for node in graph.values()), files=frozenset(files)
    )


# ----------------------------------------------------------------------------------------------------

_PACKS = "custom_nodes"
_CLASS_BYTES = 1000


def _size(value: object) -> int:
    """Return about how many bytes a JSON value takes."""
    total, stack = 0, [value]
    while stack:
        one = stack.pop()
        total += getsizeof(one) + 24
        if isinstance(one, dict):
            stack.extend(one)
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)
    return total


def _read_class(name: str, body: Mapping[str, Any], shared: declared.Share) -> ClassInfo:
    """Return a class; if its declaration can't be read, it exists and accepts anything."""
    try:
        return _class_info(name, body, shared)
    except Exception:  # noqa: BLE001 - one odd class must not cost the node all others
        return ClassInfo(name=name, output_node=body.get("output_node") is True)


def _class_info(name: str, body: Mapping[str, Any], shared: declared.Share) -> ClassInfo:
    outputs = body.get("output")
    module = body.get("python_module")
    files = file_access.uses(name, body)
    inputs = declared.read(body.get("input"), files, shared)
    return ClassInfo(
        name=name,
        required=inputs.required,
        optional=inputs.optional,
        # An enumeration as output type is a list of its values.
        outputs=tuple(item if isinstance(item, str) else "COMBO" for item in outputs)
        if isinstance(outputs, list)
        else (),
        output_node=body.get("output_node") is True,
        pack=isinstance(module, str) and module.startswith(_PACKS),
        api_node=body.get("api_node") is True,
        files=files,
        keeps_graph=file_access.keeps_graph(body, files),
        shows_files=body.get("has_intermediate_output") is True,
    )


def _replaced(replacements: object, classes: Mapping[str, ClassInfo]) -> dict[str, ClassInfo]:
    """Return the classes that a node does not have but replaces on ``POST /prompt``, with their inputs.

    As on the node, the first entry of a class counts, and inputs that the mapping does not name are dropped.
    A saver whose replacement would not get its prefix counts as missing.
    """
    found: dict[str, ClassInfo] = {}
    for name, entries in replacements.items() if isinstance(replacements, Mapping) else ():
        entry = entries[0] if isinstance(entries, list) and entries else None
        new = classes.get(str(entry.get("new_node_id"))) if isinstance(entry, Mapping) else None
        if name in classes or new is None or entry is None:
            continue
        given: dict[str, Any] = {}
        names: dict[str, str] = {}
        mapping = entry.get("input_mapping")
        for item in mapping if isinstance(mapping, list) else ():
            target = str(item.get("new_id")) if isinstance(item, Mapping) else ""
            if target and "set_value" in item:
                given[target] = item["set_value"]
            elif target and "old_id" in item:
                given[target] = ["", 0]
                names[str(item["old_id"])] = target
        laid_out = new.laid_out(given)
        saved = {target for target, use in new.files.items() if use in (Use.PREFIX, Use.TARGET)}
        if laid_out.required.keys() <= given.keys() and saved <= set(names.values()):
            # The node answers with an error if the graph lacks an input that the mapping names.
            required = {old: laid_out.input(target) or InputSpec(type="*") for old, target in names.items()}
            files = {
                old: use for old, target in names.items() if (use := file_access.use_of(new.files, target))
            }
            checks = frozenset(old for old, target in names.items() if target in OWN_CHECKS.get(new.name, ()))
            info = replace(new, name=name, replaced_by=new.name, files=files, checks=checks)
            found[name] = replace(info, required=required, optional={})
    return found


def reached(graph: Graph, inventory: Inventory) -> set[str]:
    """Return the nodes that an output node reads, directly or not; an unknown class counts as output."""
    infos = ((node_id, inventory.classes.get(node["class_type"])) for node_id, node in graph.items())
    return upstream(graph, [node_id for node_id, info in infos if info is None or info.output_node])
