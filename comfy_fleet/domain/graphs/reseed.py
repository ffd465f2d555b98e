"""Other seeds for a graph that has run already.

Seeds are whole numbers in inputs that are called ``seed``, or whose names end with ``_seed``, as ComfyUI's
editor takes them: those it changes after each run.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.graphs.graph import Graph

_CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")


@dataclass(frozen=True, kw_only=True)
class Reseeded:
    """A graph with other seeds.

    Attributes:
        graph: A copy.
        seeds: Old and new seed by node id and input.
    """

    graph: Graph
    seeds: Mapping[tuple[str, str], tuple[int, int]]


def is_seed(name: str, value: object) -> bool:
    """Return whether an input's value is a seed."""
    named = name == "seed" or name.endswith("_seed")
    return named and isinstance(value, int) and not isinstance(value, bool) and value >= 0


def reseeded(graph: Graph, draw: Callable[[], int]) -> Reseeded | None:
    """Return a graph with other seeds; None if it has none. Equal seeds stay equal.

    Args:
        graph: A checked graph.
        draw: Returns a number from 0.
    """
    drawn: dict[int, int] = {}
    made: Graph = {}
    seeds: dict[tuple[str, str], tuple[int, int]] = {}
    for node_id, node in graph.items():
        inputs = dict(node["inputs"])
        for name, value in inputs.items():
            if is_seed(name, value):
                if value not in drawn:
                    drawn[value] = draw()
                inputs[name] = drawn[value]
                seeds[node_id, name] = value, drawn[value]
        made[node_id] = {**node, "inputs": inputs}
    return Reseeded(graph=made, seeds=seeds) if seeds else None


def editor_graph_with(workflow: object, seeds: Mapping[tuple[str, str], tuple[int, int]]) -> object:
    """Return an editor's graph with the same new seeds, as far as it shows the old ones.

    Pictures carry it: whoever opens one in the editor should see the seed that made it. Nodes inside
    subgraphs stay as they are.

    Args:
        workflow: ``extra_pnginfo.workflow`` as the client sent it; whatever it is.
        seeds: :attr:`Reseeded.seeds`.
    """
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        return workflow
    of_node: dict[str, dict[int, int]] = {}
    for (node_id, _), (old, new) in seeds.items():
        of_node.setdefault(node_id, {})[old] = new
    made = deepcopy(workflow)
    for node in made["nodes"]:
        new_seeds = of_node.get(str(node.get("id"))) if isinstance(node, dict) else None
        if new_seeds is not None:
            node["widgets_values"] = _replaced(node.get("widgets_values"), new_seeds)
    return made


def _replaced(values: Any, new_seeds: Mapping[int, int]) -> Any:
    def new(value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return new_seeds.get(value, value) if whole else value

    if isinstance(values, list):
        # The seed comes before its control; a number elsewhere that is equal is another widget's.
        return [
            new(value) if at + 1 < len(values) and values[at + 1] in _CONTROLS else value
            for at, value in enumerate(values)
        ]
    if isinstance(values, dict):
        return {name: new(value) if is_seed(str(name), value) else value for name, value in values.items()}
    return values
