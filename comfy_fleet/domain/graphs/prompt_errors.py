"""What is wrong with a graph, in the words of ComfyUI's ``POST /prompt``.

Clients know these forms: an editor marks the nodes under ``node_errors`` and shows message and details of
each. Facts (ComfyUI 0.33): an error names the input's declaration and the value as it was converted; of an
enumeration with more than 20 values only the number is told; a class that is missing, and a graph without an
output, are errors of the whole prompt.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from comfy_fleet.domain.graphs.inputs import unwrapped
from comfy_fleet.domain.graphs.structure import Graph, is_link
from comfy_fleet.domain.text import clip

Declaration: TypeAlias = Sequence[Any] | None
"""An input's type and options, as ``/object_info`` has them; None if they are not known."""
Declarations: TypeAlias = Callable[[str, str, Mapping[str, Any]], Declaration]
"""Returns that of an input, given its class, its name and all inputs of its node."""
PromptError: TypeAlias = dict[str, Any]
"""``{"type", "message", "details", "extra_info"}``."""

LONG_LIST = 20
MOST_NODES = 100
"""Nodes that a refusal explains."""
MOST_VALUE = 2000
"""Characters of a value that is repeated."""
_CONVERTED: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float}
_PARTIAL = frozenset(
    {
        *("missing_input", "file_missing", "value_not_in_list", "out_of_range", "invalid_input_type"),
        *("bad_link", "unknown_node", "cycle", "return_type_mismatch", "custom_validation_failed"),
    }
)
"""Defects for which ComfyUI leaves out an output and runs the others."""


def prompt_error(
    type_: str, message: str, details: str = "", extra_info: Mapping[str, Any] | None = None
) -> PromptError:
    """Return an error in ComfyUI's form."""
    return {"type": type_, "message": message, "details": details, "extra_info": dict(extra_info or {})}


def missing_class(
    node_id: str, node: Mapping[str, Any], defects: Iterable[Mapping[str, Any]] = ()
) -> PromptError:
    """Return the error of a prompt with a node whose class is missing, or not given.

    Args:
        node_id: The first such node.
        node: It.
        defects: All that is missing, with hints: ComfyUI names one class, and people need all of them.
    """
    class_type = node.get("class_type")
    class_type = class_type if isinstance(class_type, str) and class_type else None
    meta = node.get("_meta")
    title = meta.get("title", class_type) if isinstance(meta, Mapping) else class_type
    message = f"Node '{title}' not found. The custom node may not be installed."
    if class_type is None:
        lacking = "has no class_type. The workflow may be corrupted or a custom node is missing."
        message = f"Node '{title or f'ID #{node_id}'}' {lacking}"
    about = {"node_id": node_id, "class_type": class_type, "node_title": title}
    hints = {f"{one['missing']['name']}: {one['hint']}": one["missing"] for one in defects if one.get("hint")}
    details = "\n".join([f"Node ID '#{node_id}'", *hints])
    if hints:
        about["missing"] = list(hints.values())
    return prompt_error("missing_node_type", clip(message, MOST_VALUE), details, about)


def failed_outputs(node_errors: Mapping[str, Any], outputs: Iterable[str], details: str = "") -> PromptError:
    """Return the error of a prompt none of whose outputs can run.

    Args:
        node_errors: As :func:`node_errors` returns them.
        outputs: The output nodes; their own errors are repeated.
        details: What is said instead of these.
    """
    own = [
        f"{error['message']}: {error['details']}"
        for output in outputs
        for error in node_errors.get(output, {}).get("errors", ())
    ]
    return prompt_error(
        "prompt_outputs_failed_validation", "Prompt outputs failed validation", details or "\n".join(own)
    )


def leaves_others(defects: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether all these defects keep only those outputs from running that read their nodes."""
    return all(defect.get("reason") in _PARTIAL for defect in defects)


def dependents(graph: Graph, node_ids: Iterable[str]) -> set[str]:
    """Return these nodes and those that read them, directly or not."""
    return _downstream(_readers(graph), node_ids)


def node_errors(
    graph: Graph,
    defects: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    outputs: Sequence[str],
    declarations: Declarations,
) -> dict[str, Any]:
    """Return the errors by node.

    Args:
        graph: The graph, of a sound shape.
        defects: ``{field, reason, message}`` by node, as the checks of a submit tell them.
        outputs: The graph's output nodes.
        declarations: How the classes declare their inputs.
    """
    readers = _readers(graph)
    ring = _ring(graph, defects, outputs)
    told: dict[str, Any] = {}
    for node_id, found in list(defects.items())[:MOST_NODES]:
        if (node := graph.get(node_id)) is None:
            continue
        below = _downstream(readers, [node_id])
        told[node_id] = {
            "errors": [
                _hinted(
                    _told(node_id, graph, defect, outputs=outputs, declarations=declarations, ring=ring),
                    defect,
                )
                for defect in found
            ],
            "dependent_outputs": [output for output in outputs if output in below],
            "class_type": node["class_type"],
        }
    return told


def declaration(body: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> Declaration:
    """Return an input's declaration in a class's description.

    Args:
        body: The class, as ``/object_info`` describes it.
        name: The input's full name; a group's members have a dot in theirs.
        given: All inputs of the node: they choose what a group has.
    """
    return _declared(body.get("input"), name, "", given)


# ----------------------------------------------------------------------------------------------------


def _readers(graph: Graph) -> dict[str, list[str]]:
    readers: dict[str, list[str]] = {}
    for node_id, node in graph.items():
        for value in node["inputs"].values():
            if is_link(value):
                readers.setdefault(value[0], []).append(node_id)
    return readers


def _downstream(readers: Mapping[str, Sequence[str]], node_ids: Iterable[str]) -> set[str]:
    waiting, found = list(node_ids), set[str]()
    while waiting:
        node_id = waiting.pop()
        if node_id not in found:
            found.add(node_id)
            waiting.extend(readers.get(node_id, ()))
    return found


def _ring(
    graph: Graph, defects: Mapping[str, Sequence[Mapping[str, Any]]], outputs: Iterable[str]
) -> list[str]:
    """Return the nodes of a circle of links, from the one that an output reads first."""
    follows = {
        node_id: str(graph[node_id]["inputs"][defect["field"]][0])
        for node_id, found in defects.items()
        for defect in found
        if defect.get("reason") == "cycle"
    }
    if not follows:
        return []
    start = _first_read(graph, outputs, follows) or next(iter(follows))
    ring = [start]
    while (after := follows.get(ring[-1], start)) != start and len(ring) <= len(follows):
        ring.append(after)
    return ring


def _first_read(graph: Graph, outputs: Iterable[str], wanted: Collection[str]) -> str | None:
    waiting, seen = deque(outputs), set[str]()
    while waiting:
        node_id = waiting.popleft()
        if node_id in wanted:
            return node_id
        if node_id not in seen and node_id in graph:
            seen.add(node_id)
            waiting.extend(value[0] for value in graph[node_id]["inputs"].values() if is_link(value))
    return None


def _hinted(error: PromptError, defect: Mapping[str, Any]) -> PromptError:
    """Return an error with what the fleet knows besides: who lacks a part, and where it can be got."""
    if "missing" not in defect:
        return error
    details, hint = error["details"], str(defect.get("hint") or "")
    if hint not in details:  # some are the defect's message, which ends with it
        details += f"\n{hint}"
    return {
        **error,
        "details": details,
        "extra_info": {**error["extra_info"], "missing": [defect["missing"]]},
    }


def _told(
    node_id: str,
    graph: Graph,
    defect: Mapping[str, Any],
    *,
    outputs: Collection[str],
    declarations: Declarations,
    ring: Sequence[str],
) -> PromptError:
    node = graph[node_id]
    inputs: Mapping[str, Any] = node["inputs"]
    name, message = str(defect.get("field") or ""), str(defect.get("message") or "")
    declared = declarations(node["class_type"], name, inputs)
    about = {"input_name": name, "input_config": None if declared is None else list(declared)}
    given = inputs.get(name)
    match defect.get("reason"):
        case "missing_input":
            short = name.rpartition(".")[2]
            return prompt_error(
                "required_input_missing", "Required input is missing", short, {"input_name": name}
            )
        case "file_missing" | "value_not_in_list":
            return _not_in_list(name, unwrapped(given), declared, about)
        case "out_of_range":
            return _out_of_range(name, unwrapped(given), declared, about)
        case "invalid_input_type":
            return _wrong_type(name, unwrapped(given), declared, about)
        case "return_type_mismatch":
            return _mismatch(name, given, defect, declared, about)
        case "bad_link" if isinstance(given, list) and len(given) != 2:
            text = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return prompt_error("bad_linked_input", text, name, {**about, "received_value": _value(given)})
        case "bad_link" | "unknown_node" if isinstance(given, list) and given:
            return _broken_link(name, given, message, inner=node_id not in outputs, about=about)
        case "cycle":
            names = [f"{one} ({graph[one]['class_type']})" for one in (*ring, *ring[:1])]
            path = " -> ".join(names[: 2 * MOST_NODES])
            whole = {"node_id": node_id, "cycle_nodes": list(ring)}
            return prompt_error("dependency_cycle", "Dependency cycle detected", path, whole)
        case "no_common_node":
            received = {"input_name": name, "received_value": _value(given)} if name in inputs else {}
            return prompt_error("no_common_node", "No single GPU has everything", message, received)
        case "class_denied":
            return prompt_error("class_denied", "This class may not be used", message)
        case "unknown_class":
            return prompt_error("missing_node_type", "Class not found", message)
    text = "Custom validation failed for node"
    return prompt_error("custom_validation_failed", text, f"{name} - {message}", {"input_name": name})


def _broken_link(
    name: str, link: list[Any], message: str, *, inner: bool, about: Mapping[str, Any]
) -> PromptError:
    """Return what ComfyUI tells of a link that leads nowhere: the exception that it met there."""
    known = message.startswith("links to node")
    kind, text = ("KeyError", repr(link[0])) if known else ("IndexError", "tuple index out of range")
    facts = {
        "exception_type": kind,
        "traceback": [],
        "linked_node": _value(link),
        "reason": f"{name} {message}",
    }
    if not inner:
        return prompt_error("exception_during_validation", "Exception when validating node", text, facts)
    facts |= {**about, "exception_message": text}
    return prompt_error(
        "exception_during_inner_validation", "Exception when validating inner node", text, facts
    )


def _not_in_list(name: str, value: Any, declared: Declaration, about: Mapping[str, Any]) -> PromptError:
    options = _options(declared)
    listed, long = str(options), len(options) > LONG_LIST
    if long or len(listed) > MOST_VALUE:
        listed = f"(list of length {len(options)})"
        about = {**about, "input_config": None}
    bad = [one for one in value if one not in options] if isinstance(value, list) else [value]
    shown = ", ".join(map(repr, bad))
    return prompt_error(
        "value_not_in_list",
        "Value not in list",
        f"{name}: {clip(shown, MOST_VALUE)} not in {listed}",
        {**about, "received_value": _value(value)},
    )


def _out_of_range(name: str, value: Any, declared: Declaration, about: Mapping[str, Any]) -> PromptError:
    number = _converted(value, declared)
    options = _extra(declared)
    least, most = options.get("min"), options.get("max")
    if _is_number(least) and _is_number(number) and number < least:
        type_, text = "value_smaller_than_min", f"Value {number} smaller than min of {least}"
    else:
        type_, text = "value_bigger_than_max", f"Value {number} bigger than max of {most}"
    return prompt_error(type_, clip(text, MOST_VALUE), name, {**about, "received_value": _value(number)})


def _wrong_type(name: str, value: Any, declared: Declaration, about: Mapping[str, Any]) -> PromptError:
    kind = declared[0] if declared and isinstance(declared[0], str) else "INT"
    why = ""
    try:
        _CONVERTED.get(kind, int)(value)
    except (TypeError, ValueError, OverflowError) as error:
        why = clip(str(error), MOST_VALUE)
    text = f"Failed to convert an input value to a {kind} value"
    details = f"{name}, {clip(str(value), MOST_VALUE)}, {why}"
    facts = {**about, "received_value": _value(value), "exception_message": why}
    return prompt_error("invalid_input_type", text, details, facts)


def _mismatch(
    name: str, link: Any, defect: Mapping[str, Any], declared: Declaration, about: Mapping[str, Any]
) -> PromptError:
    received = defect.get("received_type")
    wanted = declared[0] if declared else defect.get("wanted_type")
    details = f"{name}, received_type({received}) mismatch input_type({clip(str(wanted), MOST_VALUE)})"
    facts = {**about, "received_type": received, "linked_node": link}
    return prompt_error("return_type_mismatch", "Return type mismatch between linked nodes", details, facts)


def _converted(value: Any, declared: Declaration) -> Any:
    kind = declared[0] if declared and isinstance(declared[0], str) else ""
    try:
        return _CONVERTED[kind](value) if kind in _CONVERTED else value
    except (TypeError, ValueError, OverflowError):
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _value(value: Any) -> Any:
    """Return a value to be repeated in an answer; a long one as the beginning of its text."""
    if isinstance(value, str):
        return clip(value, MOST_VALUE)
    if isinstance(value, list | dict) and len(text := str(value)) > MOST_VALUE:
        return clip(text, MOST_VALUE)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:  # JSON in answers has no such number
        return clip(str(value), MOST_VALUE)
    return value


def _extra(declared: Declaration) -> Mapping[str, Any]:
    found = declared[1] if declared and len(declared) > 1 else {}
    return found if isinstance(found, Mapping) else {}


def _options(declared: Declaration) -> list[Any]:
    if declared and isinstance(declared[0], list):
        return declared[0]
    found = _extra(declared).get("options")
    if not isinstance(found, list):
        return []
    return [one.get("key") if isinstance(one, Mapping) and "inputs" in one else one for one in found]


def _declared(group: Any, name: str, prefix: str, given: Mapping[str, Any]) -> Declaration:
    for part in ("required", "optional"):
        specs = group.get(part) if isinstance(group, Mapping) else None
        for short, declared in specs.items() if isinstance(specs, Mapping) else ():
            full = prefix + str(short)
            if not isinstance(declared, list) or not declared:
                continue
            if full == name:
                return [declared[0], dict(_extra(declared))]
            if name.startswith(full + "."):
                return _member(declared, name, full, given)
    return None


def _member(declared: list[Any], name: str, group: str, given: Mapping[str, Any]) -> Declaration:
    """Return the declaration of one of a group's members."""
    extra = _extra(declared)
    match declared[0]:
        case "COMFY_DYNAMICCOMBO_V3":
            options = extra.get("options")
            for option in options if isinstance(options, list) else ():
                if isinstance(option, Mapping) and option.get("key") == given.get(group):
                    return _declared(option.get("inputs"), name, f"{group}.", given)
        case "COMFY_DYNAMICSLOT_V3":
            return _declared(extra.get("inputs"), name, f"{group}.", given)
        case "COMFY_AUTOGROW_V3":
            template = extra.get("template")
            kinds = template.get("input") if isinstance(template, Mapping) else None
            for part in kinds.values() if isinstance(kinds, Mapping) else ():
                for one in part.values() if isinstance(part, Mapping) else ():
                    if isinstance(one, list) and one:
                        return [one[0], dict(_extra(one))]
    return None
