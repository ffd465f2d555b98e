"""Classes that were given up: a posted graph gets their successors."""

from typing import Any

from comfy_fleet.sim.catalogue import Catalogue


def replace(graph: dict[str, Any], catalogue: Catalogue) -> None:
    """Replace nodes whose class is not here but has a successor that is, in place.

    A successor gets the inputs that its entry in ``/node_replacements`` maps, and no others. No entry moves
    an output to another place, so links stay as they are.

    Raises:
        KeyError: Such a node has no ``_meta``; ComfyUI answers that with a 500.
    """
    for node_id, node in graph.items():
        entries = catalogue.replacements.get(node.get("class_type"))
        if not entries or catalogue.find(node["class_type"]) or not catalogue.find(entries[0]["new_node_id"]):
            continue
        given, inputs = node.get("inputs", {}), {}
        for move in entries[0]["input_mapping"] or ():
            if "set_value" in move:
                inputs[move["new_id"]] = move["set_value"]
            elif move["old_id"] in given:
                inputs[move["new_id"]] = given[move["old_id"]]
        graph[node_id] = {
            "class_type": entries[0]["new_node_id"],
            "inputs": inputs,
            "_meta": node["_meta"],
        }
