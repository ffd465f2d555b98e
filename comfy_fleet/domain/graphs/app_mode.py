"""The inputs that the editor's App mode shows, found in the graph in API format.

The editor keeps them in ``extra.linearData.inputs``: lists of a widget's id, its name, and perhaps what its
author says about it. The id is ``GRAPH:NODE:WIDGET`` with a node of the outermost graph; earlier editors
wrote that node's id alone, ``SUBGRAPH:NODE``, or the path through subgraphs, ``NODE:NODE``. A subgraph's
own input stands for those inside that are linked to it. In API format, a node in a subgraph is called by the
path to it.

Everything here may be nonsense: what can't be found is no marked input.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.stored import MarkedInput

MAX_MARKED = 200
MAX_DEPTH = 16
"""Levels of subgraphs."""
MAX_TEXT = 2000

Place: TypeAlias = tuple[str, str]
_INPUT_NODE = "-10"  # stands for a subgraph's inputs in its own links
_MAX_PATHS = 1000
_MAX_STEPS = 5000  # of one graph, into subgraphs and along links
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def marked_inputs(ui: Mapping[str, Any] | None, graph: Graph) -> tuple[MarkedInput, ...]:
    """Return the inputs that App mode shows, in its order; those that hold neither text nor a number, or
    that a link sets, are left out.

    Args:
        ui: The graph in the editor's format.
        graph: The same one in API format.
    """
    extra = _object(_object(ui).get("extra"))
    entries = _list(_object(extra.get("linearData")).get("inputs"))
    if not entries:
        return ()
    editor = _EditorGraph(_object(ui))
    found: list[MarkedInput] = []
    taken: set[Place] = set()
    for entry in entries[:MAX_MARKED]:
        match entry:
            case [str() | int() as place, str() as widget, *rest] if not isinstance(place, bool):
                label, places = editor.resolved(str(place), widget)
            case _:
                continue
        targets = tuple(dict.fromkeys(one for one in places if one not in taken and _settable(graph, one)))
        if not targets:
            continue
        taken.update(targets)
        about = _object(rest[0] if rest else None).get("description")
        found.append(
            MarkedInput(
                name=(label or widget)[:MAX_TEXT],
                targets=targets,
                description=about[:MAX_TEXT] if isinstance(about, str) else "",
            )
        )
    return tuple(found)


def _settable(graph: Graph, place: Place) -> bool:
    node_id, input_ = place
    node = graph.get(node_id)
    return node is not None and isinstance(node["inputs"].get(input_), str | int | float)


class _EditorGraph:
    """A graph in the editor's format."""

    def __init__(self, ui: Mapping[str, Any]) -> None:
        self._root = _Level(ui)
        self._steps = 0
        definitions = _list(_object(ui.get("definitions")).get("subgraphs"))
        self._subgraphs = {
            one["id"]: _Level(one)
            for one in definitions
            if isinstance(one, dict) and isinstance(one.get("id"), str)
        }

    def resolved(self, place: str, widget: str) -> tuple[str, list[Place]]:
        """Return what the editor calls a widget, and the places that it sets."""
        parts = [unquote(part) for part in place.split(":")]
        if len(parts) == 3 and _UUID.fullmatch(parts[0]):
            _, node, name = parts
            return self._root.label(node, name), self._places((), node, re.sub(r"#\d+$", "", name), 0)
        if len(parts) == 2 and parts[0] in self._subgraphs:
            paths = [path for path, level in self._paths() if level is self._subgraphs[parts[0]]]
            places = [one for path in paths for one in self._places(path, parts[1], widget, 0)]
            return self._subgraphs[parts[0]].label(parts[1], widget), places
        *path, node = parts
        level = self._level(tuple(path))
        inner = [one for one, its in self._paths() if one and node in its.nodes] if not path else []
        if level is None or not (inner or node in level.nodes):  # perhaps the id in API format: linear_data()
            return self._root.label(place, widget), [(place, widget)]
        if node not in level.nodes:  # it has been put into a subgraph since
            return "", self._places(inner[0], node, widget, 0) if len(inner) == 1 else []
        return level.label(node, widget), self._places(tuple(path), node, widget, 0)

    def _level(self, path: tuple[str, ...]) -> "_Level | None":
        level: _Level | None = self._root
        for node in path[:MAX_DEPTH]:
            level = self._subgraphs.get(level.kind(node)) if level else None
        return level

    def _paths(self) -> Iterator[tuple[tuple[str, ...], "_Level"]]:
        """Yield every graph that runs, with the path of nodes to it."""
        waiting: list[tuple[tuple[str, ...], _Level]] = [((), self._root)]
        for _ in range(_MAX_PATHS):
            if not waiting:
                return
            path, level = waiting.pop(0)
            yield path, level
            if len(path) < MAX_DEPTH:
                inner = ((node, self._subgraphs.get(level.kind(node))) for node in level.nodes)
                more = [((*path, node), one) for node, one in inner if one is not None]
                waiting += more[: _MAX_PATHS - len(waiting)]

    def _places(self, path: tuple[str, ...], node: str, widget: str, depth: int) -> list[Place]:
        """Return what a widget of a node sets, inside it if it is a subgraph."""
        level = self._level(path)
        self._steps += 1
        if level is None or depth > MAX_DEPTH or self._steps > _MAX_STEPS:
            return []
        if (inside := self._subgraphs.get(level.kind(node))) is not None:
            inner = inside.fed_by(widget) or level.proxied(node, widget)
            return [
                place
                for inner_node, name in inner[:MAX_MARKED]
                for place in self._places((*path, node), inner_node, name, depth + 1)
            ]
        if level.kind(node) == "PrimitiveNode":  # the editor's own: its value goes to what it is linked to
            return [(":".join((*path, n)), name) for n, name in level.linked_to(node)[:MAX_MARKED]]
        return [(":".join((*path, node)), widget)]


class _Level:
    """One graph in the editor's format: the outermost, or a subgraph's definition."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        nodes = (one for one in _list(raw.get("nodes")) if isinstance(one, dict))
        self.nodes = {str(one.get("id")): one for one in nodes}
        self._links: dict[str, list[tuple[int, str, int]]] = {}
        for origin, slot, target, at in filter(None, map(_link, _list(raw.get("links")))):
            self._links.setdefault(origin, []).append((slot, target, at))
        self._inputs = [_object(one) for one in _list(raw.get("inputs"))]

    def kind(self, node: str) -> str:
        """Return a node's class, or the id of the subgraph that it is."""
        kind = self.nodes.get(node, {}).get("type")
        return kind if isinstance(kind, str) else ""

    def label(self, node: str, widget: str) -> str:
        """Return the name that the author gave a widget; empty if none."""
        for one in map(_object, _list(self.nodes.get(node, {}).get("inputs"))):
            label = one.get("label")
            if one.get("name") == widget and isinstance(label, str):
                return label
        return ""

    def fed_by(self, name: str) -> list[Place]:
        """Return the nodes and inputs that an input of this subgraph is linked to."""
        slots = {index for index, one in enumerate(self._inputs) if one.get("name") == name}
        return [
            (target, input_)
            for slot, target, at in self._links.get(_INPUT_NODE, ())
            if slot in slots and (input_ := self._input(target, at))
        ]

    def linked_to(self, node: str) -> list[Place]:
        """Return the nodes and inputs that a node is linked to."""
        return [
            (target, input_)
            for _, target, at in self._links.get(node, ())
            if (input_ := self._input(target, at))
        ]

    def proxied(self, node: str, widget: str) -> list[Place]:
        """Return the node inside a subgraph whose widget earlier editors showed on its outside."""
        shown = _list(_object(self.nodes.get(node, {}).get("properties")).get("proxyWidgets"))
        return [(str(one[0]), widget) for one in shown if isinstance(one, list) and one[1:2] == [widget]][:1]

    def _input(self, node: str, at: int) -> str:
        inputs = _list(self.nodes.get(node, {}).get("inputs"))
        one = _object(inputs[at]) if 0 <= at < len(inputs) else {}
        name = one.get("name")
        return name if isinstance(name, str) else ""


def _link(raw: object) -> tuple[str, int, str, int] | None:
    """Return a link's origin, its slot, its target and that slot; the editor has two forms of it."""
    match raw:
        case [_, origin, int() as slot, target, int() as at, *_]:
            return str(origin), slot, str(target), at
        case {
            "origin_id": origin,
            "origin_slot": int() as slot,
            "target_id": target,
            "target_slot": int() as at,
        }:
            return str(origin), slot, str(target), at
    return None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def linear_data(marked: Iterable[MarkedInput]) -> dict[str, Any]:
    """Return marks in the editor's form, for a graph of which its own format is not at hand.

    :func:`marked_inputs` finds them again, by the ids of the graph in API format.
    """
    inputs = [
        [*target, {"description": one.description}] if one.description else list(target)
        for one in marked
        for target in one.targets[:1]
    ]
    nodes = [
        {"id": node_id, "inputs": [{"name": input_, "label": one.name}]}
        for one in marked
        for node_id, input_ in one.targets[:1]
        if one.name != input_
    ]
    return {"nodes": nodes, "extra": {"linearData": {"inputs": inputs, "outputs": []}}}
