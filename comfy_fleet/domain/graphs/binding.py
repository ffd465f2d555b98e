"""Put parameter values into a stored workflow's graph."""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.errors import InvalidParameter
from comfy_fleet.domain.graphs import xml_text
from comfy_fleet.domain.graphs.graph import ASSET_TYPE, Graph, asset_reference, copied, is_link
from comfy_fleet.domain.graphs.workflow import (
    DRAWN,
    FILES,
    MAX_SEED,
    NO_EFFECT,
    Effect,
    Parameter,
    ParameterType,
    TargetForm,
    Workflow,
)
from comfy_fleet.domain.outbound import MAX_URL

MAX_TEXT = 100_000
"""Longest text, in characters, where the parameter sets no limit."""
_SHOWN_NAME = 80
MAX_UNKNOWN = 20
"""How many unknown names get an error with a suggestion each."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A workflow with its values in place.

    Attributes:
        graph: A new graph, ready to be checked and submitted like any other.
        values: Every parameter's value as it was used: defaults and drawn seeds included.
        assets: For image and asset parameters, an asset's id or a file name. The caller looks it up and then
            calls :func:`check_file`.
        drawn: Node and input of each seed that was drawn because the caller sent none.
        seeds: The names of the seeds that were drawn.
    """

    graph: Graph
    values: Mapping[str, Any]
    assets: Mapping[str, str]
    drawn: frozenset[tuple[str, str]] = frozenset()
    seeds: frozenset[str] = frozenset()


def bind(workflow: Workflow, values: Mapping[str, Any], *, draw_seed: Callable[[], int]) -> Bound:
    """Return the workflow's graph with the caller's values in it.

    Inputs that no parameter sets stay as they are. An asset's id goes in as a ``core/ASSET`` reference, an
    uploaded file's name as it is; a job's submit resolves both.

    Args:
        workflow: The workflow.
        values: By parameter name. ``None`` counts as not sent.
        draw_seed: Returns a number from 0 for seeds that are absent or -1.

    Raises:
        InvalidParameter: Details carry ``parameter``, ``value`` and ``limit`` of the first problem, and
            ``errors`` with all of them (and each one's ``message``).
    """
    used, seeds = _used(workflow, values, draw_seed)
    effects = [
        _effect(parameter, used[parameter.name])
        for parameter in workflow.parameters
        if parameter.name in used
    ]
    graph = copied(workflow.graph)
    assets: dict[str, str] = {}
    for parameter in workflow.parameters:
        if parameter.name not in used:
            continue
        value = used[parameter.name]
        if parameter.type in FILES:
            assets[parameter.name] = value
            value = asset_reference(value) if _UUID.fullmatch(value) else value
        elif parameter.type is ParameterType.CHOICE:
            value = next(choice.value for choice in parameter.choices if choice.name == value)
        elif parameter.type is ParameterType.STRING:
            for effect in effects:
                # Only the first hole: a text that itself holds {} is data.
                before, hole, after = effect.wrap.get(parameter.name, "{}").partition("{}")
                value = before + value + after if hole else before
        for target in parameter.targets:
            graph[target.node_id]["inputs"][target.input] = _formed(value, target.form)
    for effect in effects:
        for target, value in effect.set:
            graph[target.node_id]["inputs"][target.input] = _formed(value, target.form)
    for effect in effects:
        for bypass in effect.bypass:
            graph = _without(graph, bypass.node_id, bypass.through)
    drawn = {
        (target.node_id, target.input)
        for parameter in workflow.parameters
        if parameter.type is ParameterType.SEED and _is_open(parameter, values.get(parameter.name))
        for target in parameter.targets
        if target.form is TargetForm.VALUE
    }
    drawn -= {(target.node_id, target.input) for effect in effects for target, _ in effect.set}
    return Bound(graph=graph, values=used, assets=assets, drawn=frozenset(drawn), seeds=seeds)


def check_value(parameter: Parameter, value: Any) -> Any:
    """Return the value that :func:`bind` would use.

    Raises:
        InvalidParameter: The parameter does not accept it.
    """
    try:
        return _value(parameter, value, lambda: 0)
    except _Problem as problem:
        raise problem.as_error() from None


def check_file(parameter: Parameter, *, content_type: str, size_bytes: int) -> None:
    """Check a file that was found for an image or asset parameter.

    Raises:
        InvalidParameter: Its type or its size is not what the parameter takes.
    """
    kind = content_type.partition(";")[0].strip().lower()
    taken = [pattern.lower() for pattern in parameter.accept]
    if taken and not any(
        pattern in ("*/*", kind) or (pattern.endswith("/*") and kind.startswith(pattern[:-1]))
        for pattern in taken
    ):
        raise _Problem(
            parameter.name, content_type, taken, f"takes {' or '.join(taken)}, not {content_type}"
        ).as_error()
    if parameter.max_bytes is not None and size_bytes > parameter.max_bytes:
        raise _Problem(
            parameter.name,
            size_bytes,
            parameter.max_bytes,
            f"takes at most {parameter.max_bytes} bytes, not {size_bytes}",
        ).as_error()


# ----------------------------------------------------------------------------------------------------


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class _Problem(Exception):
    def __init__(self, parameter: str, value: object, limit: object, message: str) -> None:
        super().__init__(f"parameter {parameter!r} {message}")
        self.facts = {"parameter": parameter, "value": _shown(value), "limit": limit}

    def as_error(self) -> InvalidParameter:
        return InvalidParameter(
            str(self), details={**self.facts, "errors": [{**self.facts, "message": str(self)}]}
        )


def _shown(value: object) -> object:
    """Return a value in a form that an error may show: short, and always JSON."""
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text if len(text) <= 100 else text[:100] + "…"
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value <= MAX_SEED else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return f"{'a list' if isinstance(value, list) else 'an object'}"


def _used(
    workflow: Workflow, values: Mapping[str, Any], draw_seed: Callable[[], int]
) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the values to use, and the names of the seeds that were drawn. Raises InvalidParameter."""
    strange = [name for name in values if not _known(workflow, name)]
    if len(strange) > MAX_UNKNOWN:  # finding a suggestion for each of them takes time
        raise InvalidParameter(
            f"{len(strange)} of the {len(values)} values are not parameters of workflow {workflow.name!r}; "
            f"it takes {', '.join(parameter.name for parameter in workflow.parameters) or 'none'}",
            details={"parameter": strange[0][:_SHOWN_NAME], "value": None, "limit": MAX_UNKNOWN},
        )
    problems: list[_Problem] = [_unknown(workflow, name, values[name]) for name in strange]
    used: dict[str, Any] = {}
    drawn: set[str] = set()
    for parameter in workflow.parameters:

        def drawing(name: str = parameter.name) -> int:
            drawn.add(name)
            return draw_seed()

        try:
            value = _value(parameter, values.get(parameter.name), drawing)
        except _Problem as problem:
            problems.append(problem)
        else:
            if value is not None:
                used[parameter.name] = value
    if problems:
        raise InvalidParameter(
            "; ".join(str(problem) for problem in problems[:5]),
            details={**problems[0].facts, "errors": [{**p.facts, "message": str(p)} for p in problems]},
        )
    return used, frozenset(drawn)


def _known(workflow: Workflow, name: str) -> bool:
    return workflow.parameter(name) is not None


def _unknown(workflow: Workflow, name: str, value: object) -> _Problem:
    names = [parameter.name for parameter in workflow.parameters]
    name = name if len(name) <= _SHOWN_NAME else name[:_SHOWN_NAME] + "…"
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(names) or 'none'}"
    return _Problem(name, value, near or names, f"is unknown to workflow {workflow.name!r}; {hint}")


def _value(parameter: Parameter, given: Any, draw_seed: Callable[[], int]) -> Any:
    """Return the value to use; None leaves the graph's own.

    Raises:
        _Problem: The value is not what the parameter takes.
    """
    if parameter.type is ParameterType.SEED:
        return _seed(parameter, given, draw_seed)
    if given is None:
        if parameter.required:
            raise _Problem(parameter.name, None, "required", "is required")
        if parameter.default is None:
            return None
        given = parameter.default
    match parameter.type:
        case ParameterType.STRING:
            return _text(parameter, given)
        case ParameterType.BOOLEAN:
            if not isinstance(given, bool):
                raise _Problem(
                    parameter.name, given, "boolean", f"must be true or false, not {_named(given)}"
                )
            return given
        case ParameterType.CHOICE:
            names = [choice.name for choice in parameter.choices]
            if given not in names:
                raise _Problem(
                    parameter.name, given, names, f"must be one of {', '.join(names)}, not {_named(given)}"
                )
            return given
        case ParameterType.IMAGE | ParameterType.ASSET:
            return _file(parameter, given)
        case _:
            return _number(parameter, given)


def _is_open(parameter: Parameter, given: Any) -> bool:
    """Whether a seed is drawn: neither the caller nor the author has chosen one."""
    return (parameter.default if given is None else given) in (None, DRAWN)


def _seed(parameter: Parameter, given: Any, draw_seed: Callable[[], int]) -> int:
    if given is None:
        given = DRAWN if parameter.default is None else parameter.default
    value = _whole(parameter, given)
    low = 0 if parameter.minimum is None else int(parameter.minimum)
    high = MAX_SEED if parameter.maximum is None else int(parameter.maximum)
    if value == DRAWN:
        return low + draw_seed() % (high - low + 1)
    if not low <= value <= high:
        raise _Problem(
            parameter.name,
            value,
            [low, high],
            f"must be {DRAWN} or from {low} to {high}, not {_named(value)}",
        )
    return value


def _whole(parameter: Parameter, given: Any) -> int:
    # JSON has one kind of number: 8.0 is as whole as 8. True is not a number.
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise _Problem(parameter.name, given, "integer", f"must be a whole number, not {_named(given)}")
    return given


def _number(parameter: Parameter, given: Any) -> int | float:
    value: int | float
    if parameter.type is ParameterType.INTEGER:
        value = _whole(parameter, given)
    elif isinstance(given, bool) or not isinstance(given, int | float):
        raise _Problem(parameter.name, given, "number", f"must be a number, not {_named(given)}")
    elif isinstance(given, float) and not math.isfinite(given):
        raise _Problem(parameter.name, given, "number", f"must be a finite number, not {given}")
    else:
        value = given
    if parameter.minimum is not None and value < parameter.minimum:
        raise _Problem(
            parameter.name,
            value,
            parameter.minimum,
            f"must be at least {_plain(parameter.minimum)}, not {_named(value)}",
        )
    high = MAX_SEED if parameter.maximum is None else parameter.maximum
    if value > high:
        raise _Problem(parameter.name, value, high, f"must be at most {_plain(high)}, not {_named(value)}")
    if parameter.minimum is None and value < -(2**63):
        raise _Problem(parameter.name, value, -(2**63), "is too small")
    if parameter.multiple_of is not None:
        ratio = value / parameter.multiple_of
        # Floats: 0.3 counts as a multiple of 0.1.
        if not math.isclose(ratio, round(ratio), rel_tol=0, abs_tol=1e-9):
            raise _Problem(
                parameter.name,
                value,
                parameter.multiple_of,
                f"must be a multiple of {_plain(parameter.multiple_of)}, not {_named(value)}",
            )
    return value


def _text(parameter: Parameter, given: Any) -> str:
    if not isinstance(given, str):
        raise _Problem(parameter.name, given, "string", f"must be text, not {_named(given)}")
    if any("\ud800" <= char <= "\udfff" or char == "\0" for char in given):
        raise _Problem(parameter.name, given, "unicode", "must be valid Unicode text without null characters")
    least, most = parameter.min_length or 0, parameter.max_length or MAX_TEXT
    if len(given.strip()) < least:
        wanted = "must not be empty" if least == 1 else f"must have at least {least} characters"
        raise _Problem(parameter.name, given, least, wanted)
    if len(given) > most:
        raise _Problem(parameter.name, given, most, f"must have at most {most} characters, not {len(given)}")
    if parameter.format == "xml" and (why := xml_text.defect(given)):
        raise _Problem(parameter.name, given, "xml", f"must be well-formed XML: {why}")
    return given


def _file(parameter: Parameter, given: Any) -> str:
    if isinstance(given, dict) and given.get("__type") == ASSET_TYPE:
        info = given.get("info")
        given = info.get("id") if isinstance(info, dict) else None
    most = MAX_URL if isinstance(given, str) and given[:4].lower() == "http" else 1024
    if not isinstance(given, str) or not 0 < len(given) <= most:
        raise _Problem(
            parameter.name,
            given,
            "asset",
            f"must be an asset's id, an uploaded file's name or a file's URL, not {_named(given)}",
        )
    return given


def _named(value: object) -> str:
    shown = _shown(value)
    return (
        shown
        if isinstance(shown, str) and not isinstance(value, str)
        else json.dumps(shown, ensure_ascii=False)
    )


def _plain(limit: float) -> str:
    return str(int(limit)) if float(limit).is_integer() else str(limit)


def _effect(parameter: Parameter, value: Any) -> Effect:
    if parameter.type is ParameterType.BOOLEAN:
        return parameter.on if value else parameter.off
    for choice in parameter.choices:
        if choice.name == value:
            return choice.effect
    return NO_EFFECT


def _formed(value: Any, form: TargetForm) -> Any:
    if form is TargetForm.HASH:
        return int.from_bytes(hashlib.sha256(str(value).encode()).digest()[:4], "big")
    return value


def _without(graph: Graph, node_id: str, through: tuple[str, ...]) -> Graph:
    """Return the graph without a node; readers of its slot i get the source of input ``through[i]``."""
    if node_id not in graph:  # two effects may bypass the same node
        return graph
    given = graph[node_id]["inputs"]
    result: Graph = {}
    for other, node in graph.items():
        if other == node_id:
            continue
        inputs = {
            name: list(given[through[value[1]]]) if is_link(value) and value[0] == node_id else value
            for name, value in node["inputs"].items()
        }
        result[other] = {**node, "inputs": inputs}
    return result
