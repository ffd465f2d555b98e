"""Parameters that the editor's App mode declares: one for each input that it marks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.stored import MarkedInput
from comfy_fleet.domain.graphs.title_parameters import inferred, type_of
from comfy_fleet.domain.graphs.workflow import Parameter, ParameterTarget

_LONGEST = 48


def declared(
    graph: Graph, marked: Sequence[MarkedInput], taken: Mapping[tuple[str, str], str]
) -> tuple[Parameter, ...]:
    """Return a parameter for each marked input, in App mode's order.

    It is called as the input: ``text``. The second input of a name, or one whose name another parameter has,
    gets its node's id, too: ``text_7``.

    Args:
        taken: Inputs that other parameters set, with their names; these are no parameters of App mode's.
    """
    names = set(taken.values())
    found: list[Parameter] = []
    for one in marked:
        targets = [target for target in one.targets if target not in taken and target[0] in graph]
        if not targets:
            continue
        node_id, input_ = targets[0]
        value = graph[node_id]["inputs"].get(input_)
        class_type = graph[node_id]["class_type"]
        kind = type_of(class_type, input_, value)
        same = [
            (node, name)
            for node, name in targets
            if type_of(graph[node]["class_type"], name, graph[node]["inputs"].get(name)) is kind
        ]
        name = _free(one.name or input_, node_id, names)
        names.add(name)
        places = tuple(ParameterTarget(node_id=node, input=name) for node, name in same)
        made = inferred(name, places, kind, value)
        found.append(replace(made, description=one.description.strip()))
    return tuple(found)


def _free(label: str, node_id: str, names: set[str]) -> str:
    base = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")[:_LONGEST].rstrip("_")
    if not base[:1].isalpha():
        base = f"input_{base}".rstrip("_")
    if base not in names:
        return base
    numbered = f"{base}_{re.sub(r'[^a-z0-9]+', '_', node_id.lower())[:12]}".rstrip("_")
    count, name = 2, numbered
    while name in names:
        name, count = f"{numbered}_{count}", count + 1
    return name
