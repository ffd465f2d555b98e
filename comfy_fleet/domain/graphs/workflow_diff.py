"""What differs between two versions of a stored workflow, in nodes, inputs and parameters.

Nodes are the same if they have the same id and class; else if each graph has just one node of their class and
title that has no counterpart, since a graph that was built again has other ids.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.graphs.graph import Graph, is_link
from comfy_fleet.domain.graphs.selector import title_of
from comfy_fleet.domain.graphs.workflow import Parameter, Workflow

MAX_DIFFERENCES = 500
_SHOWN = 60
_LONGEST = 2000


class DifferenceKind(StrEnum):
    """What differs."""

    NODE_ADDED = "node_added"
    NODE_REMOVED = "node_removed"
    NODE_TITLE = "node_title"
    INPUT = "input"
    PARAMETER_ADDED = "parameter_added"
    PARAMETER_REMOVED = "parameter_removed"
    PARAMETER = "parameter"
    REQUIREMENT = "requirement"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class WorkflowDifference:
    """One thing that differs.

    Attributes:
        message: All of it, in words.
        node_id: The node of the graph, by its id in the later version if it is there; else empty.
        class_type: That node's class.
        field: The input of the node, or the field of the parameter; else empty.
        parameter: The parameter's name; else empty.
        before: The earlier value; long texts are cut. A link is ``[node id, slot]``.
        after: The later one.
    """

    kind: DifferenceKind
    message: str
    node_id: str = ""
    class_type: str = ""
    field: str = ""
    parameter: str = ""
    before: Any = None
    after: Any = None


def differences(before: Workflow, after: Workflow) -> tuple[WorkflowDifference, ...]:
    """Return what differs, parameters first; at most :data:`MAX_DIFFERENCES`."""
    found: list[WorkflowDifference] = []
    for one in _all(before, after):
        if len(found) == MAX_DIFFERENCES:
            break
        found.append(one)
    return tuple(found)


def _all(before: Workflow, after: Workflow) -> Iterator[WorkflowDifference]:
    yield from _texts(before, after)
    yield from _parameters(before, after)
    yield from _requirements(before, after)
    yield from _graphs(before.graph, after.graph)


def _texts(before: Workflow, after: Workflow) -> Iterator[WorkflowDifference]:
    for name in ("title", "description"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield _of(DifferenceKind.TEXT, f"{name}: {_short(old)} → {_short(new)}", old, new, field=name)


def _parameters(before: Workflow, after: Workflow) -> Iterator[WorkflowDifference]:
    for old in before.parameters:
        if after.parameter(old.name) is None:
            message = f"parameter {old.name} ({old.type.value}) is removed"
            yield _of(DifferenceKind.PARAMETER_REMOVED, message, parameter=old.name)
    same = matched(before.graph, after.graph)
    for new in after.parameters:
        earlier = before.parameter(new.name)
        if earlier is None:
            message = f"parameter {new.name} ({new.type.value}) is added"
            yield _of(DifferenceKind.PARAMETER_ADDED, message, parameter=new.name)
            continue
        for one in fields(Parameter):
            was, now = _plain(one.name, earlier, before.graph, same), _plain(one.name, new, after.graph, {})
            if was != now:
                message = f"parameter {new.name}: {one.name} {_short(was)} → {_short(now)}"
                yield _of(DifferenceKind.PARAMETER, message, was, now, parameter=new.name, field=one.name)


def _plain(name: str, parameter: Parameter, graph: Graph, same: Mapping[str, str]) -> Any:
    """Return a field of a parameter as JSON."""
    value = getattr(parameter, name)
    if name == "targets":
        return [f"node {same.get(one.node_id, one.node_id)} {one.input}" for one in value]
    if name == "choices":
        return (
            [one.name for one in value]
            if all(one.value == one.name for one in value)
            else [f"{one.name} = {_short(one.value)}" for one in value]
        )
    if name in ("on", "off"):
        return _effect(value, same)
    return list(value) if isinstance(value, tuple) else value


def _effect(value: Any, same: Mapping[str, str]) -> Any:
    return {
        "set": [
            f"node {same.get(target.node_id, target.node_id)} {target.input} = {_short(to)}"
            for target, to in value.set
        ],
        "wrap": dict(value.wrap),
        "bypass": [f"node {same.get(one.node_id, one.node_id)}" for one in value.bypass],
    }


def _requirements(before: Workflow, after: Workflow) -> Iterator[WorkflowDifference]:
    for one in fields(before.requires):
        old, new = getattr(before.requires, one.name), getattr(after.requires, one.name)
        if one.name == "models":
            old, new = ([f"{model.folder}/{model.file}" for model in some] for some in (old, new))
        old, new = (
            list(some) if isinstance(some, tuple) else dict(some) if isinstance(some, Mapping) else some
            for some in (old, new)
        )
        if old != new:
            message = f"requires {one.name}: {_short(old)} → {_short(new)}"
            yield _of(DifferenceKind.REQUIREMENT, message, old, new, field=one.name)


def _graphs(before: Graph, after: Graph) -> Iterator[WorkflowDifference]:
    same = matched(before, after)
    kept = set(same.values())
    for node_id in before:
        if node_id not in same:
            yield _node(DifferenceKind.NODE_REMOVED, before, node_id, f"{_name(before, node_id)} is removed")
    for node_id in after:
        if node_id not in kept:
            yield _node(DifferenceKind.NODE_ADDED, after, node_id, f"{_name(after, node_id)} is added")
    for old_id, new_id in same.items():
        old, new = before[old_id], after[new_id]
        name = _name(after, new_id)
        if title_of(old) != title_of(new):
            message = f"{name}: title {_short(title_of(old))} → {_short(title_of(new))}"
            yield _node(DifferenceKind.NODE_TITLE, after, new_id, message, title_of(old), title_of(new))
        for field in [*old["inputs"], *(one for one in new["inputs"] if one not in old["inputs"])]:
            was = _moved(old["inputs"].get(field), same)
            now = new["inputs"].get(field)
            if was == now and type(was) is type(now):
                continue
            shown = [_link(value, graph) for value, graph in ((was, after), (now, after))]
            message = f"{name}: {field} {shown[0]} → {shown[1]}"
            yield _node(DifferenceKind.INPUT, after, new_id, message, was, now, field=field)


def matched(before: Graph, after: Graph) -> dict[str, str]:
    """Return the id in ``after`` of each node of ``before`` that is still there."""
    same = {
        node_id: node_id
        for node_id, node in before.items()
        if node_id in after and after[node_id]["class_type"] == node["class_type"]
    }
    taken = set(same.values())
    old, new = (
        _by_look({node_id: graph[node_id] for node_id in graph if node_id not in known})
        for graph, known in ((before, same.keys()), (after, taken))
    )
    for look, ids in old.items():
        others = new.get(look, [])
        if len(ids) == len(others) == 1:
            same[ids[0]] = others[0]
    return {node_id: same[node_id] for node_id in before if node_id in same}


def _by_look(graph: Graph) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node_id, node in graph.items():
        found[node["class_type"], title_of(node)].append(node_id)
    return found


def _moved(value: Any, same: Mapping[str, str]) -> Any:
    """Return a link to where its node is in the later graph."""
    return [same.get(value[0], value[0]), value[1]] if is_link(value) else value


def _name(graph: Graph, node_id: str) -> str:
    node = graph[node_id]
    title = title_of(node)
    also = f" {title[:_SHOWN]!r}" if title and title != node["class_type"] else ""
    return f"node {node_id} ({node['class_type']}{also})"


def _link(value: Any, graph: Graph) -> str:
    if not is_link(value):
        return _short(value)
    kind = f" ({graph[value[0]]['class_type']})" if value[0] in graph else ""
    return f"output {value[1]} of node {value[0]}{kind}"


def _node(
    kind: DifferenceKind,
    graph: Graph,
    node_id: str,
    message: str,
    before: Any = None,
    after: Any = None,
    *,
    field: str = "",
) -> WorkflowDifference:
    class_type = graph[node_id]["class_type"]
    return _of(kind, message, before, after, node_id=node_id, class_type=class_type, field=field)


def _of(
    kind: DifferenceKind, message: str, before: Any = None, after: Any = None, **where: str
) -> WorkflowDifference:
    return WorkflowDifference(kind=kind, message=message, before=_cut(before), after=_cut(after), **where)


def _cut(value: Any) -> Any:
    """Return a value that is not too long to hand on."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
    if isinstance(value, list | dict):
        text = json.dumps(value, ensure_ascii=False)
        return value if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return value


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
