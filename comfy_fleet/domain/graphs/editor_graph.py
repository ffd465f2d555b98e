"""A graph in the editor's own format: what it does, told apart from how it looks.

The editor writes the same graph into the file that it saves and beside the prompt that it runs, but never
byte by byte the same: nodes are moved, groups renamed, unused inputs left out, and between the two a seed is
drawn anew. Two graphs with one :func:`signature` are the same but for that.

A file of version 0.4 has links ``[id, from, slot, to, slot, type]``; version 1 and all subgraphs have
objects.
A node's ``widgets_values`` is a list in the order of its widgets: those of inputs, and between them the
editor's own, such as ``control_after_generate``, right behind the value that it moves. Some node packs write
an object by name.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.stored import EditorGraph

STAMP = "comfy_fleet"
"""The key of ``extra`` that says which stored workflow a graph was opened from, in which version."""
MAX_EDITOR_NODES = 20_000
"""Most nodes, those of subgraphs included; twice what the graph of a run may have."""
MAX_EDITOR_LINKS = 100_000
CONTROLS = frozenset({"increment", "decrement", "randomize", "increment-wrap"})
"""What ``control_after_generate`` says if it moves the value before it."""
COMMENTS = frozenset({"Note", "MarkdownNote"})
"""Nodes that only people read."""
_VERSION = re.compile(r"sha256:[0-9a-f]{64}")
_MOVED = "*"
_CONTROL = "control_after_generate"


def signature(graph: object) -> str:
    """Return ``sha256:<hex>`` of what a graph does: nodes, links, widget values, titles and subgraphs.

    Titles count because they declare parameters. Positions, sizes, colours, groups, comments, the order of
    nodes, properties, ``extra``, ids of links, and values that ``control_after_generate`` moves don't.

    Raises:
        BadInput: It is no graph of the editor's, or larger than any.
    """
    whole = check_editor_graph(graph)
    reader = _Reader({one["id"]: one for one in _subgraphs(whole)})
    try:
        content = [reader.content(whole), {name: reader.subgraph(name) for name in reader.used(whole)}]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise _unusable("is nested too deeply") from None
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def check_same_graph(graph: Graph, ui: EditorGraph) -> None:
    """Refuse two formats that are certainly not of one graph: they have no node in common.

    Values say nothing: the editor and its extensions write other ones into what they run, such as a drawn
    wildcard, and they add and leave out nodes.

    Raises:
        BadInput: As said.
    """
    types = {str(node["id"]): _text(node, "type") for node in ui["nodes"]}
    for node_id, node in graph.items():
        outer, inside, _ = node_id.partition(":")  # a node in a subgraph is called by the path to it
        if outer in types and (inside or types[outer] == node["class_type"]):
            return
    raise BadInput(
        "graph and ui are not of one graph, for they have no node in common: send both as the editor's "
        "app.graphToPrompt() returns them",
        details={"field": "ui"},
    )


def stamped(graph: EditorGraph, workflow: str, version: str) -> dict[str, Any]:
    """Return the graph with a note of the version that it is; the editor keeps it in what it saves."""
    extra = graph.get("extra")
    note = {"workflow": workflow, "version": version}
    return {**graph, "extra": {**(extra if isinstance(extra, dict) else {}), STAMP: note}}


def opened_from(graph: EditorGraph) -> tuple[str, str]:
    """Return the stored workflow and the version that a graph was opened from; empty texts if it is none."""
    extra = graph.get("extra")
    note = extra.get(STAMP) if isinstance(extra, dict) else None
    if not isinstance(note, dict):
        return "", ""
    version = _text(note, "version")
    return (_text(note, "workflow")[:64], version) if _VERSION.fullmatch(version) else ("", "")


def check_editor_graph(graph: object) -> EditorGraph:
    """Return the graph if it has the shape of the editor's.

    Raises:
        BadInput: As :func:`signature`.
    """
    if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
        raise _unusable("is not in the editor's format: it has no list of nodes")
    nodes = links = 0
    for one in (graph, *_subgraphs(graph)):
        if not isinstance(one, dict) or not isinstance(one.get("nodes"), list):
            raise _unusable("has a subgraph without a list of nodes")
        if one is not graph and not isinstance(one.get("id"), str):
            raise _unusable("has a subgraph without an id")
        if not isinstance(one.get("links") or [], list):
            raise _unusable("has links that are no list")
        nodes += len(one["nodes"])
        links += len(one.get("links") or ())
        if not all(isinstance(node, dict) and _is_id(node.get("id")) for node in one["nodes"]):
            raise _unusable("has a node without an id")
    if nodes > MAX_EDITOR_NODES:
        raise _unusable(f"has {nodes} nodes; at most {MAX_EDITOR_NODES} are taken")
    if links > MAX_EDITOR_LINKS:
        raise _unusable(f"has {links} links; at most {MAX_EDITOR_LINKS} are taken")
    return graph


class _Reader:
    """Reads the levels of one graph: the graph itself, and its subgraphs.

    Args:
        definitions: The subgraphs by id, which is the type of the nodes that stand for them.
    """

    def __init__(self, definitions: Mapping[str, EditorGraph]) -> None:
        self._definitions = definitions
        self._moved_inputs: dict[str, frozenset[str]] = {}

    def used(self, graph: EditorGraph) -> set[str]:
        """Return the subgraphs that the graph has, at any depth; the editor keeps others, too."""
        found: set[str] = set()
        waiting = [graph]
        while waiting:
            for node in waiting.pop()["nodes"]:
                type_ = _text(node, "type")
                if type_ in self._definitions and type_ not in found:
                    found.add(type_)
                    waiting.append(self._definitions[type_])
        return found

    def subgraph(self, name: str) -> list[Any]:
        """Return what a subgraph does, with names and types of its own inputs and outputs."""
        one = self._definitions[name]
        slots = [
            [[_text(slot, "name"), _text(slot, "type")] for slot in _dicts(one.get(side))]
            for side in ("inputs", "outputs")
        ]
        return [*self.content(one), *slots]

    def content(self, level: EditorGraph) -> list[Any]:
        """Return nodes and links of a level."""
        nodes = [node for node in level["nodes"] if _text(node, "type") not in COMMENTS]
        inputs = {str(node["id"]): list(_dicts(node.get("inputs"))) for node in nodes}
        links = (_link(link, inputs) for link in level.get("links") or ())
        made = ((str(node["id"]), node) for node in nodes)
        return [
            [[name, *self._node(node)] for name, node in sorted(made, key=lambda one: one[0])],
            sorted(filter(None, links)),
        ]

    def _node(self, node: EditorGraph) -> list[Any]:
        values = node.get("widgets_values")
        if isinstance(values, list):
            moved = self._moved(node, values, _names(node, values))
            values = [_MOVED if at in moved else value for at, value in enumerate(values)]
        elif isinstance(values, dict):
            values = _named_values(values)
        # An editor that has no widgets to save writes null, or nothing.
        return [_text(node, "type"), node.get("mode") or 0, _text(node, "title"), values or []]

    def _moved(self, node: EditorGraph, values: list[Any], names: Sequence[str | None]) -> set[int]:
        """Return the places of values that move by themselves."""
        type_ = _text(node, "type")
        inside = self._inputs_that_move(type_) if type_ in self._definitions else frozenset()
        found = {at for at, name in enumerate(names) if name in inside}
        for at, (value, word) in enumerate(pairwise(values)):
            if not isinstance(word, str) or word not in CONTROLS:
                continue
            name = names[at + 1]
            if _names_control(name) if name else _is_number(value) or type_ == "PrimitiveNode":
                found.add(at)
        return found

    def _inputs_that_move(self, subgraph: str) -> frozenset[str]:
        """Return the subgraph's own inputs whose values move: newer editors keep them at the outer node."""
        if subgraph in self._moved_inputs:
            return self._moved_inputs[subgraph]
        self._moved_inputs[subgraph] = frozenset()  # a subgraph can't be inside itself
        level = self._definitions[subgraph]
        moved_links = set()
        for node in level["nodes"]:
            values = node.get("widgets_values")
            if not isinstance(values, list):
                continue
            names = _names(node, values)
            moved = {names[at] for at in self._moved(node, values, names)}
            for slot in _dicts(node.get("inputs")):
                widget = slot.get("widget")
                if isinstance(widget, dict) and _text(widget, "name") in moved and _is_id(slot.get("link")):
                    moved_links.add(str(slot["link"]))
        found = frozenset(
            _text(slot, "name")
            for slot in _dicts(level.get("inputs"))
            if any(str(one) in moved_links for one in _list(slot.get("linkIds")))
        )
        self._moved_inputs[subgraph] = found
        return found


def _link(link: object, inputs: Mapping[str, list[EditorGraph]]) -> list[str] | None:
    """Return where a link comes from and goes to: an input by its name, because its place may change."""
    match link:
        case [_, origin, slot, target, place, *_]:
            pass
        case {"origin_id": origin, "origin_slot": slot, "target_id": target, "target_slot": place}:
            pass
        case _:
            return None
    there = inputs.get(str(target), [])
    named = _text(there[place], "name") if isinstance(place, int) and 0 <= place < len(there) else ""
    return [str(origin), str(slot), str(target), named or str(place)]


def _names(node: EditorGraph, values: list[Any]) -> list[str | None]:
    """Return whose each value is, as newer editors say; None where that is not known."""
    named = node.get("widgets_values_named")
    left = list(named.items()) if isinstance(named, dict) else []
    left.reverse()
    # Widgets that are not saved have no name, and their value is null.
    found = [left.pop()[0] if left and left[-1][1] == value else None for value in values]
    return [None] * len(values) if left else found


def _names_control(name: str) -> bool:
    # Some classes declare `control_after_generate: "fixed"`, which the editor takes for the widget's name.
    return _CONTROL in name or name in CONTROLS or name == "fixed"


def _named_values(values: Mapping[str, Any]) -> dict[str, Any]:
    control = values.get(_CONTROL)
    moved = {"seed", "noise_seed"} if isinstance(control, str) and control in CONTROLS else set()
    return {name: _MOVED if name in moved else one for name, one in values.items() if name != "videopreview"}


# ------------------------------------------------------------------------------------------------------------


def _subgraphs(graph: EditorGraph) -> Sequence[EditorGraph]:
    definitions = graph.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    if not isinstance(subgraphs, list | None):
        raise _unusable("has subgraphs that are no list")
    return subgraphs or ()


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: object) -> Iterator[EditorGraph]:
    return (one for one in _list(value) if isinstance(one, dict))


def _text(holder: EditorGraph, name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unusable(what: str) -> BadInput:
    return BadInput(f"the editor's graph {what}", details={"field": "ui"})
