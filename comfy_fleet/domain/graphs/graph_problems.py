"""What keeps a node with some inventory from running a graph, input by input."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.graphs import inputs as declared
from comfy_fleet.domain.graphs.graph import ASSET_TYPE, Graph, is_link
from comfy_fleet.domain.graphs.inputs import InputSpec, looks_like_file, unwrapped
from comfy_fleet.domain.graphs.inventory import ClassInfo, Inventory, reached


class ProblemKind(StrEnum):
    """Why a node can't run a graph."""

    COMFYUI_TOO_OLD = "comfyui_too_old"
    UNKNOWN_CLASS = "unknown_class"
    MISSING_INPUT = "missing_input"
    FILE_MISSING = "file_missing"
    VALUE_NOT_IN_LIST = "value_not_in_list"
    OUT_OF_RANGE = "out_of_range"
    WRONG_TYPE = "invalid_input_type"
    BAD_LINK = "bad_link"
    TYPE_MISMATCH = "return_type_mismatch"
    NO_OUTPUTS = "no_outputs"
    BAD_PATH = "bad_path"
    LINKED_PATH = "linked_path"
    CLASS_DENIED = "class_denied"
    UNKNOWN_FILE = "custom_validation_failed"  # ComfyUI's word for what its loaders say


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason why a node can't run a graph; ``message`` is a sentence that names the way out.

    Attributes:
        doubtful: The node may accept it anyway. Such a node is used only if there is none without doubts.
        only_with: For stored workflows: the choice that has this problem, e.g. ``lora = illustration``; empty
            if every job has it.
    """

    kind: ProblemKind
    message: str
    node_id: str = ""
    class_type: str = ""
    field: str = ""
    value: Any = None
    doubtful: bool = False
    only_with: str = ""


def problems(graph: Graph, inventory: Inventory) -> list[Problem]:
    """Return everything that certainly keeps a node with this inventory from running a checked graph."""
    return [problem for problem in findings(graph, inventory) if not problem.doubtful]


def findings(graph: Graph, inventory: Inventory) -> list[Problem]:
    """Return every problem with running a checked graph on a node with this inventory, doubts included.

    Linked values, uploaded files, ``core/ASSET`` references and what the class doesn't declare are left
    out. A name that the node spells differently counts as present; ``inventory.spelled`` puts in the
    node's spelling.
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
            found.extend(_input_findings(node_id, graph, info, inventory))
    return found


# ----------------------------------------------------------------------------------------------------


def _input_findings(node_id: str, graph: Graph, info: ClassInfo, inventory: Inventory) -> Iterator[Problem]:
    inputs: Mapping[str, Any] = graph[node_id]["inputs"]
    laid_out = info.laid_out(inputs)
    where = f"node {node_id} ({info.name})"

    def problem(
        kind: ProblemKind, name: str, message: str, *, value: Any = None, doubtful: bool = False
    ) -> Problem:
        return Problem(
            kind=kind,
            node_id=node_id,
            class_type=info.name,
            field=name,
            value=value,
            message=f"{where}: {message}",
            doubtful=doubtful,
        )

    for name, spec in laid_out.required.items():
        if name in inputs or (
            declared.is_group(spec) and any(given.startswith(name + ".") for given in inputs)
        ):
            continue
        yield problem(ProblemKind.MISSING_INPUT, name, f"input {name!r} is missing")
    for name, given in inputs.items():
        found = laid_out.input(name)
        if found is None:
            continue
        if is_link(given):
            from_, slot = given
            source = inventory.classes.get(graph[from_]["class_type"]) if from_ in graph else None
            if source is not None and 0 < len(source.outputs) <= slot:
                message = f"{name} links to slot {slot} of node {from_} ({source.name}), whose outputs are "
                message += ", ".join(source.outputs)
                # A pack's class may have more outputs than it lists, and a replaced one has other slots.
                doubtful = source.pack or bool(source.replaced_by)
                yield problem(ProblemKind.BAD_LINK, name, message, value=given, doubtful=doubtful)
            elif source is not None and slot < len(source.outputs):
                received = source.outputs[slot]
                if not _fits(received, found.type):
                    message = f"{name} takes {found.type}, but slot {slot} of node {from_} ({source.name})"
                    message += f" is {received}"
                    # A pack's class may take other types than it lists, and say so only to ComfyUI.
                    doubtful = source.pack or info.pack or bool(source.replaced_by or info.replaced_by)
                    yield problem(
                        ProblemKind.TYPE_MISMATCH,
                        name,
                        message,
                        value=(received, found.type),
                        doubtful=doubtful,
                    )
            continue
        if isinstance(given, list):
            message = f'{name} holds a bare list: write {{"{declared.WRAPPER}": [...]}}'
            yield problem(ProblemKind.BAD_LINK, name, message, value=given)
            continue
        if _is_asset(given) or found.upload or found.remote:
            continue
        value = unwrapped(given)
        try:
            number = _number(value, found.type)
        except (TypeError, ValueError, OverflowError):
            message = f"{name} must be a number ({found.type}), not {_shown(value)}"
            yield problem(ProblemKind.WRONG_TYPE, name, message, value=value)
            continue
        if number is not None and _outside(number, found):
            message = f"{name}: {value} is not between {found.minimum} and {found.maximum}"
            doubtful = info.may_take(name, found, value)
            yield problem(ProblemKind.OUT_OF_RANGE, name, message, value=value, doubtful=doubtful)
        for missing in _unlisted(value, found, required=name in laid_out.required):
            # Even if no other option is a file: VAELoader offers "pixel_space" with an empty folder.
            is_file = looks_like_file(missing)
            yield problem(
                ProblemKind.FILE_MISSING if is_file else ProblemKind.VALUE_NOT_IN_LIST,
                name,
                f"{name}: file {missing!r} is not on the node"
                if is_file
                else f"{name}: {_shown(missing)} is none of {_some(found.choices)}",
                value=missing,
                doubtful=info.may_take(name, found, missing),
            )


def _fits(received: str, wanted: str) -> bool:
    """Return whether an output of one type may be linked to an input of another.

    Enumerations are not compared with each other; the types of dynamic inputs are the editor's to check.
    """
    types = {one.strip() for one in received.split(",")}, {one.strip() for one in wanted.split(",")}
    if types[0] & types[1] or any("*" in some for some in types):
        return True
    return any(one.startswith("COMFY_") for some in types for one in some)


def _number(value: Any, type_: str) -> float | None:
    """Return the number that ComfyUI makes of a value; None if the input does not take numbers.

    Raises:
        TypeError: It can't be converted (the same holds for ValueError and OverflowError).
    """
    if type_ == "INT":
        return int(value)
    return float(value) if type_ == "FLOAT" else None


def _outside(value: float, spec: InputSpec) -> bool:
    return (spec.minimum is not None and value < spec.minimum) or (
        spec.maximum is not None and value > spec.maximum
    )


def _unlisted(value: Any, spec: InputSpec, *, required: bool) -> list[Any]:
    """Return those of an input's values that its list does not have."""
    if spec.multiselect:
        return [item for item in value if not spec.offers(item)] if isinstance(value, list) else []
    # ComfyUI leaves an optional group out of the call if its value is not one of its own.
    listed = spec.options is not None or (required and spec.branches is not None)
    return [] if not listed or spec.offers(value) else [value]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _is_asset(value: object) -> bool:
    return isinstance(value, Mapping) and value.get("__type") == ASSET_TYPE


def _some(options: tuple[Any, ...]) -> str:
    if not options:
        return "an empty list"
    shown = ", ".join(str(option) for option in options[:12])
    return shown + (f" and {len(options) - 12} more" if len(options) > 12 else "")
