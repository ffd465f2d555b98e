"""Checks a graph's structure: the defects that show without knowing any node class."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard, cast

from comfy_fleet.domain.errors import InvalidWorkflow, WorkflowFormatUi

Graph: TypeAlias = dict[str, dict[str, Any]]
"""Node id → ``{"class_type", "inputs", ...}``, as :func:`check` has passed it."""

MAX_NODE_ID = 1000
"""Characters of a node's id; those of nested subgraphs are long: ``12:7:3``."""
MAX_NODES = 10_000
MAX_DEPTH = 64

# The integers that all our readers of JSON can hold (SQLite's and JavaScript's tools, too).
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1


def is_link(value: object) -> TypeGuard[list[Any]]:
    """Return whether an input is a link to another node's output, by ComfyUI's own rule."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
    )


def check(
    graph: object, *, max_nodes: int = MAX_NODES, read: Callable[[Graph], Collection[str]] | None = None
) -> Graph:
    """Return ``graph`` with its type if its structure is sound. A node may still be unable to run it.

    Other keys of a node than its class and inputs are not checked. Values there that JSON can't carry
    (pictures' metadata have NaN under ``is_changed``) are left out of the result.

    Args:
        graph: What the client sent.
        max_nodes: More are refused.
        read: Returns the nodes that some output reads: only their links are checked, as in ComfyUI. None: all
            links are.

    Raises:
        WorkflowFormatUi: It is the editor's own format.
        InvalidWorkflow: It has defects; ``details["node_errors"]`` lists ``{field, reason, message}`` by
            node id. Reasons: ``not_an_object``, ``missing_class_type``, ``missing_inputs``, ``bad_value``,
            ``bad_link``, ``unknown_node``, ``cycle``.
    """
    if not isinstance(graph, dict):
        raise InvalidWorkflow(
            f"the workflow is {_kind(graph)}; it must be an object of nodes by id (ComfyUI: Export (API))",
            details={"field": "workflow", "node_errors": {}},
        )
    _refuse_editor_format(graph)
    if not graph:
        raise InvalidWorkflow("the workflow has no nodes", details={"field": "workflow", "node_errors": {}})
    if len(graph) > max_nodes:
        raise InvalidWorkflow(
            f"the workflow has {len(graph)} nodes; at most {max_nodes} are taken",
            details={"field": "workflow", "limit": max_nodes, "node_errors": {}},
        )
    shapes = {node_id: list(_node_defects(node_id, node)) for node_id, node in graph.items()}
    sound = not any(shapes.values())
    whole = cast(Graph, graph)
    looked_at = set(read(whole)) if read is not None and sound else graph.keys()
    errors: dict[str, list[dict[str, str]]] = {}
    for node_id, node in graph.items():
        found = [*shapes[node_id], *(_link_defects(graph, node) if node_id in looked_at else ())]
        if found:
            errors[str(node_id)] = [
                {"field": field, "reason": reason, "message": message} for field, reason, message in found
            ]
    if not errors:
        part = (
            whole if read is None else {node_id: whole[node_id] for node_id in whole if node_id in looked_at}
        )
        for node_id, field in _cycle(part):
            errors[node_id] = [
                {"field": field, "reason": "cycle", "message": f"{field} closes a circle of links"}
            ]
    if errors:
        node_id, defects = next(iter(errors.items()))
        rest = sum(map(len, errors.values())) - 1
        more = f" (and {rest} more)" if rest else ""
        raise InvalidWorkflow(
            f"node {node_id}: {defects[0]['message']}{more}",
            details={"field": "workflow", "node_errors": errors},
        )
    result = {node_id: _carried(node) for node_id, node in whole.items()}
    return whole if all(result[node_id] is node for node_id, node in whole.items()) else result


# ----------------------------------------------------------------------------------------------------


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "not JSON")


def _is_editor_format(value: object) -> bool:
    # In a graph every value is a node, and a node an object.
    return isinstance(value, dict) and isinstance(value.get("nodes"), list)


def _refuse_editor_format(graph: Mapping[Any, Any]) -> None:
    where = None
    if _is_editor_format(graph):
        where = "the workflow is"
    else:
        nested = [key for key, value in graph.items() if _is_editor_format(value)]
        if nested:
            where = f"{nested[0]!r} inside the workflow is"
    if where:
        raise WorkflowFormatUi(
            f"{where} the editor's own format (nodes and links); export it with Workflow > Export (API)",
            details={"field": "workflow"},
        )
    for key in ("prompt", "workflow"):
        inner = graph.get(key)
        if isinstance(inner, dict) and "class_type" not in inner and len(graph) <= 4:
            first = next(iter(inner.values()), None)
            if isinstance(first, dict) and "class_type" in first:
                raise InvalidWorkflow(
                    f"the graph is wrapped in {key!r}; send what is inside",
                    details={"field": "workflow", "node_errors": {}},
                )


def carried(graph: object) -> dict[str, Any]:
    """Return a possible graph without values that JSON can't carry, outside its nodes' inputs.

    Raises:
        InvalidWorkflow: It is not an object, or an input holds something that JSON can't carry.
    """
    if not isinstance(graph, dict):
        raise InvalidWorkflow(f"holds {_kind(graph)}, not an object of nodes by id (ComfyUI: Export (API))")
    result: dict[str, Any] = {}
    for node_id, node in graph.items():
        if not isinstance(node, dict):
            if why := _bad_json(node):
                raise InvalidWorkflow(f"can't be sent: {node_id} {why}")
            result[node_id] = node
            continue
        inputs = node.get("inputs")
        needed = [("class_type", node.get("class_type"))]
        for name, value in (*needed, *(inputs.items() if isinstance(inputs, dict) else ())):
            if why := _bad_json({name: value}):
                raise InvalidWorkflow(f"can't be sent: node {node_id}: {name} {why}")
        result[node_id] = _carried(node)
    return result


def _carried(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node without values outside its inputs that JSON can't carry; a title is kept."""
    lost = {key for key, value in node.items() if not _is_plain(key, value) and _bad_json({key: value})}
    if not lost:
        return node
    kept = {key: value for key, value in node.items() if key not in lost}
    title = _title(node)
    return {**kept, "_meta": {"title": title}} if "_meta" in lost and title is not None else kept


def _is_plain(key: object, value: object) -> bool:
    """Return whether a value needs no closer look: the inputs, and the class of nearly every node."""
    return key == "inputs" or (key == "class_type" and isinstance(value, str) and value.isascii())


def _title(node: Mapping[str, Any]) -> str | None:
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) else None


def _node_defects(node_id: object, node: object) -> Iterator[tuple[str, str, str]]:
    if not isinstance(node_id, str) or not node_id:
        yield "id", "bad_value", "a node's id must be a string that is not empty"
    elif len(node_id) > MAX_NODE_ID:
        yield (
            "id",
            "bad_value",
            f"the node's id has {len(node_id)} characters; at most {MAX_NODE_ID} are taken",
        )
    elif _bad_text(node_id):
        yield "id", "bad_value", "the node's id is not valid Unicode"
    if not isinstance(node, dict):
        yield "", "not_an_object", f"a node must be an object, not {_kind(node)}"
        return
    class_type = node.get("class_type")
    if class_type is None:
        yield "class_type", "missing_class_type", "class_type is missing"
    elif not isinstance(class_type, str) or not class_type:
        yield "class_type", "missing_class_type", "class_type must be the name of a node class"
    inputs = node.get("inputs")
    if inputs is None:
        yield "inputs", "missing_inputs", "inputs is missing; a node without inputs has an empty object"
    elif not isinstance(inputs, dict):
        yield "inputs", "not_an_object", f"inputs must be an object, not {_kind(inputs)}"
    if isinstance(class_type, str) and _bad_text(class_type):
        yield "class_type", "bad_value", "class_type holds text that is not valid Unicode"
    if _bad_text(_title(node) or ""):
        yield (
            "_meta",
            "bad_value",
            "the title holds text that is not valid Unicode",
        )  # it may name a parameter
    for name, value in inputs.items() if isinstance(inputs, dict) else ():
        if why := _bad_json({name: value}):
            yield str(name), "bad_value", f"{name} {why}"


def _link_defects(graph: Mapping[Any, Any], node: object) -> Iterator[tuple[str, str, str]]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    for name, value in inputs.items() if isinstance(inputs, dict) else ():
        if isinstance(value, list) and (defect := _link_defect(graph, value)) and not _bad_json(value):
            yield str(name), *defect


def _link_defect(graph: Mapping[Any, Any], value: list[object]) -> tuple[str, str] | None:
    if len(value) != 2:
        return None
    source, slot = value
    if isinstance(source, str) and isinstance(slot, int | float):
        if source not in graph:
            return "unknown_node", f"links to node {source!r}, which the graph does not have"
        if isinstance(slot, bool) or not isinstance(slot, int) or slot < 0:
            return "bad_link", f"links to slot {slot!r}; a slot is a whole number from 0"
    elif isinstance(source, str) and source in graph and slot is None:
        return "bad_link", "links to slot null; a slot is a whole number from 0"
    elif type(source) is int and type(slot) is int and source not in graph and str(source) in graph:
        # A common slip in hand-written clients. No declared input can hold such a list as a value: ComfyUI
        # takes every list of two for a link.
        return "bad_link", f'links to node {source}; ids in links are strings: ["{source}", {slot}]'
    return None


def _bad_text(value: str) -> bool:
    return not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)


def _bad_json(value: object) -> str | None:
    """Say what is wrong with a value, if JSON can't carry it from here to a node unchanged."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                if _bad_text(item):
                    return "holds text that is not valid Unicode"
            elif isinstance(item, dict):
                if any(not isinstance(key, str) or _bad_text(key) for key in item):
                    return "holds a key that is not valid text"
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, bool) or item is None:
                continue
            elif isinstance(item, int):
                if not _MIN_INT <= item <= _MAX_INT:
                    return "holds a number of more than 64 bits"
            elif isinstance(item, float):
                if not math.isfinite(item):
                    return "holds NaN or an infinite number"
            else:
                return "holds something that is not JSON"
        if not below:
            return None
        level = below
    return f"is nested deeper than {MAX_DEPTH} levels"


def _cycle(graph: Graph) -> list[tuple[str, str]]:
    """Return one cycle of links as (node id, input), or nothing. Iterative: chains may be long."""
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        trail: list[tuple[str, str, Iterator[tuple[str, str]]]] = [(start, "", _sources(graph, start))]
        on_trail = {start: 0}
        while trail:
            node_id, _, links = trail[-1]
            for name, source in links:
                if source in on_trail:
                    ring = trail[on_trail[source] :]
                    fields = [entry[1] for entry in ring[1:]] + [name]
                    return [(entry[0], field) for entry, field in zip(ring, fields, strict=True)]
                if source not in done:
                    on_trail[source] = len(trail)
                    trail.append((source, name, _sources(graph, source)))
                    break
            else:
                trail.pop()
                del on_trail[node_id]
                done.add(node_id)
    return []


def _sources(graph: Graph, node_id: str) -> Iterator[tuple[str, str]]:
    for name, value in graph[node_id]["inputs"].items():
        if is_link(value) and value[0] in graph:
            yield name, value[0]
