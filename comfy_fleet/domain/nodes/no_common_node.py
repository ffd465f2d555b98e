"""Why no node can run a graph though each part of it is on some node: what no node has together."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class GraphPart:
    """A part of a graph that some node lacks.

    Attributes:
        node_id: Where it is in the graph; empty if it is a condition on the whole.
        class_type: The class of that node.
        field: The input; empty for the class itself.
        what: What a node must have, in words: ```checkpoints/a.safetensors```.
    """

    node_id: str
    class_type: str
    field: str
    what: str


def with_inputs(lacking: Mapping[str, Collection[GraphPart]]) -> dict[str, list[GraphPart]]:
    """Return what each node lacks; one without a class also lacks what other nodes' class does not take.

    Otherwise a wrong value in the input of a class that only some nodes have would look like something that
    the other nodes have.
    """
    of_inputs: dict[str, dict[GraphPart, None]] = {}
    for parts in lacking.values():
        for part in parts:
            if part.node_id and part.field:
                of_inputs.setdefault(part.node_id, {})[part] = None
    return {
        node: [*parts, *(one for part in parts if not part.field for one in of_inputs.get(part.node_id, ()))]
        for node, parts in lacking.items()
    }


def apart(lacking: Mapping[str, Collection[GraphPart]]) -> list[str]:
    """Return what no node has together, in words, as few things as possible.

    Args:
        lacking: The parts that each node lacks; every node lacks at least one.

    Returns:
        Nothing if there is a part that every node lacks.
    """
    without: dict[str, set[str]] = {}
    for node, parts in lacking.items():
        for part in parts:
            without.setdefault(part.what, set()).add(node)
    if any(len(nodes) == len(lacking) for nodes in without.values()):
        return []
    left, chosen = set(lacking), list[str]()
    while left:
        best = max(without, key=lambda what: len(without[what] & left))
        if not without[best] & left:
            return []
        chosen.append(best)
        left -= without[best]
    return chosen


def told(lacking: Mapping[str, Collection[GraphPart]], chosen: Sequence[str]) -> str:
    """Return ``no GPU has both `a` (gpu1) and `b` (gpu5)``."""
    shown = [
        f"{what} ({_names([node for node in lacking if what not in _whats(lacking[node])])})"
        for what in chosen
    ]
    if len(shown) == 2:
        return f"no GPU has both {shown[0]} and {shown[1]}"
    return f"no GPU has all of {', '.join(shown[:-1])} and {shown[-1]}"


def _whats(parts: Collection[GraphPart]) -> set[str]:
    return {part.what for part in parts}


def _names(nodes: Sequence[str]) -> str:
    names = sorted(nodes)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
