"""Checks a graph as ComfyUI does when it is posted, with the same answers.

Seen on real servers: unknown inputs are ignored, values of the basic types are converted in place, and a
bad node is listed under every output that was looked at after it. 0.3.64 does not check enumerations that
are given as ``["COMBO", {"options": [...]}]`` at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_fleet.sim.catalogue import FILE_INPUTS, UNCHECKED, Catalogue, NodeClass
from comfy_fleet.sim.versions import Version

CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
FILE_WORDS = {"latent": "latent", "model_file": "3D model"}
LONG_LIST = 20  # longer enumerations are not repeated in an error
ANYTHING = ("*", "COMFY_MATCHTYPE_V3")  # the latter means: of the same type as others, which nobody checks


@dataclass
class ValidationResult:
    """What the check found.

    Attributes:
        error: The error of the whole graph; None when at least one output can run.
        outputs: Ids of the outputs that can run.
        node_errors: What is wrong, by node; may be filled although outputs can run.
    """

    error: dict[str, Any] | None = None
    outputs: list[str] = field(default_factory=list)
    node_errors: dict[str, Any] = field(default_factory=dict)


def check(
    graph: dict[str, Any],
    catalogue: Catalogue,
    exists: Callable[[str], bool],
    targets: list[str] | None = None,
) -> ValidationResult:
    """Check a graph and convert its values in place.

    Args:
        graph: As posted.
        catalogue: The node's classes.
        exists: Tells whether an uploaded file is there.
        targets: The only outputs to run; all when None.

    Raises:
        TypeError: The graph is no mapping of mappings; ComfyUI answers that with a 500.
    """
    outputs = []
    for node_id, node in graph.items():
        class_type = node.get("class_type") if "class_type" in node else None
        info = None if class_type is None else catalogue.find(class_type)
        if info is None:
            return ValidationResult(error=_class_error(node_id, node, class_type, catalogue.version))
        if info.output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return ValidationResult(error=_error("prompt_no_outputs", "Prompt has no outputs", ""))

    checker = _Checker(graph, catalogue, exists)
    verdict = ValidationResult()
    top: list[dict[str, Any]] = []
    for output in outputs:
        if checker.output(output):
            verdict.outputs.append(output)
            continue
        top += checker.found[output]
        for node_id, reasons in checker.found.items():
            if reasons:
                entry = verdict.node_errors.setdefault(
                    node_id,
                    {"errors": reasons, "dependent_outputs": [], "class_type": graph[node_id]["class_type"]},
                )
                entry["dependent_outputs"].append(output)
    if not verdict.outputs:
        details = "\n".join(f"{reason['message']}: {reason['details']}" for reason in top)
        text = "Prompt outputs failed validation"
        verdict.error = _error("prompt_outputs_failed_validation", text, details)
    return verdict


class _Checker:
    """One pass over a graph; ``found`` holds the reasons by node, ``good`` the verdicts."""

    def __init__(self, graph: dict[str, Any], catalogue: Catalogue, exists: Callable[[str], bool]) -> None:
        self._graph = graph
        self._catalogue = catalogue
        self._exists = exists
        self._cycles: dict[str, list[dict[str, Any]]] = {}
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.good: dict[str, bool] = {}

    def output(self, node_id: str) -> bool:
        try:
            return self.node(node_id, ())
        except (KeyError, IndexError, TypeError) as error:
            reason = _reason(
                "exception_during_validation",
                "Exception when validating node",
                str(error),
                {"exception_type": type(error).__name__, "traceback": []},
            )
            self._end(node_id, good=False, reasons=[reason])
            return False

    def node(self, node_id: str, path: tuple[str, ...]) -> bool:
        if node_id in self.good:
            return self.good[node_id]
        if node_id in path:
            self._cycle(path[path.index(node_id) :])
            return False
        inputs = self._graph[node_id]["inputs"]
        info = self._catalogue.find(self._graph[node_id]["class_type"])
        if info is None:
            raise KeyError(self._graph[node_id]["class_type"])
        reasons: list[dict[str, Any]] = []
        good = True
        for name, (kind, options, required) in info.inputs_for(inputs).items():
            if name not in inputs:
                if required:
                    text, short = "Required input is missing", name.rpartition(".")[2]
                    reasons.append(_reason("required_input_missing", text, short, {"input_name": name}))
            elif isinstance(inputs[name], list):
                reason, upstream = self._link(name, kind, options, inputs[name], (*path, node_id))
                good = good and upstream
                reasons += [reason] if reason else []
            else:
                reason = self._value(info, name, kind, options, inputs)
                reasons += [reason] if reason else []
        reasons += self._cycles.pop(node_id, [])
        self._end(node_id, good=good and not reasons, reasons=reasons)
        return good and not reasons

    def _cycle(self, members: tuple[str, ...]) -> None:
        """Note a cycle for each of its nodes, which all are being looked at."""
        if not self._catalogue.version.explains_cycles:
            return
        names = [f"{node_id} ({self._graph[node_id]['class_type']})" for node_id in (*members, members[0])]
        for node_id in members:
            about = {"node_id": node_id, "cycle_nodes": list(members)}
            reason = _reason("dependency_cycle", "Dependency cycle detected", " -> ".join(names), about)
            self._cycles.setdefault(node_id, []).append(reason)

    def _end(self, node_id: str, *, good: bool, reasons: list[dict[str, Any]]) -> None:
        self.good[node_id] = good
        self.found[node_id] = reasons

    def _link(
        self, name: str, kind: Any, options: dict[str, Any], value: list[Any], path: tuple[str, ...]
    ) -> tuple[dict[str, Any] | None, bool]:
        about = {"input_name": name, "input_config": [kind, options]}
        if len(value) != 2:
            text = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return _reason("bad_linked_input", text, name, {**about, "received_value": value}), True
        source = self._catalogue.find(self._graph[value[0]]["class_type"])
        if source is None:
            raise KeyError(self._graph[value[0]]["class_type"])
        received = tuple(source.outputs)[value[1]]
        if not fits(received, kind):
            details = f"{name}, received_type({received}) mismatch input_type({kind})"
            about |= {"received_type": received, "linked_node": value}
            text = "Return type mismatch between linked nodes"
            return _reason("return_type_mismatch", text, details, about), True
        try:
            return None, self.node(value[0], path)
        except (KeyError, IndexError, TypeError) as error:
            about |= {
                "exception_message": str(error),
                "exception_type": type(error).__name__,
                "traceback": [],
                "linked_node": value,
            }
            text = "Exception when validating inner node"
            reason = _reason("exception_during_inner_validation", text, str(error), about)
            self._end(value[0], good=False, reasons=[reason])
            return None, False

    def _value(
        self, info: NodeClass, name: str, kind: Any, options: dict[str, Any], inputs: dict[str, Any]
    ) -> dict[str, Any] | None:
        value = inputs[name]
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        about: dict[str, Any] = {"input_name": name, "input_config": [kind, options]}
        convert = CONVERSIONS.get(kind) if isinstance(kind, str) else None
        if convert is not None:
            try:
                value = inputs[name] = convert(value)
            except (TypeError, ValueError, OverflowError) as error:
                about |= {"received_value": value, "exception_message": str(error)}
                text = f"Failed to convert an input value to a {kind} value"
                return _reason("invalid_input_type", text, f"{name}, {value}, {error}", about)
        if FILE_INPUTS.get(info.name) == name:
            if self._exists(str(value)):
                return None
            what = FILE_WORDS.get(name, "image")
            details = f"{name} - Invalid {what} file: {value}"
            text = "Custom validation failed for node"
            return _reason("custom_validation_failed", text, details, {"input_name": name})
        about["received_value"] = value
        if "min" in options and value < options["min"]:
            text = f"Value {value} smaller than min of {options['min']}"
            return _reason("value_smaller_than_min", text, name, about)
        if "max" in options and value > options["max"]:
            text = f"Value {value} bigger than max of {options['max']}"
            return _reason("value_bigger_than_max", text, name, about)
        offered = self._offered(info.name, name, kind, options)
        if offered is not None and value not in offered:
            long = len(offered) > LONG_LIST
            listed = f"(list of length {len(offered)})" if long else str(offered)
            if long:
                about["input_config"] = None
            return _reason(
                "value_not_in_list", "Value not in list", f"{name}: '{value}' not in {listed}", about
            )
        return None

    def _offered(self, class_type: str, name: str, kind: Any, options: dict[str, Any]) -> list[Any] | None:
        """Return the only values that an input takes; None if it takes others too."""
        if isinstance(kind, list):
            return kind
        if kind != "COMBO" or not self._catalogue.version.checks_combos or (class_type, name) in UNCHECKED:
            return None
        return options.get("options")


def fits(received: Any, wanted: Any) -> bool:
    """Return whether an output of one type may be linked to an input of another; ``*`` fits all."""
    if received == wanted or received in ANYTHING or wanted in ANYTHING:
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    return bool({part.strip() for part in received.split(",")} & {part.strip() for part in wanted.split(",")})


def _class_error(node_id: str, node: Mapping[str, Any], class_type: Any, version: Version) -> dict[str, Any]:
    title = (node.get("_meta") or {}).get("title", class_type)
    wording = version.no_class if class_type is None else version.unknown_class
    message = wording.format(class_type=class_type, title=title or f"ID #{node_id}")
    about = {"node_id": node_id, "class_type": class_type, "node_title": title}
    return {
        **_error(version.class_error, message, f"Node ID '#{node_id}'"),
        "extra_info": about if version.explains_class else {},
    }


def _error(kind: str, message: str, details: str) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": {}}


def _reason(kind: str, message: str, details: str, extra: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}
