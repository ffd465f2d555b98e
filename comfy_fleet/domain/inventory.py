"""What a node can run: its classes, their inputs and its files, as ``/object_info`` lists them.

Facts (ComfyUI 0.3.64): an enumeration is ``[["a", "b"], {...}]`` or ``["COMBO", {"options": ["a", "b"]}]``,
model files included; a link into an enumeration is not checked; only nodes that an output node reads are
validated, but every node's class must exist; inputs that a class does not declare are ignored.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from comfy_fleet.domain import file_access
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.file_access import Use, Uses
from comfy_fleet.domain.graph import ASSET_TYPE, Graph, is_link


class ProblemKind(StrEnum):
    """Why a node can't run a graph."""

    COMFYUI_TOO_OLD = "comfyui_too_old"
    UNKNOWN_CLASS = "unknown_class"
    MISSING_INPUT = "missing_input"
    FILE_MISSING = "file_missing"
    VALUE_NOT_IN_LIST = "value_not_in_list"
    OUT_OF_RANGE = "out_of_range"
    NO_OUTPUTS = "no_outputs"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason why a node can't run a graph; ``message`` is a sentence that names the way out.

    Attributes:
        only_with: For stored workflows: the choice that meets it, e.g. ``lora = illustration``; empty
            where every job does.
    """

    kind: ProblemKind
    message: str
    node_id: str = ""
    class_type: str = ""
    field: str = ""
    value: Any = None
    only_with: str = ""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a class wants of one input.

    Attributes:
        type: ``INT``, ``FLOAT``, ``STRING``, ``BOOLEAN``, ``COMBO`` or the name of a linked type.
        options: The values of an enumeration; None where it is open (filled by the editor at run time).
        upload: It names a file that is uploaded with the job: never something a node must have.
        remote: Its values come from elsewhere: nothing can be said about them.
    """

    type: str
    options: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    default: Any = None
    upload: bool = False
    remote: bool = False
    multiselect: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassInfo:
    """One node class.

    Attributes:
        files: What its inputs name, as :func:`comfy_fleet.domain.file_access.uses` tells.
        keeps_graph: It may write the graph into files under names of its own.
        shows_files: It tells of files though it may be no output node, even from the cache.
    """

    name: str
    required: Mapping[str, InputSpec] = field(default_factory=dict)
    optional: Mapping[str, InputSpec] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_node: bool = False
    files: Uses = field(default_factory=dict)
    keeps_graph: bool = False
    shows_files: bool = False

    def input(self, name: str) -> InputSpec | None:
        """Return an input's specification; None if the class doesn't declare it."""
        return self.required.get(name) or self.optional.get(name)


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The classes of one node (or of several that are alike).

    Attributes:
        classes: By name.
        version: ComfyUI's version from ``/system_stats``; empty if it was not asked.
    """

    classes: Mapping[str, ClassInfo]
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a graph needs of a node, without asking a particular one.

    Attributes:
        classes: Node classes.
        files: Model files as (class, input, file), with ``/`` as separator.
    """

    classes: frozenset[str]
    files: frozenset[tuple[str, str, str]]


def parse(object_info: object, *, version: str = "") -> Inventory:
    """Read the body of ``GET /object_info``. What can't be read is left open, never refused.

    Raises:
        ConfigError: It is no object of classes at all.
    """
    if not isinstance(object_info, Mapping):
        raise ConfigError("/object_info did not answer with an object; is this URL a ComfyUI?")
    classes = {
        name: _class_info(name, body) for name, body in object_info.items() if isinstance(body, Mapping)
    }
    return Inventory(classes=classes, version=version)


def problems(graph: Graph, inventory: Inventory) -> list[Problem]:
    """Return everything that keeps a node with this inventory from running a checked graph.

    Linked values, uploaded files, ``core/ASSET`` references and what the class doesn't declare are left
    out. ``/`` and ``\\`` in file names count as the same.
    """
    found = [
        Problem(
            kind=ProblemKind.UNKNOWN_CLASS,
            node_id=node_id,
            class_type=node["class_type"],
            message=f"node {node_id}: class {node['class_type']!r} is not installed",
        )
        for node_id, node in graph.items()
        if node["class_type"] not in inventory.classes
    ]
    visited = reached(graph, inventory)
    if not visited and not found:
        found.append(
            Problem(kind=ProblemKind.NO_OUTPUTS, message="the graph has no output node: nothing would run")
        )
    for node_id, node in graph.items():
        info = inventory.classes.get(node["class_type"])
        if info is not None and node_id in visited:
            found.extend(_input_problems(node_id, node["inputs"], info))
    return found


def requirements(graph: Graph, inventory: Inventory) -> Requirements:
    """Return what the graph needs of a node.

    Args:
        graph: A checked graph.
        inventory: Any node's that knows the classes: it says which inputs name model files.
    """
    visited = reached(graph, inventory)
    files = set()
    for node_id, node in graph.items():
        info = inventory.classes.get(node["class_type"])
        if info is None or node_id not in visited:
            continue
        for name, value in node["inputs"].items():
            spec = info.input(name)
            if spec and spec.options is not None and not spec.upload and looks_like_file(value):
                files.add((info.name, name, _slashed(value)))
    return Requirements(
        classes=frozenset(node["class_type"] for node in graph.values()), files=frozenset(files)
    )


_VERSION = re.compile(r"\s*(>=|<=|==|>|<)\s*v?(\d+(?:\.\d+)*)\s*")
_NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")


def version_allows(version: str, wanted: str) -> bool | None:
    """Tell whether ``version`` fulfils a condition such as ``>=0.3.71`` or ``>=0.3.71,<2``.

    Returns:
        None if the version can't be read, so that nothing can be said.

    Raises:
        ConfigError: The condition can't be read.
    """
    conditions = []
    for part in wanted.split(",") if wanted.strip() else ():
        match = _VERSION.fullmatch(part)
        if not match:
            raise ConfigError(f"comfyui = {wanted!r} must look like '>=0.3.71' or '>=0.3.71,<2'")
        conditions.append((match[1], _numbers(match[2])))
    match = _NUMBERS.match(version)
    if not match:
        return None
    have = _numbers(match[1])
    for operator, limit in conditions:
        holds = {
            ">=": have >= limit,
            "<=": have <= limit,
            "==": have == limit,
            ">": have > limit,
            "<": have < limit,
        }
        if not holds[operator]:
            return False
    return True


_EXTENSIONS = (
    ".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx", ".pkl", ".engine",
    ".yaml",
)  # fmt: skip


def looks_like_file(value: object) -> bool:
    """Tell whether a value names a model file, by the extensions that ComfyUI and its extensions load."""
    return isinstance(value, str) and value.lower().endswith(_EXTENSIONS)


# ----------------------------------------------------------------------------------------------------


def _class_info(name: str, body: Mapping[str, Any]) -> ClassInfo:
    inputs = body.get("input")
    inputs = inputs if isinstance(inputs, Mapping) else {}
    outputs = body.get("output")
    files = file_access.uses(name, body)
    return ClassInfo(
        name=name,
        required=_specs(inputs.get("required"), files),
        optional=_specs(inputs.get("optional"), files),
        # An enumeration as output type is a list of its values.
        outputs=tuple(item if isinstance(item, str) else "COMBO" for item in outputs)
        if isinstance(outputs, list)
        else (),
        output_node=body.get("output_node") is True,
        files=files,
        keeps_graph=file_access.keeps_graph(body, files),
        shows_files=body.get("has_intermediate_output") is True,
    )


def _specs(group: object, files: Uses) -> dict[str, InputSpec]:
    if not isinstance(group, Mapping):
        return {}
    return {
        name: _spec(name, declared, files.get(name))
        for name, declared in group.items()
        if isinstance(declared, list) and declared
    }


def _spec(name: str, declared: list[Any], use: Use | None) -> InputSpec:
    kind = declared[0]
    extra = declared[1] if len(declared) > 1 and isinstance(declared[1], Mapping) else {}
    options: tuple[Any, ...] | None = None
    if isinstance(kind, list):
        options, kind = tuple(kind), "COMBO"
    elif kind == "COMBO" and isinstance(extra.get("options"), list):
        options = tuple(extra["options"])
    if options is not None:
        folders = use is Use.PATH and file_access.names_folder(name)
        options = tuple(option for option in options if not _is_ours(option, folders=folders))
    return InputSpec(
        type=kind if isinstance(kind, str) else "*",
        options=options,
        minimum=_limit(extra.get("min")),
        maximum=_limit(extra.get("max")),
        step=_limit(extra.get("step")),
        default=extra.get("default"),
        upload=use is Use.FILE,
        remote=bool(extra.get("remote")),
        multiselect=bool(extra.get("multiselect")),
    )


def _is_ours(option: object, *, folders: bool) -> bool:
    """Tell whether an option is what jobs have put into the node's folders: no choice of anybody."""
    return isinstance(option, str) and (
        file_access.is_staged(option) or (folders and file_access.in_staging(option))
    )


def _limit(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def reached(graph: Graph, inventory: Inventory) -> set[str]:
    """Return the nodes that an output node reads, directly or not; an unknown class counts as output."""
    waiting = []
    for node_id, node in graph.items():
        info = inventory.classes.get(node["class_type"])
        if info is None or info.output_node:
            waiting.append(node_id)
    found: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id not in found and node_id in graph:
            found.add(node_id)
            waiting.extend(value[0] for value in graph[node_id]["inputs"].values() if is_link(value))
    return found


def _input_problems(node_id: str, inputs: Mapping[str, Any], info: ClassInfo) -> Iterator[Problem]:
    for name in info.required:
        # Newer nodes send the members of a group as "group.member" and nothing under the group's own name.
        if name not in inputs and not any(given.startswith(name + ".") for given in inputs):
            yield Problem(
                kind=ProblemKind.MISSING_INPUT,
                node_id=node_id,
                class_type=info.name,
                field=name,
                message=f"node {node_id} ({info.name}): input {name!r} is missing",
            )
    for name, value in inputs.items():
        spec = info.input(name)
        if spec is None or isinstance(value, list) or _is_asset(value) or spec.upload or spec.remote:
            continue
        where = f"node {node_id} ({info.name}): {name}"
        if spec.options is not None and not spec.multiselect:
            if any(same_value(value, option) for option in spec.options):
                continue
            # Not only where other options are files: VAELoader offers "pixel_space" with an empty folder.
            is_file = looks_like_file(value)
            yield Problem(
                kind=ProblemKind.FILE_MISSING if is_file else ProblemKind.VALUE_NOT_IN_LIST,
                node_id=node_id,
                class_type=info.name,
                field=name,
                value=value,
                message=f"{where}: file {value!r} is not on the node"
                if is_file
                else f"{where}: {value!r} is none of {_some(spec.options)}",
            )
        elif _outside(value, spec):
            yield Problem(
                kind=ProblemKind.OUT_OF_RANGE,
                node_id=node_id,
                class_type=info.name,
                field=name,
                value=value,
                message=f"{where}: {value} is not between {spec.minimum} and {spec.maximum}",
            )


def _outside(value: object, spec: InputSpec) -> bool:
    if spec.type not in ("INT", "FLOAT") or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (spec.minimum is not None and value < spec.minimum) or (
        spec.maximum is not None and value > spec.maximum
    )


def _is_asset(value: object) -> bool:
    return isinstance(value, Mapping) and value.get("__type") == ASSET_TYPE


def _slashed(value: str) -> str:
    return value.replace("\\", "/")


def same_value(value: object, option: object) -> bool:
    """Tell whether an enumeration offers a value by this option; slashes and backslashes are equal."""
    if isinstance(value, str) and isinstance(option, str):
        return value == option or _slashed(value) == _slashed(option)
    return value == option and isinstance(value, bool) == isinstance(option, bool)


def _some(options: tuple[Any, ...]) -> str:
    shown = ", ".join(str(option) for option in options[:12])
    return (
        shown + (f" and {len(options) - 12} more" if len(options) > 12 else "")
        if options
        else "an empty list"
    )


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in text.split(".")]
    while numbers and numbers[-1] == 0:  # 0.4 and 0.4.0 are the same version
        numbers.pop()
    return tuple(numbers)
